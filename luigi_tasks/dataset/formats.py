"""Formats of a dataset's pictures: those of the device, and those of phones and the web (HEIC, AVIF)."""

from __future__ import annotations

import dataclasses
import functools
import io
import re
import sys
from typing import TYPE_CHECKING

from PIL import Image

from edge_client.contract.decoding_cost import decoding_bytes
from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import FORMATS, decode_fitted
from edge_client.contract.structure import check_structure
from luigi_tasks.dataset.decoding_memory import TOGETHER_BYTES, DecodingMemory

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# First bytes of a picture, whatever its name: JPEG, PNG, GIF, BMP, TIFF, WebP, and HEIF with AVIF.
_PICTURE_START = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP"
    rb"|.{4}ftyp(?:hei[cxms]|hev[cxms]|mif1|msf1|avi[fs])",
    re.DOTALL,
)
# Item of a HEIF file (ISO/IEC 14496-12, 8.11.6): version 2 or 3, flags, number, protection; texts follow.
_HEIF_ITEM = re.compile(rb"infe(?:\x02.{3}.{4}|\x03.{3}.{6})", re.DOTALL)

_ALONE = sys.maxsize  # no other large picture is decoded meanwhile
# Of this process: its threads decode at once, for whichever task.
_MEMORY = DecodingMemory(TOGETHER_BYTES)


def is_picture(data: bytes) -> bool:
    """Whether a file begins like a picture."""
    return _PICTURE_START.match(data) is not None


def decode_file(data: bytes, height: int, width: int, source: str) -> NDArray[np.uint8]:
    """Decode a picture of a dataset as the device decodes its own, also in more formats.

    Returns: (height, width, 3) uint8 RGB, upright.
    Raises: InputError as `decode_fitted`.
    """
    if data[4:8] == b"ftyp":
        data = _without_exif(data, source)
    with _MEMORY.take(read_header(data, source, _formats()).decoding_bytes):
        return decode_fitted(data, height, width, source=source, formats=_formats())


@dataclasses.dataclass(frozen=True)
class Header:
    """What is known of a picture before it is decoded.

    Attributes:
        pixels: Width times height; 0 where that is not known.
        decoding_bytes: Memory that decoding it takes.
    """

    pixels: int
    decoding_bytes: int


def read_header(data: bytes, source: str, formats: tuple[str, ...] = FORMATS) -> Header:
    """Return the size of a picture without decoding it.

    Raises: InputError if its structure would keep a decoder busy.
    """
    if check_structure(data, source):
        return Header(0, _ALONE)  # its metadata is left out later, and so not read here
    try:
        with Image.open(io.BytesIO(data), formats=formats) as image:
            pixels = image.width * image.height
            return Header(pixels, decoding_bytes(image, data, pixels))
    except Exception:  # noqa: BLE001 - whoever decodes it says what is wrong with it
        return Header(0, _ALONE)


@functools.cache
def _formats() -> tuple[str, ...]:
    import pi_heif  # noqa: PLC0415 - a dataset without a picture of a phone does without it

    pi_heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)
    return (*FORMATS, "AVIF", "HEIF")


def _without_exif(data: bytes, source: str) -> bytes:
    """Return a HEIC or AVIF file whose EXIF block is not looked at; its orientation stands elsewhere.

    A broken block makes libavif refuse the picture. pi-heif 1.4 crashes, and the process with it, on an item
    whose type is not text; such a file is refused here.

    Raises: InputError.
    """
    bare = bytearray(data)
    for item in _HEIF_ITEM.finditer(data):
        box, start = max(item.start() - 4, 0), item.end()
        texts = data[start : box + int.from_bytes(data[box : box + 4], "big")]
        try:
            texts.decode()
        except UnicodeDecodeError as e:
            msg = f"{source}: cannot be decoded as a picture (an item of unknown type); replace or remove it"
            raise InputError(msg) from e
        if texts.startswith(b"Exif"):
            bare[start : start + 4] = b"none"
    return bytes(bare)
