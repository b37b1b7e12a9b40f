"""Run the README's commands as they stand there, in the order of a user's first day, on real services.

Only what names things of the user is replaced (`/data/orchard`, `RELEASE`, ports). A command of the README
that is neither run here nor listed as run elsewhere is an error, and so is one of the list that README lost.
"""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from device_watcher import device_settings, write_settings
from local_services import MqttBroker, ObjectStore, Scheduler, free_ports, wait_until
from pipeline_under_test import PipelineUnderTest

sys.path.append(str(Path(__file__).resolve().parents[1]))
from tests.fakes.small_weights import make_small_weights

if TYPE_CHECKING:
    from typing import Self

REPOSITORY = Path(__file__).resolve().parents[1]
LIMIT_S = 300
CRON_TIME_AND_USER = r"^\S+ \* \* \* \* \S+ "
PROGRAM = r"(sudo|scripts/|pip|python|luigid|luigi|edge-(keys|client|tune|fleet)|cd) \S|scripts/\w"
DEVICE_STATUS = "edge-client status --config device.toml"
PASSPHRASE = "a passphrase for the demo of README"  # noqa: S105 - of keys that this run makes and removes

# Of the README's commands those that something else runs, and what.
ELSEWHERE = {
    "scripts/demo": ".ci/run",
    "scripts/demo --fleet": ".ci/run",
    "scripts/demo --data": "by hand: photographs are too large for a repository",
    "scripts/test": ".ci/run",
    "scripts/fuzz": ".ci/run",
    "scripts/faults": "by hand: 12 minutes; tests/test_fault_table.py runs a sample",
    "scripts/test-arm": ".ci/run",
    "pip install": "scripts/environment.sh, from the checkout: the project is on no package index yet",
    "sudo scripts/install-device": "tests/install",
    "scripts/install-device --bundle": "tests/install",
    "sudo edge-client doctor": "the same as edge-client doctor, which runs here",
    "python -c": "benchmarks/noop.py, beside a Deploy with nothing to do",
    "python benchmarks/": "by hand: they measure for minutes and need photographs and weights",
    "python -m http.server": "tests/end_to_end/test_folder_store.py",
    "edge-keys make": "with its folder, below",
    "edge-tune": "tests/end_to_end/test_workers.py",
    "edge-fleet board": "tests/pipeline/board",
    "edge-fleet": "tests/pipeline/fleet",
    "luigi --module luigi_tasks AdvanceRollout": "tests/pipeline/fleet/test_tasks.py",
    "luigi --module luigi_tasks RefreshMetadata": "tests/pipeline/fleet/test_tasks.py",
    "luigi --module luigi_tasks Rollout": "tests/pipeline/fleet/test_tasks.py",
}

# The README's commands that are run here, in this order; of some, as often as a user needs them.
ORDER = (
    "edge-keys make keys",
    "luigid --address 127.0.0.1 --port 8082 &",
    "luigi --module luigi_tasks Deploy --pictures /data/orchard",
    (
        "luigi --module luigi_tasks Deploy --pictures s3://bucket/orchard --worker-keep-alive "
        "--scheduler-host luigid.example"
    ),
    "luigi --module luigi_tasks DoubtfulLabels",
    "cd /opt/edge-pipeline && luigi --module luigi_tasks Deploy >>pipeline.log 2>&1",
    "edge-client doctor --config device.toml",
    "edge-client doctor",
    "edge-client run --config device.toml",
    "edge-client status --config device.toml",
    "edge-client status",
    "edge-client classify --model M.tflite --labels labels.txt PICTURES…",
    "edge-client update",
    "edge-client update --retry",
    "edge-client export stick.tar",
    "edge-client import stick.tar",
    "luigi --module luigi_tasks ListInbox --to FOLDER",
    "luigi --module luigi_tasks TakeLabelled --labels FOLDER/labels.csv",
    "edge-keys verify RELEASE",
    "edge-keys publish --retry RELEASE",
    "edge-keys publish --force",
    "edge-keys rotate keys",
    "edge-keys renew",
    "edge-keys publish",
    "luigi --module luigi_tasks RollBack --to RELEASE",
)


def main() -> int:
    """Return 0 if the README's commands do what they say."""
    written = find_commands((REPOSITORY / "README.md").read_text())
    check_complete(written)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="readme-")))
        day = stack.enter_context(FirstDay(folder))
        for command in ORDER:
            day.run(command)
    sys.stdout.write(f"{len(ORDER)} commands of the README ran as they stand there\n")
    return 0


def find_commands(readme: str) -> list[str]:
    """Return the commands of the blocks and of the text, without comments."""
    lines, inline = [], []
    fence = ""
    for line in readme.replace("\\\n", " ").splitlines():
        if line.strip().startswith("```"):
            fence = "" if fence else line.strip()
        elif fence in {"```", "```sh"}:
            lines.append(line)
        elif not fence:
            inline.append(line)
    found = []
    for line in [*lines, *re.findall(r"`([^`\n]+)`", "\n".join(inline))]:
        command = re.sub(r"\s+#.*", "", re.sub(CRON_TIME_AND_USER, "", line.strip()))
        command = re.sub(r"\s+", " ", command)
        if re.match(PROGRAM, command):
            found.append(command)
    return found


def check_complete(written: list[str]) -> None:
    """End the program if a command of the README is not known here, or one of those known is gone."""
    unknown = [
        one for one in written if one not in ORDER and not any(one.startswith(known) for known in ELSEWHERE)
    ]
    gone = [one for one in ORDER if one not in written]
    if unknown or gone:
        sys.exit(f"README and scripts/check_readme.py differ: only README has {unknown}; README lost {gone}")


class FirstDay:
    """A pipeline and a device in one folder, with what stands in for a user's own things."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._services = contextlib.ExitStack()
        (self._luigid_port,) = free_ports(1)
        self._releases: list[str] = []

    def __enter__(self) -> Self:
        enter = self._services.enter_context
        self._store = enter(ObjectStore(self.folder / "s3"))
        self._broker = enter(MqttBroker(self.folder / "mqtt"))
        luigid: dict[str, object] = {"scheduler-host": "127.0.0.1", "scheduler-port": self._luigid_port}
        # `scheduler` is not started: the README's own luigid is the one.
        self._pipeline = PipelineUnderTest(
            self.folder,
            store=self._store,
            broker=self._broker,
            scheduler=Scheduler(self.folder / "unused"),
            settings=PipelineUnderTest.head_on(make_small_weights(self.folder), core=luigid),
            name="orchard",
        )
        self._pipeline.configure()
        self._pipeline.write_digits(25)
        self._write_device_settings()
        return self

    def __exit__(self, *error: object) -> None:
        self._services.close()

    def run(self, command: str) -> None:
        """Run one command of the README; one that fails ends the program with its output."""
        sys.stdout.write(f"$ {command}\n")
        sys.stdout.flush()
        self._prepare(command)
        line = self._fill_in(command)
        if line.endswith("&") or " run " in line:
            self._start(line.removesuffix("&"))
        else:
            ask = self._run_at_terminal if line.startswith("edge-keys") else self._run
            code, output = ask(line)
            if code:
                sys.exit(f"{line}\nended with {code}:\n{output[-3000:]}")
        self._check(command)

    def _prepare(self, command: str) -> None:
        """Let happen what a user waits for, or does, before a command."""
        if "s3://bucket/orchard" in command:
            for path in sorted(self._pipeline.pictures.rglob("*.png")):
                key = f"orchard/{path.relative_to(self._pipeline.pictures)}"
                self._store.client().upload_file(str(path), self._store.bucket, key)
        elif command.startswith("cd "):
            self._pipeline.write_digits(5, start=25)  # a second release
        elif command.startswith("edge-client status"):
            wait_until(lambda: self._releases[-1] in self._run(DEVICE_STATUS)[1], "the device to serve", 120)
        elif command.startswith("edge-client classify"):
            slot = next((self.folder / "state").glob(f"**/{self._releases[-1]}*/model.tflite")).parent
            shutil.copy(slot / "model.tflite", self.folder / "M.tflite")
            shutil.copy(slot / "labels.txt", self.folder / "labels.txt")

    def _check(self, command: str) -> None:
        """Check what a command leaves behind."""
        if command.startswith("luigid"):
            with_page = f"http://127.0.0.1:{self._luigid_port}/static/visualiser/index.html"
            wait_until(lambda: answers(with_page), "luigid's page", 60)
        elif "Deploy" in command:
            self._releases.append(self._released())

    def _fill_in(self, command: str) -> str:
        """Put what is there in the place of a user's own things."""
        things = {
            "/data/orchard": str(self._pipeline.pictures),
            "s3://bucket/orchard": f"s3://{self._store.bucket}/orchard",
            "luigid.example": "127.0.0.1",
            "8082": str(self._luigid_port),
            "/opt/edge-pipeline": str(self.folder),
            "PICTURES…": str(next(self._pipeline.pictures.rglob("*.png"))),
            "FOLDER": str(self.folder / "labelling"),
            "RELEASE": self._releases[0] if self._releases and "RollBack" in command else "",
        }
        if not things["RELEASE"] and self._releases:
            things["RELEASE"] = self._releases[-1]
        for name, thing in things.items():
            command = command.replace(name, thing)
        is_of_device = command.startswith("edge-client") and "classify" not in command
        with_settings = is_of_device and "--config" not in command
        return f"{command} --config device.toml" if with_settings else command

    def _run(self, line: str) -> tuple[int, str]:
        done = subprocess.run(
            ["/bin/sh", "-c", line],
            cwd=self.folder,
            env=self._environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=LIMIT_S,
        )
        return done.returncode, done.stdout

    def _run_at_terminal(self, line: str) -> tuple[int, str]:
        """Run a command that asks at its terminal, and answer with the passphrase each time."""
        child, terminal = pty.fork()
        if not child:
            os.chdir(self.folder)
            os.execve("/bin/sh", ["/bin/sh", "-c", line], self._environment())  # noqa: S606
        output = ""
        with contextlib.suppress(OSError):  # how a terminal tells its end
            while part := os.read(terminal, 4096).decode(errors="replace"):
                output += part
                if part.rstrip().endswith(":"):
                    os.write(terminal, f"{PASSPHRASE}\n".encode())
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output

    def _start(self, line: str) -> None:
        log = self._services.enter_context((self.folder / "background.log").open("ab"))
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec {line}"],
            cwd=self.folder,
            env=self._environment(),
            stdout=log,
            stderr=log,
        )
        self._services.callback(process.wait)
        self._services.callback(process.terminate)

    def _environment(self) -> dict[str, str]:
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**self._pipeline.environment(), "PATH": programs}

    def _released(self) -> str:
        document = self._store.client().get_object(Bucket=self._store.bucket, Key=self._channel_key())
        return str(json.load(document["Body"])["release"])

    def _channel_key(self) -> str:
        listed = self._store.client().list_objects_v2(
            Bucket=self._store.bucket, Prefix="orchard/targets/channels/"
        )
        newest = max(listed["Contents"], key=lambda one: one["LastModified"])
        return str(newest["Key"])

    def _write_device_settings(self) -> None:
        sections = device_settings(
            self.folder,
            device="camera-1",
            fleet="orchard",
            base_url=f"{self._store.endpoint_url}/{self._store.bucket}/orchard",
            root=self.folder / "keys/device/root.json",
            broker=self._broker,
        )
        (self.folder / "camera").mkdir()
        sections["source"] = {"path": str(self.folder / "camera")}
        key = self.folder / "store-key.toml"
        key.touch(mode=0o600)
        key.write_text(
            f'access_key_id = "{self._store.device_access_key}"\n'
            f'secret_access_key = "{self._store.device_secret_key}"\n'
        )
        sections["store"]["access_key_file"] = str(key)
        write_settings(self.folder / "device.toml", sections)


def answers(url: str) -> bool:
    """Whether a web page is there."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
