"""Block averages of pixels: most of the work of fitting a camera's frame to a model's input.

Exact integer sums and one rounding give the same result on every machine. NumPy adds whole rows at memory
speed; the buffers are reused because allocating fresh pages costs more than the arithmetic.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Largest block whose sum of 8-bit values fits into 16 bits.
_SMALL_BLOCK = 257
# Where the sums of all blocks take more memory, blocks are averaged a few rows at a time, with so much.
_SUMS_BYTES, _STRIP_SUMS_BYTES = 4_000_000, 1_000_000
# Sizes whose buffers are kept: one fits frames to the model, one compares frames for motion.
_KEPT = 2
_buffers = threading.local()


def average_blocks(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Average blocks of `rows` x `columns` pixels, each colour channel separately; halves are rounded up.

    Args:
        pixels: (H, W, 3) uint8; pixels that fill no whole block are cropped, equally on both sides.
        rows: Height of a block, at most H.
        columns: Width of a block, at most W.
    Returns: (H // rows, W // columns, 3) uint8.
    """
    row_bytes = pixels.shape[1] * 3 * np.dtype(_sum_type(rows, columns)).itemsize
    high = pixels.shape[0] // rows
    if high > 1 and high * row_bytes > _SUMS_BYTES:
        rows_at_once = max(_STRIP_SUMS_BYTES // row_bytes, 1)
        top = (pixels.shape[0] - high * rows) // 2
        starts = range(0, high, rows_at_once)
        strips = (pixels[top + at * rows : top + min(at + rows_at_once, high) * rows] for at in starts)
        return np.concatenate([_average_at_once(strip, rows, columns) for strip in strips])
    return _average_at_once(pixels, rows, columns)


def _average_at_once(pixels: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    wanted = (pixels.shape[0], pixels.shape[1], int(rows), int(columns))
    known: dict[tuple[int, ...], _Blocks] = _buffers.__dict__.setdefault("blocks", {})
    blocks = known.pop(wanted, None) or _Blocks(*wanted)
    if len(known) == _KEPT:
        del known[next(iter(known))]
    known[wanted] = blocks  # the last one used comes last
    return blocks.average(pixels)


def _sum_type(rows: int, columns: int) -> type[np.uint16 | np.uint32]:
    """Return the narrowest type that holds the sum of a block."""
    return np.uint16 if rows * columns <= _SMALL_BLOCK else np.uint32


class _Blocks:
    """Buffers for one size of pictures and blocks."""

    def __init__(self, height: int, width: int, rows: int, columns: int) -> None:
        self._rows, self._columns = rows, columns
        self._high, self._wide = height // rows, width // columns
        self._top = (height - self._high * rows) // 2
        small = rows * columns <= _SMALL_BLOCK
        self._sums = np.empty((self._high, width * 3), _sum_type(rows, columns))
        # Sums of 2, 3, 4-7, 8-15 ... adjacent pixels.
        self._wider: list[NDArray[Any]] = [
            np.empty(self._sums.size, self._sums.dtype) for _ in range(columns.bit_length() - 1)
        ]
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
        """Return the sum of `count` adjacent pixels from each position on; undefined past a row's end."""
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
        """Return row number `row` of every block, (high, width x 3)."""
        start = self._top + row
        return lines[start : start + (self._high - 1) * self._rows + 1 : self._rows]
