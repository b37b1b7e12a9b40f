"""When a device reports, on a clock of the test."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.reporting.report_schedule import EARLIEST, LONGEST_ANSWER_S, ReportSchedule

pytestmark = pytest.mark.runtime

HOUR_S = 3600.0


class Device:
    """Sends whatever is due, at once, on a clock of its own."""

    def __init__(self, interval_s: float, seed: int = 1) -> None:
        self.now = 1000.0
        self.sent: list[float] = []
        self.schedule = ReportSchedule(interval_s, self.now, random.Random(seed).uniform)
        self.schedule.note_connection(self.now)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while (due_s := self.schedule.due_in(self.now)) <= end - self.now:
            self.now += due_s
            self.schedule.note_report(self.now)
            self.sent.append(self.now)
        self.now = end


def test_a_device_beats_within_its_interval():
    device = Device(30.0)
    device.run(HOUR_S)
    gaps = [b - a for a, b in zip(device.sent, device.sent[1:], strict=False)]
    assert device.sent[0] == 1000.0, "the first report goes out with the first connection"
    assert min(gaps) >= EARLIEST * 30.0
    assert max(gaps) <= 30.0


def test_devices_that_start_together_do_not_beat_together():
    devices = [Device(3600.0, seed) for seed in range(200)]
    for one in devices:
        one.run(5 * HOUR_S)
    last = sorted(one.sent[4] for one in devices)
    busiest = max(sum(at <= one < at + 60.0 for one in last) for at in last)
    assert busiest < 20, "of 200 devices in one minute"


def test_a_change_is_told_at_once_and_a_flapping_state_does_not_flood():
    device = Device(3600.0)
    device.run(60.0)
    for _ in range(1000):  # a change in each second
        device.schedule.note_change(device.now)
        device.run(1.0)
    assert device.sent[1] == 1060.0
    assert len(device.sent) <= 1 + 8 + 1000 / 30 + 1
    device.run(60.0)
    told = len(device.sent)
    assert device.sent[-1] >= device.now - 60.0 - 31.0, "the last change is told, too"
    device.run(60.0)
    assert len(device.sent) == told


@settings(max_examples=50, deadline=None)
@given(st.floats(1.0, 3600.0), st.floats(0.001, 100.0), st.integers(0, 1000))
def test_requests_make_half_as_many_reports_again_at_most(interval_s, every_s, seed):
    device = Device(interval_s, seed)
    total_s = min(20 * interval_s, 2000 * every_s)
    for _ in range(int(total_s / every_s)):
        device.schedule.note_request(device.now)
        device.run(every_s)
    beats = total_s / (EARLIEST * interval_s)
    assert len(device.sent) <= 1 + beats + 2 + total_s / (2 * interval_s) + 1


def test_a_request_is_answered_after_a_random_delay_that_grows_with_the_fleet():
    answers = []
    for seed in range(100):
        device = Device(3600.0, seed)
        device.run(60.0)
        assert device.schedule.note_request(device.now)
        assert not device.schedule.note_request(device.now), "one is waiting already"
        device.run(LONGEST_ANSWER_S)
        answers.append(device.sent[1] - 1060.0)
    assert 0 <= min(answers) < 60
    assert 540 < max(answers) <= LONGEST_ANSWER_S
    small = Device(30.0)
    small.run(1.0)
    small.schedule.note_request(small.now)
    small.run(10.0)
    assert len(small.sent) == 2


def test_reports_are_sent_again_after_a_loss_but_not_by_all_at_once():
    again = []
    for seed in range(100):
        device = Device(3600.0, seed)
        device.run(600.0)
        device.schedule.note_connection(device.now)
        device.run(60.0)
        again.append(device.sent[1] - 1600.0)
    assert 0 <= min(again) < 1
    assert 9 < max(again) <= 10


def test_the_fleet_may_ask_for_another_interval():
    device = Device(3600.0)
    device.run(1.0)
    device.schedule.set_interval(10.0, device.now)
    device.run(11.0)
    assert len(device.sent) == 2
    device.schedule.set_interval(3600.0, device.now)
    device.run(1000.0)
    assert len(device.sent) == 3


def test_what_could_not_go_out_is_tried_again_soon():
    device = Device(3600.0)
    device.schedule.note_report(device.now)
    device.schedule.note_failed(device.now)
    assert 0 < device.schedule.due_in(device.now) <= 5.0
