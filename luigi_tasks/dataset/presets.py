"""Datasets by name: scikit-learn's digits and TensorFlow's flowers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.dataset.archive import Archive
from luigi_tasks.storage.cache import staged_folder

if TYPE_CHECKING:
    from pathlib import Path

PRESETS = ("digits", "flowers")


DIGITS_FOLDER = "digits-2"  # raised when the written pictures would change


# Drawings of 8x8 pixels: no larger than they need be, so that they are not compared as photographs are, see
# `fingerprints.is_large_enough`.
DIGIT_SIZE = 24


# TensorFlow's flower photographs: 3,670 pictures of 5 classes, 229 MB, CC BY. Digest: checksums.tsv
# of tf_flowers in TensorFlow Datasets. One photograph is in two classes: a snapshot leaves both copies out.
FLOWERS = Archive(
    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
    "4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
)


def write_digits(cache_dir: Path) -> Path:
    """Write the 1,797 digits of scikit-learn as PNG files, one folder a class; return the folder."""
    folder = cache_dir / DIGITS_FOLDER
    if folder.is_dir():
        return folder
    import numpy as np  # noqa: PLC0415 - heavy, and only here
    from PIL import Image  # noqa: PLC0415
    from sklearn.datasets import load_digits  # noqa: PLC0415

    digits = load_digits()
    with staged_folder(folder) as staging:
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            path = staging / "content" / str(label) / f"{number:04}.png"
            path.parent.mkdir(exist_ok=True)
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
            image.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC).save(path)
    return folder
