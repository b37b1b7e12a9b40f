"""NumPy arrays as bytes, the same bytes for the same array; bytes from a store may be anything."""

from __future__ import annotations

import contextlib
import io
import struct
import tokenize
import zipfile
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray


def pack_array(array: NDArray[Any]) -> bytes:
    """Return an array in NumPy's .npy format."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def unpack_array(packed: bytes) -> NDArray[Any]:
    """Return what `pack_array` wrote.

    Raises: InputError if it is not an array.
    """
    with _malformed_as_errors("an array"):
        _check_header(io.BytesIO(packed), len(packed))
        array: NDArray[Any] = np.lib.format.read_array(io.BytesIO(packed), allow_pickle=False)
        return array


def unpack_arrays(packed: bytes) -> Mapping[str, NDArray[Any]]:
    """Return what `np.savez` wrote, all arrays by name, in their order.

    Raises: InputError if it is not that, or compressed: a few bytes could then become any number of them.
    """
    with _malformed_as_errors("arrays"), zipfile.ZipFile(io.BytesIO(packed)) as file:
        members = file.infolist()
        if any(one.compress_type != zipfile.ZIP_STORED for one in members):
            raise ValueError("compressed")
        if sum(one.file_size for one in members) > len(packed):
            raise ValueError("larger than the file they lie in")
        found = {}
        for one in members:
            with file.open(one) as header:
                _check_header(header, one.file_size)
            with file.open(one) as content:
                found[one.filename.removesuffix(".npy")] = np.lib.format.read_array(
                    content, allow_pickle=False
                )
        return found


def _check_header(file: IO[bytes], size_bytes: int) -> None:
    """Raise ValueError for an array that claims more bytes than there are."""
    version = np.lib.format.read_magic(file)
    read_header = (
        np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read_header(file)
    if dtype.hasobject or dtype.itemsize * int(np.prod(shape, dtype=object)) > size_bytes:
        msg = f"a shape of {shape} in {size_bytes} bytes"
        raise ValueError(msg)


@contextlib.contextmanager
def _malformed_as_errors(what: str) -> Iterator[None]:
    try:
        yield
    except (
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        OSError,
        EOFError,
        NotImplementedError,
        RuntimeError,
        MemoryError,
        SyntaxError,
        tokenize.TokenError,
        struct.error,
        zipfile.BadZipFile,
    ) as e:
        msg = f"not {what} as the pipeline packs them ({type(e).__name__}: {e}); run again to compute them"
        raise InputError(msg) from e
