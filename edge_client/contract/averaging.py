"""Averages over blocks of pixels: the greater part of fitting a camera's frame to a model.

Exact sums in integers, one rounding: the same on every machine. NumPy adds whole rows at the speed of
memory; the buffers are kept because getting fresh pages costs more than the arithmetic.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Largest block whose sum of 8-bit values fits into 16 bits.
_SMALL_BLOCK = 257
# A camera's frames are fitted to the model, and compared with one another.
_KEPT = 2
_mine = threading.local()


def average_blocks(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Average blocks of `rows` x `columns` pixels, each colour for itself; halves are rounded up.

    Args:
        pixels: (H, W, 3) uint8; what is left over beside whole blocks is cut off, alike on both sides.
        rows: Height of a block, at most H.
        columns: Width of a block, at most W.
    Returns: (H // rows, W // columns, 3) uint8.
    """
    wanted = (pixels.shape[0], pixels.shape[1], int(rows), int(columns))
    known: dict[tuple[int, ...], _Blocks] = _mine.__dict__.setdefault("blocks", {})
    blocks = known.pop(wanted, None) or _Blocks(*wanted)
    if len(known) == _KEPT:
        del known[next(iter(known))]
    known[wanted] = blocks  # the last one used comes last
    return blocks.average(pixels)


class _Blocks:
    """Buffers for pictures and blocks of one size."""

    def __init__(self, height: int, width: int, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self._high, self._wide = height // rows, width // columns
        self._top = (height - self._high * rows) // 2
        small = rows * columns <= _SMALL_BLOCK
        self._sums = np.empty((self._high, width * 3), np.uint16 if small else np.uint32)
        # Sums of 2, 3, 4-7, 8-15 ... pixels side by side.
        self._wider = [np.empty(self._sums.size, self._sums.dtype) for _ in range(columns.bit_length() - 1)]
        left = (width - self._wide * columns) // 2
        y, x, colour = np.ogrid[: self._high, : self._wide, :3]
        self._starts = (y * width + left + x * columns) * 3 + colour  # (high, wide, 3) into the sums
        self._picked = np.empty(self._starts.shape, self._sums.dtype)
        self._real = np.empty(self._starts.shape, np.float32 if small else np.float64)
        self._share = self._real.dtype.type(1 / (rows * columns))
        self._half = self._real.dtype.type(0.5)

    def average(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        lines = np.ascontiguousarray(pixels).reshape(pixels.shape[0], -1)
        sums = self._sums
        if self._rows == 1:
            sums[:] = self._every(lines, 0)
        else:
            np.add(self._every(lines, 0), self._every(lines, 1), out=sums, dtype=sums.dtype)
        for row in range(2, self._rows):
            sums += self._every(lines, row)
        wide = self._side_by_side(sums.reshape(-1), self._columns)
        np.take(wide, self._starts, out=self._picked, mode="clip")
        np.multiply(self._picked, self._share, out=self._real)
        self._real += self._half
        return self._real.astype(np.uint8)

    def _side_by_side(self, sums: NDArray[np.generic], count: int) -> NDArray[np.generic]:
        """Return, at each place, the sum of `count` pixels from there on; past an end of line, anything."""
        if count == 1:
            return sums
        half = self._side_by_side(sums, count // 2)
        shift = 3 * (count // 2)
        wide = self._wider[count.bit_length() - 2]
        np.add(half[:-shift], half[shift:], out=wide[:-shift])
        if count % 2:
            wide[: -2 * shift] += sums[2 * shift :]
        return wide

    def _every(self, lines: NDArray[np.uint8], row: int) -> NDArray[np.uint8]:
        """Return this row of each block, (high, width x 3)."""
        start = self._top + row
        return lines[start : start + (self._high - 1) * self._rows + 1 : self._rows]
