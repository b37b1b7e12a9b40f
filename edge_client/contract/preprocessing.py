"""Preprocessing from a picture file to the model's input, the same in training, the gate and the device.

Algorithm `area-bilinear-1`: the first frame, EXIF orientation applied (upright where broken metadata hides
it), converted to RGB (an alpha channel is dropped, grey is repeated, the upper 8 of 16 bits are taken, CMYK
is converted by Pillow), then stretched to the model's input size: where that is n times lower and m times
narrower, blocks of n x m pixels are averaged; the remaining reduction, by less than 2, is done by Pillow's
bilinear filter, whose support grows with the reduction (antialiasing).

A JPEG of more than `DRAFT_PIXELS` is decoded at half its width and height, by libjpeg's scaled inverse DCT,
at a quarter of the memory. Whether that is done depends on the file alone, so that the pipeline and all
devices see the same pixels. (Fitted to 224 pixels, they differ from those of the whole decoding by 1 to 2 of
255 on average, mostly because other rows at the edge fill no block.)
"""

from __future__ import annotations

import functools
import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from edge_client.contract.averaging import average_blocks
from edge_client.contract.decoding_cost import check_affordable, strip_pixels
from edge_client.contract.errors import InputError
from edge_client.contract.metadata import ORIENTATION, UPRIGHT, find_orientation, without_metadata
from edge_client.contract.picture_file import read_picture
from edge_client.contract.release import PREPROCESSING_ID
from edge_client.contract.structure import (
    check_scans,
    check_scans_of_tiff,
    check_structure,
    is_heavy_directory,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edge_client.contract.release import Normalization

__all__ = ["PREPROCESSING_ID", "decode_fitted", "decode_picture", "fit_pixels", "input_table"]

# More than any supported camera gives. What a picture within this costs is compared with the free memory.
MAX_PIXELS = 50_000_000
# As in a JPEG.
MAX_SIDE = 65_535
# A larger JPEG is decoded at half its size, unless its shorter side would be as low as a large model's input.
DRAFT_PIXELS, _DRAFT_SIDE = 16_000_000, 1024
# Pictures above the second number are converted to RGB in strips of so many pixels.
_STRIP_PIXELS = 1 << 19
_WHOLE_PIXELS = 1 << 20

# Pillow knows many more formats, some of which start programs (EPS: Ghostscript) or are rarely tested.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")

# Pillow's decoders raise all of these on corrupt files, not only OSError (found by fuzzing, and read
# in its plugins): a broken picture must never stop a run.
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    AssertionError,
    MemoryError,
    struct.error,
)

# Orientation -> what makes the picture upright. Source: EXIF 3.0, 4.6.5.1.6.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# The same, as axes to exchange and steps along the rows and columns of the upright picture.
_VIEWS = {
    1: (False, 1, 1),
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}


def decode_picture(data: bytes | Path, *, source: str | None = None) -> NDArray[np.uint8]:
    """Decode a picture file; thread-safe.

    Args:
        data: File content or path.
        source: Name for errors; default the path.
    Returns: (H, W, 3) uint8 RGB, upright.
    Raises: InputError if it is none of `FORMATS`, truncated, larger than `MAX_PIXELS`, would take more memory
        than there is, or long for its size (`structure.py`).
    """
    return _decode(data, source, FORMATS, lambda image: np.asarray(image, np.uint8), lambda pixels: pixels)


def decode_fitted(
    data: bytes | Path,
    height: int,
    width: int,
    *,
    source: str | None = None,
    formats: tuple[str, ...] = FORMATS,
) -> NDArray[np.uint8]:
    """Return `fit_pixels(decode_picture(data), height, width)`, without the copies between the two.

    Args:
        data: File content or path.
        height: Rows of the result.
        width: Columns of the result.
        source: Name for errors; default the path.
        formats: Pillow's names of the formats that are accepted.
    Returns: (height, width, 3) uint8 RGB, upright.
    Raises: InputError as `decode_picture`.
    """
    return _decode(
        data,
        source,
        formats,
        lambda image: _fit(image, height, width),
        lambda pixels: fit_pixels(pixels, height, width),
    )


def _decode(
    data: bytes | Path,
    source: str | None,
    formats: tuple[str, ...],
    use: Callable[[Image.Image], NDArray[np.uint8]],
    use_pixels: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
) -> NDArray[np.uint8]:
    """Decode; `use` gets an upright RGB picture, `use_pixels` the same of a large one, as an array."""
    if isinstance(data, Path):
        name, data = source or str(data), read_picture(data)
    else:
        name = source or f"picture of {len(data)} bytes"
    decode = functools.partial(_decode_once, name=name, formats=formats, use=use, use_pixels=use_pixels)
    try:
        bare = without_metadata(data) if check_structure(data, name) else None
        try:
            return decode(data) if bare is None else decode(bare[0], orientation=bare[1])
        except _DECODER_ERRORS:
            bare = without_metadata(data)
            if bare is None:
                raise
            return decode(bare[0], orientation=bare[1])
    except UnidentifiedImageError as e:
        msg = (
            f"{name}: not a complete picture in one of the formats {', '.join(formats)}; "
            "convert, replace or remove it"
        )
        raise InputError(msg) from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        # Pillow checks before we can: it raises from 179 megapixels on, the warning only under -W error.
        msg = f"{name}: {e}; at most {MAX_PIXELS} pixels are accepted: scale it down or remove it"
        raise InputError(msg) from e
    except _DECODER_ERRORS as e:
        msg = f"{name}: cannot be decoded as a picture ({e or type(e).__name__}); replace or remove it"
        raise InputError(msg) from e


def _decode_once(
    data: bytes,
    *,
    name: str,
    formats: tuple[str, ...],
    use: Callable[[Image.Image], NDArray[np.uint8]],
    use_pixels: Callable[[NDArray[np.uint8]], NDArray[np.uint8]],
    orientation: int | None = None,
) -> NDArray[np.uint8]:
    """Decode; the orientation is the picture's own where none is given."""
    with Image.open(io.BytesIO(data), formats=formats) as image:
        _check_size(image, name)
        _prepare(image, data, name)
        image.load()  # first: a PNG may have its EXIF block at the end, and Pillow turns a TIFF by itself
        turned = _read_orientation(image) if orientation is None else orientation
        if image.width * image.height > _WHOLE_PIXELS:
            return use_pixels(_upright_pixels(image, turned, name))
        turn = _TURNS.get(turned)
        return use(_to_rgb(image if turn is None else image.transpose(turn), image.format, name))


def _prepare(image: Image.Image, data: bytes, name: str) -> None:
    """Check what decoding takes, and let libjpeg scale a very large picture down.

    Raises: InputError.
    """
    pixels = image.width * image.height
    if image.format in {"JPEG", "MPO"}:
        check_scans(data, pixels, name)
        if pixels > DRAFT_PIXELS and min(image.size) >= 2 * _DRAFT_SIDE:
            image.draft(None, (image.width // 2, image.height // 2))
    elif image.format == "TIFF" and "jpeg" in str(image.info.get("compression")):
        check_scans_of_tiff(data, strip_pixels(image), name)
    check_affordable(image, data, pixels, name)


def _upright_pixels(image: Image.Image, orientation: int, name: str) -> NDArray[np.uint8]:
    """Return a loaded picture as (H, W, 3) uint8 RGB, upright, without a second whole copy of it."""
    exchanged, down, along = _VIEWS.get(orientation, _VIEWS[UPRIGHT])
    width, height = image.size
    pixels = np.empty((width, height, 3) if exchanged else (height, width, 3), np.uint8)
    stored = pixels[::down, ::along]
    if exchanged:
        stored = stored.transpose(1, 0, 2)  # (height, width, 3) as in the file
    rows = max(_STRIP_PIXELS // width, 1)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        stored[top:bottom] = np.asarray(
            _to_rgb(image.crop((0, top, width, bottom)), image.format, name), np.uint8
        )
    return pixels


def _read_orientation(image: Image.Image) -> int:
    """Return the orientation from EXIF or XMP, 1 to 8; a block that Pillow cannot read is searched for it."""
    if image.format == "HEIF":  # its decoder has turned it: ISO/IEC 23008-12, 6.5.10
        return UPRIGHT
    exif = image.info.get("exif")
    try:
        heavy = isinstance(exif, bytes) and is_heavy_directory(exif)
        found = None if heavy else image.getexif().get(ORIENTATION)
    except _DECODER_ERRORS:
        found = None
    if isinstance(found, int) and 1 <= found <= 8:
        return found
    return find_orientation(exif) if isinstance(exif, bytes) else UPRIGHT


def _check_size(image: Image.Image, name: str) -> None:
    if image.width < 1 or image.height < 1:
        msg = f"{name}: {image.width}x{image.height} pixels, an empty picture; remove it"
        raise InputError(msg)
    if max(image.size) > MAX_SIDE:  # rows of megabytes, of which other code makes several copies
        msg = f"{name}: {image.width}x{image.height} pixels, at most {MAX_SIDE} on a side; cut it into parts"
        raise InputError(msg)
    if image.width * image.height > MAX_PIXELS:
        msg = (
            f"{name}: {image.width}x{image.height} pixels, at most {MAX_PIXELS} are accepted; "
            "scale it down or remove it"
        )
        raise InputError(msg)


def _to_rgb(image: Image.Image, file_format: str | None, name: str) -> Image.Image:
    """Convert to RGB from any mode that has a defined black and white."""
    if image.mode == "F" or (image.mode == "I" and file_format != "PNG"):
        msg = f"{name}: 32-bit grey has no defined white; convert it to 8 or 16 bits"
        raise InputError(msg)
    if image.mode == "RGB":
        return image
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    # 16-bit grey ("I" for a PNG before Pillow 11.3); Pillow's own conversion makes all above 255 white.
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")


def fit_pixels(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize to the model's input size; the aspect ratio is not kept.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        height: Rows of the result.
        width: Columns of the result.
    Returns: (height, width, 3) uint8 RGB.
    Raises: InputError on another rank, channel count or type, or without a pixel.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        msg = f"picture of shape {pixels.shape} and type {pixels.dtype}: give (H, W, 3) uint8 RGB"
        raise InputError(msg)
    lower, narrower = max(pixels.shape[0] // height, 1), max(pixels.shape[1] // width, 1)
    if max(lower, narrower) > 1:
        pixels = average_blocks(pixels, lower, narrower)
    return pixels if pixels.shape[:2] == (height, width) else _stretch(Image.fromarray(pixels), height, width)


def _fit(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    """Apply `fit_pixels` to a Pillow image, without a copy where no blocks are averaged."""
    if image.height >= 2 * height or image.width >= 2 * width:
        return fit_pixels(np.asarray(image, np.uint8), height, width)
    return _stretch(image, height, width)


def _stretch(image: Image.Image, height: int, width: int) -> NDArray[np.uint8]:
    return np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR), np.uint8
    )  # (height, width, 3)


def input_table(
    dtype: np.dtype[np.generic],
    scale: float,
    zero_point: int,
    normalization: Normalization | None,
) -> NDArray[np.generic]:
    """Return the lookup table from a pixel value 0-255 to the model's input value.

    Rounds half up, not half to even: with scale 1/127.5 every value is a half, and half to even would
    fold neighbouring pixel values into one. A value counts as a half within 1/1024, because files
    hold the scale as float32 (1/127.5 becomes 0.0078431377, and 127.5 steps become 127.499992).

    Args:
        dtype: float32, uint8 or int8.
        scale: Real value of one step of the quantized input (ignored for float32).
        zero_point: Quantized value that stands for 0.0 (ignored for float32).
        normalization: None: a quantized input takes the pixel itself (int8: minus 128), a float
            input takes [-1, 1].
    Returns: (256,) of `dtype`.
    Raises: InputError for another `dtype`.
    Source: TFLite 8-bit quantization specification, real = (q - zero_point) * scale.
    """
    pixel = np.arange(256, dtype=np.float64)
    if dtype == np.float32:
        mean, std = (127.5, 127.5) if normalization is None else (normalization.mean, normalization.std)
        return ((pixel - mean) / std).astype(np.float32)
    if dtype not in (np.uint8, np.int8):
        msg = f"model input of type {dtype}: float32, uint8 and int8 are supported"
        raise InputError(msg)
    limits = np.iinfo(np.uint8 if dtype == np.uint8 else np.int8)
    if normalization is None:
        return (pixel + limits.min).astype(dtype)
    real = (pixel - normalization.mean) / normalization.std
    return np.clip(np.floor(real / scale + zero_point + 0.5 + 1 / 1024), limits.min, limits.max).astype(dtype)
