"""What of a frame is looked at, and which frames are worth it."""

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

# Frames are compared as mosaics of about so many tiles along the longer side ...
_TILES = 32
# ... of which one has changed if its colour is off by so much of 255: more than noise and slow daylight.
_LEVELS = 16


class AttentiveSource:
    """Another source's frames, cut to a region, without those that show nothing new."""

    def __init__(
        self,
        source: Source,
        *,
        region: Region | None,
        min_change_percent: float,
        longest_still_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """See `SourceSettings` for the meaning of all."""
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
            if self._is_worth_it(cut.pixels):
                yield cut
            else:
                frame.done()

    def _is_worth_it(self, pixels: NDArray[np.uint8]) -> bool:
        if self._min_share == 0:
            return True
        now, tiles = self._clock(), mosaic(pixels)
        worth_it = (
            self._seen is None
            or self._seen.shape != tiles.shape
            or changed_share(self._seen, tiles) >= self._min_share
            or now - self._seen_at >= self._longest_still_s
        )
        if worth_it:
            # Compared with the last frame that was looked at, or a slow change would never be seen.
            self._seen, self._seen_at = tiles, now
        return worth_it


def mosaic(pixels: NDArray[np.uint8]) -> NDArray[np.int16]:
    """Return the average colours of square tiles, (rows, columns, 3)."""
    side = max(max(pixels.shape[:2]) // _TILES, 1)
    side = min(side, *pixels.shape[:2])
    return average_blocks(pixels, side, side).astype(np.int16)


def changed_share(old: NDArray[np.int16], new: NDArray[np.int16]) -> float:
    """Share of tiles, 0-1, of which a colour has changed."""
    return float((np.abs(new - old) >= _LEVELS).any(axis=2).mean())
