"""The largest pictures that are accepted, of every format and mode; most are small files."""

from __future__ import annotations

import io
import struct
import zlib
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable

WIDTH, HEIGHT = 8000, 6000
# PNG colour type and depth -> bytes of a pixel.
_PNG_BYTES = {
    (0, 8): 1,
    (0, 16): 2,
    (2, 8): 3,
    (2, 16): 6,
    (3, 8): 1,
    (4, 8): 2,
    (4, 16): 4,
    (6, 8): 4,
    (6, 16): 8,
}


def _saved(mode: str, kind: str, width: int = WIDTH, height: int = HEIGHT, **options: object) -> bytes:
    out = io.BytesIO()
    colour = 0 if mode in {"1", "P", "L", "I;16"} else tuple([90] * len(Image.new(mode, (1, 1)).getbands()))
    Image.new(mode, (width, height), colour).save(out, kind, **options)
    return out.getvalue()


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(colour: int, depth: int, *, interlaced: bool = False) -> bytes:
    """A black PNG; Pillow itself writes no interlaced and few 16-bit ones."""
    passes = [(1, 1, 0, 0)]
    if interlaced:  # columns and rows of a pass, and where it begins: PNG specification, section 8.2
        passes = [
            (8, 8, 0, 0),
            (8, 8, 4, 0),
            (4, 8, 0, 4),
            (4, 4, 2, 0),
            (2, 4, 0, 2),
            (2, 2, 1, 0),
            (1, 2, 0, 1),
        ]
    packer, body = zlib.compressobj(1), []
    for across, down, left, top in passes:
        row = bytes(1 + -(-(WIDTH - left) // across) * _PNG_BYTES[colour, depth])
        body += [packer.compress(row) for _ in range(-(-(HEIGHT - top) // down))]
    body.append(packer.flush())
    palette = _chunk(b"PLTE", bytes(768)) + _chunk(b"tRNS", bytes(256)) if colour == 3 else b""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, colour, 0, 0, interlaced)
    end = _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + palette + _chunk(b"IDAT", b"".join(body)) + end


# Name of a file -> makes its content. The first ones are what every run of the tests takes.
SAMPLE: dict[str, Callable[[], bytes]] = {
    "phone-48-megapixels.jpg": lambda: _saved("RGB", "JPEG"),
    "lossless-1-kB.webp": lambda: _saved("RGB", "WEBP", lossless=True, quality=0, method=0),
}
EVERY: dict[str, Callable[[], bytes]] = SAMPLE | {
    "rgba.png": lambda: png(6, 8),
    "cmyk.jpg": lambda: _saved("CMYK", "JPEG"),
    "grey.jpg": lambda: _saved("L", "JPEG"),
    "progressive.jpg": lambda: _saved("RGB", "JPEG", progressive=True),
    "progressive-444.jpg": lambda: _saved("RGB", "JPEG", progressive=True, subsampling=0),
    "progressive-cmyk.jpg": lambda: _saved("CMYK", "JPEG", progressive=True),
    "panorama.jpg": lambda: _saved("RGB", "JPEG", 25_000, 1_990),
    "grey.png": lambda: png(0, 8),
    "grey-16.png": lambda: png(0, 16),
    "rgb.png": lambda: png(2, 8),
    "rgb-16.png": lambda: png(2, 16),
    "palette.png": lambda: png(3, 8),
    "grey-alpha.png": lambda: png(4, 8),
    "grey-alpha-16.png": lambda: png(4, 16),
    "rgba-16.png": lambda: png(6, 16),
    "interlaced.png": lambda: png(2, 8, interlaced=True),
    "interlaced-16.png": lambda: png(6, 16, interlaced=True),
    "lossy.webp": lambda: _saved("RGB", "WEBP", method=0),
    "lossless-rgba.webp": lambda: _saved("RGBA", "WEBP", lossless=True, quality=0, method=0),
    "palette.gif": lambda: _saved("P", "GIF"),
    "rgb.bmp": lambda: _saved("RGB", "BMP"),
    "rgba.bmp": lambda: _saved("RGBA", "BMP"),
    "grey.bmp": lambda: _saved("L", "BMP"),
    "rgb.tif": lambda: _saved("RGB", "TIFF"),
    "rgb-lzw.tif": lambda: _saved("RGB", "TIFF", compression="tiff_lzw"),
    "rgb-jpeg.tif": lambda: _saved("RGB", "TIFF", compression="jpeg"),
    "rgb-deflate.tif": lambda: _saved("RGB", "TIFF", compression="tiff_adobe_deflate"),
    "rgba-lzw.tif": lambda: _saved("RGBA", "TIFF", compression="tiff_lzw"),
    "cmyk-lzw.tif": lambda: _saved("CMYK", "TIFF", compression="tiff_lzw"),
    "lab-lzw.tif": lambda: _saved("LAB", "TIFF", compression="tiff_lzw"),
    "grey-16.tif": lambda: _saved("I;16", "TIFF", compression="tiff_lzw"),
    "black-and-white.tif": lambda: _saved("1", "TIFF", compression="group4"),
    "palette-lzw.tif": lambda: _saved("P", "TIFF", compression="tiff_lzw"),
}
