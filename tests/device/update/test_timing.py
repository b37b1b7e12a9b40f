"""When a device may move, for any window, on any day, whatever the clocks do."""

from __future__ import annotations

import datetime
import math
import random
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import InputError
from edge_client.contract.rollout import EVERYBODY, Member, RolloutDocument
from edge_client.contract.windows import parse_window
from edge_client.update.offer import find_offer
from edge_client.update.timing import MOVE_FILE, MoveTiming

# The days before the clocks go forward and back, and a common one; local time.
DAYS = ["2026-03-28", "2026-10-24", "2026-06-01"]
MINUTES = st.integers(0, 24 * 60 - 1)
ROLLOUT = RolloutDocument(channel="stable", id="r1", release="b", threshold=EVERYBODY)


@pytest.fixture(autouse=True, scope="module")
def in_berlin():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")  # without the system's table of zones
        time.tzset()
        yield
    time.tzset()


class Times:
    """A clock that a test sets."""

    def __init__(self, day: str, minutes: int = 0) -> None:
        midnight = datetime.datetime.fromisoformat(f"{day}T00:00:00").astimezone(datetime.timezone.utc)
        self.now = midnight + datetime.timedelta(minutes=minutes)

    def __call__(self) -> datetime.datetime:
        return self.now


def offered(rollout: RolloutDocument):
    offer = find_offer(None, rollout, Member("camera-1"), current="a")
    assert offer is not None
    return offer


def clock(minutes: int) -> str:
    return f"{minutes // 60:02}:{minutes % 60:02}"


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(DAYS), MINUTES, MINUTES, MINUTES, st.floats(0, 90000), st.integers(0, 99))
def test_a_device_moves_within_its_window_whatever_the_clocks_do(
    tmp_path_factory, day, begin, start, end, spread_s, seed
):
    chance = random.Random(seed)
    window = f"{clock(start)}-{clock(end if end != start else (end + 1) % 1440)}"
    times = Times(day, begin)
    first, file = times.now, tmp_path_factory.mktemp("device") / MOVE_FILE
    offer = offered(msgspec.structs.replace(ROLLOUT, apply="window", window=window, spread_s=spread_s))
    while (hold := MoveTiming(file, times, chance.uniform).hold(offer)) is not None:
        assert hold.wait_s is not None
        assert hold.waits_for in {"window", "spread"}
        # A device looks when it said, or somewhat later: a window of one minute may be missed then.
        times.now += datetime.timedelta(seconds=max(hold.wait_s, 1.0) + chance.uniform(0, 2))
        assert times.now - first < datetime.timedelta(days=4)
    assert parse_window(window).closes_in_s(times.now.astimezone()) > 0


@pytest.mark.parametrize(("day", "hours"), [("2026-03-29", 4), ("2026-10-25", 6), ("2026-06-01", 5)])
def test_a_window_after_the_clocks_have_changed_is_met_at_its_first_second(tmp_path, day, hours):
    offer = offered(msgspec.structs.replace(ROLLOUT, apply="window", window="05:00-05:30"))
    hold = MoveTiming(tmp_path / MOVE_FILE, Times(day), random.Random(1).uniform).hold(offer)
    assert hold is not None
    assert hold.wait_s == pytest.approx(3600 * hours, abs=1)


def test_a_moment_drawn_for_another_rollout_or_window_of_the_release_does_not_count(tmp_path):
    """A rollout with the wrong window is aborted, and started again with the right one."""
    timing = MoveTiming(tmp_path / MOVE_FILE, Times(DAYS[2], minutes=12 * 60), random.Random(1).uniform)
    wrong = msgspec.structs.replace(ROLLOUT, apply="window", window="01:00-05:00", spread_s=600.0)
    hold = timing.hold(offered(wrong))
    assert hold is not None
    assert hold.wait_s == pytest.approx(13.1 * 3600, abs=600)
    again = timing.hold(offered(wrong))
    assert again is not None
    assert again.wait_s == pytest.approx(hold.wait_s), "drawn once"
    spread = timing.hold(offered(msgspec.structs.replace(ROLLOUT, id="r2", spread_s=600.0)))
    assert spread is not None
    assert spread.wait_s is not None
    assert spread.wait_s <= 600
    assert timing.hold(offered(msgspec.structs.replace(wrong, window="11:00-14:00", spread_s=0.0))) is None


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=12) | st.from_regex(r"\d{1,2}:\d{2} ?- ?\d{1,2}:\d{2}", fullmatch=True))
def test_any_text_is_a_window_or_an_input_error(text):
    try:
        window = parse_window(text)
    except InputError:
        return
    assert 60 <= window.length_s <= 86400
    now = Times(DAYS[2], 787).now.astimezone()
    assert (window.opens_in_s(now) == 0) is (window.closes_in_s(now) > 0)


@settings(deadline=None, max_examples=50)
@given(st.floats(allow_nan=False), st.sampled_from(["now", "window", "ask"]), st.text(max_size=20))
def test_no_signed_number_or_text_ends_a_check_or_holds_a_device_for_ever(
    tmp_path_factory, spread_s, apply, window
):
    spread_s = spread_s if math.isfinite(spread_s) else math.copysign(1e308, spread_s)
    document = msgspec.structs.replace(ROLLOUT, apply=apply, window=window, spread_s=spread_s)
    read = decode_document(RolloutDocument, encode_document(document), source="rollout", limit_bytes=65536)
    file = tmp_path_factory.mktemp("device") / MOVE_FILE
    hold = MoveTiming(file, Times(DAYS[0]), random.Random(1).uniform).hold(offered(read))
    assert hold is None or hold.wait_s is None or 0 < hold.wait_s <= 15 * 86400
