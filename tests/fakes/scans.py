"""JPEG files that a decoder passes over many times."""

from __future__ import annotations

import io

from PIL import Image


def with_scans(count: int, side: int = 16) -> bytes:
    """Return a valid progressive JPEG whose last scan is repeated: 75 bytes, and one pass over all pixels."""
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 60)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    end = data.rindex(b"\xff\xd9")
    last = data[data.rindex(b"\xff\xda") : end]
    return data[:end] + last * (count - data.count(b"\xff\xda")) + data[end:]
