"""Picture folders for proof.py: folds, bursts, labels at random, flipped labels. Pictures are hard links."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageEnhance

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FRAMES = 5
QUALITY = (70, 93)


def copy_pictures(source: Path, target: Path) -> list[Path]:
    """Copy pictures, one folder a class, to where they can be linked from; return them in order of hash.

    They are named by their hashes: with another label, too, a picture keeps a name of its own.
    """
    copies = []
    for path in sorted(source.glob("*/*")):
        if path.is_file():
            name = hashlib.sha256(path.read_bytes()).hexdigest()[:16] + path.suffix.lower()
            copy = target / path.parent.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copies.append(copy)
    return sorted(set(copies), key=lambda one: one.name)


def divide(paths: Sequence[Path], parts: int) -> list[list[Path]]:
    """Divide pictures into parts with the same share of each class, by their order within it."""
    found: list[list[Path]] = [[] for _ in range(parts)]
    for label in sorted({one.parent.name for one in paths}):
        for number, path in enumerate(one for one in paths if one.parent.name == label):
            found[number % parts].append(path)
    return found


def link_pictures(labels: Mapping[Path, str], folder: Path) -> Path:
    """Make a data set of pictures: one folder a class."""
    for path, label in labels.items():
        link = folder / label / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        os.link(path, link)
    return folder


def own_labels(paths: Sequence[Path]) -> dict[Path, str]:
    """Map each picture to the class that its folder says."""
    return {one: one.parent.name for one in paths}


def label_at_random(paths: Sequence[Path], shares: Sequence[float], seed: int) -> dict[Path, str]:
    """Give classes of these shares to pictures, whatever they show."""
    ends = np.round(np.cumsum(shares) * len(paths)).astype(int)
    numbers = np.searchsorted(ends, np.arange(len(paths)), side="right")
    np.random.default_rng(seed).shuffle(numbers)
    return {path: f"class-{number}" for path, number in zip(paths, numbers.tolist(), strict=True)}


def flip_labels(paths: Sequence[Path], share: float, seed: int) -> tuple[dict[Path, str], set[Path]]:
    """Give a share of the pictures another class; return all labels, and the pictures with a wrong one."""
    rng = np.random.default_rng(seed)
    labels = own_labels(paths)
    classes = sorted(set(labels.values()))
    chosen = [paths[one] for one in rng.choice(len(paths), round(share * len(paths)), replace=False)]
    for path in chosen:
        labels[path] = str(rng.choice([one for one in classes if one != labels[path]]))
    return labels, set(chosen)


def write_bursts(paths: Sequence[Path], folder: Path, seed: int) -> Path:
    """Write near-duplicates of each picture: what a camera takes within a second.

    Names say nothing, and there is no EXIF: that the frames belong together is to be seen in them alone.
    """
    rng = np.random.default_rng(seed)
    numbers = iter(rng.permutation(len(paths) * FRAMES).tolist())
    for path in paths:
        (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
        with Image.open(path) as image:
            picture = image.convert("RGB")
        for _ in range(FRAMES):
            (folder / path.parent.name / f"picture-{next(numbers):05}.jpg").write_bytes(_frame(picture, rng))
    return folder


def _frame(picture: Image.Image, rng: np.random.Generator) -> bytes:
    """Return the picture as JPEG, a little moved, zoomed, re-lit and noisy."""
    width, height = picture.size
    zoom = rng.uniform(0.92, 0.99)
    left, top = rng.uniform(0, 1 - zoom, 2) * (width, height)
    moved = picture.crop((int(left), int(top), int(left + zoom * width), int(top + zoom * height)))
    lit = np.asarray(ImageEnhance.Brightness(moved).enhance(rng.uniform(0.92, 1.08)), np.float32)
    noisy = np.clip(lit + rng.normal(0, rng.uniform(0.5, 3), lit.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(noisy).save(file, "JPEG", quality=int(rng.integers(*QUALITY)))
    return file.getvalue()
