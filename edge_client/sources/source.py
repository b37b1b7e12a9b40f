"""Interface of frame sources, and the limit on their frame rate."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray


def _nothing() -> None:
    """Do nothing: a camera's frame needs no cleanup, a listed file stays."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One frame to classify.

    Attributes:
        source: File name or camera name, for the result.
        pixels: (H, W, 3) uint8 RGB.
        done: To be called once the result is written; a watched folder then moves or deletes the file. A
            frame whose `done` is never called comes again after a restart.
    """

    source: str
    pixels: NDArray[np.uint8]
    done: Callable[[], None] = _nothing


class Source(Protocol):
    """Source of frames."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until `stop` is set or there are no more.

        May be called again after an error; a watched folder then continues where it was.

        Raises: DeviceError if the folder or camera cannot be opened, or is gone for too long.
        """
        ...


class Pace:
    """Limit on the frame rate."""

    def __init__(self, frames_per_second: float = 0.0) -> None:
        self._interval_s = 1 / frames_per_second if frames_per_second > 0 else 0.0
        self._next = 0.0

    def left_s(self) -> float:
        """Return the seconds until the next frame is due; 0 if it is due now."""
        return max(self._next - time.monotonic(), 0.0)

    def wait(self, stop: threading.Event) -> bool:
        """Wait until the next frame is due, and count it; False if `stop` was set before."""
        if stop.wait(self.left_s()) if self._interval_s else stop.is_set():
            return False
        self.count()
        return True

    def count(self) -> None:
        """Count a frame now: the next one is due an interval later."""
        self._next = time.monotonic() + self._interval_s
