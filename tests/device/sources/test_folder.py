"""A watched folder gives every complete picture once, and nothing that is broken, half-written or gone."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edge_client.contract.errors import DeviceError, InputError
from edge_client.last_picture import LastPicture
from edge_client.settings.frames import SourceSettings
from edge_client.sources import decoding, folder, folder_scan
from edge_client.sources.decoding import PictureDecoder
from edge_client.sources.driver import SLOW_READING_S, DriverWatch
from edge_client.sources.folder import WatchedFolder
from edge_client.sources.opening import open_source
from tests.device.sources.reader import BLUE, GREEN, RED, Reader, listing, put, until
from tests.fakes.tiny_model import plain_picture
from tests.fakes.tiny_release import png

if TYPE_CHECKING:
    from numpy.typing import NDArray


def test_files_that_are_there_come_oldest_first_then_new_ones(tmp_path: Path) -> None:
    put(tmp_path / "b.png", RED, age_s=300)
    put(tmp_path / "a.png", GREEN, age_s=100)
    with Reader(WatchedFolder(tmp_path)) as reader:
        assert reader.names(2) == ["b.png", "a.png"]
        put(tmp_path / "c.PNG", BLUE)
        assert reader.names(3) == ["b.png", "a.png", "c.PNG"]
    np.testing.assert_array_equal(reader.frames[2].pixels, plain_picture("blue"))


def test_kept_file_is_read_once_and_again_when_it_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path)) as reader:
        reader.names(1)
        put(tmp_path / "z.png", BLUE)
        reader.names(2)
        put(tmp_path / "a.png", GREEN, age_s=30)
        assert reader.names(3) == ["a.png", "z.png", "a.png"]
        time.sleep(0.3)  # several scans
        assert len(reader.frames) == 3
    assert reader.frames[2].pixels[0, 0].tolist() == [0, 255, 0]
    assert listing(tmp_path) == ["a.png", "z.png"]


def test_incomplete_file_is_not_read(tmp_path: Path) -> None:
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


def test_file_whose_writer_pauses_is_read_once_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_scan, "BROKEN_AFTER_S", 1.5)
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


def test_hidden_partial_and_other_files_are_not_touched(tmp_path: Path) -> None:
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
    monkeypatch.setattr(folder_scan, "BROKEN_AFTER_S", 0.3)
    put(tmp_path / "bad.jpg", b"no picture", age_s=100)
    put(tmp_path / "good.png", RED)
    with Reader(WatchedFolder(tmp_path, after=after)) as reader:
        assert reader.names(1) == ["good.png"]
        until(lambda: caplog.records and listing(tmp_path) == left)
        time.sleep(0.4)  # it would be tried again by now
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'bad.jpg'}: not a complete picture")


class TiredDecoder(PictureDecoder):
    """Fails with the first tries, for a reason of the machine."""

    def __init__(self, cause: Exception, times: int) -> None:
        super().__init__()
        self._cause, self._times = cause, times

    def decode_file(self, path: Path, *, follow_link: bool = False) -> NDArray[np.uint8]:
        self._times -= 1
        if self._times >= 0:
            msg = f"{path}: not now"
            raise InputError(msg) from self._cause
        return super().decode_file(path, follow_link=follow_link)


def test_a_picture_for_which_memory_is_short_is_told_and_tried_again_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(folder_scan, "BROKEN_AFTER_S", 1000.0)
    monkeypatch.setattr(folder_scan, "STARVED_AFTER_S", 0.2)
    monkeypatch.setattr(folder, "STARVED_AFTER_S", 0.2)
    put(tmp_path / "large.png", RED, age_s=100)
    decoder = TiredDecoder(MemoryError(), 1)
    with Reader(WatchedFolder(tmp_path, after="delete", decoder=decoder)) as reader:
        assert reader.names(1) == ["large.png"]
    (record,) = caplog.records
    assert record.getMessage().endswith("large.png: not now; tried once more in 0.2 s")


def test_a_file_that_the_disk_does_not_give_is_never_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_scan, "BROKEN_AFTER_S", 0.2)
    put(tmp_path / "a.png", RED, age_s=100)
    decoder = TiredDecoder(OSError(errno.EIO, "Input/output error"), 2)
    with Reader(WatchedFolder(tmp_path, after="delete", decoder=decoder)):
        until(lambda: listing(tmp_path) == ["broken/a.png"])


def test_file_that_disappears_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for n in range(5):
        put(tmp_path / f"{n}.png", RED, age_s=100 - n)
    stop = threading.Event()
    frames = WatchedFolder(tmp_path, after="move").frames(stop)
    first = next(frames)
    (tmp_path / "1.png").unlink()  # between the scan and the decoding
    (tmp_path / "0.png").unlink()  # between the decoding and the result
    first.done()
    assert next(frames).source == "2.png"
    stop.set()
    assert list(frames) == []
    assert caplog.records == []


def test_removed_folder_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_folder_gone_for_too_long_raises_and_continues_where_it_was(tmp_path: Path) -> None:
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


def test_what_is_no_folder_is_refused_with_the_kind_that_reads_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "film.mp4").touch()
    kinds = {tmp_path / "pipe": "pipe", Path("/dev/video7"): "video", tmp_path / "film.mp4": "video"}
    for path, kind in kinds.items():
        with pytest.raises(DeviceError, match=f'not a folder; set .source. kind = "{kind}"'):
            next(WatchedFolder(path).frames(threading.Event()))


def test_a_pattern_is_refused_with_the_kind_that_reads_it_and_a_file_of_such_a_name_is_not(
    tmp_path: Path,
) -> None:
    with pytest.raises(DeviceError, match=r'\*\.png: a pattern.* kind = "files"'):
        WatchedFolder(tmp_path / "*.png").survey()
    (tmp_path / "[door].png").write_bytes(b"x")
    assert WatchedFolder(tmp_path / "[door].png").survey() == "1 picture"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_that_cannot_be_cleared_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    source = WatchedFolder(tmp_path, after="delete")
    with pytest.raises(DeviceError, match="after"):
        next(source.frames(threading.Event()))
    tmp_path.chmod(0o755)


def test_file_that_cannot_be_moved_is_logged_and_not_read_again(
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


def test_settings_reach_the_folder(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(open_source(SourceSettings(path=str(tmp_path), after="delete"))) as reader:
        assert reader.names(1) == ["a.png"]
    assert listing(tmp_path) == []


def test_any_bytes_are_a_file_name(tmp_path: Path) -> None:
    """An FTP camera in latin-1: results have a valid text, and the true file is moved."""
    for number in range(2):
        put(tmp_path / os.fsdecode(b"K\xfcche-%d.png" % number), RED, age_s=100 - number)
    put(tmp_path / "good.png", RED)
    put(tmp_path / "two\nlines.png", RED)
    with Reader(WatchedFolder(tmp_path, after="move")) as reader:
        names = reader.names(4)
    assert sorted(names) == ["K\\xfcche-0.png", "K\\xfcche-1.png", "good.png", "two\nlines.png"]
    moved = sorted(os.fsencode(path.name) for path in (tmp_path / "done").iterdir())
    assert moved[:2] == [b"K\xfcche-0.png", b"K\xfcche-1.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_links_are_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside, camera = tmp_path / "outside", tmp_path / "camera"
    outside.mkdir()
    camera.mkdir()
    put(outside / "secret.png", RED)
    (camera / "a.png").symlink_to(outside / "secret.png")
    (camera / "b.png").symlink_to(camera / "c.png")
    put(camera / "c.png", GREEN)
    with Reader(WatchedFolder(camera, after="delete")) as reader:
        assert reader.names(1) == ["c.png"]
        time.sleep(0.3)
        assert len(reader.frames) == 1
    assert (outside / "secret.png").exists()
    assert [record.getMessage()[-46:] for record in caplog.records] == [
        ".png: a link, which is not followed; move the file here"[-46:]
    ]


def test_moved_files_do_not_leave_through_a_link(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outside, camera = tmp_path / "outside", tmp_path / "camera"
    outside.mkdir()
    camera.mkdir()
    (camera / "done").symlink_to(outside)
    put(camera / "a.png", RED)
    with Reader(WatchedFolder(camera, after="move")) as reader:
        reader.names(1)
    assert list(outside.iterdir()) == []
    assert (camera / "a.png").exists()
    assert "a.png: cannot be removed after use" in caplog.text


@pytest.mark.parametrize("kind", ["fifo", "link", "folder"])
def test_what_takes_the_place_of_a_listed_file_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    for n in range(3):
        put(tmp_path / f"{n}.png", RED, age_s=100 - n)
    outside = put(tmp_path / "outside.part", RED)
    stop = threading.Event()
    frames = WatchedFolder(tmp_path).frames(stop)
    assert next(frames).source == "0.png"
    (tmp_path / "1.png").unlink()  # listed already
    if kind == "fifo":
        os.mkfifo(tmp_path / "1.png")
    elif kind == "link":
        (tmp_path / "1.png").symlink_to(outside)
    else:
        (tmp_path / "1.png").mkdir()
    assert next(frames).source == "2.png"
    stop.set()
    assert list(frames) == []


def test_picture_that_replaced_the_classified_one_is_not_deleted(tmp_path: Path) -> None:
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path, after="delete"), finish=False) as reader:
        reader.names(1)
        put(tmp_path / "a.png", GREEN, age_s=30)
        reader.frames[0].done()
        assert reader.names(2) == ["a.png", "a.png"]
        reader.frames[1].done()
    assert listing(tmp_path) == []


def test_a_free_name_is_found_in_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = tmp_path / "done"
    done.mkdir()
    for name in ["a.png", *(f"a-{n}.png" for n in range(1, 600))]:
        (done / name).touch()
    asked, exists = [], folder._exists

    def ask(name: str, at: int) -> bool:
        asked.append(name)
        return exists(name, at)

    monkeypatch.setattr(folder, "_exists", ask)
    put(tmp_path / "a.png", RED)
    with Reader(WatchedFolder(tmp_path, after="move")) as reader:
        reader.names(1)
    assert (done / "a-600.png").exists()
    assert len(asked) < 25


def test_pixels_of_a_picture_are_gone_when_the_next_is_decoded(tmp_path: Path) -> None:
    for n in range(2):
        put(tmp_path / f"{n}.png", RED, age_s=100 - n)
    frames = WatchedFolder(tmp_path).frames(threading.Event())
    first = weakref.ref(next(frames).pixels)
    assert next(frames).source == "1.png"
    assert first() is None


@pytest.mark.parametrize(
    ("after", "left"),
    [("keep", ["a.png", "b.png"]), ("move", ["broken/a.png", "done/b.png"]), ("delete", ["broken/a.png"])],
)
def test_picture_that_the_last_run_died_at_is_set_aside(
    tmp_path: Path, after: str, left: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    camera, state = tmp_path / "camera", tmp_path / "state"
    camera.mkdir()
    state.mkdir()
    put(camera / "a.png", RED, age_s=100)
    put(camera / "b.png", GREEN)
    killed = LastPicture(state, tmp_path).decoding(camera / "a.png")
    killed.__enter__()  # and never left: what is noted stays, as in a process that is killed
    for start in range(2):
        note = LastPicture(state, tmp_path)
        assert note.died_at == (str(camera / "a.png") if start == 0 else "")
        with Reader(WatchedFolder(camera, after=after, decoder=PictureDecoder(None, note))) as reader:
            if start == 0 or after == "keep":
                assert reader.names(1) == ["b.png"]
            until(lambda: listing(camera) == left)
        note.close()
    assert "a.png: an earlier run died while it decoded this picture" in caplog.text
    put(camera / "a.png", BLUE, age_s=30)  # another picture of this name
    note = LastPicture(state, tmp_path)
    with Reader(WatchedFolder(camera, decoder=PictureDecoder(None, note))) as reader:
        until(lambda: "a.png" in [frame.source for frame in reader.frames])


def test_picture_that_is_being_read_too_long_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not answer, or a decoder that does not return."""
    begun, over = threading.Event(), threading.Event()

    def read(_path: Path, **_options: object) -> bytes:
        begun.set()
        over.wait(10)
        return RED

    monkeypatch.setattr(decoding, "read_picture", read)
    now = [0.0]
    watch = DriverWatch(lambda: now[0])
    put(tmp_path / "slow.png", RED)
    with Reader(WatchedFolder(tmp_path, decoder=PictureDecoder(watch))) as reader:
        assert begun.wait(10)
        assert watch.fault() == ""
        now[0] = SLOW_READING_S + 1
        assert watch.fault().startswith(f"{tmp_path / 'slow.png'}: reading it takes over 15 s")
        assert watch.waiting_s() == SLOW_READING_S + 1
        over.set()
        reader.names(1)
        assert watch.fault() == ""
