"""How much one person may ask for: in a time, and at once."""

from __future__ import annotations

import collections
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# So many persons or networks are told apart; the ones that were quiet longest are forgotten.
_KEPT = 10_000


class Rate:
    """So many at once, then so many a second, by key.

    Args:
        burst: Number that may come at once.
        per_s: Number that may come in a second from then on.
        clock: Seconds, monotonic.
    """

    def __init__(self, burst: float, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_s = per_s
        self._clock = clock
        self._left: collections.OrderedDict[str, tuple[float, float]] = collections.OrderedDict()

    def wait_s(self, key: str) -> float:
        """Return the seconds until one more may come; 0: now."""
        return max(0.0, (1.0 - self._at(key)) / self._per_s)

    def is_fresh(self, key: str) -> bool:
        """Whether none came for so long that the whole burst may come."""
        return self._at(key) >= self._burst

    def count(self, key: str) -> None:
        """Count one."""
        self._left[key] = (max(0.0, self._at(key) - 1.0), self._clock())
        self._left.move_to_end(key)
        while len(self._left) > _KEPT:
            self._left.popitem(last=False)

    def _at(self, key: str) -> float:
        left, since = self._left.get(key, (self._burst, self._clock()))
        return min(self._burst, left + (self._clock() - since) * self._per_s)


class Slots:
    """So many at once in all, and of one key.

    Args:
        total: In all.
        each: Of one key.
    """

    def __init__(self, total: int, each: int) -> None:
        self._total = total
        self._each = each
        self._taken: collections.Counter[str] = collections.Counter()

    def take(self, key: str) -> Callable[[], None] | None:
        """Take one; return what gives it back, however often that is called. None: all are taken."""
        if self._taken.total() >= self._total or self._taken[key] >= self._each:
            return None
        self._taken[key] += 1
        kept = [key]

        def give_back() -> None:
            if kept:
                self._taken[kept.pop()] -= 1
                self._taken += collections.Counter()  # drops what is zero

        return give_back
