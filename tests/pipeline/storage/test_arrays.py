"""Arrays from a store: what was packed, or an error, and never more memory than the file has bytes."""

from __future__ import annotations

import contextlib
import io
import struct
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.contract.errors import InputError
from luigi_tasks.storage.arrays import pack_array, unpack_array, unpack_arrays

ROWS: dict[str, Any] = {"a": np.arange(6, dtype=np.float16).reshape(2, 3), "b": np.zeros((0, 4), np.int8)}


def packed(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **(arrays or ROWS))
    return file.getvalue()


def test_arrays_come_back_in_their_order():
    found = unpack_arrays(packed())
    assert list(found) == ["a", "b"]
    assert all(np.array_equal(found[name], ROWS[name]) for name in ROWS)
    assert np.array_equal(unpack_array(pack_array(ROWS["a"])), ROWS["a"])


def claiming(shape: str) -> bytes:
    """A .npy whose header says that its eight bytes are an array of that shape."""
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)


@pytest.mark.parametrize(
    "data",
    [
        packed(np.savez_compressed, zeros=np.zeros(50_000_000, np.uint8)),
        packed(objects=np.array([{}], object)),
        packed()[:-30],
        b"",
        b"PK",
    ],
)
def test_bombs_objects_and_broken_files_are_refused(data):
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="run again"):
            unpack_arrays(data)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", ["(1099511627776,)", "(4, 1)", "(-3,)", "(1, 2", "'x'"])
def test_an_array_that_claims_more_than_there_is_is_refused(shape):
    with pytest.raises(InputError):
        unpack_array(claiming(shape))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_changed_bytes_are_read_or_refused(data):
    for whole, unpack in ((packed(), unpack_arrays), (pack_array(ROWS["a"]), unpack_array)):
        changed = bytearray(whole)
        for _ in range(data.draw(st.integers(1, 4))):
            changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
        with contextlib.suppress(InputError):
            unpack(bytes(changed))
