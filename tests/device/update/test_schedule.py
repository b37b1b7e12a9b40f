"""When a device checks: announcements bring a check forward, never put it off, nor wear the device out."""

from __future__ import annotations

import dataclasses

import pytest

from edge_client.settings.update import UpdateSettings
from edge_client.update.schedule import (
    LONGEST_INTERVAL_S,
    RETRY_DELAYS_S,
    SETTLED_KEPT,
    SETTLED_S,
    CheckSchedule,
)
from edge_client.update.triggers import ReceivedAnnouncement

POLL_S = 3600.0
SETTINGS = UpdateSettings(poll_s=POLL_S)


def upper(_low: float, high: float) -> float:
    return high


def lower(low: float, _high: float) -> float:
    return low


def begun(settings: UpdateSettings = SETTINGS, *, serves: bool = True, uniform=lower) -> CheckSchedule:
    return CheckSchedule(settings, 0.0, uniform, serves=serves)


def checked(schedule: CheckSchedule, now: float, signed: str | None = "a", *, settled: bool = True) -> None:
    schedule.note_check(now, settled=settled, signed=None if signed is None else {signed})


def announce(schedule: CheckSchedule, release: str, now: float, text: bytes = b"") -> bool:
    received = ReceivedAnnouncement(text or release.encode(), now, release)
    return schedule.note_announcement(received, "a", now)


def test_the_first_check_is_at_the_start_and_the_next_at_the_poll():
    schedule = begun()
    assert schedule.due_in(0) == 0
    checked(schedule, 1.0)
    assert schedule.due_in(1.0) == pytest.approx(POLL_S * 0.5)


def test_cameras_that_start_at_one_moment_spread_unless_they_serve_nothing():
    settings = dataclasses.replace(SETTINGS, spread_s=60.0)
    assert begun(settings, uniform=upper).due_in(0) == 60.0
    assert begun(settings, serves=False, uniform=upper).due_in(0) == 0


def test_an_announcement_brings_the_check_forward_within_the_spread():
    schedule = begun(dataclasses.replace(SETTINGS, spread_s=60.0))
    checked(schedule, 0.0)
    schedule._uniform = upper
    assert announce(schedule, "b", 100.0)
    assert schedule.due_in(100.0) == 60.0
    # Told again and again, it is not put off.
    for now in range(101, 155):
        announce(schedule, "b", float(now))
    assert schedule.due_in(155.0) == 5.0
    schedule.request(155.0)
    assert schedule.due_in(155.0) == 0


@pytest.mark.parametrize("release", ["a", "b"])
def test_no_flood_of_announcements_puts_the_poll_off(release):
    schedule = begun()
    checked(schedule, 0.0)
    announce(schedule, "b", 1.0)
    checked(schedule, 2.0, signed="b")
    for now in range(3, 4000):
        announce(schedule, release, float(now))
    assert schedule.due_in(4000.0) == 0


def test_the_serving_release_is_no_news_and_ends_the_wait_for_another():
    schedule = begun()
    checked(schedule, 0.0)
    announce(schedule, "b", 1.0)
    assert schedule.awaited is not None
    assert not announce(schedule, "a", 2.0)
    assert schedule.awaited is None


def test_an_announcement_that_was_checked_is_no_news_when_it_is_delivered_again():
    schedule = begun()
    announce(schedule, "b", 0.0)
    checked(schedule, 1.0, signed="b")  # for a share of devices, say
    assert not announce(schedule, "b", 100.0)
    assert schedule.due_in(100.0) > 1000
    assert announce(schedule, "b", 100.0, b"of a larger share")


def test_a_check_that_failed_is_repeated_and_the_announcement_kept():
    schedule = begun(uniform=upper)
    announce(schedule, "b", 0.0)
    now = 0.0
    for delay_s in RETRY_DELAYS_S[:-1]:
        checked(schedule, now, signed=None, settled=False)
        assert schedule.awaited is not None
        assert schedule.due_in(now) == pytest.approx(delay_s)
        now += schedule.due_in(now)
    checked(schedule, now, signed=None, settled=False)
    assert schedule.awaited is None
    # The signed release is unknown: the announcement counts again when it is delivered again.
    assert announce(schedule, "b", now + 10)


def test_false_announcements_make_the_next_ones_wait_longer_until_a_true_one():
    schedule = begun()
    now, waits = 0.0, []
    for number in range(40):
        announce(schedule, f"lie-{number}", now)
        waits.append(schedule.due_in(now))
        now += waits[-1]
        checked(schedule, now, signed="a", settled=True)
    assert waits == sorted(waits)
    assert waits[-1] == LONGEST_INTERVAL_S
    announce(schedule, "b", now)
    now += schedule.due_in(now)
    checked(schedule, now, signed="b")
    announce(schedule, "c", now)
    assert schedule.due_in(now) == 1.0


def test_a_lie_that_is_repeated_costs_one_look_and_no_patience():
    schedule = begun()
    announce(schedule, "lie", 0.0)
    for now in (1.0, 3.5, 9.0, 30.0, 100.0):  # the store may lag behind an announcement
        checked(schedule, now, settled=False)
    assert not announce(schedule, "lie", 101.0)
    assert announce(schedule, "b", 101.0)
    assert schedule.due_in(101.0) <= 2.0


def test_what_was_checked_is_known_for_an_hour_and_only_so_many():
    schedule = begun()
    for number in range(SETTLED_KEPT + 1):
        announce(schedule, f"lie-{number}", 0.0)
        checked(schedule, 1.0)
    assert announce(schedule, "lie-0", 2.0)
    assert not announce(schedule, f"lie-{SETTLED_KEPT}", 2.0)
    assert announce(schedule, f"lie-{SETTLED_KEPT}", 1.0 + SETTLED_S)


def test_a_request_waits_only_for_the_shortest_interval():
    schedule = begun()
    checked(schedule, 10.0)
    schedule.request(10.0)
    assert schedule.due_in(10.0) == 1.0
    assert schedule.due_in(11.0) == 0
