"""Memory that decoding a picture takes, known from its header, and the check that the machine can spare it.

The bytes per pixel were measured as the highest memory above the process's at 12 and 50 megapixels, with
Pillow 13.0, libjpeg-turbo 3.2 and libwebp 1.6, and rounded up. Measure again after changing how pictures are
decoded: `pytest -k pictures_memory --every-fault`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.free_memory import free_memory_bytes, return_freed_memory
from edge_client.contract.structure import is_buffered_jpeg

if TYPE_CHECKING:
    from PIL import Image

# Of the decoded picture, as Pillow holds it, by mode; others take 4.
_PILLOW_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
_RGB_BYTES = 3
# Of the pixels and one copy of them, such as a region cut out of a frame.
_USED_BYTES = 6
# Of all that the format's decoder holds at its peak, where that is more than picture and RGB together.
_DECODER_BYTES = {"WEBP": 17, "AVIF": 13, "HEIF": 24}
# Tags of a TIFF, and what libjpeg holds within libtiff.
_BITS_PER_SAMPLE, _SAMPLES_PER_PIXEL, _ROWS_PER_STRIP = 258, 277, 278
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_JPEG_STRIP_BYTES = 12
# libjpeg holds the coefficients of a picture in several scans, of 2 bytes, one for each sample.
_COEFFICIENT_BYTES = 2
# A picture below this costs what a camera's frame costs, and is not compared with what is free.
_FREELY_BYTES = 32_000_000
# Kept free for everything else: the answer's own buffers, an update check, the kernel.
_SPARED_BYTES, _USABLE_SHARE = 16_000_000, 0.9


def decoding_bytes(image: Image.Image, data: bytes, pixels: int) -> int:
    """Return the bytes of memory above the file that decoding a picture into RGB takes.

    Args:
        image: The opened picture, not loaded; a JPEG may have been scaled down by `draft`.
        data: Its file.
        pixels: Pixels of the file, before `draft`.
    """
    decoded = image.width * image.height
    held = _PILLOW_BYTES.get(image.mode, 4) + _RGB_BYTES
    need = decoded * max(held, _USED_BYTES, _DECODER_BYTES.get(image.format or "", 0))
    if image.format == "TIFF":
        need = max(need, decoded * _PILLOW_BYTES.get(image.mode, 4) + int(decoded * _strip_bytes(image)))
    if image.format in {"JPEG", "MPO"} and pixels * 8 > _FREELY_BYTES and is_buffered_jpeg(data):
        coefficients = int(pixels * _samples_per_pixel(image) * _COEFFICIENT_BYTES)
        need = max(need, coefficients + decoded * _PILLOW_BYTES.get(image.mode, 4))
    return need


def strip_pixels(image: Image.Image) -> int:
    """Return the pixels of a strip or tile of a TIFF; of the whole picture where nothing is said."""
    tags = getattr(image, "tag_v2", {})
    if _TILE_WIDTH in tags:
        return int(tags[_TILE_WIDTH]) * int(tags.get(_TILE_HEIGHT, image.height))
    return image.width * min(int(tags.get(_ROWS_PER_STRIP, image.height)), image.height)


def _strip_bytes(image: Image.Image) -> float:
    """Return the bytes of libtiff's buffers per pixel of a TIFF: a strip, which may be the whole picture."""
    compression = str(image.info.get("compression", "raw"))
    if compression == "raw":
        return 0
    if "jpeg" in compression:  # a strip may be a progressive JPEG
        return _JPEG_STRIP_BYTES
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (8,))
    samples = max(len(bits), int(tags.get(_SAMPLES_PER_PIXEL, 1)))
    return float(strip_pixels(image) / (image.width * image.height) * samples * max(bits) / 8)


def _samples_per_pixel(image: Image.Image) -> float:
    """Return the samples of all components of a JPEG per pixel: 3 for 4:4:4, 1.5 for 4:2:0."""
    factors = [across * down for _, across, down, _ in getattr(image, "layer", ())]
    return sum(factors) / max(factors, default=1) if factors else len(image.getbands())


def check_affordable(image: Image.Image, data: bytes, pixels: int, name: str) -> None:
    """Check that this machine can spare the memory to decode a picture now.

    Raises: InputError that names the sizes.
    """
    need = decoding_bytes(image, data, pixels)
    if need <= _FREELY_BYTES:
        return
    return_freed_memory()
    free = free_memory_bytes()
    if free is None or need + _SPARED_BYTES <= free * _USABLE_SHARE:
        return
    msg = (
        f"{name}: {image.format} {image.mode}, decoding {pixels} pixels takes {need // 1_000_000} MB of "
        f"memory, and {free // 1_000_000} MB are free; scale it down, or save it as a JPEG, which takes least"
    )
    raise InputError(msg) from MemoryError(need)  # of this machine: no fault of a release's picture
