"""100,000 devices after one outage: they come as slowly as a broker and a store can take them."""

from __future__ import annotations

import collections
import random

import pytest

from edge_client.daemon.fleet_pace import PACE_FILE, FleetPace
from edge_client.reporting.broker import BrokerConnection
from edge_client.settings.reporting import BrokerSettings
from edge_client.settings.update import UpdateSettings
from edge_client.update.schedule import RETRY_DELAYS_S, CheckSchedule

DEVICES, HEARTBEAT_S = 100_000, 3600.0
# Quota of AWS IoT Core for an account and region.
CONNECTS_PER_S = 500


@pytest.fixture
def pace(tmp_path):
    """The pace that a device of a large fleet knows when it starts again."""
    FleetPace(tmp_path / PACE_FILE).note(HEARTBEAT_S)
    return FleetPace(tmp_path / PACE_FILE, uptime_s=40.0)


def most_in_a_second(times) -> int:
    return max(collections.Counter(int(time) for time in times).values())


def test_a_large_fleet_connects_no_faster_than_a_broker_takes_it(pace):
    chance = random.Random(1)
    starts = (chance.uniform(0, pace.start_spread_s) for _ in range(DEVICES))
    assert most_in_a_second(starts) < CONNECTS_PER_S
    connection = BrokerConnection(
        BrokerSettings(host="127.0.0.1"),
        "camera-1",
        handlers={},
        online_topic="edge/fleet/devices/camera-1/online",
        on_connection=lambda: None,
        spread_s=lambda: pace.spread_s,
    )
    for _ in range(20):  # a broker that stays away for long
        assert connection._longest_delay_s() >= DEVICES / CONNECTS_PER_S
        connection._denials.failed()


def test_a_person_who_starts_one_daemon_of_a_large_fleet_does_not_wait(tmp_path, pace):
    assert pace.start_spread_s == pace.spread_s
    assert FleetPace(tmp_path / PACE_FILE, uptime_s=86400.0).start_spread_s == 0


def test_a_device_that_is_alone_or_one_of_a_few_comes_at_once(tmp_path):
    pace = FleetPace(tmp_path / PACE_FILE)
    assert pace.spread_s == 0
    pace.note(30.0)
    assert pace.spread_s == 0


def test_a_fleet_that_failed_together_looks_apart(pace):
    """After one outage of the store: at the start, at each retry, and at the polls that follow."""
    chance = random.Random(2)
    schedules = [
        CheckSchedule(
            UpdateSettings(),
            0.0,
            chance.uniform,
            serves=True,
            start_spread_s=pace.start_spread_s,
            fleet_spread_s=lambda: pace.spread_s,
        )
        for _ in range(2000)
    ]
    share = DEVICES / len(schedules)
    assert most_in_a_second(one.due_in(0.0) for one in schedules) * share < 1000
    for _ in RETRY_DELAYS_S:
        for one in schedules:
            one.note_check(0.0, settled=False, signed=None)
        assert most_in_a_second(one.due_in(0.0) for one in schedules) * share < 1000
    for one in schedules:
        one.note_check(0.0, settled=True, signed={"a"})
    assert most_in_a_second(one.due_in(0.0) // 60 for one in schedules) * share < 5000  # in a minute


@pytest.mark.parametrize(("asked", "taken"), [(1e-9, 0.5), (1e300, 86400), (-1, 0), (0, 0), (900, 900)])
def test_no_interval_floods_a_broker_or_silences_a_device(tmp_path, asked, taken):
    pace = FleetPace(tmp_path / PACE_FILE)
    pace.note(asked)
    assert pace.heartbeat_s == taken


DAMAGED = (b"", b"{", b'{"heartbeat_s": -5}', b'{"heartbeat_s": 1e400}', b'{"schema": 9}')


@pytest.mark.parametrize("content", DAMAGED)
def test_a_pace_that_cannot_be_read_is_that_of_a_small_fleet(tmp_path, content):
    (tmp_path / PACE_FILE).write_bytes(content)
    assert FleetPace(tmp_path / PACE_FILE).spread_s == 0


def test_an_absurd_interval_keeps_no_device_away_for_long(tmp_path):
    pace = FleetPace(tmp_path / PACE_FILE)
    pace.note(1e12)
    assert pace.spread_s <= 3600
    pace.note(float("nan"))
    assert pace.spread_s == 0
