"""Region of interest and motion detection: crop each frame, and skip frames in which little changed."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import numpy as np

from edge_client.contract.averaging import average_blocks

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from edge_client.settings.frames import Region
    from edge_client.sources.source import Frame, Source

# Frames are compared as mosaics of about so many tiles along the longer side.
_TILES = 32
# A tile has changed if its average colour differs by so much of 255: more than noise and slow daylight.
_LEVELS = 16


class MotionFilter:
    """Frames of another source, cropped to a region, without those in which little changed."""

    def __init__(
        self,
        source: Source,
        *,
        region: Region | None,
        min_change_percent: float,
        longest_still_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wrap `source`; see `SourceSettings` for the other arguments."""
        self._source = source
        self._region = region
        self._min_share = min_change_percent / 100
        self._longest_still_s = longest_still_s
        self._clock = clock
        self._seen: NDArray[np.int16] | None = None
        self._seen_at = float("-inf")

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        for frame in self._source.frames(stop):
            cut = frame
            if self._region is not None:
                cut = dataclasses.replace(frame, pixels=np.ascontiguousarray(self._region.cut(frame.pixels)))
            if self._has_changed(cut.pixels):
                yield cut
            else:
                frame.done()
            del frame, cut  # a large picture is not kept while the next one is decoded

    def _has_changed(self, pixels: NDArray[np.uint8]) -> bool:
        if self._min_share == 0:
            return True
        now, tiles = self._clock(), mosaic(pixels)
        changed = (
            self._seen is None
            or self._seen.shape != tiles.shape
            or changed_share(self._seen, tiles) >= self._min_share
            or now - self._seen_at >= self._longest_still_s
        )
        if changed:
            # Compare with the last frame that was passed on: a slow change would otherwise never be seen.
            self._seen, self._seen_at = tiles, now
        return changed


def mosaic(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the average colour of square tiles of (H, W, 3) pixels, (rows, columns, 3)."""
    side = max(max(pixels.shape[:2]) // _TILES, 1)
    side = min(side, *pixels.shape[:2])
    return average_blocks(pixels, side, side).astype(np.int16)


def changed_share(old: NDArray[np.int16], new: NDArray[np.int16]) -> float:
    """Return the share of tiles, 0-1, whose colour has changed."""
    return float((np.abs(new - old) >= _LEVELS).any(axis=2).mean())
