"""NumPy arrays as bytes, the same bytes for the same array."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pack_array(array: NDArray[Any]) -> bytes:
    """Return an array in NumPy's .npy format."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def unpack_array(packed: bytes) -> NDArray[Any]:
    """Return what `pack_array` wrote.

    Raises: ValueError if it is not an array.
    """
    array: NDArray[Any] = np.load(io.BytesIO(packed), allow_pickle=False)
    return array
