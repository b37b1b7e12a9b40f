"""Pictures of a snapshot as pixels, through the device's own preprocessing."""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
from typing import TYPE_CHECKING

import numpy as np

from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import decode_picture, fit_pixels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.dataset import PictureSource
    from luigi_tasks.progress import Progress
    from luigi_tasks.snapshot import Picture


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

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, _ in enumerate(pool.map(load, range(len(pictures))), start=1):
            progress("decoding pictures", done, len(pictures))
    return pixels
