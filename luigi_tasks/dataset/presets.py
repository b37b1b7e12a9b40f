"""Datasets by name: scikit-learn's digits and TensorFlow's flowers.

A preset's address is `preset:digits`: a folder may have any name, also that of a preset.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from luigi_tasks.dataset.archive import Archive
from luigi_tasks.storage.cache import staged_folder

if TYPE_CHECKING:
    from pathlib import Path

PRESETS = ("digits", "flowers")
PRESET_SCHEME = "preset"


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


def is_preset(url: str) -> bool:
    """Whether an address has the scheme preset:, of a known preset or not."""
    return url.startswith(f"{PRESET_SCHEME}:")


def preset_of(url: str) -> str:
    """Return the name of the preset that preset:name names.

    Raises: SettingsError that lists the presets.
    """
    name = url.removeprefix(f"{PRESET_SCHEME}:")
    if name not in PRESETS:
        alike = difflib.get_close_matches(name, PRESETS, 1)
        known = " and ".join(f"{PRESET_SCHEME}:{one}" for one in PRESETS)
        hint = f"; did you mean {PRESET_SCHEME}:{alike[0]}?" if alike else ""
        msg = f"[dataset] url {url!r}: no such preset; there are {known}{hint}"
        raise SettingsError(msg)
    return name


def name_of_pictures(url: str) -> str:
    """Return the name of a dataset in the keys of its results.

    That of a preset was its address before a preset had a scheme: results in stores stay valid. A folder that
    is called so has another.
    """
    if is_preset(url):
        return preset_of(url)
    return f"./{url}" if url in PRESETS else url


def preset_hint(folder: str) -> str:
    """Return a hint for the message of a missing folder that is called as a preset is."""
    return f". The preset is {PRESET_SCHEME}:{folder}" if folder in PRESETS else ""


def write_digits(cache_dir: Path) -> Path:
    """Write the 1,797 digits of scikit-learn as PNG files, one folder a class; return the folder.

    Raises: SettingsError where scikit-learn is not installed.
    """
    folder = cache_dir / DIGITS_FOLDER
    if folder.is_dir():
        return folder
    import numpy as np  # noqa: PLC0415 - heavy, and only here
    from PIL import Image  # noqa: PLC0415

    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415
    except ModuleNotFoundError as e:
        msg = f"{PRESET_SCHEME}:digits: scikit-learn has them and is not installed: pip install scikit-learn"
        raise SettingsError(msg) from e
    digits = load_digits()
    with staged_folder(folder) as staging:
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
            path = staging / "content" / str(label) / f"{number:04}.png"
            path.parent.mkdir(exist_ok=True)
            image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
            image.resize((DIGIT_SIZE, DIGIT_SIZE), Image.Resampling.BICUBIC).save(path)
    return folder
