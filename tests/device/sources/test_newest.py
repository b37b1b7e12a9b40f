"""A slow reader gets the newest frame of a stream."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from local_services import wait_until

from edge_client.sources.newest import NewestFrame

if TYPE_CHECKING:
    from numpy.typing import NDArray


def test_a_slow_reader_gets_the_newest_frame():
    given: list[int] = []
    go_on = threading.Semaphore(3)

    def read() -> NDArray[np.uint8] | None:
        go_on.acquire()
        given.append(len(given))
        return np.full((1, 1, 3), given[-1], np.uint8)

    stream, stop = NewestFrame(read, lambda: None), threading.Event()
    wait_until(lambda: len(given) == 3, "three frames")
    wait_until(lambda: stream._newest is not None and stream._newest[0, 0, 0] == 2, "the third to be there")
    taken = stream.read(stop)
    assert taken is not None
    assert taken[0, 0, 0] == 2
    go_on.release()
    taken = stream.read(stop)
    assert taken is not None
    assert taken[0, 0, 0] == 3
    stop.set()
    assert stream.read(stop) is None
    stream.close()
    go_on.release()


@pytest.mark.parametrize("end", [None, RuntimeError("decoder")])
def test_the_last_frame_comes_before_the_end_of_the_stream(end):
    frames = iter([np.zeros((1, 1, 3), np.uint8)])
    closed = threading.Event()

    def read() -> NDArray[np.uint8] | None:
        if (frame := next(frames, None)) is None and end is not None:
            raise end
        return frame

    stream = NewestFrame(read, closed.set)
    assert closed.wait(5)
    stop = threading.Event()
    assert stream.read(stop) is not None
    assert stream.read(stop) is None


@pytest.mark.parametrize("hangs", [False, True], ids=["fails", "hangs"])
def test_a_stream_that_fails_to_close_still_ends(hangs, caplog):
    over = threading.Event()

    def close() -> None:
        over.wait(30 if hangs else 0)
        raise RuntimeError("release failed")

    stream = NewestFrame(lambda: None, close)
    assert stream.read(threading.Event(), 5) is None
    over.set()
    wait_until(lambda: "release failed" in caplog.text, "the failure to be said")


def test_a_silent_stream_raises_a_timeout():
    over = threading.Event()

    def hang() -> None:
        over.wait(30)

    stream = NewestFrame(hang, lambda: None)
    with pytest.raises(TimeoutError):
        stream.read(threading.Event(), 0.2)
    over.set()


def test_frames_that_nobody_waits_for_are_skipped_unread():
    skipped = threading.Semaphore(0)
    given: list[int] = []

    def skip() -> bool:
        skipped.release()
        return True

    def read() -> NDArray[np.uint8]:
        given.append(len(given))
        return np.full((1, 1, 3), given[-1], np.uint8)

    stream, stop = NewestFrame(read, lambda: None, skip), threading.Event()
    for number in range(3):
        assert all(skipped.acquire(timeout=10) for _ in range(5))
        taken = stream.read(stop)
        assert taken is not None
        assert taken[0, 0, 0] == number
    stream.close(10)
    assert len(given) == 3


def test_a_camera_that_ends_while_nobody_waits_ends_the_stream():
    closed = threading.Event()
    stream = NewestFrame(lambda: None, closed.set, lambda: False)
    assert closed.wait(10)
    assert stream.read(threading.Event()) is None
