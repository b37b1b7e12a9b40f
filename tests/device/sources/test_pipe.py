"""Still pictures from standard input and named pipes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_client.contract.errors import DeviceError
from edge_client.settings.frames import SourceSettings
from edge_client.sources.opening import open_source
from edge_client.sources.pipe import PictureSplitter
from tests.fakes.tiny_model import plain_picture

if TYPE_CHECKING:
    from edge_client.sources.source import Frame

REPOSITORY = str(Path(__file__).resolve().parents[3])


def picture(label: str = "red", form: str = "JPEG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(plain_picture(label, 64, 48)).save(out, form, **options)
    return out.getvalue()


def with_thumbnail() -> bytes:
    """A JPEG with another one, whose end mark comes first, in its EXIF part."""
    inner = picture("blue")
    part = b"Exif\0\0" + inner
    return picture()[:2] + b"\xff\xe1" + (len(part) + 2).to_bytes(2, "big") + part + picture()[2:]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))


def noisy(**options: object) -> bytes:
    out = io.BytesIO()
    NOISE.save(out, "JPEG", **options)
    return out.getvalue()


PICTURES = [
    picture(),
    picture("green", "PNG"),
    with_thumbnail(),
    noisy(quality=100),
    noisy(progressive=True),
    noisy(restart_marker_blocks=1),
    picture("blue"),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 10**6])
def test_pictures_are_found_whatever_the_pieces(size):
    stream = b"".join(PICTURES)
    splitter = PictureSplitter()
    found = [one for at in range(0, len(stream), size) for one in splitter.feed(stream[at : at + size])]
    assert found == PICTURES


@pytest.mark.parametrize("last", range(1, 9))
@pytest.mark.parametrize("whole", PICTURES, ids=range(len(PICTURES)))
def test_a_picture_is_complete_with_its_last_bytes_however_few(whole, last):
    splitter = PictureSplitter()
    assert list(splitter.feed(whole[:-last])) == []
    assert list(splitter.feed(whole[-last:])) == [whole]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(st.one_of(st.sampled_from(PICTURES), st.binary(max_size=50)), max_size=6))
def test_random_bytes_never_raise_and_pictures_are_parts_of_the_input(parts):
    stream = b"".join(parts)
    found = list(PictureSplitter().feed(stream))
    assert all(one in stream for one in found)


def test_garbage_between_pictures_is_skipped():
    stream = b"warming up\n" + PICTURES[0] + b"\0" * 100 + PICTURES[1] + b"bye"
    assert list(PictureSplitter().feed(stream)) == PICTURES[:2]


def test_an_endless_picture_is_dropped(monkeypatch):
    monkeypatch.setattr("edge_client.sources.pipe.LARGEST_PICTURE_BYTES", 10_000)
    splitter = PictureSplitter()
    endless = noisy()[:-2] + b"\x00" * 20_000
    found = [one for at in range(0, len(endless), 1000) for one in splitter.feed(endless[at : at + 1000])]
    assert found == []
    assert len(splitter._data) < 20_000
    assert list(splitter.feed(PICTURES[0])) == PICTURES[:1]


class Reader:
    """Reads a source in a thread."""

    def __init__(self, path) -> None:
        self.stop = threading.Event()
        self.frames: list[Frame] = []
        self.changed = threading.Condition()
        source = open_source(SourceSettings(kind="pipe", path=str(path)))
        self.thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self.thread.start()

    def _run(self, source) -> None:
        for frame in source.frames(self.stop):
            with self.changed:
                self.frames.append(frame)
                self.changed.notify_all()

    def wait_for(self, count: int) -> list[Frame]:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.frames) >= count, 10)
        return self.frames


def test_a_named_pipe_outlives_its_writers(tmp_path):
    path = tmp_path / "camera"
    os.mkfifo(path)
    reader = Reader(path)
    path.write_bytes(PICTURES[0])
    reader.wait_for(1)
    path.write_bytes(PICTURES[1])
    frames = reader.wait_for(2)
    reader.stop.set()
    reader.thread.join(5)
    assert not reader.thread.is_alive()
    assert frames[0].source == "camera-1"
    assert frames[0].pixels.shape == frames[1].pixels.shape == plain_picture("red", 64, 48).shape


def test_standard_input_ends_with_its_writer():
    script = (
        "import threading\n"
        "from edge_client.settings.frames import SourceSettings\n"
        "from edge_client.sources.opening import open_source\n"
        "source = open_source(SourceSettings(kind='pipe', path='-'))\n"
        "for frame in source.frames(threading.Event()): print(frame.source, frame.pixels.shape)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", script],
        input=PICTURES[0] + PICTURES[1],
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": REPOSITORY},
    ).stdout.decode()
    assert [line.split()[0] for line in told.splitlines()] == ["stdin-1", "stdin-2"]


def test_a_path_that_is_not_a_pipe_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "none"):
        source = open_source(SourceSettings(kind="pipe", path=str(tmp_path / name)))
        with pytest.raises(DeviceError, match="mkfifo"):
            next(source.frames(threading.Event()))


@pytest.mark.parametrize("kind", ["one long scan", "segments", "fill bytes", "chunks"])
def test_the_search_for_a_pictures_end_goes_on_where_it_stopped(kind):
    """However many pieces a stream comes in: no byte is searched again and again."""
    body = {
        "one long scan": b"\xff\xd8\xff\xda\0\2" + b"\xff\0a" * 40_000,
        "segments": b"\xff\xd8" + b"\xff\xfe\0\2" * 30_000,
        "fill bytes": b"\xff\xd8" + b"\xff" * 120_000,
        "chunks": b"\x89PNG\r\n\x1a\n" + (bytes(4) + b"IDAT" + bytes(4)) * 10_000,
    }[kind]
    steps = 0

    def count(_frame, event, _argument):
        nonlocal steps
        steps += event == "line"
        return count

    splitter = PictureSplitter()
    sys.settrace(count)
    try:
        found = [one for at in range(0, len(body), 1000) for one in splitter.feed(body[at : at + 1000])]
    finally:
        sys.settrace(None)
    assert found == []
    assert steps < (1 if kind == "fill bytes" else 30) * len(body)
    assert splitter._end is not None
    assert splitter._end._at > len(body) - 20  # the next piece is searched from here


def test_a_picture_that_was_cut_off_costs_no_other():
    cut = noisy(quality=90)[:2000]
    found = list(PictureSplitter().feed(cut + PICTURES[0] + PICTURES[1]))
    assert found == [cut, PICTURES[0], PICTURES[1]]
