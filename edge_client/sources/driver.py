"""How long a camera's driver keeps its readers waiting: one that hangs cannot be interrupted, only left."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# So long a camera may give nothing before it is called faulty: a network camera starts anew in half a minute.
SILENT_S = 60.0
# No call of a driver takes so long: OpenCV gives up after 30 s (FFmpeg) or 10 s (V4L2).
STUCK_S = 120.0


class DriverWatch:
    """Is told of each call of a driver, in a `with` block, by whichever thread makes it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}

    def __enter__(self) -> None:
        """A call begins."""
        self._since[threading.get_ident()] = self._clock()

    def __exit__(self, *error: object) -> None:
        """It has come back."""
        self._since.pop(threading.get_ident(), None)

    def waiting_s(self) -> float:
        """Seconds that the longest call has taken so far; 0 if there is none now."""
        since = min(list(self._since.values()), default=None)
        return 0.0 if since is None else self._clock() - since
