"""Source of JPEG and PNG pictures from standard input or a named pipe, one after the other.

    rpicam-vid --codec mjpeg -t 0 -o - | edge-client run
    ffmpeg -i rtsp://… -f image2pipe -c:v mjpeg - | edge-client run

The end of a picture is found by parsing its segments (ISO/IEC 10918-1, annex B; PNG specification, section
5), not by its end mark: a JPEG may contain another one as its thumbnail.
"""

from __future__ import annotations

import logging
import os
import re
import select
import sys
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.text import text_of
from edge_client.sources.decoding import PictureDecoder
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
_PNG = b"\x89PNG\r\n\x1a\n"
_START = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n")
_FILL_BYTES = re.compile(rb"\xff+")
_END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")


class PicturePipe:
    """Pictures in the order of arrival; a named pipe waits for the next writer."""

    def __init__(self, path: str, *, pace: Pace | None = None, decoder: PictureDecoder | None = None) -> None:
        """Prepare to read.

        Args:
            path: A named pipe, or `-` for standard input.
            pace: Limit on the frame rate; pictures that come too early are dropped.
            decoder: Decodes the pictures.
        """
        self._path = path
        self._pace = pace or Pace()
        self._decoder = decoder or PictureDecoder()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; standard input ends, a named pipe does not."""
        name = "stdin" if self._path == STANDARD_INPUT else text_of(Path(self._path).name)
        for number, data in enumerate(self._pictures(stop), 1):
            if self._pace.left_s() > 0:
                continue
            self._pace.count()
            yield from self._read_one(data, name, number)

    def _read_one(self, data: bytes, name: str, number: int) -> Iterator[Frame]:
        """Yield the frame of one picture; its pixels are not kept while the next one is decoded."""
        try:
            pixels = self._decoder.decode_bytes(data, f"{name}: picture {number}")
        except InputError as e:
            logger.warning("%s", e)
            return
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

    def check(self) -> None:
        """Raise DeviceError if there is no pipe."""
        if self._path != STANDARD_INPUT and not Path(self._path).is_fifo():
            msg = f"{self._path}: not a named pipe; make one with mkfifo, or change [source] path"
            raise DeviceError(msg)

    def _open(self) -> FileIO:
        try:
            if self._path == STANDARD_INPUT:
                return FileIO(os.dup(sys.stdin.fileno()))
            self.check()
            # Without O_NONBLOCK, open(2) would wait for a writer, and ignore `stop`.
            return FileIO(os.open(self._path, os.O_RDONLY | os.O_NONBLOCK))
        except OSError as e:
            msg = f"{self._path}: {e.strerror or e}; check [source] path and its permissions"
            raise DeviceError(msg) from e


class PictureSplitter:
    """Splits a byte stream into complete pictures, and skips all other bytes.

    Each byte is looked at a fixed number of times, whatever the pieces: the search for a picture's end goes
    on where the last piece ended.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._end: _PngEnd | _JpegEnd | None = None  # None: at no picture

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Append bytes; yield the pictures that are complete."""
        self._data += chunk
        while (picture := self._end or self._skip_to_start()) is not None:
            end = picture.find(self._data)
            if end is None and len(self._data) <= LARGEST_PICTURE_BYTES:
                self._end = picture
                return
            if end is None:
                logger.warning("a picture of over %d bytes is dropped", LARGEST_PICTURE_BYTES)
                self._data.clear()
            else:
                yield bytes(self._data[:end])
                del self._data[:end]
            self._end = None

    def _skip_to_start(self) -> _PngEnd | _JpegEnd | None:
        """Drop what is before the next picture; return the search for its end, None without a picture."""
        found = _START.search(self._data)
        # The last bytes may be the beginning of a start mark.
        del self._data[: found.start() if found else max(len(self._data) - len(_PNG) + 1, 0)]
        if found is None:
            return None
        return _PngEnd() if self._data.startswith(_PNG) else _JpegEnd()


class _PngEnd:
    """Search for the end of a PNG, from chunk to chunk."""

    def __init__(self) -> None:
        self._at = len(_PNG)

    def find(self, data: bytearray) -> int | None:
        """Return the offset behind the picture at the beginning; None if more bytes are needed."""
        while self._at + 12 <= len(data):
            at = self._at
            end = at + 12 + int.from_bytes(data[at : at + 4], "big")
            if data[at + 4 : at + 8] == b"IEND":
                return end if end <= len(data) else None
            self._at = end
        return None


class _JpegEnd:
    """Search for the end of a JPEG, from marker to marker."""

    def __init__(self) -> None:
        self._at = 2
        self._in_scan = False

    def find(self, data: bytearray) -> int | None:
        """As `_PngEnd.find`. A damaged picture ends at the damage: the decoder reports it."""
        while not self._in_scan or self._leave_scan(data):
            at = self._at
            if at + 2 > len(data):
                return None
            marker = data[at + 1 : at + 2]
            if data[at] != 0xFF:
                return at
            if marker == b"\xd9":
                return at + 2
            if marker == b"\xd8":  # the next picture begins: this one was cut off
                return at
            if fill := _FILL_BYTES.match(data, at + 1):
                self._at = fill.end() - 1
                continue
            if at + 4 > len(data):
                return None
            self._at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
            self._in_scan = marker == b"\xda"
        return None

    def _leave_scan(self, data: bytearray) -> bool:
        """Go on to the marker behind the compressed data, where 0xFF is followed by 0 or a restart marker."""
        found = _END_OF_SCAN.search(data, self._at)
        if found is None:
            self._at = max(len(data) - data.endswith(b"\xff"), self._at)
            return False
        self._at = found.end() - 2
        self._in_scan = False
        return True
