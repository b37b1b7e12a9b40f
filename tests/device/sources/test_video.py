"""Video files, cameras and streams: what breaks off is opened again, what hangs is seen from outside."""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_client.contract.errors import DeviceError
from edge_client.settings.frames import SourceSettings
from edge_client.sources.driver import DriverWatch
from edge_client.sources.opening import open_source
from edge_client.sources.source import Pace
from edge_client.sources.video import VideoSource
from tests.device.sources.reader import Reader, until
from tests.fakes.tiny_model import plain_picture

if TYPE_CHECKING:
    from collections.abc import Iterator


class Capture:
    """A camera that breaks off on purpose; frames are BGR and carry their number."""

    def __init__(self, camera: Camera, frames: int) -> None:
        self._camera = camera
        self._left = frames

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self._left >= 0

    def set(self, number: int, value: float) -> bool:
        self._camera.asked[number] = value
        return True

    def get(self, number: int) -> float:
        return self._camera.asked.get(number, 0.0)

    def grab(self) -> bool:
        time.sleep(0.001)
        self._camera.grabbed += 1
        return True

    def read(self) -> tuple[bool, Any]:
        if self._left == 0:
            return False, None
        self._left -= 1
        self._camera.given += 1
        return True, np.full((4, 6, 3), (10, 20, self._camera.given), np.uint8)

    def release(self) -> None:
        self._camera.released += 1


class Camera:
    """Stands in for the module cv2; `runs` are the frames that each opening gives, -1: cannot be opened."""

    CAP_PROP_FRAME_WIDTH, CAP_PROP_FRAME_HEIGHT, CAP_PROP_BUFFERSIZE, COLOR_BGR2RGB = 3, 4, 38, 4

    def __init__(self, runs: list[int]) -> None:
        self._runs = iter(runs)
        self.opened: list[object] = []
        self.asked: dict[int, float] = {}
        self.given = self.grabbed = self.released = 0

    def VideoCapture(self, name: object) -> Capture:  # noqa: N802
        self.opened.append(name)
        return Capture(self, next(self._runs))

    @staticmethod
    def cvtColor(frame: Any, _code: int) -> Any:  # noqa: N802
        return np.ascontiguousarray(frame[..., ::-1])


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    def install(*runs: int) -> Camera:
        fake = Camera(list(runs))
        monkeypatch.setitem(sys.modules, "cv2", fake)
        return fake

    return install  # type: ignore[return-value]


def test_video_file_comes_once_as_rgb(camera: Any) -> None:
    fake = camera(3)
    frames = list(VideoSource("film.mp4").frames(threading.Event()))
    assert [frame.pixels[0, 0].tolist() for frame in frames] == [[n, 20, 10] for n in (1, 2, 3)]
    assert {frame.source for frame in frames} == {"film.mp4"}
    assert (fake.opened, fake.released) == (["film.mp4"], 1)


def test_camera_that_stops_is_opened_again(camera: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake = camera(2, -1, -1, 2, 0, 0, 10**9)
    caplog.set_level(logging.INFO)
    source = VideoSource("0", width=320, height=240, first_pause_s=0.001)
    with Reader(source) as reader:
        assert set(reader.names(6)) == {"camera-0"}
    assert fake.opened == [0] * 7
    assert fake.released == 7
    assert list(fake.asked) == [6, 3, 4, 38], "the format decides about the sizes there are"
    assert fake.asked == {6: int.from_bytes(b"MJPG", "little"), 3: 320, 4: 240, 38: 1}
    assert "gives 6x4 MJPG, not the 320x240 that it was asked for" in caplog.text
    assert "opening it again" in caplog.text
    assert "cannot be opened" in caplog.text


@pytest.mark.parametrize("name", ["0", "rtsp://camera/stream"])
@pytest.mark.parametrize("later", [[-1] * 1000, [0] * 1000], ids=["cannot be opened", "gives nothing"])
def test_camera_silent_for_too_long_is_faulty(name: str, later: list[int], camera: Any) -> None:
    fake = camera(3, *later)
    frames = VideoSource(name, first_pause_s=0.01, silent_s=0.5).frames(threading.Event())
    next(frames)
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"(camera-0|rtsp://camera): no picture for 0\.5 s"):
        list(frames)
    assert 0.4 < time.monotonic() - started < 5
    until(lambda: fake.released == len(fake.opened))


def test_camera_that_comes_back_in_time_is_not_faulty(camera: Any) -> None:
    camera(*[1, 0, 0, -1] * 20, 10**9)
    with Reader(VideoSource("0", first_pause_s=0.01, silent_s=0.5)) as reader:
        reader.names(30)


def test_slow_reader_is_not_a_silent_camera(camera: Any) -> None:
    camera(1, 1)
    frames = VideoSource("0", first_pause_s=0.01, silent_s=0.2).frames(threading.Event())
    next(frames)
    time.sleep(0.4)
    assert next(frames).source == "camera-0"


class Stuck(Capture):
    """A driver that never comes back; what it is asked for goes on once the test ends."""

    over = threading.Event()

    def read(self) -> tuple[bool, Any]:
        self.over.wait(30)
        return False, None


@pytest.fixture
def stuck(camera: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fake = camera()
    monkeypatch.setattr(Stuck, "over", threading.Event())
    monkeypatch.setattr(fake, "VideoCapture", lambda _name: Stuck(fake, 1))
    yield
    Stuck.over.set()


@pytest.mark.parametrize("name", ["0", "rtsp://camera/stream"])
def test_hanging_driver_is_visible_to_the_watch(name: str, stuck: None) -> None:
    driver = DriverWatch()
    source = open_source(SourceSettings(kind="video", path=name), driver)
    assert driver.waiting_s() == 0
    stop = threading.Event()
    reader = threading.Thread(target=lambda: list(source.frames(stop)))
    reader.start()
    until(lambda: driver.waiting_s() > 0.3)
    stop.set()
    Stuck.over.set()
    reader.join(10)
    until(lambda: driver.waiting_s() == 0)


def test_hanging_stream_is_faulty_and_visible_to_the_watch(stuck: None) -> None:
    driver = DriverWatch()
    frames = VideoSource("rtsp://camera/stream", driver=driver, silent_s=0.3).frames(threading.Event())
    with pytest.raises(DeviceError, match="no picture"):
        next(frames)
    assert driver.waiting_s() >= 0.3


def test_waiting_for_the_pace_is_not_a_hanging_driver(camera: Any) -> None:
    camera(10**9)
    driver = DriverWatch()
    with Reader(VideoSource("0", pace=Pace(0.001), driver=driver)) as reader:
        reader.names(1)
        time.sleep(0.3)
        assert driver.waiting_s() < 0.2


def test_camera_that_is_missing_at_the_start_is_refused(camera: Any) -> None:
    fake = camera(-1)
    with pytest.raises(DeviceError, match="camera-2: cannot be opened"):
        next(VideoSource("2").frames(threading.Event()))
    assert fake.released == 1


def test_stop_ends_the_wait_for_a_lost_camera(camera: Any) -> None:
    camera(1)
    with Reader(VideoSource("0", first_pause_s=3600)) as reader:
        reader.names(1)


def test_stream_name_hides_the_password_and_the_path_which_may_be_a_token(camera: Any) -> None:
    camera(1, -1)
    source = VideoSource("rtsp://admin:se@cret@10.0.0.7/stream", first_pause_s=3600)
    with Reader(source) as reader:
        assert reader.names(1) == ["rtsp://10.0.0.7"]


def test_slow_reader_skips_frames_of_a_camera_instead_of_falling_behind(camera: Any) -> None:
    fake = camera(10**9)
    with Reader(VideoSource("0", pace=Pace(50))) as reader:
        reader.names(4)
    assert fake.grabbed > len(reader.frames)


@pytest.mark.parametrize("by", ["device", "link", "unplugged"])
def test_device_is_a_camera_opened_again_by_its_path(by: str, camera: Any, tmp_path: Path) -> None:
    device = {"device": Path("/dev/null"), "unplugged": Path("/dev/v4l/by-id/usb-cam-video-index0")}.get(by)
    if device is None:
        device = tmp_path / "front"
        device.symlink_to("/dev/null")
    fake = camera(1, -1, 10**9)
    with Reader(VideoSource(str(device), first_pause_s=0.001)) as reader:
        assert set(reader.names(3)) == {str(device)}
    assert fake.opened == [str(device)] * 3
    assert fake.asked[6] == int.from_bytes(b"MJPG", "little")


def test_camera_keeps_its_own_format_where_none_is_set(camera: Any) -> None:
    fake = camera(10**9)
    settings = SourceSettings(kind="video", path="/dev/video0", pixel_format="")
    with Reader(open_source(settings)) as reader:
        reader.names(1)
    assert 6 not in fake.asked


@pytest.mark.parametrize("colour", [(0, 0, 0), (0, 135, 0)], ids=["black", "green"])
def test_first_frames_that_show_nothing_are_passed_over(
    colour: tuple[int, ...], camera: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    camera(10**9)
    shown = Capture.read

    def read(self: Capture) -> tuple[bool, Any]:
        found, frame = shown(self)
        return found, np.full((48, 64, 3), colour, np.uint8) if self._camera.given <= 3 else frame

    monkeypatch.setattr(Capture, "read", read)
    frames = VideoSource("0").frames(threading.Event())
    assert next(frames).pixels[0, 0].tolist()[1:] == [20, 10]


def test_dark_room_is_shown_after_a_while(camera: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    camera(10**9)
    monkeypatch.setattr(Capture, "read", lambda _self: (True, np.zeros((48, 64, 3), np.uint8)))
    monkeypatch.setattr("edge_client.sources.video._WARM_UP_S", 0.1)
    assert not next(VideoSource("0").frames(threading.Event())).pixels.any()


def test_abandoned_source_releases_the_camera(camera: Any) -> None:
    fake = camera(10)
    frames = VideoSource("0").frames(threading.Event())
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    until(lambda: fake.released == 1)


def test_real_opencv_reads_a_film(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra of the device")
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for label in ("red", "green", "blue"):
        writer.write(np.ascontiguousarray(plain_picture(label, 48, 64)[..., ::-1]))
    writer.release()
    frames = list(open_source(SourceSettings(kind="video", path=path)).frames(threading.Event()))
    assert [int(frame.pixels[24, 32].argmax()) for frame in frames] == [0, 1, 2]
    none = str(tmp_path / "none.avi")
    for wrong, why in ((none, "no such file"), (str(tmp_path), "a folder"), (__file__, "decode")):
        with pytest.raises(DeviceError, match=f"cannot be opened: .*{why}"):
            next(VideoSource(wrong).frames(threading.Event()))
    with pytest.raises(DeviceError, match="/dev/null: cannot be opened: this device is no camera"):
        next(VideoSource("/dev/null").frames(threading.Event()))
