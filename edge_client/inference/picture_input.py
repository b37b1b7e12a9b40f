"""Input of a model: pixels as the model wants them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from edge_client.contract.preprocessing import input_table
from edge_client.contract.release import Normalization

if TYPE_CHECKING:
    from numpy.typing import NDArray

BYTE_TYPES = (np.dtype(np.uint8), np.dtype(np.int8))


@dataclasses.dataclass(frozen=True)
class ChannelNormalization:
    """real = (pixel - mean) / std, with one mean and one std for each channel of the input."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


class PictureInput:
    """The input of a loaded model, and its buffer.

    Attributes:
        index: Index of its tensor.
        height: Rows of pixels.
        width: Columns of pixels.
    """

    def __init__(
        self, source: dict[str, Any], normalization: Normalization | ChannelNormalization | None
    ) -> None:
        """Make the lookup tables.

        Args:
            source: Details of the input tensor, of shape (1, H, W, 3); (1, H, W, 1) or (1, H, W) for grey.
            normalization: See `input_table`.
        Raises: InputError for a type that is not supported.
        """
        self.index = int(source["index"])
        shape = tuple(int(n) for n in source["shape"])
        self.height, self.width = shape[1:3]
        self._grey = channels_of(source) == 1
        self._table = table_of(source, normalization)  # (256,), or (256, channels)
        self._buffer = np.empty((1, *shape[1:]), self._table.dtype)
        self._byte_flip = _byte_flip(self._table)

    def fill(self, fitted: NDArray[np.uint8]) -> NDArray[np.generic]:
        """Map (height, width, 3) RGB to the input, whose buffer is reused."""
        if self._grey:
            fitted = np.asarray(Image.fromarray(fitted).convert("L")).reshape(self._buffer.shape[1:])
        if self._byte_flip is not None:
            # The usual 8-bit inputs are the pixel or the pixel minus 128: XOR takes 4 us, a table 120.
            np.bitwise_xor(fitted, self._byte_flip, out=self._buffer.view(np.uint8)[0])
        elif self._table.ndim == 1:
            # "clip" writes straight into `out`; no uint8 is outside a table of 256 anyway.
            np.take(self._table, fitted, out=self._buffer[0], mode="clip")
        else:
            for channel in range(self._table.shape[1]):
                self._buffer[0, ..., channel] = self._table[:, channel][fitted[..., channel]]
        return self._buffer


def channels_of(source: dict[str, Any]) -> int:
    """Return the number of channels of an input; one where its shape has none."""
    shape = source["shape"]
    return int(shape[3]) if len(shape) > 3 else 1


def table_of(
    source: dict[str, Any], normalization: Normalization | ChannelNormalization | None
) -> NDArray[np.generic]:
    """Return the lookup table of an input: (256,), or (256, channels) where the channels differ.

    Raises: InputError for a type that is not supported.
    """
    if isinstance(normalization, ChannelNormalization):
        pairs = zip(normalization.mean, normalization.std, strict=True)
        tables = [_table_of_one(source, Normalization(mean=mean, std=std)) for mean, std in pairs]
        return tables[0] if len(tables) == 1 else np.stack(tables, axis=-1)
    return _table_of_one(source, normalization)


def _table_of_one(source: dict[str, Any], normalization: Normalization | None) -> NDArray[np.generic]:
    dtype, (scale, zero_point) = np.dtype(source["dtype"]), source["quantization"]
    if dtype == np.float16:
        real = input_table(np.dtype(np.float32), scale, zero_point, normalization)
        return np.asarray(real, np.float16)
    if dtype == np.int16 and scale > 0:
        real = input_table(np.dtype(np.float32), scale, zero_point, normalization).astype(np.float64)
        steps = np.floor(real / scale + zero_point + 0.5)
        return np.asarray(np.clip(steps, -32768, 32767), np.int16)
    return input_table(dtype, scale, zero_point, normalization)


def _byte_flip(table: NDArray[np.generic]) -> np.uint8 | None:
    """Return the mask whose XOR equals the 8-bit table; None if the table is no XOR."""
    if table.dtype not in BYTE_TYPES or table.ndim != 1:
        return None
    flip = table.view(np.uint8)[0]
    same = np.array_equal(table.view(np.uint8), np.arange(256, dtype=np.uint8) ^ flip)
    return flip if same else None
