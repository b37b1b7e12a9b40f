"""Metadata of picture files: the orientation, and the file without the rest.

Cameras, editors and messengers leave broken metadata in whole pictures, and Pillow then refuses the picture:
python-pillow issues 5528, 8348 and 8965. Broken metadata costs at most the orientation.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ORIENTATION = 0x0112
UPRIGHT = 1

_JPEG, _PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
# Markers without a length (ITU T.81, table B.1): SOI, EOI, RST0-7 and TEM.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xDA)})
_START_OF_SCAN, _COMMENT, _JFIF, _EXIF, _ADOBE = 0xDA, 0xFE, 0xE0, 0xE1, 0xEE
# Bytes of the two segments that decide about colours, without which they are dropped too.
_COLOUR_SEGMENTS = {_JFIF: 14, _ADOBE: 12}
# TIFF tags that say where the pixels are and what they mean (TIFF 6.0, part 1 and sections 15 to 22).
_TIFF_PIXELS = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 317, 320, 322, 323, 324, 325, 332, 338}
    | {339, 347, 529, 530, 531, 532}
)
_TIFF_ENTRY_BYTES = 12
# TIFF type of a value -> its format in `struct`; an orientation is a SHORT, some writers use another width.
_WHOLE_NUMBERS = {1: "B", 3: "H", 4: "I", 8: "h", 9: "i"}


def find_orientation(exif: bytes) -> int:
    """Return the orientation, 1 to 8, in an EXIF block that may break off anywhere; `UPRIGHT` without one.

    Source: EXIF 3.0, 4.6.5; the first directory holds it.
    """
    block = re.sub(rb"^(?:Exif\0\0)+", b"", exif)
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return UPRIGHT
    for tag, kind, entry in _entries(block, order):
        if tag == ORIENTATION and kind in _WHOLE_NUMBERS:
            (value,) = struct.unpack_from(order + _WHOLE_NUMBERS[kind], block, entry + 8)
            return int(value) if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def without_metadata(data: bytes) -> tuple[bytes, int] | None:
    """Return a JPEG, PNG or TIFF file without its metadata, and its orientation; None for other content."""
    if data.startswith(_JPEG):
        return _bare_jpeg(data)
    if data.startswith(_PNG):
        return _bare_png(data)
    if data[:4] in {b"II*\0", b"MM\0*"}:
        return _bare_tiff(data)
    return None


def _entries(block: bytes, order: str) -> Iterator[tuple[int, int, int]]:
    """Yield tag, type and offset of each whole entry of the first directory of a TIFF block."""
    if len(block) < 8:
        return
    (start,) = struct.unpack_from(order + "I", block, 4)
    if start + 2 > len(block):
        return
    (count,) = struct.unpack_from(order + "H", block, start)
    for entry in range(start + 2, start + 2 + count * _TIFF_ENTRY_BYTES, _TIFF_ENTRY_BYTES):
        if entry + _TIFF_ENTRY_BYTES > len(block):
            return
        tag, kind = struct.unpack_from(order + "HH", block, entry)
        yield tag, kind, entry


def _bare_jpeg(data: bytes) -> tuple[bytes, int] | None:
    kept, orientation, at = [_JPEG], UPRIGHT, 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF:
            return None
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker == _START_OF_SCAN:
            kept.append(data[at:])
            return b"".join(kept), orientation
        end = at + 2 if marker in _BARE_MARKERS else at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        payload = data[at + 4 : end]
        if marker == _EXIF and payload.startswith(b"Exif\0\0") and orientation == UPRIGHT:
            orientation = find_orientation(payload)
        is_metadata = marker == _COMMENT or 0xE0 <= marker <= 0xEF
        if not is_metadata or len(payload) >= _COLOUR_SEGMENTS.get(marker, len(data)):
            kept.append(data[at:end])
        at = end
    return None


def _bare_png(data: bytes) -> tuple[bytes, int]:
    kept, orientation, at = [_PNG], UPRIGHT, len(_PNG)
    while at + 8 <= len(data):
        kind = data[at + 4 : at + 8]
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == b"eXIf":
            orientation = find_orientation(data[at + 8 : end - 4])
        if kind[:1].isupper() or kind == b"tRNS":  # the rest is ancillary: PNG 3, 5.4
            kept.append(data[at:end])
        at = end
    return b"".join(kept), orientation


def _bare_tiff(data: bytes) -> tuple[bytes, int] | None:
    order = "<" if data.startswith(b"II") else ">"
    found = list(_entries(data, order))
    if not found:
        return None
    kept = [data[entry : entry + _TIFF_ENTRY_BYTES] for tag, _, entry in found if tag in _TIFF_PIXELS]
    start = found[0][2] - 2
    directory = struct.pack(order + "H", len(kept)) + b"".join(kept) + bytes(4)  # no further page
    return data[:start] + directory + data[start + len(directory) :], find_orientation(data)
