"""Sinks that write results as JSON lines, to a file or to standard output."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from edge_client.settings.results import DEFAULT_MAX_BYTES

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.contract.messages import Result

logger = logging.getLogger(__name__)


class JsonLines:
    """Appends to a file that is rotated to `<name>.1` at its size limit.

    Lines are handed to the operating system at once but not fsynced: a power cut may lose the last
    seconds, and an SD card lasts longer. A line that a power cut truncated is terminated at the next start.
    """

    def __init__(self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Open the file for appending; where that fails, each result tries again."""
        self._path = path
        self._max_bytes = max_bytes
        self._failing = False
        self._file: BinaryIO | None = None
        try:
            self._file = self._open()
        except OSError as e:
            self._warn(e)

    def write(self, result: Result, _prediction: object = None, /) -> None:
        """Append one line; on a full disk the line is dropped, with one warning until writing works again."""
        line = msgspec.json.encode(result) + b"\n"
        try:
            self._append(line)
        except OSError as e:
            self._warn(e)
        else:
            self._failing = False

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _warn(self, error: OSError) -> None:
        if not self._failing:
            logger.warning("%s: %s; results are dropped meanwhile", self._path, error.strerror or error)
        self._failing = True

    def _append(self, line: bytes) -> None:
        if self._failing or self._file is None:
            # The last line may be truncated, or the file may be gone: open it again.
            self.close()
            self._file = self._open()
        if self._size and self._size + len(line) > self._max_bytes:
            self._file.close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            self._file = self._open()
        written = self._file.write(line)
        self._size += written
        if written < len(line):
            self._file.write(line[written:])  # raises the reason for the short write
            self._size += len(line) - written

    def _open(self) -> BinaryIO:
        """Open unbuffered, and terminate a truncated last line."""
        if not self._path.parent.exists():
            self._path.parent.mkdir(parents=True)
        file = self._path.open("ab+", buffering=0)
        self._size = file.seek(0, os.SEEK_END)
        if self._size:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._size += file.write(b"\n")
        return file


class StandardOutput:
    """Writes results to standard output."""

    def __init__(self) -> None:
        self._failing = False

    def write(self, result: Result, _prediction: object = None, /) -> None:
        """Write one line, flushed; once the reader is gone, lines are dropped with one warning."""
        try:
            sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
            sys.stdout.flush()
        except OSError as e:
            if not self._failing:
                logger.warning("standard output: %s; results are dropped meanwhile", e.strerror or e)
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """Do nothing: standard output belongs to the process."""
