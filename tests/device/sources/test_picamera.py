"""The Pi's camera."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from edge_client.contract.errors import DeviceError
from edge_client.settings.frames import SourceSettings
from edge_client.sources.driver import DriverWatch
from edge_client.sources.opening import open_source
from tests.device.sources.reader import Reader, until
from tests.fakes.tiny_model import plain_picture


class Picamera2:
    """Stands in for the Pi's camera, which no other machine has."""

    def __init__(self, number: int) -> None:
        if number > 0:
            raise IndexError("list index out of range")
        self.events: list[object] = []
        cameras.append(self)

    def create_video_configuration(self, main: dict[str, object]) -> object:
        return main

    def configure(self, configuration: object) -> None:
        self.events.append(configuration)

    def start(self) -> None:
        self.events.append("start")

    def capture_array(self, name: str) -> Any:
        self.events.append(name)
        if len(self.events) > 5:
            raise RuntimeError("Camera frontend has timed out")
        return plain_picture("red", 24, 32)

    def close(self) -> None:
        self.events.append("close")


cameras: list[Picamera2] = []


def test_pi_camera_gives_rgb_frames_and_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2))
    cameras.clear()
    frames = open_source(SourceSettings(kind="picamera", width=32, height=24)).frames(threading.Event())
    first = next(frames)
    assert (first.source, first.pixels[0, 0].tolist()) == ("picamera-0", [255, 0, 0])
    with pytest.raises(DeviceError, match="picamera-0: failed: Camera frontend has timed out"):
        list(frames)
    assert cameras[0].events[0] == {"size": (32, 24), "format": "BGR888"}
    assert cameras[0].events[-1] == "close"


def test_hanging_pi_camera_is_visible_to_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, over = DriverWatch(), threading.Event()

    class Hung(Picamera2):
        def capture_array(self, name: str) -> Any:
            over.wait(30)
            return plain_picture("red", 24, 32)

    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Hung))
    with Reader(open_source(SourceSettings(kind="picamera"), driver)) as reader:
        until(lambda: driver.waiting_s() > 0.3)
        over.set()
        reader.names(1)


def test_absent_pi_camera_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Picamera2))
    source = open_source(SourceSettings(kind="picamera", path="1"))
    with pytest.raises(DeviceError, match="picamera-1: cannot be opened"):
        next(source.frames(threading.Event()))


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        (RuntimeError("Camera __init__ sequence did not complete."), "another program uses it"),
        (RuntimeError("Failed to acquire camera: Device or resource busy"), "another program uses it"),
        (IndexError("list index out of range"), "no such camera was found"),
        (PermissionError(13, "Permission denied"), "group video"),
        (AttributeError("'NoneType' object has no attribute 'cameras'"), "ribbon cable"),
        (SystemError(""), "SystemError; check the ribbon cable"),
    ],
)
def test_whatever_picamera2_raises_is_a_fault_with_its_way_out(
    error: Exception, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Picamera2):
        def start(self) -> None:
            raise error

        def close(self) -> None:
            raise RuntimeError("closed before")

    monkeypatch.setitem(sys.modules, "picamera2", SimpleNamespace(Picamera2=Failing))
    with pytest.raises(DeviceError, match=f"picamera-0: cannot be opened: .*{way_out}"):
        next(open_source(SourceSettings(kind="picamera")).frames(threading.Event()))
