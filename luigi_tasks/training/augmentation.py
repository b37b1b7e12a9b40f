"""Distorted views of pictures: what another camera, another hand or another hour would have seen.

OpenCV, not Pillow: a view takes 0.2 ms instead of 0.7. Where a view would look otherwise than before,
raise VIEWS_VERSION in pipeline.py.
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
PICTURES_A_TURN = 32


def distort_all(
    pixels: NDArray[np.uint8], names: Sequence[str], view: int, *, flip: bool
) -> NDArray[np.uint8]:
    """Return one view of each picture: rotation, crop, brightness and contrast, half of them mirrored.

    Args:
        pixels: (N, H, W, 3) RGB.
        names: N content hashes; a picture's views depend on nothing else.
        view: 0 is the picture itself, each other number another view.
        flip: Whether mirror images keep their meaning.
    Returns: (N, H, W, 3) RGB; what lies outside the picture looks like its nearest edge.
    """
    if view == 0 or not len(pixels):
        return pixels
    views = np.empty_like(pixels)
    height, width = pixels.shape[1:3]
    matrices, tables = _draw(names, view, height, width, flip=flip)

    def see(number: int) -> None:
        turned = cv2.warpAffine(
            pixels[number],
            matrices[number],
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        cv2.LUT(turned, tables[number], views[number])

    def see_some(start: int) -> None:
        for number in range(start, min(start + PICTURES_A_TURN, len(names))):
            see(number)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(see_some, range(0, len(names), PICTURES_A_TURN)))
    return views


def _draw(
    names: Sequence[str], view: int, height: int, width: int, *, flip: bool
) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Return what each picture's hash says of its view.

    Returns: (N, 2, 3) matrices from a point of the view to one of the picture, and (N, 256) tables from
        its brightness to the view's.
    """
    digests = b"".join(hashlib.sha256(f"{name}/{view}".encode()).digest() for name in names)
    chance = np.frombuffer(digests, ">u4").reshape(len(names), 8) / 2**32  # (N, 8) in [0, 1)
    angle = np.radians((chance[:, 0] * 2 - 1) * MAX_ROTATION_DEGREES)
    crop = MIN_CROP + chance[:, 1] * (1 - MIN_CROP)
    # The middle of what is looked at.
    x = width / 2 + (chance[:, 2] - 0.5) * width * (1 - crop)
    y = height / 2 + (chance[:, 3] - 0.5) * height * (1 - crop)
    mirror = np.where((chance[:, 4] < 0.5) & flip, -1, 1)
    cosine, sine = crop * np.cos(angle), crop * np.sin(angle)
    # One resampling for all.
    a, b, d, e = mirror * cosine, -sine, mirror * sine, cosine
    offsets = x - a * width / 2 - b * height / 2, y - d * width / 2 - e * height / 2
    matrices = np.stack([a, b, offsets[0], d, e, offsets[1]], 1).reshape(-1, 2, 3)
    gain = 1 + (chance[:, 5] * 2 - 1) * CONTRAST
    offset = (chance[:, 6] * 2 - 1) * BRIGHTNESS * 255
    tables = (np.arange(256) - 127.5) * gain[:, None] + 127.5 + offset[:, None]
    return matrices, np.clip(tables, 0, 255).astype(np.uint8)
