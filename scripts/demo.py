"""The whole job on this machine: pictures in, a signed model serving on a device, three times.

Starts an S3 store, an MQTT broker and luigid on free loopback ports and a device daemon, runs
`luigi ... Deploy` three times (first pictures, new pictures, nothing new), and shows what happened.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from device_watcher import DeviceWatcher, device_settings, running_device, write_settings
from local_services import MqttBroker, ObjectStore, Scheduler, wait_until
from pipeline_under_test import REPORT_IMPORTS
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from luigi_tasks.release.keys import make_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.contract.messages import DeviceStatus

REPOSITORY = Path(__file__).resolve().parents[1]
FLEET, DEVICE, CHANNEL = "demo", "camera-1", "stable"
HOLDOUT_PERCENT = 20.0
NEW_PICTURES_PERCENT = 10.0
DEPLOY_LIMIT_S = 1800.0

console = Console(highlight=False, soft_wrap=True)


@dataclasses.dataclass(frozen=True)
class Network:
    """The model settings of this demo."""

    architecture: str
    alpha: float
    input_size: int
    weights: str


def main() -> int:
    """Run the demo; exit code 0 when everything worked."""
    options = parse_arguments()
    work = Path(tempfile.mkdtemp(prefix="edge-demo-"))
    # A plain `kill` unwinds like Ctrl-C, so that nothing is left running.
    signal.signal(signal.SIGTERM, lambda _n, _f: sys.exit(143))
    try:
        with contextlib.ExitStack() as stack:
            demo = Demo(options, work, stack)
            demo.run()
            if options.keep:
                demo.wait_for_user()
    finally:
        if not options.keep:
            shutil.rmtree(work, ignore_errors=True)
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scripts/demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument(
        "--data", type=Path, help="your folder of pictures, one folder a class (default: small digits)"
    )
    parser.add_argument(
        "--weights", type=Path, help="no-top ImageNet weights (.h5, named as Keras names them) for --data"
    )
    options = parser.parse_args()
    if options.data is not None and not options.data.is_dir():
        parser.error(f"--data {options.data}: no such folder")
    if options.weights is not None and not options.weights.is_file():
        parser.error(f"--weights {options.weights}: no such file")
    return options


def choose_network(options: argparse.Namespace) -> Network:
    """Return a network that fits the weights, or a small one to train from scratch."""
    if options.weights is None:
        size = 32 if options.data is None else 96
        return Network("mobilenet_v1", 0.25, size, "none")
    name = options.weights.name
    patterns = {
        r"mobilenet_v2_weights_.*_kernels_([\d.]+)_(\d+)_no_top": "mobilenet_v2",
        r"mobilenet_(\d_\d+)_(\d+)_tf_no_top": "mobilenet_v1",
    }
    for pattern, architecture in patterns.items():
        if found := re.search(pattern, name):
            alpha = float(found[1].replace("_", "."))
            return Network(architecture, alpha, int(found[2]), str(options.weights.resolve()))
    sys.exit(f"--weights {name}: keep the file name that Keras gives it, it identifies the network")


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
        self.pictures = work / "pictures"
        self.camera = work / "camera"
        self.camera.mkdir()
        self.held_back: list[Path] = []
        self.configuration = self.write_pipeline_settings()
        self.watcher = stack.enter_context(DeviceWatcher(self.broker, FLEET, DEVICE))
        self.device = stack.enter_context(
            running_device(self.write_device_settings(), work / "device.log", self.store)
        )
        self.watcher.wait_for(lambda status: status.state == "waiting", "the device to report")
        say(f"  device daemon {DEVICE}: waiting for a first release on channel {CHANNEL}\n")

    def run(self) -> None:
        """Show the three runs."""
        self.gather_pictures()
        self.first_run()
        self.second_run()
        self.third_run()

    def gather_pictures(self) -> None:
        """Copy the data set, some of it held back to arrive later, the hold-out also for the camera."""
        source = self.options.data or self.make_digits()
        files = sorted(path for path in source.glob("*/*") if path.is_file() and path.name[0] != ".")
        self.answers: dict[str, str] = {}
        self.holdout: list[Path] = []
        for path in files:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            if share_of(digest[:8]) < HOLDOUT_PERCENT:
                # The gate's own rule: no run trains on these, so the device may be judged by them.
                name = f"{path.parent.name}-{digest[:12]}{path.suffix.lower()}"
                self.answers[name] = path.parent.name
                self.holdout.append(path)
            if share_of(digest[8:16]) < NEW_PICTURES_PERCENT:
                self.held_back.append(path)
            else:
                self.add_picture(path)

    def make_digits(self) -> Path:
        """Write out the digits that scikit-learn ships."""
        from luigi_tasks.dataset.presets import write_digits  # noqa: PLC0415 - scikit-learn takes a second

        return write_digits(self.work / "cache")

    def add_picture(self, path: Path) -> None:
        """Let one picture arrive in the dataset folder."""
        target = self.pictures / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)

    def first_run(self) -> None:
        """Pictures in, a model out."""
        say("[bold]Run 1[/]: pictures -> snapshot -> train -> int8 -> gate -> sign -> S3 -> MQTT -> device")
        seconds = self.deploy()
        status = self.wait_for_release(None)
        self.classify_holdout()
        self.report(status, seconds)
        self.first_release = status.release

    def second_run(self) -> None:
        """New pictures, a new model, no frame missed."""
        for path in self.held_back:
            self.add_picture(path)
        say(
            f"[bold]Run 2[/]: {len(self.held_back)} new pictures arrive; the same command, "
            "while the camera keeps taking pictures"
        )
        self.watcher.clear()
        with self.feeding() as fed:
            seconds = self.deploy()
            status = self.wait_for_release(self.first_release)
        wait_until(lambda: len(self.watcher.results) >= len(fed), "the last pictures of the swap", 60)
        results = sorted(self.watcher.results, key=lambda result: result.frame)
        swaps = sum(before.release != after.release for before, after in itertools.pairwise(results))
        first = results[0].frame
        missed = len(fed) - len({result.source for result in results})
        gapless = [result.frame for result in results] == list(range(first, first + len(results)))
        say(
            f"  through the update: {len(fed)} pictures taken, {missed} missed, frame numbers "
            f"{'without a hole' if gapless else 'with HOLES'}, {swaps} swap between two frames"
        )
        self.watcher.clear()
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
                self.luigi_command(), env=self.environment(), stdout=file, stderr=file, cwd=REPOSITORY
            )
            try:
                show_tasks(process, self.scheduler)
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            sys.exit(f"luigi ended with {process.returncode}; its log ends:\n{tail(log)}")
        return time.monotonic() - started

    def wait_for_release(self, earlier: str | None) -> DeviceStatus:
        """Wait until the device serves another release than `earlier`."""
        with self.feeding():  # the first answer by the new release ends the update's clock
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

        def feed() -> None:
            number = 0
            while not stop.wait(0.1):
                picture = self.holdout[number % len(self.holdout)]
                number += 1
                fed.append(
                    drop_picture(picture, self.camera, f"live-{time.monotonic_ns()}{picture.suffix.lower()}")
                )

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
        for name, picture in zip(self.answers, self.holdout, strict=True):
            drop_picture(picture, self.camera, name)
        wait_until(
            lambda: len({r.source for r in self.watcher.results} & set(self.answers)) == len(self.answers),
            "the device's answers",
            120,
        )

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
        say(f"Everything is still running; files lie in {self.work}. Try, in another terminal:")
        say(f"  edge-client status --config {self.work}/device.toml")
        say(f"  drop a picture into {self.camera}")
        say(f"  open {self.scheduler.url}   (task EvaluateModel links to its report)")
        say("Ctrl-C ends it all and removes the files.")
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        shutil.rmtree(self.work, ignore_errors=True)

    def luigi_command(self, *, report_imports: bool = False) -> list[str]:
        """Return the command that a user would type."""
        arguments = [
            "--module",
            "luigi_tasks",
            "Deploy",
            "--pictures",
            str(self.pictures),
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
        settings = {"LUIGI_CONFIG_PATH": str(self.configuration), "PYTHONPATH": str(REPOSITORY)}
        return {**os.environ, **self.store.credentials(), **settings}

    def write_pipeline_settings(self) -> Path:
        """Write what differs from luigi.cfg."""
        network = self.network
        scratch = network.weights == "none"
        training: dict[str, object] = {"mode": "head"}
        if scratch:  # found by trial on the digits
            training = {
                "mode": "finetune",
                "epochs": 48,
                "augmented_copies": 3,
                "batch_size": 128,
                "learning_rate": 0.01,
                "horizontal_flip": "false" if self.options.data is None else "true",
                "hidden_units": 0,
                "dropout": 0.1,
            }
        sections: dict[str, dict[str, object]] = {
            "dataset": {"cache_dir": self.work / "cache", "holdout_percent": HOLDOUT_PERCENT},
            "model": dataclasses.asdict(network),
            "training": training,
            "gate": {
                "min_accuracy": 0.9 if self.options.data is None else 0.5,
                # It shows the way of a release; with few pictures, log and report say what is thin.
                "thin_evidence": "publish",
            },
            "store": {
                "url": f"s3://{self.store.bucket}/demo",
                "endpoint_url": self.store.endpoint_url,
                "region": "us-east-1",
            },
            "trust": {"root": self.work / "keys/device/root.json", "keys": self.work / "keys/pipeline"},
            "broker": {"host": self.broker.host, "port": self.broker.port, "fleet": FLEET},
            "release": {"channel": CHANNEL},
        }
        path = self.work / "luigi.cfg"
        path.write_text(
            "".join(
                f"[{section}]\n" + "".join(f"{name} = {value}\n" for name, value in values.items())
                for section, values in sections.items()
            )
        )
        return path

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
        sections["source"] = {"path": str(self.camera), "after": "delete", "settle_s": 0.0}
        sections["status"] = {"interval_s": 2.0}
        return write_settings(self.work / "device.toml", sections)


def show_tasks(process: subprocess.Popen[bytes], scheduler: Scheduler) -> None:
    """Draw a bar for each task, from what luigid's own page shows, until the run ends."""
    columns = (
        TextColumn("  {task.description:<16}"),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[state]:<8}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    bars: dict[str, Any] = {}
    deadline = time.monotonic() + DEPLOY_LIMIT_S
    with Progress(*columns, console=console) as progress:
        while True:
            ended = process.poll() is not None
            for identity, task in sorted(
                luigi_tasks(scheduler).items(), key=lambda item: item[1].get("time_running") or 9e9
            ):
                if task["status"] == "DONE" and identity not in bars:
                    continue  # done by an earlier run
                if identity not in bars:
                    bars[identity] = progress.add_task(task["name"], total=100, state="", message="")
                done = task["status"] == "DONE"
                progress.update(
                    bars[identity],
                    completed=100 if done else task.get("progress") or 0,
                    state=str(task["status"]).lower(),
                    message=task.get("message") or "",
                )
                if done:
                    progress.stop_task(bars[identity])
            if ended:
                return
            if time.monotonic() > deadline:
                process.kill()
                sys.exit(f"the run took over {DEPLOY_LIMIT_S:.0f} s")
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.3)


def luigi_tasks(scheduler: Scheduler) -> dict[str, dict[str, Any]]:
    """Return luigid's record of each task."""

    def ask(method: str, **arguments: object) -> Any:  # noqa: ANN401
        query = urllib.parse.urlencode({"data": json.dumps(arguments)})
        with urllib.request.urlopen(f"{scheduler.url}/api/{method}?{query}", timeout=10) as answer:  # noqa: S310
            return json.load(answer)["response"]

    tasks: dict[str, dict[str, Any]] = ask("task_list", status="", upstream_status="")
    for identity, task in tasks.items():
        message = ask("get_task_status_message", task_id=identity)["statusMessage"]
        tasks[identity] = {
            **task,
            "message": message,
            "progress": ask("get_task_progress_percentage", task_id=identity)["progressPercentage"],
        }
    return tasks


def drop_picture(picture: Path, folder: Path, name: str) -> str:
    """Put a picture into a watched folder in one step."""
    temporary = folder.parent / f".{name}"
    shutil.copyfile(picture, temporary)
    temporary.replace(folder / name)
    return name


def share_of(hex_digits: str) -> float:
    """Map hex digits to 0-100."""
    return int(hex_digits, 16) * 100 / float(1 << 4 * len(hex_digits))


def say(text: str) -> None:
    """Print a line."""
    console.print(text)


def tail(path: Path, lines: int = 40) -> str:
    """Return the end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


if __name__ == "__main__":
    sys.exit(main())
