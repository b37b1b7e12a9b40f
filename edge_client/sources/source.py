"""Interface of frame sources, and the pace at which frames are taken."""

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
    """Do nothing: a camera's frame is gone by itself, a listed file stays."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture on its way to the classifier.

    Attributes:
        source: File name or camera name, for the result.
        pixels: (H, W, 3) uint8 RGB.
        done: Call once its result is written; a watched folder then moves or deletes the file. A frame
            that is never done comes again after a restart.
    """

    source: str
    pixels: NDArray[np.uint8]
    done: Callable[[], None] = _nothing


class Source(Protocol):
    """Gives one frame after the other."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until `stop` is set or there are no more.

        May be called again after an error: a watched folder then goes on where it was.

        Raises: DeviceError if the folder or camera cannot be opened, or is gone for long.
        """
        ...


class Pace:
    """Spaces frames in time, for those who want fewer than come."""

    def __init__(self, frames_per_second: float = 0.0) -> None:
        self._interval_s = 1 / frames_per_second if frames_per_second > 0 else 0.0
        self._next = 0.0

    def left_s(self) -> float:
        """Seconds until the next frame may be taken; 0 if it may be taken now."""
        return max(self._next - time.monotonic(), 0.0)

    def wait(self, stop: threading.Event) -> bool:
        """Wait for the next frame's turn and take it; False if `stop` was set before."""
        if stop.wait(self.left_s()) if self._interval_s else stop.is_set():
            return False
        self.take()
        return True

    def take(self) -> None:
        """A frame is taken now: the next one's turn is an interval later."""
        self._next = time.monotonic() + self._interval_s
