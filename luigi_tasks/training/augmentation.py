"""Augmentation: rotated, cropped, mirrored and re-lit copies of a picture, derived from its content hash.

OpenCV, not Pillow: a copy takes 0.2 ms instead of 0.7. Raise AUGMENTATION_VERSION with every change that
makes other copies, or features in the store would be of other pictures.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_ROTATION_DEGREES = 12.0
MIN_CROP = 0.75
BRIGHTNESS = 0.15
CONTRAST = 0.2
PICTURES_PER_JOB = 32


def augment(pixels: NDArray[np.uint8], hashes: Sequence[str], copy: int, *, flip: bool) -> NDArray[np.uint8]:
    """Return one augmented copy of each picture: rotation, crop, brightness, contrast; half are mirrored.

    Args:
        pixels: (N, H, W, 3) RGB.
        hashes: N content hashes; a copy depends on nothing else.
        copy: 0 is the picture itself, each other number another copy.
        flip: Whether mirror images keep their class.
    Returns: (N, H, W, 3) RGB; outside the picture its edge pixels are repeated.
    """
    if copy == 0 or not len(pixels):
        return pixels
    copies = np.empty_like(pixels)
    height, width = pixels.shape[1:3]
    matrices, tables = _draw_parameters(hashes, copy, height, width, flip=flip)

    def transform(number: int) -> None:
        turned = cv2.warpAffine(
            pixels[number],
            matrices[number],
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        cv2.LUT(turned, tables[number], copies[number])

    def transform_some(start: int) -> None:
        for number in range(start, min(start + PICTURES_PER_JOB, len(hashes))):
            transform(number)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(transform_some, range(0, len(hashes), PICTURES_PER_JOB)))
    return copies


def _draw_parameters(
    hashes: Sequence[str], copy: int, height: int, width: int, *, flip: bool
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Draw the parameters of each copy from the picture's hash.

    Returns: (N, 2, 3) matrices from a point of the copy to a point of the picture, and (N, 256) lookup tables
        from the picture's brightness to the copy's.
    """
    digests = b"".join(hashlib.sha256(f"{one}/{copy}".encode()).digest() for one in hashes)
    chance = np.frombuffer(digests, ">u4").reshape(len(hashes), 8) / 2**32  # (N, 8) in [0, 1)
    angle = np.radians((chance[:, 0] * 2 - 1) * MAX_ROTATION_DEGREES)
    crop = MIN_CROP + chance[:, 1] * (1 - MIN_CROP)
    # Centre of the crop.
    x = width / 2 + (chance[:, 2] - 0.5) * width * (1 - crop)
    y = height / 2 + (chance[:, 3] - 0.5) * height * (1 - crop)
    mirror = np.where((chance[:, 4] < 0.5) & flip, -1, 1)
    cosine, sine = crop * np.cos(angle), crop * np.sin(angle)
    # Rotation, crop and mirroring in one matrix, so that each picture is resampled once.
    a, b, d, e = mirror * cosine, -sine, mirror * sine, cosine
    offsets = x - a * width / 2 - b * height / 2, y - d * width / 2 - e * height / 2
    matrices = np.stack([a, b, offsets[0], d, e, offsets[1]], 1).reshape(-1, 2, 3)
    gain = 1 + (chance[:, 5] * 2 - 1) * CONTRAST
    offset = (chance[:, 6] * 2 - 1) * BRIGHTNESS * 255
    tables = (np.arange(256) - 127.5) * gain[:, None] + 127.5 + offset[:, None]
    return matrices, np.clip(tables, 0, 255).astype(np.uint8)
