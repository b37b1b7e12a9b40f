"""When systemd's watchdog is fed: not while something is stuck, and again once it goes on."""

from __future__ import annotations

from edge_client.daemon.watchdog import STUCK_S, Hang, Watchdog
from edge_client.reporting.systemd import SystemdNotifier
from edge_client.sources.driver import DriverWatch


class Site:
    def __init__(self):
        self.now, self.alive = 1000.0, True
        self.hangs: list[Hang] = []
        self.driver = DriverWatch(lambda: self.now)
        self.watchdog = Watchdog(
            SystemdNotifier(), self.driver, lambda: self.alive, self.hangs.append, lambda: self.now
        )

    def looks(self, count: int, *, apart_s: float = 2.0) -> list[bool]:
        found = []
        for _ in range(count):
            self.now += apart_s
            found.append(self.watchdog.look())
        return found


def test_a_model_that_hangs_is_noted_and_one_that_answers_again_is_fed_for():
    site = Site()
    site.watchdog.classifying_since = site.now
    assert site.looks(29) == [True] * 29
    assert site.looks(5) == [True, True, False, False, False]
    assert site.hangs == [Hang.MODEL]
    site.watchdog.classifying_since = None
    assert site.looks(2) == [True, True]
    assert site.hangs == [Hang.MODEL, Hang.NONE]


def test_a_source_that_hangs_is_noted():
    site = Site()
    with site.driver.reading("/camera/1.png"):
        assert site.looks(3, apart_s=STUCK_S) == [True, True, True]
        assert site.looks(2, apart_s=STUCK_S) == [False, False]
    assert site.looks(2) == [True, True]
    assert site.hangs == [Hang.SOURCE, Hang.NONE]


def test_a_machine_that_stood_still_is_no_hang():
    """The first look after it comes before the thread of the frames goes on."""
    site = Site()
    site.watchdog.classifying_since = site.now
    assert site.looks(1, apart_s=10 * STUCK_S) == [True]
    site.watchdog.classifying_since = site.now
    assert site.looks(2) == [True, True]
    assert not site.hangs


def test_a_thread_that_ended_is_no_hang_of_the_model():
    site = Site()
    site.alive = False
    assert site.looks(3) == [True, False, False]
    assert not site.hangs
