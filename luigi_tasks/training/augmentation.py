"""Augmentation: rotated, cropped, mirrored and re-lit copies of a picture, derived from its content hash.

OpenCV, not Pillow: a copy takes 0.2 ms instead of 0.7. Raise AUGMENTATION_VERSION with every change that
makes other copies, or features in the store would be of other pictures; the version of the step `tuned` where
only FOR_TUNING changes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_ROTATION_DEGREES = 12.0
BRIGHTNESS = 0.15
PICTURES_PER_JOB = 32
# Weights of red, green and blue in a picture's brightness, ITU-R BT.601.
LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True)
class Strength:
    """How much copies differ from their picture.

    Attributes:
        min_crop: Smallest side of the crop, as a share of the picture's.
        contrast: Largest change of contrast.
        stretch: Largest change of the aspect ratio, as a logarithm.
        saturation: Largest change of saturation.
        name: Makes copies of two strengths independent of each other.
    """

    min_crop: float = 0.75
    contrast: float = 0.2
    stretch: float = 0.0
    saturation: float = 0.0
    name: str = ""


FOR_HEADS = Strength()
# A backbone that has weights gains from copies that would be too different for a head on fixed features:
# docs/decisions/0013-recipes.md.
FOR_TUNING = Strength(min_crop=0.6, contrast=0.3, stretch=0.15, saturation=0.3, name="/tuning")


def augment(
    pixels: NDArray[np.uint8],
    hashes: Sequence[str],
    copy: int,
    *,
    flip: bool,
    strength: Strength = FOR_HEADS,
) -> NDArray[np.uint8]:
    """Return one augmented copy of each picture: rotation, crop, brightness, contrast; half are mirrored.

    Args:
        pixels: (N, H, W, 3) RGB.
        hashes: N content hashes; a copy depends on nothing else.
        copy: 0 is the picture itself, each other number another copy.
        flip: Whether mirror images keep their class.
        strength: How much copies differ from the picture; some also in saturation and aspect ratio.
    Returns: (N, H, W, 3) RGB; outside the picture its edge pixels are repeated.
    """
    if copy == 0 or not len(pixels):
        return pixels
    copies = np.empty_like(pixels)
    height, width = pixels.shape[1:3]
    chance = _draw(hashes, f"{copy}{strength.name}")
    matrices = _draw_matrices(chance, height, width, strength, flip=flip)
    tables = _draw_tables(chance, strength)
    colours = _draw_colours(_draw(hashes, f"{copy}{strength.name}/colour"), strength)

    def transform(number: int) -> None:
        turned = cv2.warpAffine(
            pixels[number],
            matrices[number],
            (width, height),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        cv2.LUT(turned, tables[number], copies[number])
        if colours is not None:
            cv2.transform(copies[number], colours[number], copies[number])

    def transform_some(start: int) -> None:
        for number in range(start, min(start + PICTURES_PER_JOB, len(hashes))):
            transform(number)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(transform_some, range(0, len(hashes), PICTURES_PER_JOB)))
    return copies


def _draw(hashes: Sequence[str], name: str) -> NDArray[np.float64]:
    """Return (N, 8) numbers in [0, 1), drawn from each picture's hash and the name of what they are for."""
    digests = b"".join(hashlib.sha256(f"{one}/{name}".encode()).digest() for one in hashes)
    return np.frombuffer(digests, ">u4").reshape(len(hashes), 8) / 2**32


def _draw_matrices(
    chance: NDArray[np.float64], height: int, width: int, strength: Strength, *, flip: bool
) -> NDArray[np.float64]:
    """Return (N, 2, 3) matrices from a point of the copy to a point of the picture.

    Rotation, crop and mirroring in one matrix, so that each picture is resampled once.
    """
    angle = np.radians((chance[:, 0] * 2 - 1) * MAX_ROTATION_DEGREES)
    crop = strength.min_crop + chance[:, 1] * (1 - strength.min_crop)
    narrower = np.exp((chance[:, 7] - 0.5) * strength.stretch)
    across, down = np.minimum(crop * narrower, 1), np.minimum(crop / narrower, 1)
    # Centre of the crop.
    x = width / 2 + (chance[:, 2] - 0.5) * width * (1 - across)
    y = height / 2 + (chance[:, 3] - 0.5) * height * (1 - down)
    mirror = np.where((chance[:, 4] < 0.5) & flip, -1, 1)
    a, b = mirror * across * np.cos(angle), -(down * np.sin(angle))
    d, e = mirror * across * np.sin(angle), down * np.cos(angle)
    offsets = x - a * width / 2 - b * height / 2, y - d * width / 2 - e * height / 2
    return np.stack([a, b, offsets[0], d, e, offsets[1]], 1).reshape(-1, 2, 3)


def _draw_tables(chance: NDArray[np.float64], strength: Strength) -> NDArray[np.uint8]:
    """Return (N, 256) lookup tables from the picture's brightness to the copy's."""
    gain = 1 + (chance[:, 5] * 2 - 1) * strength.contrast
    offset = (chance[:, 6] * 2 - 1) * BRIGHTNESS * 255
    tables = (np.arange(256) - 127.5) * gain[:, None] + 127.5 + offset[:, None]
    return np.clip(tables, 0, 255).astype(np.uint8)


def _draw_colours(chance: NDArray[np.float64], strength: Strength) -> NDArray[np.float64] | None:
    """Return (N, 3, 3) matrices from the picture's RGB to the copy's; None where colours stay."""
    if not strength.saturation:
        return None
    saturation = (1 + (chance[:, 0] * 2 - 1) * strength.saturation)[:, None, None]
    grey = np.ones((3, 1)) * np.array(LUMA)  # (3, 3)
    colours: NDArray[np.float64] = saturation * np.eye(3) + (1 - saturation) * grey
    return colours
