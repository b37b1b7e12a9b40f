"""Reads picture files that other programs put there: regular files only, without waiting, up to a size."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.free_memory import free_memory_bytes

if TYPE_CHECKING:
    from pathlib import Path

# An uncompressed picture of 50 megapixels and 4 bytes.
MAX_FILE_BYTES = 210_000_000
# A file above this is compared with the free memory before it is read.
_FREELY_BYTES = 32_000_000


def read_picture(path: Path, *, follow_link: bool = True) -> bytes:
    """Return the content of a picture file.

    The whole of it, at once: a decoder that reads on in a file could be given other bytes than were checked.

    Args:
        path: The file.
        follow_link: False: a symbolic link is refused.
    Raises: InputError if it is no regular file, cannot be read, or is too large for the memory.
    """
    # A named pipe in its place would make open(2) wait for a writer.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow_link else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags)
        try:
            return _read(descriptor, path)
        finally:
            os.close(descriptor)
    except FileNotFoundError as e:
        msg = f"{path}: no such file; check the path"
        raise InputError(msg) from e
    except OSError as e:
        msg = f"{path}: cannot be read: {e.strerror or e}; replace or remove it"
        raise InputError(msg) from e


def _read(descriptor: int, path: Path) -> bytes:
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        msg = f"{path}: a folder, not a regular file; give the pictures in it"
        raise InputError(msg)
    if not stat.S_ISREG(found.st_mode):
        msg = f"{path}: not a regular file; remove it"
        raise InputError(msg)
    if found.st_size > MAX_FILE_BYTES:
        msg = f"{path}: {found.st_size} bytes, at most {MAX_FILE_BYTES} are read; scale it down or remove it"
        raise InputError(msg)
    if found.st_size > _FREELY_BYTES:
        free = free_memory_bytes()
        if free is not None and found.st_size > free // 2:
            msg = (
                f"{path}: {found.st_size // 1_000_000} MB, and {free // 1_000_000} MB of memory are free; "
                "scale it down, or save it as a JPEG"
            )
            raise InputError(msg) from MemoryError(found.st_size)
    parts = []
    left = found.st_size
    while left > 0 and (part := os.read(descriptor, left)):
        parts.append(part)
        left -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
