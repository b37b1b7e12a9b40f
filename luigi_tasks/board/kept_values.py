"""The last so many values that were read or made, by key."""

from __future__ import annotations

import collections
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

T = TypeVar("T")


class KeptValues(Generic[T]):
    """Keeps values; the one that was put first goes first. For all threads.

    Args:
        at_most: Number of them.
    """

    def __init__(self, at_most: int) -> None:
        self._at_most = at_most
        self._lock = threading.Lock()
        self._values: collections.OrderedDict[Hashable, T] = collections.OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """Return what is kept; None: nothing is."""
        return self._values.get(key)

    def put(self, key: Hashable, value: T) -> None:
        """Keep a value, in the place of an older one of this key."""
        with self._lock:
            self._values.pop(key, None)
            self._values[key] = value
            while len(self._values) > self._at_most:
                self._values.popitem(last=False)

    def get_or_make(self, key: Hashable, make: Callable[[], T | None]) -> T | None:
        """Return what is kept, or make it: two threads may both. None is not kept."""
        value = self.get(key)
        if value is None:
            value = make()
            if value is not None:
                self.put(key, value)
        return value
