"""Features of a frozen backbone, and distorted views of pictures.

Features come from the float backbone as TFLite under XNNPACK, not from Keras `predict`: 2,062
pictures of 160 pixels take 4 s on two cores.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edge_client.inference.runtime import load_interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress

MAX_ROTATION_DEGREES = 12.0
MIN_CROP = 0.75
BRIGHTNESS = 0.15
CONTRAST = 0.2
CHUNK = 64


def to_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map pixels 0-255 to the network's [-1, 1]."""
    return np.asarray(pixels, np.float32) / np.float32(127.5) - np.float32(1)


def distort(pixels: NDArray[np.uint8], seed: str, *, flip: bool) -> NDArray[np.uint8]:
    """Return a view of a picture as another camera might have taken it.

    Rotation, crop, brightness and contrast, and a mirror image half of the time.

    Args:
        pixels: (H, W, 3) RGB.
        seed: Same seed, same view.
        flip: Whether mirror images keep their meaning.
    Returns: (H, W, 3) RGB.
    """
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big"))
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels).rotate(
        rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES), Image.Resampling.BILINEAR
    )
    crop = rng.uniform(MIN_CROP, 1)
    left, top = rng.uniform(0, width * (1 - crop)), rng.uniform(0, height * (1 - crop))
    box = (left, top, left + width * crop, top + height * crop)
    image = image.resize((width, height), Image.Resampling.BILINEAR, box=box)
    if rng.random() < 0.5 and flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    gain = rng.uniform(1 - CONTRAST, 1 + CONTRAST)
    offset = rng.uniform(-BRIGHTNESS, BRIGHTNESS) * 255
    table = np.clip((np.arange(256) - 127.5) * gain + 127.5 + offset, 0, 255).astype(np.uint8)
    return np.take(table, np.asarray(image))  # (H, W, 3)


def distort_all(
    pixels: NDArray[np.uint8], names: Sequence[str], view: int, *, flip: bool
) -> NDArray[np.uint8]:
    """Return one distorted view of each picture.

    Args:
        pixels: (N, H, W, 3) RGB.
        names: N content hashes; a picture's views do not depend on its neighbours.
        view: 0 is the picture itself, each other number another view.
        flip: Whether mirror images keep their meaning.
    Returns: (N, H, W, 3) RGB.
    """
    if view == 0:
        return pixels
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        views = pool.map(lambda n: distort(pixels[n], f"{names[n]}/{view}", flip=flip), range(len(names)))
        return np.stack(list(views))


def extract_features(
    backbone: bytes, pixels: NDArray[np.uint8], progress: Progress, what: str
) -> NDArray[np.float32]:
    """Run the backbone over pictures, on all cores.

    Args:
        backbone: TFLite, (1, H, W, 3) float in [-1, 1] to (1, F) float.
        pixels: (N, H, W, 3) RGB.
        progress: Gets the number of pictures done.
        what: Named in progress.
    Returns: (N, F).
    """
    local = threading.local()

    def run(start: int) -> NDArray[np.float32]:
        if not hasattr(local, "interpreter"):
            local.interpreter = load_interpreter(backbone, 1)
        interpreter = local.interpreter
        given, answer = (
            interpreter.get_input_details()[0]["index"],
            interpreter.get_output_details()[0]["index"],
        )
        rows = []
        for picture in pixels[start : start + CHUNK]:
            interpreter.set_tensor(given, to_input(picture)[None])  # (1, H, W, 3)
            interpreter.invoke()
            rows.append(interpreter.get_tensor(answer)[0])
        return np.stack(rows)

    parts = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for part in pool.map(run, range(0, len(pixels), CHUNK)):
            parts.append(part)
            progress(what, sum(map(len, parts)), len(pixels))
    return np.concatenate(parts)
