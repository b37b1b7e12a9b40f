"""From a picture file to the model's input: the same steps in training, the gate and the device.

Algorithm `pillow-bilinear-1`: EXIF orientation applied, converted to RGB (alpha over black is
dropped, grey is repeated, CMYK is converted by Pillow), stretched to the model's input with
Pillow's bilinear filter, whose support grows with the reduction (antialiased).
"""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from edge_client.contract.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edge_client.contract.release import Normalization

PREPROCESSING_ID = "pillow-bilinear-1"

# A 50-megapixel picture is 150 MB as RGB: more than any supported camera, less than a Pi's memory.
MAX_PIXELS = 50_000_000


def decode_picture(data: bytes | Path, *, source: str | None = None) -> NDArray[np.uint8]:
    """Decode a picture file.

    Args:
        data: File content or path.
        source: Name for errors; default the path.
    Returns: (H, W, 3) uint8 RGB, upright.
    Raises: InputError if it is no picture, truncated, or larger than `MAX_PIXELS`.
    """
    name = source or (f"{len(data)} bytes" if isinstance(data, bytes) else str(data))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data) as image:
                if image.width * image.height > MAX_PIXELS:
                    msg = (
                        f"{name}: {image.width}x{image.height} pixels, at most {MAX_PIXELS} are "
                        "accepted; scale it down or remove it"
                    )
                    raise InputError(msg)
                upright = ImageOps.exif_transpose(image)
                return np.asarray(upright.convert("RGB"), np.uint8)  # (H, W, 3)
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as e:
        msg = f"{name}: {e}; scale it down or remove it"
        raise InputError(msg) from e
    except (OSError, ValueError, SyntaxError, EOFError, TypeError, IndexError, KeyError) as e:
        # Pillow's decoders raise all of these on corrupt files, not only OSError.
        msg = f"{name}: cannot be decoded as a picture ({e}); replace or remove it"
        raise InputError(msg) from e


def fit_pixels(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Stretch to the model's input size.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        height: Rows of the result.
        width: Columns of the result.
    Returns: (height, width, 3) uint8 RGB.
    Raises: InputError on another rank, channel count or type.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8:
        msg = f"picture of shape {pixels.shape} and type {pixels.dtype}: give (H, W, 3) uint8 RGB"
        raise InputError(msg)
    if pixels.shape[:2] == (height, width):
        return pixels
    image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.uint8)  # (height, width, 3)


def input_table(
    dtype: np.dtype[np.generic],
    scale: float,
    zero_point: int,
    normalization: Normalization | None,
) -> NDArray[np.generic]:
    """Table from a pixel value 0-255 to the model's input value.

    Rounds half up, not half to even: with scale 1/127.5 half to even would fold neighbouring
    pixel values into one.

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
    return np.clip(np.floor(real / scale + zero_point + 0.5), limits.min, limits.max).astype(dtype)
