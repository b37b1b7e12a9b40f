"""Sinks that write results as JSON lines, to a file or to standard output."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from edge_client.contract.messages import SinkMetrics
from edge_client.contract.text import printable_json
from edge_client.settings.results import DEFAULT_MAX_BYTES
from edge_client.sinks.sink import nothing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.contract.messages import Result

logger = logging.getLogger(__name__)

# A full file that cannot be set aside is written on, and setting it aside is tried again after this time.
ROTATION_RETRY_S = 60.0


class JsonLines:
    """Appends to a file that is rotated to `<name>.1` at its size limit.

    Lines are handed to the operating system at once but not fsynced: a power cut may lose the last
    seconds, and an SD card lasts longer. A line that a power cut truncated is terminated at the next start.

    Each line goes to the file that has the name at that time: one that was moved (logrotate), removed,
    truncated or replaced costs no line. That takes one `stat` for each.
    """

    name = "json_lines"
    keeps = True

    def __init__(self, path: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Open the file for appending; where that fails, each result tries again."""
        self._path, self._name = path, str(path)
        self._inode = self._disk = -1
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0
        self._rotate_after = float("-inf")
        self._written = self._dropped = self._dropped_now = 0
        self._error: str | None = None  # of writing
        self._rotation_error: str | None = None
        self._reopen = False
        try:
            self._file = self._open()
        except OSError as e:
            self._fail(e)

    def write(
        self, result: Result, _prediction: object = None, safe: Callable[[], None] = nothing, /
    ) -> None:
        """Append one line; on a full disk it is dropped and counted, and the next one tries again."""
        line = msgspec.json.encode(result) + b"\n"
        try:
            self._append(line)
        except OSError as e:
            self._dropped += 1
            self._dropped_now += 1
            self._fail(e)
            return
        self._written += 1
        self._error = None
        if self._dropped_now:
            logger.warning("%s: writing works again; %d results were dropped", self._path, self._dropped_now)
            self._dropped_now = 0
        safe()

    def metrics(self) -> SinkMetrics:
        """See `Sink.metrics`."""
        error = self._error or self._rotation_error
        return SinkMetrics(written=self._written, dropped=self._dropped, error=error)

    def reopen(self) -> None:
        """See `Sink.reopen`."""
        self._reopen = True

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._file = None
        if self._dropped_now:
            logger.warning("%s: %d results were dropped", self._path, self._dropped_now)

    def _fail(self, error: OSError) -> None:
        if self._error is None:
            logger.warning("%s: %s; results are dropped meanwhile", self._path, error.strerror or error)
        self._error = f"{self._path}: {error.strerror or error}; results are dropped meanwhile"

    def _append(self, line: bytes) -> None:
        file = self._current()
        if self._size and self._size + len(line) > self._max_bytes:
            file = self._rotate(file)
        written = file.write(line)
        if written < len(line):
            try:
                file.write(line[written:])  # raises the reason for the short write
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(self._size)  # without half a line
                raise
        self._size += len(line)

    def _current(self) -> BinaryIO:
        """Return the file that has the name now, opened anew where it is another. Raises: OSError."""
        file = self._file
        if file is not None and self._error is None and not self._reopen:
            try:
                named = os.stat(self._name)  # noqa: PTH116 - with each frame: half the time
            except FileNotFoundError:
                pass
            else:
                if named.st_ino == self._inode and named.st_dev == self._disk:
                    self._size = named.st_size
                    return file
        self._reopen = False
        if file is not None:
            self._file = None
            with contextlib.suppress(OSError):
                file.close()
        self._file = self._open()
        return self._file

    def _rotate(self, full: BinaryIO) -> BinaryIO:
        """Set the full file aside, and return a new one; where that fails, the full one. Raises: OSError."""
        if time.monotonic() < self._rotate_after:
            return full
        try:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError as e:
            self._rotate_after = time.monotonic() + ROTATION_RETRY_S
            error = f"{self._path}: cannot be set aside as {self._path.name}.1: {e.strerror or e}"
            if error != self._rotation_error:
                logger.warning("%s; it grows beyond [sinks] json_lines_max_bytes", error)
            self._rotation_error = error
            return full
        self._rotation_error = None
        self._file = None
        with contextlib.suppress(OSError):
            full.close()
        self._file = self._open()
        return self._file

    def _open(self) -> BinaryIO:
        """Open unbuffered, and terminate a truncated last line. Raises: OSError."""
        if not self._path.parent.exists():
            self._path.parent.mkdir(parents=True)
        file = self._path.open("ab+", buffering=0)
        try:
            opened = os.fstat(file.fileno())
            self._inode, self._disk = opened.st_ino, opened.st_dev
            self._size = file.seek(0, os.SEEK_END)
            if self._size:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    self._size += file.write(b"\n")
        except OSError:
            file.close()
            raise
        return file


class StandardOutput:
    """Writes results to standard output."""

    name = "standard_output"
    keeps = True

    def __init__(self) -> None:
        self._written = self._dropped = 0
        self._error: str | None = None

    def write(
        self, result: Result, _prediction: object = None, safe: Callable[[], None] = nothing, /
    ) -> None:
        """Write one line, flushed; once the reader is gone, lines are dropped and counted."""
        try:
            sys.stdout.write(printable_json(msgspec.json.encode(result).decode()) + "\n")
            sys.stdout.flush()
        except OSError as e:
            self._dropped += 1
            if self._error is None:
                logger.warning("standard output: %s; results are dropped meanwhile", e.strerror or e)
            self._error = f"standard output: {e.strerror or e}"
        else:
            self._written += 1
            self._error = None
            safe()

    def metrics(self) -> SinkMetrics:
        """See `Sink.metrics`."""
        return SinkMetrics(written=self._written, dropped=self._dropped, error=self._error)

    def reopen(self) -> None:
        """Do nothing: standard output belongs to the process."""

    def close(self) -> None:
        """Do nothing: standard output belongs to the process."""
