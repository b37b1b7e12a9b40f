"""The demo of a fleet: cameras in three shops, a good release in stages, and a bad one that is halted.

A third of the cameras are infrared: they see negatives. Some devices have a slow runtime. The bad release
learned from a dataset that somebody tidied up: without the negatives. Its hold-out has none either, so the
gate, which judges by the hold-out, lets it pass; only cameras can tell.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

from demo_board import running_board, say_where
from demo_settings import choose_network, write_pipeline_settings
from demo_words import explain_failure, say, tail
from device_watcher import end_process, write_settings
from local_services import MqttBroker, ObjectStore, Scheduler, wait_until
from rich.markup import escape

from luigi_tasks.release.keys import make_keys

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from demo_fleet_pictures import FleetPictures

REPOSITORY = Path(__file__).resolve().parents[1]
SITES = ("harbour", "north", "south")
DAY, INFRARED = "day", "infrared"
# Pictures that each camera takes in a second.
PICTURES_PER_S = 4.0
STAGES = "1d,3d,50%,100%"
# A look follows the one before after so long, as cron's would after minutes.
LOOK_EVERY_S = 2.0
ROLLOUT_LIMIT_S = 240.0


class Camera(NamedTuple):
    """A device of the demo."""

    name: str
    site: str
    kind: str
    is_slow: bool


class FleetDemo:
    """The services, the devices and the two rollouts."""

    def __init__(self, options: argparse.Namespace, work: Path, stack: contextlib.ExitStack) -> None:
        self.work = work
        self.stack = stack
        self.cameras = make_cameras(options.fleet)
        say("Starting S3 (SeaweedFS), an MQTT broker and luigid on free loopback ports")
        self.store = stack.enter_context(ObjectStore(work / "s3"))
        self.broker = stack.enter_context(MqttBroker(work / "mqtt"))
        self.scheduler = stack.enter_context(Scheduler(work / "luigid"))
        say(
            f"  S3 {self.store.endpoint_url}   MQTT {self.broker.product} "
            f"{self.broker.host}:{self.broker.port}   luigid [bold]{self.scheduler.url}[/]"
        )
        make_keys(work / "keys")
        self.configuration = self.write_settings()
        os.environ.update(self.settings_of_pipeline())
        self.board = stack.enter_context(running_board(work)) if options.board else ""
        if self.board:
            say(f"  board [bold]{self.board}[/]")

    def run(self) -> None:
        """Show a first release, a good one in stages, and a bad one."""
        from demo_fleet_pictures import FleetPictures  # noqa: PLC0415 - reads the settings

        pictures = FleetPictures(self.work / "pictures")
        self.first_release(pictures)
        self.start_fleet(pictures)
        self.good_release(pictures)
        self.bad_release(pictures)

    def first_release(self, pictures: FleetPictures) -> None:
        """Deploy at once: nobody is there yet."""
        say(f"[bold]First release[/]: {pictures.write_first()} pictures, of daylight and infrared cameras")
        self.luigi("Deploy", "--pictures", str(pictures.folder), "--rollout-stages", "")
        self.check_published()
        say("  the channel points to it: there are no devices yet\n")

    def start_fleet(self, pictures: FleetPictures) -> None:
        """Enroll the devices, start them and the collector."""
        slow = [one.name for one in self.cameras if one.is_slow]
        say(
            f"[bold]{len(self.cameras)} devices[/] in {len(SITES)} shops; every third camera is infrared; "
            f"{' and '.join(slow)} have a slow runtime"
        )
        self.edge_fleet("collector-key")
        self.enroll()
        self.stack.enter_context(self.collector())
        for camera in self.cameras:
            self.stack.enter_context(self.device(camera))
        self.stack.enter_context(self.feeding(pictures))
        wait_until(self.all_serve, "all devices to serve", 60)
        say("  all of them serve the first release, and say so to the collector\n")

    def good_release(self, pictures: FleetPictures) -> None:
        """New pictures, and a release that is good for everybody."""
        new = pictures.add_new()
        say(f"[bold]A good release[/]: {new} new pictures; the same Deploy, now in stages {STAGES}")
        self.deploy(pictures)
        record = self.follow()
        if record["state"] != "done":
            sys.exit(f"the good release ended {record['state']}:\n{self.edge_fleet('rollouts', 'current')}")
        say("  done: the channel points to it\n")

    def bad_release(self, pictures: FleetPictures) -> None:
        """A tidied dataset, and a release that infrared cameras cannot use."""
        say(
            f"[bold]A bad release[/]: somebody tidied the dataset up and removed {pictures.tidy_up()} "
            "pictures that looked odd: all negatives.\n"
            "  The hold-out has none either, so the gate sees nothing wrong"
        )
        self.deploy(pictures)
        record = self.follow()
        if record["state"] not in {"halted", "back"}:
            sys.exit(f"the bad release ended {record['state']}:\n{self.edge_fleet('rollouts', 'current')}")
        self.tell_who_was_hit()
        say("\n[bold]edge-fleet status[/]\n" + escape(indented(self.edge_fleet("status"))))

    def tell_who_was_hit(self) -> None:
        """Say in plain words what the verdict found."""
        verdict = json.loads(self.edge_fleet("rollouts", "current", "--json"))["verdict"]
        hit = [one for one in verdict["examples"] if one["state"] == "sent_back"]
        spared = sum(one.kind == INFRARED for one in self.cameras) - len(hit)
        names = ", ".join(one["device"] for one in hit)
        say(f"  who tried it, was unsure of what it saw, and went back by itself: {names}")
        for one in hit[:3]:
            say(f"    {one['device']}: {one['device_class']}, {one['site']}; {escape(one['reason'])}")
        for one in verdict.get("common", [])[:3]:
            say(
                f"  in common: {escape(one['fact'])}: {one['hit']} of {one['hit_of']} that were hit, "
                f"{one['others']} of {one['others_of']} that were not"
            )
        say(f"  {spared} more infrared cameras never had it")

    # The pipeline

    def deploy(self, pictures: FleetPictures) -> None:
        """Run Deploy, which starts a rollout."""
        started = time.monotonic()
        self.luigi("Deploy", "--pictures", str(pictures.folder))
        self.check_published()
        say(f"  trained, passed the gate, signed: {time.monotonic() - started:.0f} s")

    def check_published(self) -> None:
        """End the demo if the gate let the last Deploy publish nothing."""
        log = (self.work / "luigi.log").read_text(errors="replace")
        if "PublishRelease took " not in log:
            sys.exit(f"nothing was published; the log of Deploy ends:\n{tail(self.work / 'luigi.log')}")

    def follow(self) -> dict[str, Any]:
        """Look at the rollout again and again, as cron does, until it ends; return its record."""
        deadline = time.monotonic() + ROLLOUT_LIMIT_S
        told = 0
        while True:
            self.luigi("AdvanceRollout", may_fail=True)
            record = self.rollout()
            for event in record["events"][told:]:
                say(f"  {event['at'][11:19]}  {event['what']:<8} {escape(event.get('why') or '')}")
            told = len(record["events"])
            if record["state"] not in {"planned", "open", "soaking", "going_back"}:
                return record
            if time.monotonic() > deadline:
                shown = self.edge_fleet("rollouts", "current")
                sys.exit(f"the rollout took over {ROLLOUT_LIMIT_S:.0f} s:\n{shown}")
            time.sleep(LOOK_EVERY_S)  # as cron: a look is nothing to wait for

    def rollout(self) -> dict[str, Any]:
        """Return the record of the rollout that runs, or that ended last."""
        found: dict[str, Any] = json.loads(self.edge_fleet("rollouts", "current", "--json"))
        record: dict[str, Any] = found["rollout"]
        return record

    def luigi(self, task: str, *arguments: str, may_fail: bool = False) -> None:
        """Run a task as a user does."""
        log = self.work / "luigi.log"
        command = [str(Path(sys.executable).with_name("luigi")), "--module", "luigi_tasks", task, *arguments]
        command += ["--scheduler-host", self.scheduler.host, "--scheduler-port", str(self.scheduler.port)]
        with log.open("w") as file:
            ran = subprocess.run(command, stdout=file, stderr=file, cwd=REPOSITORY, check=False)
        if ran.returncode and not may_fail:
            sys.exit(f"{task} ended with {ran.returncode}: {explain_failure(log)}")

    def edge_fleet(self, *arguments: str) -> str:
        """Run `edge-fleet`; return what it says."""
        command = [sys.executable, "-m", "luigi_tasks.edge_fleet", *arguments]
        ran = subprocess.run(command, capture_output=True, text=True, cwd=self.work, check=False)
        if ran.returncode:
            sys.exit(f"edge-fleet {shlex.join(arguments)} ended with {ran.returncode}: {ran.stderr[-2000:]}")
        return ran.stdout

    def write_settings(self) -> Path:
        """Write the pipeline's settings: stages of seconds instead of hours."""
        network = choose_network(SimpleNamespace(weights=None, data=None))  # type: ignore[arg-type]
        path = write_pipeline_settings(
            self.work, network, self.store, self.broker, self.scheduler, pictures=0, is_photographs=False
        )
        sections: dict[str, dict[str, object]] = {
            # In a fleet of twelve, one failure is one too many.
            "rollout": {"stages": STAGES, "errors": "10%|1d", "soak": "4s", "stage_timeout": "2m"},
            "fleet": {
                "collector_key_file": self.work / "keys/collector.pem",
                "database_file": self.work / "collector.sqlite",
                "period_s": 5,
                "snapshot_s": 1.5,
                "max_reports_per_min": 600,
            },
        }
        with path.open("a") as file:
            for section, values in sections.items():
                file.write(f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in values.items()))
        text = path.read_text()
        path.write_text(re.sub(r"(?m)^epochs = .*$", "epochs = 24", text))
        return path

    def settings_of_pipeline(self) -> dict[str, str]:
        """Return what the pipeline needs in its environment."""
        settings = {"LUIGI_CONFIG_PATH": str(self.configuration), "PYTHONPATH": str(REPOSITORY)}
        return {**self.store.credentials(), **settings}

    # The fleet

    def enroll(self) -> None:
        """Enroll all devices from one file; each gets a bundle."""
        template: dict[str, dict[str, object]] = {
            "store": {"base_url": f"{self.store.endpoint_url}/{self.store.bucket}/demo"},
            "update": {"poll_s": 60.0},
            "status": {"interval_s": 2.0, "report_interval_s": 2.0},
            # All devices share the cores of this machine: its latencies are nobody's fault.
            "probation": {"frames": 20, "seconds": 60.0, "max_slowdown": 20.0, "max_unsure_points": 20},
            "sinks": {"mqtt": False},
            # What a release is not sure of is there to be labelled.
            "inbox": {"unsure": True, "upload": True, "upload_s": 5.0, "per_hour": 60.0},
        }
        write_settings(self.work / "all.toml", template)
        with (self.work / "devices.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("device", "site", "tags", "class"))
            rows.writerows((one.name, one.site, "", one.kind) for one in self.cameras)
        options = ("--from", "devices.csv", "--settings", "all.toml", "--anonymous", "--out", "enrolled")
        self.edge_fleet("enroll", *options)

    @contextlib.contextmanager
    def collector(self) -> Iterator[None]:
        """Run `edge-fleet collect`."""
        command = [sys.executable, "-m", "luigi_tasks.edge_fleet", "collect"]
        with running(command, self.work / "collector.log"):
            yield

    @contextlib.contextmanager
    def device(self, camera: Camera) -> Iterator[None]:
        """Unpack a device's bundle and run its daemon."""
        folder = self.work / "devices" / camera.name
        (folder / "camera").mkdir(parents=True)
        with tarfile.open(self.work / "enrolled" / f"{camera.name}.tar") as bundle:
            bundle.extractall(folder, filter="data")
        settings = folder / "device.toml"
        text = settings.read_text()
        place = json.dumps(str(folder / "camera"))
        state = json.dumps(str(folder / "state"))
        text = text.replace("[device]\n", f"[device]\nstate_dir = {state}\nthreads = 1\n")
        settings.write_text(f'{text}\n[source]\npath = {place}\nafter = "delete"\nsettle_s = 0.0\n')
        program = (
            [str(REPOSITORY / "scripts/slow_device.py")] if camera.is_slow else ["-m", "edge_client.cli"]
        )
        credentials = {
            "AWS_ACCESS_KEY_ID": self.store.device_access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.device_secret_key,
        }
        command = [sys.executable, *program, "run", "--config", str(settings)]
        with running(command, folder / "device.log", credentials):
            yield

    @contextlib.contextmanager
    def feeding(self, pictures: FleetPictures) -> Iterator[None]:
        """Let every camera take pictures, until the block ends."""
        stop = threading.Event()

        def feed() -> None:
            taken = {kind: itertools.cycle(pictures.seen_by(kind)) for kind in (DAY, INFRARED)}
            pause_s = 1 / PICTURES_PER_S / len(self.cameras)
            for number, camera in enumerate(itertools.cycle(self.cameras)):
                if stop.wait(pause_s):
                    return
                folder = self.work / "devices" / camera.name
                temporary = folder / f"{number}.png"
                temporary.write_bytes(next(taken[camera.kind]))
                temporary.replace(folder / "camera" / temporary.name)

        thread = threading.Thread(target=feed)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def all_serve(self) -> bool:
        """Whether the collector knows of each device that it serves a release."""
        rows = json.loads(self.edge_fleet("devices", "--json", "--limit", "0"))["devices"]
        serving = sum(bool((row.get("report") or {}).get("release")) for row in rows)
        return serving == len(self.cameras)

    def wait_for_user(self) -> None:
        """Leave everything up until Ctrl-C."""
        say(f"Everything is still running; its files lie in {self.work}. Try, in another terminal:\n")
        path = self.work / "environment"
        path.touch(mode=0o600)
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.settings_of_pipeline().items()]
        path.write_text("\n".join([*lines, f"cd {shlex.quote(str(self.work))}", ""]))
        command = shlex.join([sys.executable, "-m", "luigi_tasks.edge_fleet"])
        for words, arguments in (
            ("the fleet", "status"),
            ("its devices", "devices"),
            ("the rollout that was halted", "rollouts current"),
            ("why a device serves what it serves", f"why {self.cameras[2].name}"),
        ):
            say(f"  # {words}\n  . {shlex.quote(str(path))}; {command} {arguments}")
        say(f"\nand open {self.scheduler.url}")
        if self.board:
            say_where(self.board)
        say("Ctrl-C ends it all and removes the files.")
        threading.Event().wait()


def make_cameras(count: int) -> tuple[Camera, ...]:
    """Return the devices: in turn in each shop, every third infrared, one in six with a slow runtime."""
    return tuple(
        Camera(
            f"cam-{number:02}",
            SITES[number // 3 % len(SITES)],
            INFRARED if number % 3 == 2 else DAY,
            is_slow=number % 6 == 4,
        )
        for number in range(count)
    )


@contextlib.contextmanager
def running(command: list[str], log: Path, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Run a service until the block ends."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, **(environment or {})},
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield
        if process.poll() is not None:
            sys.exit(f"{shlex.join(command)} ended with {process.returncode}: {tail(log)}")
    finally:
        end_process(process)


def indented(text: str) -> str:
    """Return a text two columns further right."""
    return "".join(f"  {line}\n" for line in text.splitlines())
