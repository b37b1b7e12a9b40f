"""Pixels of a dataset's pictures, through the device's own preprocessing."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
import numpy as np
from PIL import Image

from edge_client.contract.errors import InputError
from luigi_tasks.dataset import fingerprints
from luigi_tasks.dataset.capture import find_capture
from luigi_tasks.dataset.file_names import has_picture_suffix
from luigi_tasks.dataset.formats import decode_file, is_picture
from luigi_tasks.dataset.found import DamagedFileError
from luigi_tasks.dataset.left_out import FOREIGN, UNDECODABLE, UNREADABLE
from luigi_tasks.dataset.records import FINGERPRINT_KIND, ReadPicture

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixel_cache import PixelCache
    from luigi_tasks.dataset.records import Entry, Picture
    from luigi_tasks.dataset.sources import PictureSource
    from luigi_tasks.progress import Progress

# Called as pixels_of(pictures, height, width); returns (N, height, width, 3) uint8 RGB.
PixelLoader = Callable[[Sequence["Picture"], int, int], "NDArray[np.uint8]"]


ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


class PixelRows(Protocol):
    """(N, H, W, 3) uint8 RGB by slices: an array, or pictures that are loaded when they are asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]: ...


@dataclasses.dataclass(frozen=True)
class LazyPixels:
    """Pictures that are loaded when they are asked for: the hold-out of 100,000 pictures takes 1.5 GB.

    Attributes:
        pictures: The rows.
        pixels_of: Loads them.
        height: Rows of a picture.
        width: Columns of a picture.
    """

    pictures: Sequence[Picture]
    pixels_of: PixelLoader
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice, /) -> NDArray[np.uint8]:
        return self.pixels_of(self.pictures[rows], self.height, self.width)


def load_pixels(
    source: PictureSource,
    pictures: Sequence[Picture] | Sequence[ReadPicture],
    height: int,
    width: int,
    progress: Progress,
    cache: PixelCache | None = None,
) -> NDArray[np.uint8]:
    """Decode and fit pictures in parallel; those in the cache are not read again.

    Returns: (N, height, width, 3) uint8 RGB, in the order of `pictures`.
    Raises: InputError if a picture that is not in the cache vanished or changed since the snapshot.
    """
    pixels = np.empty((len(pictures), height, width, 3), np.uint8)
    names = [picture.sha256 for picture in pictures]
    missing = list(range(len(pictures))) if cache is None else cache.fill(names, pixels)

    def load(number: int) -> None:
        picture = pictures[number]
        data = source.read(picture.path)
        if hashlib.sha256(data).hexdigest() != picture.sha256:
            msg = f"{source.url}: {picture.path} changed since the snapshot was taken; run again"
            raise InputError(msg)
        pixels[number] = decode_file(data, height, width, picture.path)

    in_threads(load, missing, "decoding pictures", progress, threads=source.threads)
    if cache is not None and missing:
        cache.keep([names[number] for number in missing], pixels[missing])
    return pixels


def read_pictures(
    source: PictureSource,
    entries: Sequence[Entry],
    shard: str,
    height: int,
    width: int,
    progress: Progress,
    cache: PixelCache,
) -> tuple[ReadPicture, ...]:
    """Read new pictures: hash and decode each, and keep its pixels in the cache.

    Raises: InputError if a picture vanished since it was listed; TransportError.
    """
    pixels = np.empty((len(entries), height, width, 3), np.uint8)
    small = np.zeros((len(entries), fingerprints.SIDE, fingerprints.SIDE, 3), np.uint8)
    comparable = np.zeros(len(entries), bool)

    def read(number: int) -> ReadPicture:
        entry = entries[number]
        try:
            data = source.read(entry.path)
        except DamagedFileError as e:
            return _faulty(entry, shard, str(e), UNREADABLE)
        try:
            pixels[number] = decode_file(data, height, width, entry.path)
        except InputError as e:
            if has_picture_suffix(entry.path) or is_picture(data):
                return _faulty(entry, shard, str(e), UNDECODABLE)
            return _faulty(entry, shard, "no picture, by its content", FOREIGN)
        comparable[number] = fingerprints.is_large_enough(data)
        small[number] = fingerprints.shrink(pixels[number])
        taken, camera = find_capture(data, entry.path)
        sha256 = hashlib.sha256(data).hexdigest()
        return ReadPicture(
            entry.path, entry.size, entry.version, sha256, "", shard, taken=taken, camera=camera
        )

    found = in_threads(read, range(len(entries)), "reading pictures", progress, threads=source.threads)
    prints = fingerprints.encode(small)
    found = [
        one if one.fault else msgspec.structs.replace(one, fingerprint=text if compared else FINGERPRINT_KIND)
        for one, text, compared in zip(found, prints, comparable.tolist(), strict=True)
    ]
    whole = [number for number, one in enumerate(found) if not one.fault]
    kept = pixels if len(whole) == len(found) else pixels[whole]
    cache.keep([found[number].sha256 for number in whole], kept)
    return tuple(found)


def _faulty(entry: Entry, shard: str, fault: str, reason: str) -> ReadPicture:
    return ReadPicture(entry.path, entry.size, entry.version, "", fault, shard, reason)


def in_threads(
    work: Callable[[ItemT], ResultT], items: Sequence[ItemT], what: str, progress: Progress, *, threads: int
) -> list[ResultT]:
    """Return `work(item)` of each item, in order; Pillow decodes without the interpreter's lock.

    Raises: The first item's error; items that were not started are skipped.
    """
    results = []
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    try:
        for done, result in enumerate(pool.map(work, items), start=1):
            results.append(result)
            progress(what, done, len(items))
    finally:
        pool.shutdown(cancel_futures=True)
    return results


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (H, W, 3) RGB pixels as a PNG, lossless."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
