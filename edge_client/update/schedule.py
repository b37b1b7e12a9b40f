"""When a device looks at the store: a pure decision, with the clock and chance passed in.

Announcements are trusted for nothing. They bring the next look forward, never put it off, and one that
turned out false makes those that follow wait longer. One that was looked into is not news when the broker
tells it again, as it does at each subscribe (mosquitto#739).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.settings.update import UpdateSettings
    from edge_client.update.triggers import Ring

# After a lost connection, or when the store does not show yet what was announced (a CDN may lag).
RETRY_DELAYS_S = (2.0, 5.0, 15.0, 60.0, 300.0)
POLL_JITTER = 0.1
# Between two looks; the longest after announcements that were false, one after the other.
SHORTEST_INTERVAL_S, LONGEST_INTERVAL_S = 1.0, 64.0


@dataclasses.dataclass(frozen=True)
class Awaited:
    """A release that was announced at `since` (monotonic seconds) and did not come to serve yet."""

    release: str
    since: float
    payload: bytes


class LookSchedule:
    """Says when the next look is due; all times are monotonic seconds."""

    def __init__(
        self, settings: UpdateSettings, now: float, uniform: Callable[[float, float], float], *, serves: bool
    ) -> None:
        """Begin at a start.

        Args:
            settings: How often, and how far spread.
            now: The time.
            uniform: Draws a number between two.
            serves: Whether a release serves: then the first look may wait, for all cameras of a shop
                start at one moment when the power comes back.
        """
        self._settings = settings
        self._uniform = uniform
        self._next = now + (uniform(0, settings.spread_s) if serves else 0)
        self._looked_at = float("-inf")
        self._failures = self._lies = 0
        self._settled = b""
        self.awaited: Awaited | None = None

    def due_in(self, now: float) -> float:
        """Seconds until the next look; 0 if it is due."""
        interval_s = min(SHORTEST_INTERVAL_S * 2**self._lies, LONGEST_INTERVAL_S)
        earliest = self._looked_at + (interval_s if self.awaited else SHORTEST_INTERVAL_S)
        return max(self._next - now, earliest - now, 0.0)

    def ask(self, now: float) -> None:
        """Somebody wants the channel's release now."""
        self._next = min(self._next, now)

    def hear(self, ring: Ring, release: str, newest: str | None, now: float) -> bool:
        """Take an announcement; whether it is news.

        Args:
            ring: As it came.
            release: What it names.
            newest: The release that was taken last.
            now: The time.
        """
        if release == newest:
            self.awaited = None  # whatever was announced before, the channel is back here
            return False
        if ring.payload == self._settled:
            return False
        if self.awaited is None or self.awaited.payload != ring.payload:
            self.awaited = Awaited(release, ring.arrived, ring.payload)
            self._failures = 0
        self._next = min(self._next, now + self._uniform(0, self._settings.spread_s))
        return True

    def looked(self, now: float, *, settled: bool, signed: str | None) -> None:
        """A look has ended.

        Args:
            now: The time.
            settled: False if looking again soon may help.
            signed: Release that the signed channel points to; None if that could not be found out.
        """
        self._looked_at = now
        self._failures = 0 if settled else self._failures + 1
        if self.awaited is not None and signed is not None:
            self._lies = 0 if signed == self.awaited.release else self._lies + 1
        if self.awaited is not None and (settled or self._failures >= len(RETRY_DELAYS_S)):
            if signed is not None:
                self._settled = self.awaited.payload
            self.awaited = None  # anybody may announce anything: from here on, what is signed counts
        self._next = now + self._delay_s()

    def _delay_s(self) -> float:
        """Seconds until the next look, spread so that a fleet does not come at once."""
        poll_s = self._settings.poll_s
        step = min(self._failures, len(RETRY_DELAYS_S)) - 1
        delay_s = poll_s if self._failures == 0 else min(RETRY_DELAYS_S[step], poll_s)
        return delay_s * self._uniform(1 - POLL_JITTER, 1 + POLL_JITTER)
