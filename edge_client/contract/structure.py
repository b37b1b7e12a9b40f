"""Limits on the structure of a picture file, which decides how long decoding takes whatever its size.

Kilobytes can keep a decoder busy for hours: thousands of scans over the same JPEG, directories whose entries
all point at the same megabytes, millions of tiny segments. Each limit is far above what cameras, phones and
editors write, and is checked on the bytes before a decoder sees them.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np

from edge_client.contract.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

# A progressive JPEG has about 10 scans, at most some 20 with hand-made scripts.
MAX_SCANS = 100
# Each scan passes over the whole picture, at 1 ns a pixel, on a Pi Zero at 10: 50 megapixels may have 12
# scans, which is what libjpeg itself writes and two more. Within a TIFF a scan takes five times as long.
MAX_SCANNED_PIXELS, MAX_SCANNED_PIXELS_OF_TIFF = 600_000_000, 150_000_000
# Segments of a JPEG before its first scan: 10 to 30, an ICC profile or extended XMP of megabytes adds 50.
MAX_SEGMENTS = 2_000
# Chunks of a PNG: libpng writes pieces of 8 kB, 50 megapixels make at most 25,000.
MAX_CHUNKS = 50_000
# Entries of a TIFF or EXIF directory, and values of one entry that are no bytes: cameras write under 100, and
# a picture has at most one strip per row.
MAX_ENTRIES, MAX_VALUES = 1_000, 65_536
# Pillow decodes run lengths of a BMP in Python, at 1 us for each 2 bytes; a Pi Zero takes ten times as long.
MAX_RLE_BYTES = 1_000_000
# Pillow joins a GIF's comment from pieces of 255 bytes, in a time that grows with its square.
MAX_EXTENSION_BYTES = 200_000
# More metadata than this is left out: Pillow joins and parses it in Python, which costs time and memory.
_MUCH_METADATA_BYTES, _MUCH_METADATA_PARTS = 1_000_000, 200

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_SOI, _EOI, _SOS, _TEM = 0xD8, 0xD9, 0xDA, 0x01
_RESTARTS = range(0xD0, 0xD8)
# Fill bytes may stand before a marker; 0xFF 0x00 is data.
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_MARKER_IN_SCAN = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")
_SMALL_BYTES, _START_MARK = 1_000_000, 0xDAFF
_FIRST_LENGTHY_MARKER = 0xC0
_COMPRESSED_CHUNKS = frozenset({b"iCCP", b"zTXt", b"iTXt"})
# Bytes of a value of each TIFF type (TIFF 6.0, section 2; 13 and 16-18 are those of TIFF's supplements).
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
_BYTE_TYPES = frozenset({1, 2, 6, 7})
_STRIP_BYTES, _TILE_BYTES = 279, 325
_SIZE_TAGS, _TILE_SIZE_TAGS = (256, 257), (322, 323)
# Tags that say what decoding takes: sizes, samples, compression, strips and tiles.
_LAYOUT_TAGS = frozenset({256, 257, 258, 259, 273, 277, 278, 279, 322, 323, 324, 325})
# Tiles of a small picture may be larger than the picture; programs write 256 x 256, at most 2000 x 2000.
_FREE_TILED_PIXELS = 4_000_000


def check_structure(data: bytes, name: str) -> bool:
    """Check a picture file before it is opened; return whether its metadata is to be left out.

    Args:
        data: File content of any format.
        name: Name for errors.
    Raises: InputError if decoding it may take long whatever its size in pixels.
    """
    if data.startswith(_JPEG):
        return _check_jpeg(data, name)
    if data.startswith(_PNG):
        return _check_png(data, name)
    if data[:2] in {b"II", b"MM"} and set(data[2:4]) & {42, 43}:
        _check_tiff(data, name)
    elif data.startswith(b"GIF8"):
        _check_gif(data, name)
    elif data.startswith(b"BM") and len(data) > MAX_RLE_BYTES and _is_run_length_bmp(data):
        raise _error(name, f"a run-length BMP of over {MAX_RLE_BYTES} bytes", "save it as PNG")
    return False


def check_scans(data: bytes, pixels: int, name: str) -> None:
    """Check how often decoding a JPEG passes over its pixels.

    Raises: InputError.
    """
    limit = min(MAX_SCANS, MAX_SCANNED_PIXELS // max(pixels, 1))
    # The first count takes 20 us for a camera's frame, and counts in metadata and what follows the end too.
    if _count_start_marks(data) > limit and count_scans(data, limit + 1) > limit:
        raise _error(name, f"a JPEG of {pixels} pixels in more than {limit} scans", "save it again")


def check_scans_of_tiff(data: bytes, strip_pixels: int, name: str) -> None:
    """Check the same of a TIFF whose strips or tiles, of so many pixels each, are JPEGs.

    Raises: InputError.
    """
    if _count_start_marks(data) * strip_pixels > MAX_SCANNED_PIXELS_OF_TIFF:
        raise _error(name, "a TIFF of JPEGs in very many scans", "save it again")


def _count_start_marks(data: bytes) -> int:
    """Return how often a start of scan stands in the data; `count` takes five times as long."""
    if not 2 < len(data) < _SMALL_BYTES:
        return data.count(b"\xff\xda")
    return sum(
        int(np.count_nonzero(np.frombuffer(data, "<u2", (len(data) - at) // 2, at) == _START_MARK))
        for at in (0, 1)
    )


def count_scans(data: bytes, enough: int) -> int:
    """Return the number of scans of a JPEG that libjpeg would decode, at most `enough`.

    Markers are found as libjpeg finds them: what stands between them is skipped, the rest goes by its length.
    """
    scans, at, pattern = 0, len(_JPEG), _MARKER
    while scans < enough and (found := pattern.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker in {_EOI, _SOI}:
            break
        if marker >= _FIRST_LENGTHY_MARKER and marker not in _RESTARTS:
            at += max(int.from_bytes(data[at : at + 2], "big"), 2)
            pattern = _MARKER_IN_SCAN if marker == _SOS else _MARKER
            scans += marker == _SOS
    return scans


def is_heavy_directory(block: bytes) -> bool:
    """Whether reading the first directory of a TIFF or EXIF block would take far more than its size."""
    block = block.removeprefix(b"Exif\0\0")
    total = 0
    for number, (_tag, kind, count, _place) in enumerate(_entries(block)):
        size = count * _TYPE_BYTES.get(kind, 8)
        if number >= MAX_ENTRIES or (kind not in _BYTE_TYPES and count > MAX_VALUES):
            return True
        total += min(size, len(block))
    return total > 2 * len(block) + 1024


def is_buffered_jpeg(data: bytes) -> bool:
    """Whether libjpeg keeps all coefficients of a JPEG in memory: it is progressive, or in several scans."""
    return data.count(b"\xff\xda") > 1 and count_scans(data, 2) > 1


def _check_jpeg(data: bytes, name: str) -> bool:
    """Walk through the segments before the first scan; see `check_structure`."""
    metadata = parts = at = 0
    at = len(_JPEG)
    for _ in range(MAX_SEGMENTS):
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == _SOS:
            return metadata > _MUCH_METADATA_BYTES or parts > _MUCH_METADATA_PARTS
        marker, at = found[1][0], found.end()
        if marker in _RESTARTS or marker in {_SOI, _EOI, _TEM}:
            continue
        start, at = at + 2, at + max(int.from_bytes(data[at : at + 2], "big"), 2)
        if marker == 0xFE or 0xE0 <= marker <= 0xEF:
            metadata, parts = metadata + at - start, parts + 1
            if _has_heavy_directory(data[start:at]):
                metadata += _MUCH_METADATA_BYTES
    raise _error(name, f"a JPEG with more than {MAX_SEGMENTS} segments before its pixels", "save it again")


def _has_heavy_directory(segment: bytes) -> bool:
    """Whether a segment holds a heavy directory: EXIF, or the index of a multi-picture file (CIPA DC-007)."""
    for start in (b"Exif\0\0", b"MPF\0"):
        if segment.startswith(start):
            return is_heavy_directory(segment[len(start) :])
    return False


def _check_png(data: bytes, name: str) -> bool:
    parts, at, heavy = 0, len(_PNG), False
    for _ in range(MAX_CHUNKS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            return heavy or parts > _MUCH_METADATA_PARTS
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        parts += 10 if kind in _COMPRESSED_CHUNKS else kind != b"IDAT"  # a compressed one unpacks to 1 MB
        heavy = heavy or (kind == b"eXIf" and is_heavy_directory(data[at + 8 : end - 4]))
        at = end
    raise _error(name, f"a PNG with more than {MAX_CHUNKS} chunks", "save it again")


def _check_gif(data: bytes, name: str) -> None:
    """Walk through the extensions before the first picture (GIF89a, section 23 to 26)."""
    at = 13 + (3 << ((data[10] & 7) + 1) if len(data) > 10 and data[10] & 0x80 else 0)
    limit = at + MAX_EXTENSION_BYTES
    while at < len(data) and data[at] != 0x2C:
        if data[at] != 0x21:
            at += 1  # Pillow skips what it does not know
        else:
            at += 2
            while at < len(data) and data[at] and at <= limit:
                at += data[at] + 1
            at += 1
        if at > limit:
            raise _error(
                name, f"a GIF with over {MAX_EXTENSION_BYTES} bytes before its picture", "save it again"
            )


def _check_tiff(data: bytes, name: str) -> None:
    if data.startswith(b"MM\0+"):  # Pillow reads a TIFF there, libtiff a BigTIFF
        raise _error(name, "a big-endian BigTIFF", "save it as TIFF")
    if is_heavy_directory(data):
        raise _error(name, "a TIFF whose directory describes more than the file holds", "save it again")
    found: dict[int, tuple[int, ...]] = {}
    for tag, kind, count, place in _entries(data):
        if tag in _LAYOUT_TAGS and tag in found:  # Pillow and libtiff may believe different ones
            raise _error(name, f"a TIFF with two entries of tag {tag}", "save it again")
        if tag in _LAYOUT_TAGS:
            found[tag] = _values(data, kind, count, place)
    for tag in (_STRIP_BYTES, _TILE_BYTES):
        if len(found.get(tag, ())) > 1 and sum(found[tag]) > 2 * len(data) + 1024:
            raise _error(name, "a TIFF whose strips are longer than the file", "save it again")
    if _tiled_pixels(found) > max(4 * _area(found), _FREE_TILED_PIXELS):
        raise _error(name, "a TIFF whose tiles are larger than the picture", "save it again")


def _values(data: bytes, kind: int, count: int, place: int) -> tuple[int, ...]:
    """Return the whole numbers of a TIFF entry; nothing for other types."""
    letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
    if letter is None:
        return ()
    values = data[place : place + count * _TYPE_BYTES[kind]]
    order = "<" if data.startswith(b"II") else ">"
    return struct.unpack_from(f"{order}{len(values) // _TYPE_BYTES[kind]}{letter}", values)


def _area(found: dict[int, tuple[int, ...]]) -> int:
    """Return the pixels of a TIFF."""
    width, height = (max(found.get(tag, ()), default=0) for tag in _SIZE_TAGS)
    return width * height


def _tiled_pixels(found: dict[int, tuple[int, ...]]) -> int:
    """Return the pixels of all tiles that cover a TIFF; 0 without tiles."""
    pixels = 1
    for size_tag, tile_tag in zip(_SIZE_TAGS, _TILE_SIZE_TAGS, strict=True):
        size, tile = (max(found.get(tag, ()), default=0) for tag in (size_tag, tile_tag))
        pixels *= -(-size // tile) * tile if tile else 0
    return pixels


def _entries(block: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yield tag, type, count and place of the values of each entry of the first directory, also of a BigTIFF.

    An entry that breaks off is not yielded.
    """
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return
    big = block[2:3] == b"+"
    head, number, entry = (order + one for one in (("Q", "Q", "HHQ") if big else ("I", "H", "HHI")))
    head_at, inline = (8, 8) if big else (4, 4)
    try:
        (start,) = struct.unpack_from(head, block, head_at)
        (count,) = struct.unpack_from(number, block, start)
        at = start + struct.calcsize(number)
        for _ in range(count):
            tag, kind, values = struct.unpack_from(entry, block, at)
            place = at + struct.calcsize(entry)
            if values * _TYPE_BYTES.get(kind, 8) > inline:
                (place,) = struct.unpack_from(head, block, place)
            yield tag, kind, values, place
            at += struct.calcsize(entry) + inline
    except (struct.error, OverflowError):
        return


def _is_run_length_bmp(data: bytes) -> bool:
    """Whether a BMP's compression is RLE8 or RLE4; its field stands in all headers but the oldest."""
    return int.from_bytes(data[14:18], "little") > 12 and int.from_bytes(data[30:34], "little") in {1, 2}


def _error(name: str, what: str, way_out: str) -> InputError:
    return InputError(f"{name}: {what}: decoding it could take minutes; {way_out} or remove it")
