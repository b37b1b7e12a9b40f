"""Cache of decoded pictures on this machine's disk, by content hash, size and preprocessing.

A file holds many pictures: one file for each would cost twice as much as decoding. Each row has a checksum; a
broken row counts as missing, and its picture is decoded again. Any number of processes may read and write at
once: files are renamed into place whole and never change.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import zlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_client.contract.preprocessing import PREPROCESSING_ID
from luigi_tasks.storage.cache import STAGING_PREFIX, drop_leftovers

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

SUFFIX = ".pixels"
LENGTH_BYTES = 8
MAX_HEADER_BYTES = 1 << 30
# Files with fewer pictures are merged once there are more than so many of them: a year of hourly runs.
SMALL_PICTURES = 256
SMALL_FILES = 64

logger = logging.getLogger("luigi-interface")


class _Header(msgspec.Struct, frozen=True):
    """Header of a file: content hash and CRC-32 of each row."""

    pictures: tuple[str, ...]
    checksums: tuple[int, ...]


class PixelCache:
    """Cache of pictures of one size.

    A disk error costs speed, never a run: a picture that cannot be kept is decoded again next time.

    Args:
        folder: Folder of the caches of all sizes.
        height: Height of a picture.
        width: Width of a picture.
    """

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder = folder / f"{height}x{width}-{PREPROCESSING_ID}"
        self._shape = (height, width, 3)
        self._row_bytes = height * width * 3
        self._usable = True

    def fill(self, pictures: Sequence[str], pixels: NDArray[np.uint8]) -> list[int]:
        """Copy cached pictures into (N, height, width, 3) `pixels`; return the positions of the missing ones.

        Args:
            pictures: N content hashes.
            pixels: Gets the pictures.
        """
        missing = dict.fromkeys(range(len(pictures)))
        wanted: dict[str, list[int]] = {}
        for position, sha256 in enumerate(pictures):
            wanted.setdefault(sha256, []).append(position)
        for path in self._files():
            if not missing:
                break
            with contextlib.suppress(OSError), path.open("rb") as file:
                header, start = self._read_header(path, file.read(LENGTH_BYTES), file)
                for row, sha256 in enumerate(header.pictures):
                    if sha256 not in wanted or wanted[sha256][0] not in missing:
                        continue
                    first, *others = wanted[sha256]
                    data = pixels[first].data.cast("B")
                    file.seek(start + row * self._row_bytes)
                    file.readinto(data)
                    if zlib.crc32(data) != header.checksums[row]:
                        logger.warning("%s: row %d is damaged; its picture is decoded again", path, row)
                        continue
                    pixels[others] = pixels[first]
                    for position in (first, *others):
                        missing.pop(position, None)
        return list(missing)

    def keep(self, pictures: Sequence[str], pixels: NDArray[np.uint8]) -> None:
        """Add (N, height, width, 3) pixels of N content hashes to the cache."""
        if not self._usable or not pictures:
            return
        try:
            self._write(pictures, pixels)
            self._merge_small()
        except OSError as e:
            self._usable = False
            logger.warning(
                "%s: %s; continuing without the cache of decoded pictures. Free some space, or let [dataset] "
                "cache_dir name a folder that can be written",
                self.folder,
                e.strerror or e,
            )

    def _write(self, pictures: Sequence[str], pixels: NDArray[np.uint8]) -> Path:
        rows = [np.ascontiguousarray(one).data.cast("B") for one in pixels]
        header = msgspec.json.encode(_Header(tuple(pictures), tuple(zlib.crc32(row) for row in rows)))
        self.folder.mkdir(parents=True, exist_ok=True)
        drop_leftovers(self.folder)
        target = self.folder / f"{hashlib.sha256(header).hexdigest()}{SUFFIX}"
        handle, name = tempfile.mkstemp(dir=self.folder, prefix=STAGING_PREFIX)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(len(header).to_bytes(LENGTH_BYTES, "big"))
                file.write(header)
                for row in rows:
                    file.write(row)
            os.replace(name, target)  # noqa: PTH105 - mkstemp gives a name
        except BaseException:
            os.unlink(name)  # noqa: PTH108 - as above
            raise
        return target

    def _files(self) -> list[Path]:
        """All files, the newest first: the newest is most likely intact and needed."""
        found = []
        for path in self.folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(FileNotFoundError):
                found.append((path.stat().st_mtime_ns, path))
        return [path for _, path in sorted(found, reverse=True)]

    def _read_header(self, path: Path, length: bytes, file: object) -> tuple[_Header, int]:
        """Return the header and the offset of the first row; a broken file is removed and counts as empty."""
        count = int.from_bytes(length, "big")
        header = file.read(count) if count <= MAX_HEADER_BYTES else b""  # type: ignore[attr-defined]
        if hashlib.sha256(header).hexdigest() == path.name.removesuffix(SUFFIX):
            found = msgspec.json.decode(header, type=_Header)
            start = LENGTH_BYTES + len(header)
            if path.stat().st_size == start + len(found.pictures) * self._row_bytes:
                return found, start
        logger.warning("%s: damaged cache entry; its pictures are decoded again", path)
        path.unlink(missing_ok=True)
        return _Header((), ()), 0

    def _merge_small(self) -> None:
        small: dict[Path, tuple[str, ...]] = {}
        for path in self._files():
            if path.stat().st_size < SMALL_PICTURES * self._row_bytes:
                with path.open("rb") as file:
                    small[path] = self._read_header(path, file.read(LENGTH_BYTES), file)[0].pictures
        if len(small) <= SMALL_FILES:
            return
        pictures = list(dict.fromkeys(sha256 for some in small.values() for sha256 in some))
        pixels = np.empty((len(pictures), *self._shape), np.uint8)
        lost = set(self.fill(pictures, pixels))
        whole = [number for number in range(len(pictures)) if number not in lost]
        merged = self._write([pictures[number] for number in whole], pixels[whole])
        for path in small:
            if path != merged:
                path.unlink(missing_ok=True)
