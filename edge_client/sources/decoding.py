"""Decodes the pictures of a source, watched, and noted for the case that the process dies of one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from edge_client.contract.free_memory import return_freed_memory
from edge_client.contract.picture_file import read_picture
from edge_client.contract.preprocessing import decode_picture
from edge_client.contract.text import text_of
from edge_client.sources.driver import DriverWatch

if TYPE_CHECKING:
    import os
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.last_picture import LastPicture


# Pixels of a picture that leaves much freed memory behind: 8 megapixels.
_LARGE_BYTES = 24_000_000


class PictureDecoder:
    """Reads and decodes pictures for one source."""

    def __init__(self, watch: DriverWatch | None = None, note: LastPicture | None = None) -> None:
        """Prepare.

        Args:
            watch: Learns how long each picture takes.
            note: Learns which picture is being decoded; None: no note is kept.
        """
        self._watch = watch or DriverWatch()
        self._note = note

    def decode_file(self, path: Path, *, follow_link: bool = False) -> NDArray[np.uint8]:
        """Return the pixels of a picture file, (H, W, 3) uint8 RGB.

        Raises: InputError if it is no regular file, or as `decode_picture`.
        """
        name = text_of(path)
        with self._watch.reading(name), self._noted(path):
            return _tidied(decode_picture(read_picture(path, follow_link=follow_link), source=name))

    def decode_bytes(self, data: bytes, name: str) -> NDArray[np.uint8]:
        """Return the pixels of a picture that came without a file, (H, W, 3) uint8 RGB.

        Raises: InputError as `decode_picture`.
        """
        with self._watch.reading(name), self._noted(name):
            return _tidied(decode_picture(data, source=name))

    def watching(self, path: Path) -> contextlib.AbstractContextManager[None]:
        """Watch the block, which waits for the disk that a path is on: a network share may not answer."""
        return self._watch.reading(text_of(path))

    def is_given_up(self, path: Path, found: os.stat_result) -> bool:
        """Whether an earlier run died while it decoded this file."""
        return self._note is not None and self._note.is_given_up(path, found)

    def forget(self, path: Path) -> None:
        """Forget a file that was given up and is moved away."""
        if self._note is not None:
            self._note.forget(path)

    def _noted(self, picture: Path | str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self._note is None else self._note.decoding(picture)


def _tidied(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the pixels; what decoding a large picture took is free for other processes again."""
    if pixels.nbytes > _LARGE_BYTES:
        return_freed_memory()
    return pixels
