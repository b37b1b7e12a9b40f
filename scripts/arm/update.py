"""A whole update: a pipeline on this machine publishes twice, a daemon in the Arm user land follows."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from device_watcher import DeviceWatcher, device_settings, running_device, write_settings
from local_services import wait_until
from pipeline_under_test import PipelineUnderTest

from arm.answers import Comparison
from arm.userland import ArmError

if TYPE_CHECKING:
    from pathlib import Path

    from arm.userland import UserLand
    from edge_client.contract.messages import DeviceStatus

DEVICE = "camera-on-arm"
PER_CLASS, NEW_PER_CLASS, UNSEEN_PER_CLASS = 30, 6, 2
# The device's first release takes its imports, a check, a self-test and the model's start.
LIMIT_S = 300.0
LEAST_FRAMES = 20


class WholeUpdate:
    """A pipeline, a device and their services in a folder.

    Args:
        land: With the device installed.
        folder: Gets all files.
    """

    def __init__(self, land: UserLand, folder: Path) -> None:
        from tests.fakes.small_weights import make_small_weights  # noqa: PLC0415 - after the command line

        self.land = land
        self.folder = folder
        self.camera = folder / "camera"
        self.camera.mkdir()
        settings = PipelineUnderTest.head_on(make_small_weights(folder))
        self.pipeline = PipelineUnderTest(folder / "pipeline", settings=settings, name="arm")
        self.pictures: dict[str, Path] = {}
        self.comparison = Comparison()

    def run(self) -> list[str]:
        """Publish, follow, publish again with new pictures, follow; return what was seen, in lines.

        Raises: ArmError or TimeoutError with what did not happen.
        """
        with self.pipeline as pipeline, DeviceWatcher(pipeline.broker, pipeline.name, DEVICE) as self.watcher:
            pipeline.write_digits(PER_CLASS)
            settings = self.write_settings()
            with running_device(settings, self.folder / "log", pipeline.store, self.land.edge_client):
                try:
                    first = self.publish(None)
                    self.classify(first)
                    pipeline.write_digits(NEW_PER_CLASS, start=PER_CLASS)
                    second = self.publish(first.release)
                    self.classify(second)
                    passed = self.watcher.wait_for(
                        lambda status: status.release == second.release and not status.probation,
                        "the end of the probation",
                        LIMIT_S,
                    )
                    self.ask("doctor", settings)
                except (ArmError, TimeoutError) as e:
                    msg = f"{e}\nthe daemon's log ends:\n{(self.folder / 'log').read_text()[-3000:]}"
                    raise ArmError(msg) from e
        return self.judge(first, passed)

    def publish(self, earlier: str | None) -> DeviceStatus:
        """Run `luigi ... Deploy` and wait until the device serves another release than `earlier`."""
        run = self.pipeline.luigi("Deploy")
        if run.returncode != 0:
            msg = f"Deploy ended with {run.returncode}: {run.stderr[-3000:]}"
            raise ArmError(msg)
        return self.watcher.wait_for(
            lambda status: status.release not in {None, earlier} and status.state == "serving",
            f"another release than {earlier}",
            LIMIT_S,
        )

    def classify(self, status: DeviceStatus) -> None:
        """Let digits that no run trained on arrive, and compare the device's answers with this machine's."""
        from edge_client.contract.preprocessing import decode_picture  # noqa: PLC0415
        from edge_client.inference.classifier import classifier_from_release  # noqa: PLC0415

        release = str(status.release)
        classifier = classifier_from_release(self.folder / "state/slots" / release)
        given = {f"{release}-{name}": path for name, path in self.unseen().items()}
        for name, path in given.items():
            shutil.copyfile(path, self.folder / name)
            (self.folder / name).rename(self.camera / name)
        wait_until(
            lambda: {result.source for result in self.watcher.results} >= given.keys(), "the answers", LIMIT_S
        )
        for result in self.watcher.results:
            if result.source in given:
                if result.release != release:
                    msg = f"{result.source} was answered by {result.release}, not by {release}"
                    raise ArmError(msg)
                here = classifier.classify(decode_picture(given[result.source])).top(len(classifier.labels))
                there = {**result.top, result.label: result.confidence}
                self.comparison.add(
                    f"release {release}, {result.source}", {label: here[label] for label in there}, there
                )

    def unseen(self) -> dict[str, Path]:
        """Write digits that are in no data set, once; return them by name."""
        if not self.pictures:
            shown = PipelineUnderTest.__new__(PipelineUnderTest)
            shown.pictures = self.folder / "unseen"
            shown.write_digits(UNSEEN_PER_CLASS, start=PER_CLASS + NEW_PER_CLASS)
            self.pictures = {
                f"{path.parent.name}-{path.name}": path for path in sorted(shown.pictures.glob("*/*.png"))
            }
        return self.pictures

    def ask(self, command: str, settings: Path) -> None:
        """Run another command of the device while the daemon serves."""
        keys = {
            "AWS_ACCESS_KEY_ID": self.pipeline.store.device_access_key,
            "AWS_SECRET_ACCESS_KEY": self.pipeline.store.device_secret_key,
        }
        done = subprocess.run(
            [str(self.land.edge_client), command, "--config", str(settings)],
            env={**os.environ, **keys},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            msg = f"edge-client {command} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            raise ArmError(msg)

    def judge(self, first: DeviceStatus, last: DeviceStatus) -> list[str]:
        """Return what was seen; raise ArmError if it is not an update as it should be."""
        self.comparison.check()
        update = last.update
        model = (self.folder / "state/slots" / str(last.release) / "model.tflite").stat().st_size
        if last.last_error is not None or last.previous != first.release or update is None:
            msg = f"the second release serves, but: {last}"
            raise ArmError(msg)
        if update.bytes_pulled >= model:
            msg = f"{update.bytes_pulled} bytes were pulled for a model of {model}: the patch was not used"
            raise ArmError(msg)
        return [
            f"Deploy made release {first.release}; with {10 * NEW_PER_CLASS} new pictures, {last.release}",
            f"both verified, self-tested and served on {last.runtime}; probation passed, no fault for doctor",
            f"the second swapped in with {update.bytes_pulled:,} bytes pulled, for a model of {model:,}",
        ]

    def write_settings(self) -> Path:
        """Write the device's one file. Its limits of time stay as they are, but for those on latency."""
        pipeline = self.pipeline
        sections = device_settings(
            self.folder,
            device=DEVICE,
            fleet=pipeline.name,
            base_url=f"{pipeline.store.endpoint_url}/{pipeline.store.bucket}/{pipeline.name}",
            root=pipeline.keys / "device/root.json",
            broker=pipeline.broker,
        )
        sections["source"] = {"path": str(self.camera), "after": "delete", "settle_s": 0.0}
        sections["status"] = {"interval_s": 1.0}
        # An emulator's speed says nothing about a release.
        sections["probation"] = {"frames": LEAST_FRAMES, "max_slowdown": 1000.0}
        return write_settings(self.folder / "device.toml", sections)
