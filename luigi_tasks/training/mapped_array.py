"""Arrays on disk that are larger than memory."""

from __future__ import annotations

import math
import os
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def map_array(folder: Path, shape: tuple[int, ...], kind: type[np.generic] = np.float16) -> NDArray[Any]:
    """Return an array of zeros on disk, mapped into memory; its file has no name, so nothing stays behind.

    Raises: SettingsError if the disk has no room for all of it. Were room taken page by page, a disk that
        fills up would kill the process without a message (SIGBUS).
    """
    size_bytes = math.prod(shape) * np.dtype(kind).itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return np.memmap(file, kind, "r+", shape=shape)
    except OSError as e:
        msg = (
            f"{folder}: no room for {size_bytes / 1e6:.0f} MB of activations ({e.strerror or e}); free some "
            "space, or let [dataset] cache_dir name a folder that can be written"
        )
        raise SettingsError(msg) from e
