"""The part of a frame that is looked at."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class Region:
    """Part of a frame, as shares of its width and height in [0, 1]."""

    left: float
    top: float
    right: float
    bottom: float

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return this part of (H, W, 3) pixels, of one pixel at least."""
        height, width = pixels.shape[:2]
        top, left = min(int(self.top * height), height - 1), min(int(self.left * width), width - 1)
        bottom, right = round(self.bottom * height), round(self.right * width)
        return pixels[top : max(bottom, top + 1), left : max(right, left + 1)]


def read_region(text: str) -> Region | None:
    """Read `left, top, right, bottom`; empty: no region.

    Raises: ValueError with the way out.
    """
    if not text.strip():
        return None
    try:
        region = Region(*(float(part) for part in text.split(",")))
    except (TypeError, ValueError):
        region = Region(0, 0, 0, 0)
    if not (0 <= region.left < region.right <= 1 and 0 <= region.top < region.bottom <= 1):
        msg = f'region {text!r}: give "left, top, right, bottom" from 0 to 1, e.g. "0.25, 0, 0.75, 1"'
        raise ValueError(msg)
    return region
