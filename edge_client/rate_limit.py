"""Limit on how often something is done: what an untrusted sender can cause must not wear out the card."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


class RateLimit:
    """Allows some at once, then one in each interval."""

    def __init__(self, at_once: int, interval_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with all that are allowed at once.

        Args:
            at_once: Number without a pause.
            interval_s: Seconds after which one more is allowed.
            clock: Monotonic seconds.
        """
        self._at_once = at_once
        self._interval_s = interval_s
        self._clock = clock
        self._left, self._counted_at = float(at_once), clock()

    def allows(self) -> bool:
        """Return whether one more is allowed now, and count it."""
        now = self._clock()
        self._left = min(self._at_once, self._left + (now - self._counted_at) / self._interval_s)
        self._counted_at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
