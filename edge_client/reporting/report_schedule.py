"""When a device reports: at a change, as a heartbeat, and when somebody asks. Knows no clock.

A change goes out at once, unless the state flaps: `CHANGES_AT_ONCE` have no pause, then one in each
`CHANGE_INTERVAL_S`; what changes meanwhile is in the next report. A heartbeat comes early by a random part of
its interval, so that the devices of a fleet, which a power cut or their broker's restart has set in step,
fall out of it. Nobody who may write to the broker makes a device send more than a heartbeat and a half: a
request while one waits is the same request, and only some are answered in each interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CHANGES_AT_ONCE, CHANGE_INTERVAL_S = 8, 30.0
# A heartbeat comes after so much of its interval at least.
EARLIEST = 0.75
# A request is answered within this part of the interval, which says how large the fleet is, and this limit.
ANSWER_WITHIN, LONGEST_ANSWER_S = 1 / 3, 600.0
# Requests that are answered at once, then one in each two intervals.
ANSWERS_AT_ONCE, ANSWER_INTERVALS = 2, 2.0
# After a reconnect, which a whole fleet may do together.
LONGEST_RECONNECT_S = 10.0
# Nothing went out, as without a connection: another try, should no connection tell of itself.
RETRY_S = 5.0


class ReportSchedule:
    """Decides for one channel."""

    def __init__(self, interval_s: float, now: float, uniform: Callable[[float, float], float]) -> None:
        """Begin with a report as soon as there is a connection.

        Args:
            interval_s: Longest time between two reports.
            now: Monotonic seconds, as everywhere here.
            uniform: Returns a random number between two.
        """
        self._interval_s = interval_s
        self._uniform = uniform
        self._heartbeat_at = now
        self._change_at = float("inf")
        self._answer_at = float("inf")
        self._changes = _Allowance(CHANGES_AT_ONCE, now)
        self._answers = _Allowance(ANSWERS_AT_ONCE, now)
        self._connected = False

    @property
    def interval_s(self) -> float:
        """Longest time between two reports."""
        return self._interval_s

    def set_interval(self, interval_s: float, now: float) -> None:
        """Take another interval; a heartbeat that is due earlier by it is brought forward."""
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            self._heartbeat_at = min(self._heartbeat_at, self._next_heartbeat(now))

    def note_change(self, now: float) -> None:
        """The state has changed."""
        self._change_at = min(self._change_at, now + self._changes.wait_s(now, CHANGE_INTERVAL_S))

    def note_request(self, now: float) -> bool:
        """Somebody asks for a report; return whether that makes one."""
        every_s = ANSWER_INTERVALS * self._interval_s
        if self._answer_at != float("inf") or self._answers.wait_s(now, every_s) > 0:
            return False
        self._answers.take(now, every_s)
        within_s = min(self._interval_s * ANSWER_WITHIN, LONGEST_ANSWER_S)
        self._answer_at = now + self._uniform(0, within_s)
        return True

    def note_connection(self, now: float) -> None:
        """There is a connection: the first of this start, or another one, before which reports were lost."""
        within_s = min(self._interval_s * ANSWER_WITHIN, LONGEST_RECONNECT_S) if self._connected else 0.0
        self._heartbeat_at = min(self._heartbeat_at, now + self._uniform(0, within_s))
        self._connected = True

    def due_in(self, now: float) -> float:
        """Return the seconds until a report is due."""
        return max(min(self._heartbeat_at, self._change_at, self._answer_at) - now, 0.0)

    def note_report(self, now: float) -> None:
        """A report goes out, with all that has changed so far."""
        if self._change_at <= now:
            self._changes.take(now, CHANGE_INTERVAL_S)
        self._change_at = self._answer_at = float("inf")
        self._heartbeat_at = self._next_heartbeat(now)

    def note_failed(self, now: float) -> None:
        """The report could not go out."""
        self._heartbeat_at = now + min(RETRY_S, self._interval_s)

    def _next_heartbeat(self, now: float) -> float:
        return now + self._interval_s * self._uniform(EARLIEST, 1.0)


class _Allowance:
    """So many at once, then one in each interval; tells how long to wait."""

    def __init__(self, at_once: int, now: float) -> None:
        self._at_once, self._left, self._counted_at = at_once, float(at_once), now

    def wait_s(self, now: float, every_s: float) -> float:
        self._left = min(self._at_once, self._left + (now - self._counted_at) / every_s)
        self._counted_at = now
        return max(1 - self._left, 0.0) * every_s

    def take(self, now: float, every_s: float) -> None:
        self.wait_s(now, every_s)
        self._left -= 1
