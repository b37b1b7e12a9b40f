"""Pictures and weights for scale.py, generated: scenes of ten kinds, no two alike, as JPEGs."""

from __future__ import annotations

import concurrent.futures
import functools
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLASSES, WIDTH, HEIGHT, QUALITY = 10, 240, 180, 85
CHUNK = 250
# Keras reads the network from the name of a file without the top.
WEIGHTS_NAME = "mobilenet_v2_1.0_{size}_no_top.h5"
# Passes after which each batch-norm layer has the statistics of what the layers before it give now.
ROUNDS = 3


def write_scenes(folder: Path, start: int, end: int) -> None:
    """Write the scenes of these numbers; class by class in turn, the same for the same number."""
    for label in range(CLASSES):
        (folder / f"kind-{label}").mkdir(parents=True, exist_ok=True)
    starts = range(start, end, CHUNK)
    with concurrent.futures.ProcessPoolExecutor(os.cpu_count()) as pool:
        # Consumed, so that an error in a child is raised here.
        list(pool.map(functools.partial(_write_chunk, folder, end), starts))


def _write_chunk(folder: Path, end: int, start: int) -> None:
    for number in range(start, min(start + CHUNK, end)):
        scene = Image.fromarray(make_scene(number))
        scene.save(folder / f"kind-{number % CLASSES}" / f"{number:07}.jpg", quality=QUALITY)


def make_scene(number: int) -> NDArray[np.uint8]:
    """Return (H, W, 3) RGB: a background of soft colours in several scales, things of one kind, noise."""
    rng = np.random.default_rng(number)
    field = np.zeros((HEIGHT, WIDTH, 3), np.float32)
    for side, weight in ((4, 0.5), (9, 0.3), (30, 0.2)):
        grid = Image.fromarray(rng.integers(0, 256, (side, side + 1, 3), np.uint8))
        field += weight * np.asarray(grid.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.float32)
    canvas = Image.fromarray(np.clip(field, 0, 255).astype(np.uint8))
    _draw_things(ImageDraw.Draw(canvas), rng, number % CLASSES)
    noisy = np.asarray(canvas, np.float32) + rng.normal(0, 6, (HEIGHT, WIDTH, 1)).astype(np.float32)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _draw_things(draw: ImageDraw.ImageDraw, rng: np.random.Generator, kind: int) -> None:
    """Draw some things of a kind: corners and rays tell kinds apart, and so does, mostly, their hue."""
    for _ in range(int(rng.integers(4, 9))):
        middle = rng.uniform((20, 20), (WIDTH - 20, HEIGHT - 20))
        radius, turn = rng.uniform(14, 42), rng.uniform(0, math.tau)
        corners = 2 * (3 + kind // 2)
        inner = 0.4 if kind % 2 else 0.85
        points = [
            (
                float(middle[0] + reach * radius * math.cos(turn + math.tau * one / corners)),
                float(middle[1] + reach * radius * math.sin(turn + math.tau * one / corners)),
            )
            for one in range(corners)
            for reach in [inner if one % 2 else 1.0]
        ]
        hue = 360 * ((kind / CLASSES + rng.normal(0, 0.04)) % 1)
        draw.polygon(points, fill=f"hsv({hue:.0f}, {rng.uniform(50, 100):.0f}%, {rng.uniform(40, 100):.0f}%)")


def write_weights(folder: Path, size: int) -> Path:
    """Write weights of MobileNetV2 1.0 that learned nothing: a random projection that tells colours apart.

    What they cost is what trained ones cost. To be called in a process of its own, for TensorFlow stays.
    """
    from luigi_tasks.backbone.tensorflow_runtime import start_tensorflow  # noqa: PLC0415
    from luigi_tasks.inference.features import to_input  # noqa: PLC0415 - of this process alone, as TensorFlow

    _, keras = start_tensorflow(1)
    base = keras.applications.MobileNetV2((size, size, 3), alpha=1.0, include_top=False, weights=None)
    for layer in base.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    scenes = [Image.fromarray(make_scene(one)).resize((size, size)) for one in range(32)]
    for _ in range(ROUNDS):
        base(to_input(np.stack([np.asarray(one) for one in scenes])), training=True)
    path = folder / WEIGHTS_NAME.format(size=size)
    base.save_weights(path)
    return path


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    write_weights(Path(sys.argv[1]), int(sys.argv[2]))
