"""Watch for calls that hang: a camera's driver, a disk or a decoder cannot be interrupted, only abandoned."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A camera without a frame for so long is faulty: a network camera reboots in half a minute.
SILENT_S = 60.0
# No driver call takes so long: OpenCV gives up after 30 s (FFmpeg) or 10 s (V4L2).
STUCK_S = 120.0
# The largest picture that is accepted takes a Pi Zero 2 this long to read and decode.
SLOW_READING_S = 15.0


class DriverWatch:
    """Duration of calls that have not returned: each thread wraps its calls in a `with` block."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: dict[int, tuple[float, str]] = {}

    def __enter__(self) -> None:
        """Note the start of a call of a camera's driver."""
        self._since[threading.get_ident()] = (self._clock(), "")

    def __exit__(self, *error: object) -> None:
        """Note the end of a call."""
        self._since.pop(threading.get_ident(), None)

    @contextlib.contextmanager
    def reading(self, name: str) -> Iterator[None]:
        """Watch the block, which reads a picture or folder of this name."""
        self._since[threading.get_ident()] = (self._clock(), name)
        try:
            yield
        finally:
            self._since.pop(threading.get_ident(), None)

    def waiting_s(self) -> float:
        """Return the seconds that the longest pending call has taken; 0 without one."""
        since = min((since for since, _ in list(self._since.values())), default=None)
        return 0.0 if since is None else self._clock() - since

    def fault(self) -> str:
        """Return what has not answered for too long, and for how long; "" if nothing hangs."""
        for since, name in list(self._since.values()):
            waited_s = self._clock() - since
            if name and waited_s > SLOW_READING_S:
                return f"{name}: reading it takes over {SLOW_READING_S:g} s; check the disk, or remove it"
            if not name and waited_s > SILENT_S:
                return f"the camera's driver has not answered for over {SILENT_S:g} s"
        return ""
