"""A real device daemon, and a watcher of it at the broker."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
from device_watcher import write_settings
from local_services import PATIENCE
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_client.contract.documents import encode_document
from edge_client.contract.messages import Announcement, DeviceStatus, Result
from edge_client.contract.names import (
    announcement_topic,
    online_topic,
    report_topic,
    results_topic,
    status_topic,
)
from edge_client.contract.signed_report import open_report
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import png

if TYPE_CHECKING:
    from edge_client.contract.report import DeviceReport

REPOSITORY = Path(__file__).resolve().parents[2]
DEVICE = "camera-1"
LIMIT_S = 60.0 * PATIENCE


class Watcher:
    """What any dashboard sees of the device.

    Args:
        broker: Host and port.
        fleet: The device's.
        channel: An extra channel of the device; empty: the main one.
    """

    def __init__(self, broker, fleet: str, channel: str = "") -> None:
        self.fleet = fleet
        self.status: DeviceStatus | None = None
        self.online: str | None = None
        self.results: list[Result] = []
        self.reports: list[DeviceReport] = []
        self.payloads: list[bytes] = []  # of the reports
        self._changed = threading.Condition()
        self._client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=f"watcher-{uuid.uuid4().hex[:12]}")
        subscribed = threading.Event()
        self._status = status_topic(fleet, DEVICE, channel)
        self._online = online_topic(fleet, DEVICE)
        self._report = report_topic(fleet, DEVICE, channel)
        topics = [self._status, self._online, self._report, results_topic(fleet, DEVICE, channel)]
        self._client.on_connect = lambda client, *_: client.subscribe([(topic, 1) for topic in topics])
        self._client.on_subscribe = lambda *_: subscribed.set()
        self._client.on_message = lambda _c, _u, message: self._take(message.topic, bytes(message.payload))
        self._client.connect(broker.host, broker.port)
        self._client.loop_start()
        assert subscribed.wait(LIMIT_S)

    def wait(self, condition, what: str) -> None:
        with self._changed:
            met = self._changed.wait_for(lambda: condition(self), LIMIT_S)
        assert met, f"waited for {what}; status {self.status}, {self.online}, {len(self.results)} results"

    def wait_status(self, condition, what: str) -> DeviceStatus:
        self.wait(lambda w: w.status is not None and condition(w.status), what)
        assert self.status is not None
        return self.status

    def wait_report(self, condition, what: str) -> DeviceReport:
        self.wait(lambda w: any(condition(one) for one in w.reports), what)
        return next(one for one in self.reports if condition(one))

    def wait_release(self, release: str) -> DeviceStatus:
        return self.wait_status(lambda s: s.release == release and s.state == "serving", f"release {release}")

    def publish(self, payload: bytes, channel: str = "stable", *, retain: bool = True) -> None:
        topic = announcement_topic(self.fleet, channel)
        self._client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(LIMIT_S)

    def announce(self, release: str, channel: str = "stable") -> None:
        announcement = Announcement(channel=channel, release=release, announced_at="now")
        self.publish(encode_document(announcement), channel)

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _take(self, topic: str, payload: bytes) -> None:
        with self._changed:
            if topic == self._status:
                self.status = msgspec.json.decode(payload, type=DeviceStatus)
            elif topic == self._online:
                self.online = payload.decode()
            elif topic == self._report:
                if payload:  # an empty one is doctor's
                    self.payloads.append(payload)
                    self.reports.append(open_report(payload, topic, None).report)
            elif payload:  # an empty one is doctor's
                self.results.append(msgspec.json.decode(payload, type=Result))
            self._changed.notify_all()


class DaemonUnderTest:
    """Settings, folders and the process of one device."""

    def __init__(self, folder: Path, repository, broker, fleet: str) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.camera = folder / "camera"
        self.camera.mkdir(parents=True)
        (folder / "root.json").write_bytes(repository.root)
        self.settings = {
            "device": {"id": DEVICE, "fleet": fleet, "state_dir": str(self.state_dir)},
            "store": {"base_url": repository.url, "timeout_s": 5.0},
            "trust": {"root": "root.json"},
            "broker": {"host": broker.host, "port": broker.port, "keepalive_s": 5},
            "update": {"poll_s": 3600.0, "min_free_bytes": 0},
            "status": {"interval_s": 0.2},
            "source": {"kind": "folder", "path": str(self.camera), "after": "delete", "settle_s": 0.0},
            "sinks": {"mqtt": True},
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.before: list[str] = []  # words before the command, such as those of a memory group
        self._numbers = itertools.count()

    @property
    def file(self) -> Path:
        return write_settings(self.folder / "device.toml", self.settings)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def command(self, name: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "edge_client.cli", name, "--config", str(self.file), *arguments]

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.before, *self.command("run")],
                stdout=log,
                stderr=log,
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
            )

    def ask(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(name, *arguments), capture_output=True, text=True, cwd=REPOSITORY, check=False
        )

    def terminate(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(LIMIT_S)

    def drop(self, label: str, *, size: int = 40) -> str:
        """Let one picture arrive in the watched folder, grey or of a label's colour; returns its name."""
        name = f"{next(self._numbers):06}-{label}.png"
        temporary = self.folder / name
        grey = np.full((size, size, 3), 128, np.uint8)
        temporary.write_bytes(png(grey if label == "grey" else plain_picture(label, size, size)))
        temporary.rename(self.camera / name)
        return name


def assert_answers(daemon, watcher, release: str) -> None:
    """The daemon classifies a picture that arrives now, with this release."""
    name = daemon.drop("blue")
    watcher.wait(lambda w: any(result.source == name for result in w.results), f"the answer to {name}")
    [result] = [result for result in watcher.results if result.source == name]
    assert (result.label, result.release) == ("blue", release)


def answer_all(daemon, watcher, label: str, count: int) -> None:
    """Let pictures arrive, and wait until all are answered."""
    before = len(watcher.results)
    for _ in range(count):
        daemon.drop(label)
    watcher.wait(lambda w: len(w.results) >= before + count, f"{count} answers")
