"""Sources give every complete picture once, and nothing that is broken, half-written or gone."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.settings.frames import SourceSettings
from edge_client.sources import folder
from edge_client.sources.driver import DriverWatch
from edge_client.sources.files import ImageFiles, find_pictures
from edge_client.sources.folder import WatchedFolder
from edge_client.sources.opening import open_source
from edge_client.sources.source import Frame, Pace, Source
from edge_client.sources.video import VideoSource
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import png

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from typing_extensions import Self

RED, GREEN, BLUE = (png(plain_picture(label)) for label in ("red", "green", "blue"))
LONG_AGO = 1_600_000_000


class Reader:
    """Reads a source in a thread of its own, as the daemon does."""

    def __init__(self, source: Source, *, finish: bool = True) -> None:
        self.stop = threading.Event()
        self.frames: list[Frame] = []
        self.error: Exception | None = None
        self._source = source
        self._finish = finish
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(10)
        assert not self._thread.is_alive(), "the source does not end on stop"

    def names(self, count: int, timeout_s: float = 10) -> list[str]:
        """Wait for `count` frames and return all names so far."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.frames) >= count, timeout_s), self.frames
            return [frame.source for frame in self.frames]

    def _read(self) -> None:
        for frame in self._source.frames(self.stop):
            if self._finish:
                frame.done()
            with self._news:
                self.frames.append(frame)
                self._news.notify_all()


def put(path: Path, content: bytes, *, age_s: float = 60) -> Path:
    """Move a finished file in, as `mv` does: whole, and older than the move."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    then = time.time() - age_s
    os.utime(temporary, (then, then))
    return temporary.rename(path)


def listing(path: Path) -> list[str]:
    return sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())


def until(claim: Any, timeout_s: float = 10) -> None:
    """Wait until `claim()` is true; nothing announces what a source only writes to disk."""
    end = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < end, "did not come true"
        time.sleep(0.02)


# --- watched folder


def test_files_that_are_there_come_oldest_first_then_new_ones(tmp_path: Path) -> None:
    put(tmp_path / "b.png", RED, age_s=300)
    put(tmp_path / "a.png", GREEN, age_s=100)
    with Reader(WatchedFolder(tmp_path)) as reader:
        assert reader.names(2) == ["b.png", "a.png"]
        put(tmp_path / "c.PNG", BLUE)
        assert reader.names(3) == ["b.png", "a.png", "c.PNG"]
    np.testing.assert_array_equal(reader.frames[2].pixels, plain_picture("blue"))


def test_kept_file_comes_once_but_its_successor_of_the_same_name_too(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path)) as reader:
        reader.names(1)
        put(tmp_path / "z.png", BLUE)
        reader.names(2)
        put(tmp_path / "a.png", GREEN, age_s=30)
        assert reader.names(3) == ["a.png", "z.png", "a.png"]
        time.sleep(0.3)  # several looks
        assert len(reader.frames) == 3
    assert reader.frames[2].pixels[0, 0].tolist() == [0, 255, 0]
    assert listing(tmp_path) == ["a.png", "z.png"]


def test_file_that_is_being_written_is_not_taken_before_it_is_whole(tmp_path: Path) -> None:
    noise = png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    with Reader(WatchedFolder(tmp_path, settle_s=0.4)) as reader:
        with (tmp_path / "slow.png").open("wb") as file:
            for start in range(0, len(noise), len(noise) // 8):
                file.write(noise[start : start + len(noise) // 8])
                file.flush()
                time.sleep(0.1)
                assert reader.frames == []
        assert reader.names(1) == ["slow.png"]
    assert reader.frames[0].pixels.shape == (64, 64, 3)


def test_writer_that_pauses_longer_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder, "_BROKEN_AFTER_S", 1.5)
    with Reader(WatchedFolder(tmp_path, settle_s=0.1, after="move")) as reader:
        with (tmp_path / "slow.png").open("wb") as file:
            file.write(RED[:40])
            file.flush()
            time.sleep(0.6)  # long enough to be tried once
            file.write(RED[40:])
        assert reader.names(1) == ["slow.png"]
    assert listing(tmp_path) == ["done/slow.png"]


def test_clock_that_is_behind_does_not_hold_files_back(tmp_path: Path) -> None:
    put(tmp_path / "future.png", RED, age_s=-1e6)
    with Reader(WatchedFolder(tmp_path, settle_s=0.2)) as reader:
        assert reader.names(1) == ["future.png"]


def test_hidden_partial_and_foreign_files_and_folders_are_left_alone(tmp_path: Path) -> None:
    for name in (".hidden.png", "a.png.part", "notes.txt", "a.png.tmp"):
        (tmp_path / name).write_bytes(RED)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "deep.png").write_bytes(RED)
    os.mkfifo(tmp_path / "pipe.png")
    put(tmp_path / "real.png", RED)
    before = listing(tmp_path)
    with Reader(WatchedFolder(tmp_path, settle_s=0, after="delete")) as reader:
        reader.names(1)
        time.sleep(0.3)
    assert [frame.source for frame in reader.frames] == ["real.png"]
    assert listing(tmp_path) == [name for name in before if name != "real.png"]


@pytest.mark.parametrize(("after", "left"), [("keep", ["a.png"]), ("delete", []), ("move", ["done/a.png"])])
def test_file_is_cleared_only_after_its_result_is_written(
    tmp_path: Path, after: str, left: list[str]
) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path, after=after), finish=False) as reader:
        reader.names(1)
        assert listing(tmp_path) == ["a.png"]
        reader.frames[0].done()
        assert listing(tmp_path) == left


def test_file_whose_result_was_never_written_comes_again_after_a_restart(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path, after="move"), finish=False) as reader:
        reader.names(1)
    with Reader(WatchedFolder(tmp_path, after="move")) as reader:
        assert reader.names(1) == ["a.png"]
    with Reader(WatchedFolder(tmp_path, after="move")) as reader:
        time.sleep(0.3)
        assert reader.frames == []


def test_moved_files_never_replace_each_other(tmp_path: Path) -> None:
    with Reader(WatchedFolder(tmp_path, after="move")) as reader:
        for count, content in enumerate((RED, GREEN, BLUE), start=1):
            put(tmp_path / "image.png", content, age_s=60 + count)
            reader.names(count)
    assert listing(tmp_path) == ["done/image-1.png", "done/image-2.png", "done/image.png"]


@pytest.mark.parametrize(
    ("after", "left"),
    [("keep", ["bad.jpg", "good.png"]), ("delete", []), ("move", ["broken/bad.jpg", "done/good.png"])],
)
def test_broken_picture_is_logged_once_and_does_not_stop_the_others(
    tmp_path: Path,
    after: str,
    left: list[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(folder, "_BROKEN_AFTER_S", 0.3)
    put(tmp_path / "bad.jpg", b"no picture", age_s=100)
    put(tmp_path / "good.png", RED)
    with Reader(WatchedFolder(tmp_path, after=after)) as reader:
        assert reader.names(1) == ["good.png"]
        until(lambda: caplog.records and listing(tmp_path) == left)
        time.sleep(0.4)  # it would be tried again by now
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'bad.jpg'}: not a whole picture")


def test_file_that_vanishes_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(5):
        put(tmp_path / f"{n}.png", RED, age_s=100 - n)
    stop = threading.Event()
    frames = WatchedFolder(tmp_path, after="move").frames(stop)
    first = next(frames)
    (tmp_path / "1.png").unlink()  # between the look and the decoding
    (tmp_path / "0.png").unlink()  # between the decoding and the result
    first.done()
    assert next(frames).source == "2.png"
    stop.set()
    assert list(frames) == []
    assert caplog.records == []


def test_folder_that_goes_away_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    put(stick / "a.png", RED)
    with Reader(WatchedFolder(stick)) as reader:
        reader.names(1)
        shutil.rmtree(stick)
        until(lambda: caplog.records)
        time.sleep(0.3)
        stick.mkdir()
        put(stick / "b.png", RED)
        assert reader.names(2) == ["a.png", "b.png"]
    assert len(caplog.records) == 1
    assert "waiting for it to come back" in caplog.text


def test_folder_that_is_gone_for_long_is_said_and_goes_on_where_it_was(tmp_path: Path) -> None:
    stick = tmp_path / "stick"
    stick.mkdir()
    put(stick / "a.png", RED)
    source = WatchedFolder(stick, gone_s=0.2)
    frames = source.frames(threading.Event())
    assert next(frames).source == "a.png"
    stick.rename(tmp_path / "away")
    with pytest.raises(DeviceError, match=r"stick: gone for 0\.2 s \(No such file or directory\)"):
        next(frames)
    with pytest.raises(DeviceError, match="no such folder"):
        next(source.frames(threading.Event()))
    (tmp_path / "away").rename(stick)
    put(stick / "b.png", BLUE)
    assert next(source.frames(threading.Event())).source == "b.png"  # and not a.png, which was kept


def test_missing_folder_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source = WatchedFolder(tmp_path / "none")
    with pytest.raises(DeviceError, match="none: no such folder; create it"):
        next(source.frames(threading.Event()))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_cleared_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    source = WatchedFolder(tmp_path, after="delete")
    with pytest.raises(DeviceError, match="after"):
        next(source.frames(threading.Event()))
    tmp_path.chmod(0o755)


def test_file_that_cannot_be_moved_is_logged_and_does_not_come_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "done").write_bytes(b"a file where the folder should be")
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path, after="move")) as reader:
        reader.names(1)
        time.sleep(0.3)
        assert len(reader.frames) == 1
    assert "a.png: cannot be removed after use" in caplog.text
    assert (tmp_path / "a.png").exists()


def test_stop_ends_a_long_backlog_at_once(tmp_path: Path) -> None:
    for n in range(50):
        put(tmp_path / f"{n}.png", RED)
    stop = threading.Event()
    frames = WatchedFolder(tmp_path).frames(stop)
    next(frames)
    stop.set()
    assert list(frames) == []


# --- files


def test_each_file_comes_once_in_order_and_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = [tmp_path / name for name in ("c.png", "broken.png", "missing.png", "a.png")]
    for path, content in zip(paths, (RED, b"", b"", BLUE), strict=True):
        path.write_bytes(content)
    paths[2].unlink()
    frames = list(ImageFiles(paths).frames(threading.Event()))
    assert [frame.source for frame in frames] == ["c.png", "a.png"]
    for frame in frames:
        frame.done()
    assert listing(tmp_path) == ["a.png", "broken.png", "c.png"]
    assert [r.getMessage().split(": ")[0] for r in caplog.records] == [str(paths[1]), str(paths[2])]


def test_pattern_folder_and_file_find_pictures(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(RED)
    everything = (tmp_path / "a.JPG", tmp_path / "b.png")
    assert find_pictures(str(tmp_path)) == everything
    assert find_pictures(str(tmp_path / "[ab].*")) == everything
    assert find_pictures(str(tmp_path / "b.png")) == everything[1:]
    with pytest.raises(DeviceError, match="no pictures there"):
        find_pictures(str(tmp_path / "x*"))


def test_name_with_pattern_signs_is_taken_as_a_name_first(tmp_path: Path) -> None:
    path = tmp_path / "shot[1].png"
    path.write_bytes(RED)
    assert find_pictures(str(path)) == (path,)


# --- video


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


def test_camera_that_breaks_off_is_opened_again(camera: Any, caplog: pytest.LogCaptureFixture) -> None:
    fake = camera(2, -1, -1, 2, 0, 0, 10**9)
    source = VideoSource("0", width=320, height=240, first_pause_s=0.001)
    with Reader(source) as reader:
        assert set(reader.names(6)) == {"camera-0"}
    assert fake.opened == [0] * 7
    assert fake.released == 7
    assert fake.asked == {3: 320, 4: 240, 38: 1}
    assert "opening it again" in caplog.text
    assert "cannot be opened" in caplog.text


@pytest.mark.parametrize("name", ["0", "rtsp://camera/stream"])
@pytest.mark.parametrize("later", [[-1] * 1000, [0] * 1000], ids=["cannot be opened", "gives nothing"])
def test_camera_that_is_gone_for_long_is_faulty(name: str, later: list[int], camera: Any) -> None:
    fake = camera(3, *later)
    frames = VideoSource(name, first_pause_s=0.01, silent_s=0.5).frames(threading.Event())
    next(frames)
    started = time.monotonic()
    with pytest.raises(DeviceError, match=r"(camera-0|rtsp://camera/stream): no picture for 0\.5 s"):
        list(frames)
    assert 0.4 < time.monotonic() - started < 5
    until(lambda: fake.released == len(fake.opened))


def test_camera_that_comes_back_in_time_is_not_faulty(camera: Any) -> None:
    camera(*[1, 0, 0, -1] * 20, 10**9)
    with Reader(VideoSource("0", first_pause_s=0.01, silent_s=0.5)) as reader:
        reader.names(30)


def test_slow_reader_is_not_taken_for_a_silent_camera(camera: Any) -> None:
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
def test_driver_that_hangs_can_be_seen_from_outside(name: str, stuck: None) -> None:
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


def test_stream_whose_decoder_hangs_is_faulty_and_its_driver_known_to_hang(stuck: None) -> None:
    driver = DriverWatch()
    frames = VideoSource("rtsp://camera/stream", driver=driver, silent_s=0.3).frames(threading.Event())
    with pytest.raises(DeviceError, match="no picture"):
        next(frames)
    assert driver.waiting_s() >= 0.3


def test_pace_is_not_taken_for_a_driver_that_hangs(camera: Any) -> None:
    camera(10**9)
    driver = DriverWatch()
    with Reader(VideoSource("0", pace=Pace(0.001), driver=driver)) as reader:
        reader.names(1)
        time.sleep(0.3)
        assert driver.waiting_s() < 0.2


def test_the_longest_call_of_a_driver_counts() -> None:
    now = 0.0
    driver = DriverWatch(clock=lambda: now)
    begun, over = threading.Event(), threading.Event()

    def hang() -> None:
        with driver:
            begun.set()
            over.wait(10)

    thread = threading.Thread(target=hang)
    thread.start()
    assert begun.wait(10)
    now = 50.0
    with driver:
        now = 70.0
        assert driver.waiting_s() == 70
    assert driver.waiting_s() == 70
    over.set()
    thread.join(10)
    assert driver.waiting_s() == 0


def test_camera_that_is_missing_at_the_start_is_refused(camera: Any) -> None:
    fake = camera(-1)
    with pytest.raises(DeviceError, match="camera-2: cannot be opened"):
        next(VideoSource("2").frames(threading.Event()))
    assert fake.released == 1


def test_stop_ends_the_wait_for_a_lost_camera(camera: Any) -> None:
    camera(1)
    with Reader(VideoSource("0", first_pause_s=3600)) as reader:
        reader.names(1)


def test_stream_name_hides_the_password(camera: Any) -> None:
    camera(1, -1)
    source = VideoSource("rtsp://admin:se@cret@10.0.0.7/stream", first_pause_s=3600)
    with Reader(source) as reader:
        assert reader.names(1) == ["rtsp://10.0.0.7/stream"]


def test_slow_reader_skips_frames_of_a_camera_instead_of_falling_behind(camera: Any) -> None:
    fake = camera(10**9)
    with Reader(VideoSource("0", pace=Pace(50))) as reader:
        reader.names(4)
    assert fake.grabbed > len(reader.frames)


def test_abandoned_source_releases_the_camera(camera: Any) -> None:
    fake = camera(10)
    frames = VideoSource("0").frames(threading.Event())
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert fake.released == 1


@pytest.mark.parametrize(
    ("kind", "module", "extra"),
    [
        ("video", "cv2", r"pip install edge-fleet\[video\]"),
        ("picamera", "picamera2", r"edge-fleet\[picamera\]"),
    ],
)
def test_missing_extra_is_named(kind: str, module: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DeviceError, match=extra):
        open_source(SourceSettings(kind=kind, path="0"))


def test_real_opencv_reads_a_film(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an extra of the device")
    path = str(tmp_path / "film.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for label in ("red", "green", "blue"):
        writer.write(np.ascontiguousarray(plain_picture(label, 48, 64)[..., ::-1]))
    writer.release()
    frames = list(open_source(SourceSettings(kind="video", path=path)).frames(threading.Event()))
    assert [int(frame.pixels[24, 32].argmax()) for frame in frames] == [0, 1, 2]
    with pytest.raises(DeviceError, match="cannot be opened"):
        next(VideoSource(str(tmp_path / "none.avi")).frames(threading.Event()))


# --- picamera


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
    with pytest.raises(DeviceError, match="picamera-0: broke off: Camera frontend has timed out"):
        list(frames)
    assert cameras[0].events[0] == {"size": (32, 24), "format": "BGR888"}
    assert cameras[0].events[-1] == "close"


def test_pi_camera_that_hangs_can_be_seen_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    driver, over = DriverWatch(), threading.Event()

    class Hung(Picamera2):
        def capture_array(self, name: str) -> Any:
            over.wait(30)
            return super().capture_array(name)

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


# --- settings and pace


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"kind": "webcam"}, "kind 'webcam'"),
        ({"after": "burn"}, "after 'burn'"),
        ({"path": ""}, "path is empty"),
        ({"kind": "picamera", "path": "front"}, "camera's number"),
        ({"settle_s": -1.0}, "settle_s"),
        ({"settle_s": float("nan")}, "settle_s"),
        ({"frames_per_second": -2.0}, "frames_per_second"),
        ({"width": 0}, "width and height"),
    ],
)
def test_wrong_setting_is_named(changes: dict[str, Any], fault: str) -> None:
    settings = SourceSettings(**({"path": "x"} | changes))
    with pytest.raises(SettingsError, match=fault):
        open_source(settings)


def test_all_faults_are_told_at_once() -> None:
    assert len(SourceSettings(kind="?", after="?", settle_s=-1, frames_per_second=-1, width=0).faults()) == 6


def test_settings_reach_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(open_source(SourceSettings(path=str(tmp_path), after="delete"))) as reader:
        assert reader.names(1) == ["a.png"]
    assert listing(tmp_path) == []


def test_files_source_ends_by_itself(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    source = open_source(SourceSettings(kind="files", path=str(tmp_path / "*.png")))
    assert [frame.source for frame in source.frames(threading.Event())] == ["a.png"]


def test_pace_spaces_frames() -> None:
    pace, stop = Pace(100), threading.Event()
    started = time.monotonic()
    for _ in range(6):
        assert pace.wait(stop)
    assert 0.05 <= time.monotonic() - started < 1
    stop.set()
    assert not pace.wait(stop)


def test_pace_without_limit_never_waits_but_minds_stop() -> None:
    pace, stop = Pace(), threading.Event()
    started = time.monotonic()
    assert all(pace.wait(stop) for _ in range(1000))
    assert time.monotonic() - started < 1
    stop.set()
    assert not pace.wait(stop)


def test_late_frame_does_not_make_the_next_hurry() -> None:
    pace, stop = Pace(20), threading.Event()
    pace.wait(stop)
    time.sleep(0.2)
    pace.wait(stop)
    assert pace.left_s() > 0.03
