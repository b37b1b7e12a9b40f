"""The whole job on this machine: pictures in, a signed model serving on a device, three times.

Starts an S3 store, an MQTT broker and luigid on free loopback ports and a device daemon, runs
`luigi ... Deploy` three times (first pictures, new pictures, nothing new), and shows what happened.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from demo_board import running_board, say_where
from demo_settings import CHANNEL, FLEET, choose_network, write_pipeline_settings
from demo_words import console, explain_failure, say
from device_watcher import DeviceWatcher, device_settings, running_device, write_settings
from local_services import MqttBroker, ObjectStore, Scheduler, wait_until
from pipeline_under_test import REPORT_IMPORTS
from rich.markup import escape
from task_bars import luigi_tasks, show_tasks

from edge_client.contract.errors import EdgeError
from edge_client.contract.text import one_line
from luigi_tasks.release.keys import make_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from demo_fleet import FleetDemo
    from demo_pictures import DemoPictures

    from edge_client.contract.messages import DeviceStatus

REPOSITORY = Path(__file__).resolve().parents[1]
DEVICE = "camera-1"
LEAST_FLEET, LARGEST_FLEET = 6, 48
EDGE_CLIENT = Path(sys.executable).with_name("edge-client")


def main() -> int:
    """Run the demo; exit code 0 when everything worked."""
    options = parse_arguments()
    # `kill`, a closed terminal and Ctrl-C unwind, also where a shell ignores the latter for what runs in its
    # background, so that nothing is left running.
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    work = Path(tempfile.mkdtemp(prefix="edge-demo-"))
    try:
        with contextlib.ExitStack() as stack:
            stack.callback(be_patient)
            demo = open_demo(options, work, stack)
            demo.run()
            if options.keep or options.board:
                demo.wait_for_user()
    except EdgeError as e:
        sys.exit(f"scripts/demo: {in_words_of_demo(one_line(str(e)))}")
    finally:
        # All that writes there has ended.
        shutil.rmtree(work, ignore_errors=True)
    return 0


def open_demo(options: argparse.Namespace, work: Path, stack: contextlib.ExitStack) -> Demo | FleetDemo:
    """Start the services and devices of the demo that was asked for."""
    if not options.fleet:
        return Demo(options, work, stack)
    from demo_fleet import FleetDemo  # noqa: PLC0415 - one device does without

    return FleetDemo(options, work, stack)


def be_patient() -> None:
    """Let nothing interrupt the end of the services and the removal of their files, which take seconds."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument(
        "--board",
        action="store_true",
        help="web pages beside it, whose address is printed; everything is left running, as with --keep",
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="your pictures, one folder a class: a folder, or a zip or tar file (default: small digits)",
    )
    parser.add_argument(
        "--weights", type=Path, help="no-top ImageNet weights (.h5, named as Keras names them) for --data"
    )
    parser.add_argument(
        "--fleet",
        type=int,
        default=0,
        metavar="N",
        help=f"{LEAST_FLEET} to {LARGEST_FLEET} devices instead of one, in three shops: a good release is "
        "rolled out in stages, a bad one is halted",
    )
    options = parser.parse_args()
    if options.fleet and not LEAST_FLEET <= options.fleet <= LARGEST_FLEET:
        parser.error(f"--fleet {options.fleet}: {LEAST_FLEET} to {LARGEST_FLEET} devices")
    if options.fleet and (options.data or options.weights):
        parser.error("--fleet has pictures of its own: without --data and --weights")
    if options.data is not None and not options.data.exists():
        parser.error(f"--data {options.data}: no such folder or file")
    if options.weights is not None and not options.weights.is_file():
        parser.error(f"--weights {options.weights}: no such file")
    return options


class Demo:
    """The services of the demo, and its three runs."""

    def __init__(self, options: argparse.Namespace, work: Path, stack: contextlib.ExitStack) -> None:
        self.options = options
        self.work = work
        self.network = choose_network(options)
        say("Starting S3 (SeaweedFS), an MQTT broker and luigid on free loopback ports")
        self.store = stack.enter_context(ObjectStore(work / "s3"))
        self.broker = stack.enter_context(MqttBroker(work / "mqtt"))
        self.scheduler = stack.enter_context(Scheduler(work / "luigid"))
        say(
            f"  S3 {self.store.endpoint_url}   "
            f"MQTT {self.broker.product} {self.broker.host}:{self.broker.port}"
        )
        say(f"  luigid's page: [bold]{self.scheduler.url}[/]")
        make_keys(work / "keys")
        say("  signing keys made: the root apart, the pipeline's four, and root.json for the device")
        self.camera = work / "camera"
        self.camera.mkdir()
        # This process reads these settings as the pipeline does, which then gets a recipe for the pictures.
        self.configuration = self.write_settings(pictures=0)
        os.environ.update(self.settings_of_pipeline())
        self.pictures = self.gather_pictures()
        self.write_settings(self.pictures.total)
        self.holdout = work / "holdout"
        self.board = stack.enter_context(running_board(work)) if options.board else ""
        self.watcher = stack.enter_context(DeviceWatcher(self.broker, FLEET, DEVICE))
        self.device = stack.enter_context(
            running_device(self.write_device_settings(), work / "device.log", self.store)
        )
        self.watcher.wait_for(lambda status: status.state == "waiting", "the device to report")
        say(f"  device daemon {DEVICE}: waiting for a first release on channel {CHANNEL}\n")

    def run(self) -> None:
        """Show the three runs."""
        if self.options.data is not None and self.network.weights == "none":
            say(
                "No ImageNet weights: they cannot be downloaded here, and --weights names none. From scratch,"
            )
            say("training takes longer, and a few thousand photographs make a weak model.\n")
        self.first_run()
        self.second_run()
        self.third_run()

    def write_settings(self, pictures: int) -> Path:
        """Write the pipeline's settings, for about so many pictures."""
        return write_pipeline_settings(
            self.work,
            self.network,
            self.store,
            self.broker,
            self.scheduler,
            pictures=pictures,
            is_photographs=self.options.data is not None,
        )

    def gather_pictures(self) -> DemoPictures:
        """Copy the dataset, but for what arrives later."""
        from demo_pictures import DemoPictures  # noqa: PLC0415 - reads the settings

        url = "preset:digits" if self.options.data is None else str(self.options.data.resolve())
        return DemoPictures(url, self.work / "pictures")

    def first_run(self) -> None:
        """Pictures in, a model out."""
        say("[bold]Run 1[/]: pictures -> snapshot -> train -> int8 -> gate -> sign -> S3 -> MQTT -> device")
        seconds = self.deploy()
        if self.released() is None:
            sys.exit(f"no release: {self.verdict()}")
        self.take_holdout()
        with self.feeding():  # the first answer by the new release ends the update's clock
            status = self.wait_for_release(None)
        self.classify_holdout()
        self.report(status, seconds)
        self.first_release = status.release

    def second_run(self) -> None:
        """New pictures, a new model, no frame missed."""
        say(
            f"[bold]Run 2[/]: {self.pictures.add_new()} new pictures arrive; the same command, "
            "while the camera keeps taking pictures"
        )
        self.watcher.clear()
        with self.feeding() as fed:
            seconds = self.deploy()
            if self.released() == self.first_release:
                say(f"  no new release, the device goes on with its own: {escape(self.verdict())}\n")
                return
            status = self.wait_for_release(self.first_release)
        with contextlib.suppress(TimeoutError):  # a missed one is told below
            wait_until(lambda: {*fed} <= self.watcher.sources(), "the last pictures of the swap", 60)
        results = sorted(self.watcher.results, key=lambda result: result.frame)
        swaps = sum(before.release != after.release for before, after in itertools.pairwise(results))
        first = results[0].frame
        missed = len({*fed} - self.watcher.sources())
        gapless = [result.frame for result in results] == list(range(first, first + len(results)))
        say(
            f"  through the update: {len(fed)} pictures taken, {missed} missed, frame numbers "
            f"{'without a hole' if gapless else 'with HOLES'}, {swaps} swap between two frames"
        )
        self.take_holdout()
        self.classify_holdout()
        self.report(status, seconds)
        if missed or not gapless:
            sys.exit("pictures were missed during the swap")

    def third_run(self) -> None:
        """Nothing new, nothing to do."""
        say("[bold]Run 3[/]: nothing new")
        started = time.monotonic()
        output = subprocess.run(
            self.luigi_command(report_imports=True),
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            cwd=REPOSITORY,
        )
        seconds = time.monotonic() - started
        imported = "tensorflow imported: True" in output.stdout
        if output.returncode or imported or "tensorflow imported: False" not in output.stdout:
            sys.exit(
                f"run 3 failed ({output.returncode}), TensorFlow imported: {imported}\n"
                f"{output.stderr[-2000:]}"
            )
        say(f"  done in {seconds:.1f} s, TensorFlow was not imported\n")

    def deploy(self) -> float:
        """Run Deploy under luigid and show its tasks; return the seconds."""
        log = self.work / "luigi.log"
        started = time.monotonic()
        with log.open("a") as file:
            process = subprocess.Popen(
                self.luigi_command(),
                env=self.environment(),
                stdout=file,
                stderr=file,
                cwd=REPOSITORY,
                start_new_session=True,
            )
            try:
                show_tasks(process, self.scheduler, console)
            except BaseException:
                os.killpg(process.pid, signal.SIGKILL)  # with its children
                process.wait()
                raise
        if process.returncode != 0:
            sys.exit(f"luigi ended with {process.returncode}: {in_words_of_demo(explain_failure(log))}")
        return time.monotonic() - started

    def released(self) -> str | None:
        """Return the release that the channel points to."""
        from luigi_tasks import steps  # noqa: PLC0415 - reads the settings
        from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415
        from luigi_tasks.workspace import open_workspace  # noqa: PLC0415

        return steps.current_release(open_workspace(load_settings(str(self.pictures.folder))))

    def verdict(self) -> str:
        """Return what the gate said last, and what helps."""
        tasks = [one for one in luigi_tasks(self.scheduler).values() if one["name"] == "EvaluateModel"]
        last = max(tasks, key=lambda one: one.get("time_running") or 0, default={})
        way_out = (
            ""
            if self.network.weights != "none"
            else "; --weights gives better models than training from scratch"
        )
        return f"{last.get('message') or 'the gate refused the candidate'}{way_out}"

    def take_holdout(self) -> None:
        """Copy the pictures of the last run's hold-out, by which the device may be judged."""
        from demo_pictures import take_holdout  # noqa: PLC0415 - reads the settings

        self.answers = take_holdout(self.pictures.folder, self.holdout)
        if not self.answers:
            sys.exit(
                "the hold-out has no picture in a format of the device, so its camera has nothing to take"
            )

    def wait_for_release(self, earlier: str | None) -> DeviceStatus:
        """Wait until the device serves another release than `earlier`."""
        return self.watcher.wait_for(
            lambda status: (
                status.release not in {None, earlier}
                and status.update is not None
                and status.update.release == status.release
            ),
            "the device to serve the new release",
        )

    @contextlib.contextmanager
    def feeding(self) -> Iterator[list[str]]:
        """Drop pictures into the watched folder, ten a second, until the block ends."""
        fed: list[str] = []
        stop = threading.Event()
        pictures = itertools.cycle([self.holdout / name for name in self.answers])

        def feed() -> None:
            while not stop.wait(0.1):
                picture = next(pictures)
                fed.append(drop_picture(picture, self.camera, f"live-{time.monotonic_ns()}{picture.suffix}"))

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield fed
        finally:
            stop.set()
            thread.join()

    def classify_holdout(self) -> None:
        """Drop every hold-out picture into the camera's folder and wait for the results."""
        wait_until(lambda: not any(self.camera.iterdir()), "the watched folder to be worked off", 120)
        self.watcher.clear()
        for name in self.answers:
            drop_picture(self.holdout / name, self.camera, name)
        wait_until(lambda: {*self.answers} <= self.watcher.sources(), "the device's answers", 120)

    def report(self, status: DeviceStatus, seconds: float) -> None:
        """Print the device's accuracy, latency and update."""
        answers = {
            Path(r.source).name: r for r in self.watcher.results if Path(r.source).name in self.answers
        }
        right = sum(result.label == self.answers[name] for name, result in answers.items())
        latency = statistics.median(result.latency_ms for result in answers.values())
        update = status.update
        if update is None:
            sys.exit("the device reported no measurements of its update")
        say(f"  pipeline: {seconds:.1f} s; the device serves release [bold]{status.release}[/]")
        say(
            f"  on the device: accuracy [bold]{right / len(answers):.4f}[/] on {len(answers)} held-out "
            f"pictures, {latency:.2f} ms a picture"
        )
        say(
            f"  update: {update.bytes_pulled / 1000:.0f} kB pulled, {update.seconds * 1000:.0f} ms from "
            f"announcement to the first answer (previous release kept: {status.previous or 'none yet'})\n"
        )

    def wait_for_user(self) -> None:
        """Leave everything up until Ctrl-C."""
        client = shlex.join([str(EDGE_CLIENT), "{}", "--config", str(self.work / "device.toml")])
        picture = self.holdout / next(iter(self.answers))
        say(f"Everything is still running; its files lie in {self.work}. Try, in another terminal:\n")
        for words, command in (
            ("what the device does", client.replace("'{}'", "status")),
            ("whether it has all that it needs", client.replace("'{}'", "doctor")),
            ("a picture for its camera", shlex.join(["cp", str(picture), str(self.camera)])),
            ("its answer", shlex.join(["tail", "-n", "1", str(self.work / "results.jsonl")])),
            (
                "the same Deploy again, after you changed pictures/",
                shlex.join(["sh", str(self.write_deploy())]),
            ),
        ):
            say(f"  # {words}\n  {command}")
        say(f"\nand open {self.scheduler.url}   (task EvaluateModel links to its report)")
        if self.board:
            say_where(self.board)
        say("Ctrl-C ends it all and removes the files.")
        threading.Event().wait()

    def write_deploy(self) -> Path:
        """Write the pipeline's command with its environment to a file that this user alone may read."""
        path = self.work / "deploy.sh"
        settings = self.settings_of_pipeline().items()
        lines = [f"export {name}={shlex.quote(value)}" for name, value in settings]
        lines += [f"cd {shlex.quote(str(REPOSITORY))}", f"exec {shlex.join(self.luigi_command())}"]
        path.touch(mode=0o600)
        path.write_text("\n".join([*lines, ""]))
        return path

    def luigi_command(self, *, report_imports: bool = False) -> list[str]:
        """Return the command that a user would type."""
        arguments = [
            "--module",
            "luigi_tasks",
            "Deploy",
            "--pictures",
            str(self.pictures.folder),
            "--scheduler-host",
            self.scheduler.host,
            "--scheduler-port",
            str(self.scheduler.port),
        ]
        if not report_imports:
            return [str(Path(sys.executable).with_name("luigi")), *arguments]
        return [sys.executable, "-c", REPORT_IMPORTS, *arguments]

    def environment(self) -> dict[str, str]:
        """Return the environment of a pipeline run."""
        return {**os.environ, **self.settings_of_pipeline()}

    def settings_of_pipeline(self) -> dict[str, str]:
        """Return what the pipeline needs in its environment."""
        settings = {"LUIGI_CONFIG_PATH": str(self.configuration), "PYTHONPATH": str(REPOSITORY)}
        return {**self.store.credentials(), **settings}

    def write_device_settings(self) -> Path:
        """Write the device's one file."""
        sections = device_settings(
            self.work,
            device=DEVICE,
            fleet=FLEET,
            base_url=f"{self.store.endpoint_url}/{self.store.bucket}/demo",
            root=self.work / "keys/device/root.json",
            broker=self.broker,
        )
        sections["device"]["channel"] = CHANNEL
        # In a file and not in the environment, so that commands in another terminal have it too.
        sections["store"]["access_key_file"] = str(self.write_device_key())
        sections["sinks"] = {"json_lines": str(self.work / "results.jsonl")}
        sections["source"] = {"path": str(self.camera), "after": "delete", "settle_s": 0.0}
        sections["status"] = {"interval_s": 2.0}
        return write_settings(self.work / "device.toml", sections)

    def write_device_key(self) -> Path:
        """Write the device's key of the store to a file that this user alone may read."""
        path = self.work / "store-key.toml"
        path.touch(mode=0o600)
        key = {
            "access_key_id": self.store.device_access_key,
            "secret_access_key": self.store.device_secret_key,
        }
        path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in key.items()))
        return path


def drop_picture(picture: Path, folder: Path, name: str) -> str:
    """Put a picture into a watched folder in one step."""
    temporary = folder.parent / f".{name}"
    shutil.copyfile(picture, temporary)
    temporary.replace(folder / name)
    return name


def in_words_of_demo(error: str) -> str:
    """Return what the pipeline says of its options, with those of this command."""
    return error.replace("--pictures", "--data")


if __name__ == "__main__":
    sys.exit(main())
