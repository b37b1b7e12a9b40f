"""Pictures of a snapshot as pixels, through the device's own preprocessing."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import decode_picture, fit_pixels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luigi_tasks.dataset import PictureSource
    from luigi_tasks.progress import Progress
    from luigi_tasks.records import Picture

# More than cores: a bucket makes them wait. boto3 keeps 10 connections open.
THREADS = min(10, (os.cpu_count() or 1) + 4)

# Called as pixels_of(pictures, height, width); returns (N, height, width, 3) uint8 RGB.
PixelLoader = Callable[[Sequence["Picture"], int, int], "NDArray[np.uint8]"]

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


def load_pixels(
    source: PictureSource, pictures: Sequence[Picture], height: int, width: int, progress: Progress
) -> NDArray[np.uint8]:
    """Decode and fit pictures in parallel.

    Returns: (N, height, width, 3) uint8 RGB, in the order of `pictures`.
    Raises: InputError if one vanished or changed since the snapshot.
    """
    pixels = np.empty((len(pictures), height, width, 3), np.uint8)

    def load(number: int) -> None:
        picture = pictures[number]
        data = source.read(picture.path)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            msg = f"{source.url}: {picture.path} changed since the snapshot was taken; run again"
            raise InputError(msg)
        pixels[number] = fit_pixels(decode_picture(data, source=picture.path), height, width)

    in_threads(load, range(len(pictures)), "decoding pictures", progress)
    return pixels


def in_threads(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], what: str, progress: Progress
) -> list[ResultT]:
    """Return `work(item)` of each item, in order; Pillow decodes without the interpreter's lock.

    Raises: what the first item that fails raises; items that were not begun are left alone.
    """
    results = []
    pool = concurrent.futures.ThreadPoolExecutor(THREADS)
    try:
        for done, result in enumerate(pool.map(work, items), start=1):
            results.append(result)
            progress(what, done, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results
