"""Results on the disk that wait for the broker: numbered files of some hundred lines, oldest first.

A file is durable before its pictures are removed from a watched folder. Each line carries a checksum: a
damaged one is dropped and counted, the others are sent. A file is removed once the broker has confirmed all
of it, so that a power cut repeats the results of a file, and loses none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import zlib
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.disk import disk_errors, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

logger = logging.getLogger(__name__)

# Below the state folder of the device.
UNSENT_FOLDER = "unsent"
# Larger than any file of this module; one from elsewhere must not fill the memory.
_LARGEST_FILE_BYTES = 16 << 20
_FIRST_NUMBER = 50_000_000  # files are put before the oldest, too
_SUFFIX = ".jsonl"


@dataclasses.dataclass
class _File:
    """One file: its number, results and bytes."""

    number: int
    results: int
    size_bytes: int


class KeptResults:
    """Files of one device; used by one thread, but for `results`."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """Find the files of the last run.

        Args:
            folder: Folder of the files; made with the first one.
            max_bytes: Limit on all files together; 0: nothing is kept.
        """
        self._folder = folder
        self._max_bytes = max_bytes
        self._waiting: list[_File] = []
        self._read: dict[int, _File] = {}
        self._unreadable: list[_File] = []  # until the next start
        found: list[Path] = []
        try:
            found = sorted(path for path in folder.glob(f"*{_SUFFIX}") if _is_ours(path))
        except OSError as e:
            logger.warning("%s: %s; the results kept there are not sent", folder, e.strerror or e)
        for path in found:
            self._find(path)
        with contextlib.suppress(OSError):
            for leftover in folder.glob(f".*{_SUFFIX}.*"):  # of writes that a kill or a power cut ended
                leftover.unlink()

    @property
    def results(self) -> int:
        """Results of files that were not read yet."""
        return sum(file.results for file in list(self._waiting))

    def append(self, payloads: list[bytes]) -> bool:
        """Keep results behind all others; False if there is no room within the limit.

        Raises: DeviceError if the disk does not take them.
        """
        number = max(self._numbers(), default=_FIRST_NUMBER) + 1
        if (file := self._write(number, payloads)) is None:
            return False
        self._waiting.append(file)
        return True

    def take(self) -> tuple[int, list[bytes], int] | None:
        """Read the oldest file; None without one.

        Returns: Its number, its results, and the number of its lines that were damaged.
        Raises: DeviceError if it cannot be read; the next call goes on with the one after.
        """
        if not self._waiting:
            return None
        file = self._waiting.pop(0)
        path = self._path(file.number)
        try:
            with disk_errors(path), path.open("rb") as opened:
                lines = opened.read(_LARGEST_FILE_BYTES).splitlines()
        except DeviceError:
            self._unreadable.append(file)  # no other file may take its name
            raise
        payloads = [payload for line in lines if (payload := _checked(line)) is not None]
        self._read[file.number] = file
        return file.number, payloads, len(lines) - len(payloads)

    def remove(self, number: int) -> None:
        """Remove a file that was read, and sent.

        Raises: DeviceError if it cannot be removed; its results are then sent again after a restart.
        """
        self._read.pop(number, None)
        path = self._path(number)
        with disk_errors(path):
            path.unlink(missing_ok=True)

    def put_back(self, payloads: list[bytes]) -> bool:
        """Keep results before all others, in place of the files that were read; False if there is no room.

        Raises: DeviceError if the disk does not take them.
        """
        replaced = list(self._read)
        first = min(self._numbers(), default=_FIRST_NUMBER) - 1
        if payloads:
            self._read, read = {}, self._read  # their room is free
            file = self._write(first, payloads)
            if file is None:
                self._read = read
                return False
            self._waiting.insert(0, file)
        for number in replaced:
            self.remove(number)
        return True

    def _write(self, number: int, payloads: Iterable[bytes]) -> _File | None:
        lines = [b"%08x %b\n" % (zlib.crc32(payload), payload) for payload in payloads]
        file = _File(number, len(lines), sum(map(len, lines)))
        used = sum(one.size_bytes for one in (*self._waiting, *self._read.values(), *self._unreadable))
        if used + file.size_bytes > self._max_bytes:
            return None
        with disk_errors(self._folder):
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._path(number), b"".join(lines))
        return file

    def _numbers(self) -> list[int]:
        """Return the numbers of all files that are on the disk."""
        return [*self._read, *(file.number for file in (*self._waiting, *self._unreadable))]

    def _find(self, path: Path) -> None:
        """Note a file of the last run."""
        try:
            with path.open("rb") as opened:
                content = opened.read(_LARGEST_FILE_BYTES)
        except OSError as e:
            logger.warning("%s: %s; its results are sent after the next start", path, e.strerror or e)
            self._unreadable.append(_File(int(path.stem), 0, 0))
        else:
            self._waiting.append(_File(int(path.stem), content.count(b"\n"), len(content)))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:08d}{_SUFFIX}"


def _is_ours(path: Path) -> bool:
    return path.stem.isascii() and path.stem.isdigit() and path.is_file()


def _checked(line: bytes) -> bytes | None:
    """Return the result of a line; None if its checksum differs."""
    checksum, _, payload = line.partition(b" ")
    return payload if checksum == b"%08x" % zlib.crc32(payload) else None
