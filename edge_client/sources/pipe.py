"""Source of JPEG and PNG pictures from standard input or a named pipe, one after the other.

    rpicam-vid --codec mjpeg -t 0 -o - | edge-client run
    ffmpeg -i rtsp://… -f image2pipe -c:v mjpeg - | edge-client run

The end of a picture is found by parsing its segments (ISO/IEC 10918-1, annex B; PNG specification, section
5), not by its end mark: a JPEG may contain another one as its thumbnail.
"""

from __future__ import annotations

import logging
import os
import select
import sys
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.preprocessing import decode_picture
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

STANDARD_INPUT = "-"
# A longer picture is dropped: a damaged one may never end.
LARGEST_PICTURE_BYTES = 32 << 20
_CHUNK_BYTES = 1 << 16
_STOP_CHECK_S = 0.2
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


class PicturePipe:
    """Pictures in the order of arrival; a named pipe waits for the next writer."""

    def __init__(self, path: str, *, pace: Pace | None = None) -> None:
        """Prepare to read.

        Args:
            path: A named pipe, or `-` for standard input.
            pace: Limit on the frame rate; pictures that come too early are dropped.
        """
        self._path = path
        self._pace = pace or Pace()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; standard input ends, a named pipe does not."""
        name = "stdin" if self._path == STANDARD_INPUT else Path(self._path).name
        for number, data in enumerate(self._pictures(stop), 1):
            if self._pace.left_s() > 0:
                continue
            self._pace.count()
            try:
                pixels = decode_picture(data, source=f"{name}: picture {number}")
            except InputError as e:
                logger.warning("%s", e)
                continue
            yield Frame(f"{name}-{number}", pixels)

    def _pictures(self, stop: threading.Event) -> Iterator[bytes]:
        splitter = PictureSplitter()
        with self._open() as file:
            while not stop.is_set():
                if not select.select([file], [], [], _STOP_CHECK_S)[0]:
                    continue
                try:
                    chunk = os.read(file.fileno(), _CHUNK_BYTES)
                except BlockingIOError:
                    continue  # a writer has just opened the pipe
                if chunk:
                    yield from splitter.feed(chunk)
                elif self._path == STANDARD_INPUT:
                    return
                else:
                    splitter = PictureSplitter()  # drop what the last writer left incomplete
                    stop.wait(_STOP_CHECK_S)  # until the next writer comes

    def _open(self) -> FileIO:
        try:
            if self._path == STANDARD_INPUT:
                return FileIO(os.dup(sys.stdin.fileno()))
            if not Path(self._path).is_fifo():
                msg = f"{self._path}: not a named pipe; make one with mkfifo, or change [source] path"
                raise DeviceError(msg)
            # Without O_NONBLOCK, open(2) would wait for a writer, and ignore `stop`.
            return FileIO(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as e:
            msg = f"{self._path}: {e.strerror or e}; check [source] path and its permissions"
            raise DeviceError(msg) from e


class PictureSplitter:
    """Splits a byte stream into complete pictures, and skips all other bytes."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Append bytes; yield the pictures that are complete."""
        self._data += chunk
        while True:
            self._skip_to_start()
            end = _find_end(self._data)
            if end is None:
                if len(self._data) > LARGEST_PICTURE_BYTES:
                    logger.warning("a picture of over %d bytes is dropped", LARGEST_PICTURE_BYTES)
                    del self._data[:1]
                    continue
                return
            yield bytes(self._data[:end])
            del self._data[:end]

    def _skip_to_start(self) -> None:
        starts = [at for at in (self._data.find(_JPEG), self._data.find(_PNG)) if at >= 0]
        # The last bytes may be the beginning of a start mark.
        del self._data[: min(starts, default=max(len(self._data) - len(_PNG) + 1, 0))]


def _find_end(data: bytearray) -> int | None:
    """Return the end offset of the picture at the beginning; None if it is incomplete."""
    if data.startswith(_PNG):
        return _png_end(data)
    return _jpeg_end(data) if data.startswith(_JPEG) else None


def _png_end(data: bytearray) -> int | None:
    at = len(_PNG)
    while at + 12 <= len(data):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"IEND":
            return end if end <= len(data) else None
        at = end
    return None


def _jpeg_end(data: bytearray) -> int | None:
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return at  # damaged: the decoder reports it
        marker = data[at + 1]
        if marker == 0xD9:
            return at + 2
        if marker == 0xFF:
            at += 1  # fill byte
            continue
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xDA:
            found = _after_scan(data, at)
            if found is None:
                return None
            at = found
    return at + 2 if data[at : at + 2] == b"\xff\xd9" else None


def _after_scan(data: bytearray, at: int) -> int | None:
    """Return the offset of the next marker; in compressed data 0xFF is followed by 0 or a restart marker."""
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        if data[at + 1] not in (0x00, 0xFF) and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 1 if data[at + 1] == 0xFF else 2
    return None
