"""Watch for hanging camera drivers: a call that hangs cannot be interrupted, only abandoned."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# A camera without a frame for so long is faulty: a network camera reboots in half a minute.
SILENT_S = 60.0
# No driver call takes so long: OpenCV gives up after 30 s (FFmpeg) or 10 s (V4L2).
STUCK_S = 120.0


class DriverWatch:
    """Duration of driver calls that have not returned: each thread wraps its calls in a `with` block."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, float] = {}

    def __enter__(self) -> None:
        """Note the start of a call."""
        self._since[threading.get_ident()] = self._clock()

    def __exit__(self, *error: object) -> None:
        """Note the end of a call."""
        self._since.pop(threading.get_ident(), None)

    def waiting_s(self) -> float:
        """Return the seconds that the longest pending call has taken; 0 without one."""
        since = min(list(self._since.values()), default=None)
        return 0.0 if since is None else self._clock() - since
