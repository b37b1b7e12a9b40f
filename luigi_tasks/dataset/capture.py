"""Time and camera of a picture, from its EXIF data or its name."""

from __future__ import annotations

import datetime
import io
import re
from typing import TYPE_CHECKING, Literal

from PIL import Image

from edge_client.contract.structure import check_structure, is_heavy_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

# EXIF tags (Exif 2.32, 4.6.4 and 4.6.5).
_IFD, _ORIGINAL, _SUBSECONDS, _SERIAL = 0x8769, 0x9003, 0x9291, 0xA431
_MAKE, _MODEL = 0x010F, 0x0110
# A JPEG's segment APP1 (Exif 2.32, 4.7.2) begins so, and is not longer than this.
_JPEG, _EXIF, _SEGMENT_BYTES = b"\xff\xd8", b"Exif\0\0", 1 << 16
# Other dates are no times of a picture: clocks that were not set start in 1970, 1980 or on 2000-01-01.
_EARLIEST, _LATEST = datetime.datetime(2000, 1, 2), datetime.datetime(2100, 1, 1)  # noqa: DTZ001 - local, as EXIF
_EPOCH = datetime.datetime(1970, 1, 1)  # noqa: DTZ001 - as above
# 20240131_120102, 2024-01-31T12-01-02Z, 20240131T120102; then perhaps milliseconds, as phones write them.
_STAMP = re.compile(
    r"(?<!\d)(\d{4})[-_.]?(\d\d)[-_.]?(\d\d)[-_ T.]?"
    r"(\d\d)[-_:.h]?(\d\d)[-_:.m]?(\d\d)(?:[-_.]?(\d{3}))?(?!\d)"
)
_UNIX_MS = re.compile(r"(?<!\d)(1[0-9]{12})(?!\d)")
# The inbox's own names: inbox-<hash>-<time>-<device>.jpg.
_INBOX = re.compile(r"inbox-[0-9a-f]{16}-\d{8}T\d{6}-(.+)\.jpg$")


def find_capture(data: bytes, path: str) -> tuple[int, str]:
    """Return when a picture was taken, in ms by its camera's clock, and the camera; 0 and "": unknown."""
    name = path.rpartition("/")[2]
    taken, camera = _from_exif(data) if b"Exif" in data or b"eXIf" in data else (0, "")
    inbox = _INBOX.match(name)
    return taken or _from_name(name), camera or (inbox[1] if inbox else "")


def _from_exif(data: bytes) -> tuple[int, str]:
    try:
        block = _find_exif(data)
        if block[2:3] == b"+" or is_heavy_directory(block):  # BigTIFF: no camera writes one
            return 0, ""
        exif = Image.Exif()
        exif.load(block)
        place = exif.get(_IFD)
        if not isinstance(place, int) or is_heavy_directory(_beginning_at(place, block)):
            return 0, ""
        details = exif.get_ifd(_IFD)
        camera = "/".join(
            _text(tags, tag) for tags, tag in ((exif, _MAKE), (exif, _MODEL), (details, _SERIAL))
        )
        taken = datetime.datetime.strptime(_text(details, _ORIGINAL)[:19], "%Y:%m:%d %H:%M:%S")  # noqa: DTZ007
        part = _text(details, _SUBSECONDS)[:3]
        return _milliseconds(taken, int(part.ljust(3, "0")) if part.isdigit() else 0), camera.strip("/")
    except Exception:  # noqa: BLE001 - metadata of any camera: without it, the picture is as good
        return 0, ""


def _find_exif(data: bytes) -> bytes:
    """Return the EXIF block of a file: a whole TIFF, and of others at most as much as a JPEG can have."""
    if data.startswith(_JPEG) and (start := data.find(_EXIF)) >= 0:
        # To open the file would parse all segments again, which takes as long as to decode a small one.
        return data[start : start + _SEGMENT_BYTES]
    if data[:2] in {b"II", b"MM"}:
        return data
    if check_structure(data, "the picture"):  # much metadata: it costs more than it tells
        return b""
    with Image.open(io.BytesIO(data)) as image:
        block = image.info.get("exif")
    return block[:_SEGMENT_BYTES] if isinstance(block, bytes) else b""


def _beginning_at(place: int, block: bytes) -> bytes:
    """Return an EXIF block whose first directory is the one at `place`."""
    start = block.removeprefix(_EXIF)
    order: Literal["little", "big"] = "little" if start.startswith(b"II") else "big"
    return start[:4] + place.to_bytes(4, order) + start[8:]


def _text(tags: Mapping[int, object], tag: int) -> str:
    found = tags.get(tag, "")
    return (found.decode("latin-1") if isinstance(found, bytes) else str(found)).strip("\0 ")


def _from_name(name: str) -> int:
    for found in _STAMP.finditer(name):
        try:
            taken = datetime.datetime(*(int(one) for one in found.groups()[:6]))  # type: ignore[arg-type] # noqa: DTZ001
        except ValueError:  # digits that are no date
            continue
        if moment := _milliseconds(taken, int(found[7] or 0)):
            return moment
    unix = _UNIX_MS.search(name)
    return int(unix[1]) if unix else 0


def _milliseconds(taken: datetime.datetime, part: int) -> int:
    if not _EARLIEST <= taken < _LATEST:
        return 0
    return round((taken - _EPOCH).total_seconds() * 1000) + part
