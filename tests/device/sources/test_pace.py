"""The pace at which frames are taken."""

from __future__ import annotations

import threading
import time

from edge_client.sources.source import Pace


def test_pace_spaces_frames() -> None:
    pace, stop = Pace(100), threading.Event()
    started = time.monotonic()
    for _ in range(6):
        assert pace.wait(stop)
    assert 0.05 <= time.monotonic() - started < 1
    stop.set()
    assert not pace.wait(stop)


def test_pace_without_limit_never_waits_but_obeys_stop() -> None:
    pace, stop = Pace(), threading.Event()
    started = time.monotonic()
    assert all(pace.wait(stop) for _ in range(1000))
    assert time.monotonic() - started < 1
    stop.set()
    assert not pace.wait(stop)


def test_late_frame_does_not_shorten_the_next_interval() -> None:
    pace, stop = Pace(20), threading.Event()
    pace.wait(stop)
    time.sleep(0.2)
    pace.wait(stop)
    assert pace.left_s() > 0.03
