"""When a device checks the store: a pure decision, with the clock and chance passed in.

Announcements are trusted for nothing. They bring the next update check forward, never put it off, and each
false one makes the device wait longer before it follows another, up to `LONGEST_INTERVAL_S`: so long a true
one may wait among false ones that never say the same. An announcement that was checked is not news when it
comes again, from whomever; the broker delivers it at each subscribe (mosquitto#739).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from edge_client.settings.update import UpdateSettings
    from edge_client.update.triggers import ReceivedAnnouncement

# After a lost connection, or when the store does not show yet what was announced (a CDN may lag): at most so
# long. Any part of it may be drawn ("full jitter"): after an outage all devices of a fleet fail together, and
# would come again together each time (M. Brooker, "Exponential Backoff And Jitter", AWS, 2015).
RETRY_DELAYS_S = (2.0, 5.0, 15.0, 60.0, 300.0)
# Part of the poll interval: devices that looked together once, at a power cut or an announcement, are spread
# over a whole interval from the next look on, and look as often as asked for.
POLL_JITTER = 0.5
# Between two checks; the longest applies after several false announcements in a row.
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 1.0, 16.0
# Announcements that were checked: so many are known, and for so long.
SETTLED_KEPT, SETTLED_S = 64, 3600.0


@dataclasses.dataclass(frozen=True)
class Awaited:
    """A release that was announced at `since` (monotonic seconds) and does not serve yet."""

    release: str
    since: float
    payload: bytes


class CheckSchedule:
    """Computes when the next update check is due; all times are monotonic seconds."""

    def __init__(
        self,
        settings: UpdateSettings,
        now: float,
        uniform: Callable[[float, float], float],
        *,
        serves: bool,
        start_spread_s: float = 0.0,
        fleet_spread_s: Callable[[], float] = float,
    ) -> None:
        """Schedule the first check.

        Args:
            settings: Poll interval and spread.
            now: Current time.
            uniform: Draws a number between two.
            serves: Whether a release serves. The first check may wait then: all cameras of a shop start
                at once when the power comes back.
            start_spread_s: Seconds that the size of the fleet asks for before the first check.
            fleet_spread_s: Returns the seconds that the size of the fleet asks for, like `spread_s`.
        """
        self._settings = settings
        self._uniform = uniform
        self._fleet_spread_s = fleet_spread_s
        self._next = now + (uniform(0, max(settings.spread_s, start_spread_s)) if serves else 0)
        self._checked_at = float("-inf")
        self._failures = self._false_announcements = 0
        self._settled: dict[bytes, float] = {}
        self._last_false = b""
        self.awaited: Awaited | None = None

    def due_in(self, now: float) -> float:
        """Return the seconds until the next check; 0 if it is due."""
        interval_s = min(SHORTEST_INTERVAL_S * 2**self._false_announcements, LONGEST_INTERVAL_S)
        earliest = self._checked_at + (interval_s if self.awaited else SHORTEST_INTERVAL_S)
        return max(self._next - now, earliest - now, 0.0)

    def request(self, now: float) -> None:
        """Make a check due now, because the channel's release was requested."""
        self._next = min(self._next, now)

    def note_announcement(self, announcement: ReceivedAnnouncement, newest: str | None, now: float) -> bool:
        """Bring the next check forward if an announcement is news; return whether it is.

        Args:
            announcement: As received.
            newest: Release that was installed last.
            now: Current time.
        """
        if announcement.release == newest:
            self.awaited = None  # whatever was announced before, the channel is back at this release
            return False
        if now - self._settled.get(announcement.payload, float("-inf")) < SETTLED_S:
            return False
        if self.awaited is None or self.awaited.payload != announcement.payload:
            self.awaited = Awaited(announcement.release, announcement.arrived, announcement.payload)
            self._failures = 0
        self._next = min(self._next, now + self._uniform(0, self._spread_s))
        return True

    def note_check(self, now: float, *, settled: bool, signed: Collection[str] | None) -> None:
        """Schedule the next check after one has ended.

        Args:
            now: Current time.
            settled: False if checking again soon may help.
            signed: Releases that the signed documents of the channel name; None if that is unknown.
        """
        self._checked_at = now
        self._failures = 0 if settled else self._failures + 1
        if self.awaited is not None and signed is not None:
            self._count_false(self.awaited, signed)
        if self.awaited is not None and (settled or self._failures >= len(RETRY_DELAYS_S)):
            if signed is not None:
                self._settle(self.awaited.payload, now)
            self.awaited = None  # anybody may announce anything: from now on the signed channel counts
        self._next = now + self._delay_s()

    def _count_false(self, awaited: Awaited, signed: Collection[str]) -> None:
        """Count a false announcement once, however often the store is asked because of it."""
        if awaited.release in signed:
            self._false_announcements, self._last_false = 0, b""
        elif awaited.payload != self._last_false:
            self._false_announcements, self._last_false = self._false_announcements + 1, awaited.payload

    def _settle(self, payload: bytes, now: float) -> None:
        self._settled.pop(payload, None)
        self._settled[payload] = now
        if len(self._settled) > SETTLED_KEPT:
            del self._settled[next(iter(self._settled))]

    @property
    def _spread_s(self) -> float:
        return max(self._settings.spread_s, self._fleet_spread_s())

    def _delay_s(self) -> float:
        """Seconds until the next check, spread so that a fleet does not come at once."""
        poll_s = self._settings.poll_s
        if self._failures == 0:
            return poll_s * self._uniform(1 - POLL_JITTER, 1 + POLL_JITTER)
        step = min(self._failures, len(RETRY_DELAYS_S)) - 1
        return self._uniform(0, min(max(RETRY_DELAYS_S[step], self._spread_s), poll_s))
