"""Features of a shard of pictures: computed once, kept in the store, found again by content hash.

Rows are named `<variant>_<copy>`, where copy 0 is the picture itself and the others are augmented. A row is
determined by picture hash, backbone, preprocessing and copy. Only training pictures have augmented copies.
"""

from __future__ import annotations

import dataclasses
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.backbone.extractor import open_extractor
from luigi_tasks.settings.values import FLOAT, FLOAT_SHARE
from luigi_tasks.storage.arrays import unpack_arrays
from luigi_tasks.training.augmentation import augment

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import Portions


@dataclasses.dataclass(frozen=True)
class FeatureRows:
    """Features of some pictures.

    Attributes:
        pictures: Content hashes of each name's rows, in their order.
        rows: (pictures, F) by name; int8 as the variant gives them, or float16.
        computed: How many of the rows were computed and not known before.
    """

    pictures: Mapping[str, tuple[str, ...]]
    rows: Mapping[str, NDArray[Any]]
    computed: int = 0

    def find(self, name: str) -> dict[str, NDArray[Any]]:
        """Map content hash to row."""
        return dict(zip(self.pictures.get(name, ()), self.rows.get(name, ()), strict=True))

    def pack(self) -> bytes:
        """Return the rows as one npz, the same bytes for the same rows."""
        file = io.BytesIO()
        arrays: dict[str, Any] = {name: self.rows[name] for name in sorted(self.rows)}
        np.savez(file, **arrays)
        return file.getvalue()


def unpack_rows(packed: bytes, pictures: Mapping[str, tuple[str, ...]]) -> FeatureRows:
    """Return what `FeatureRows.pack` wrote."""
    return FeatureRows(pictures, unpack_arrays(packed))


def compute_rows(
    variants: Mapping[str, bytes],
    wanted: Mapping[str, tuple[str, ...]],
    pictures: Sequence[str],
    pixels: NDArray[np.uint8],
    known: Mapping[str, Mapping[str, NDArray[Any]]],
    progress: Progress,
    *,
    flip: bool,
) -> FeatureRows:
    """Compute the features that are not known yet.

    Args:
        variants: Each variant's TFLite file.
        wanted: Content hashes by name.
        pictures: Content hashes of `pixels`.
        pixels: (N, H, W, 3) RGB.
        known: Rows of an earlier shard, by name and hash.
        progress: Gets pictures done.
        flip: Whether mirror images keep their class.
    """
    rows: dict[str, NDArray[Any]] = {}
    computed = 0
    copies = _Copies(pictures, pixels, flip=flip)
    for name, own in wanted.items():
        variant, _, copy = name.rpartition("_")
        extractor = open_extractor(variants[variant])
        kept = known.get(name, {})
        missing = tuple(one for one in own if one not in kept)
        fresh = extractor(copies.make(missing, int(copy)), progress, f"{variant} features, copy {copy}")
        if not extractor.quantized:
            fresh = fresh.astype(np.float16)
        computed += len(missing)
        if len(missing) < len(own):
            found = dict(zip(missing, fresh, strict=True))
            fresh = np.stack([found[one] if one in found else kept[one] for one in own])
        rows[name] = fresh
    return FeatureRows(dict(wanted), rows, computed)


class _Copies:
    """Augmented copies of a shard's pictures; the last ones stay, since two variants may need the same."""

    def __init__(self, pictures: Sequence[str], pixels: NDArray[np.uint8], *, flip: bool) -> None:
        self._pictures, self._pixels, self._flip = tuple(pictures), pixels, flip
        self._places = {one: place for place, one in enumerate(pictures)}
        self._last: tuple[tuple[str, ...], int] | None = None
        self._made = pixels

    def make(self, pictures: tuple[str, ...], copy: int) -> NDArray[np.uint8]:
        """Return one copy of each of these pictures."""
        if self._last != (pictures, copy):
            chosen = np.array([self._places[one] for one in pictures], int)
            own = self._pixels if pictures == self._pictures else self._pixels[chosen]  # spares a copy
            self._made = augment(own, pictures, copy, flip=self._flip)
            self._last = (pictures, copy)
        return self._made


def choose_rows(
    pictures: Sequence[str], scheme: str, portions: Portions, holdout: AbstractSet[str]
) -> dict[str, tuple[str, ...]]:
    """Choose the features that training and the gate need: content hashes by name.

    In the candidate's scheme: all pictures, and the augmented copies of the training pictures. In float: the
    hold-out, to measure the candidate's loss, and a share of the training pictures.

    Args:
        pictures: Content hashes.
        scheme: The candidate's quantization scheme.
        portions: Number of augmented copies, and share of float features.
        holdout: Which of them are hold-out.
    """
    learned = tuple(one for one in pictures if one not in holdout)
    wanted = {f"{scheme}_0": tuple(pictures)}
    for copy in range(1, math.ceil(portions.copies) + 1):
        # The last copy may be of a share of the pictures only.
        share = portions.copies - (copy - 1)
        wanted[f"{scheme}_{copy}"] = tuple(one for one in learned if _in_share(one, 24, share))
    floats = [one for one in pictures if one in holdout or in_float_share(one, portions.float_share)]
    return wanted | {f"{FLOAT}_0": tuple(floats)}


def in_float_share(sha256: str, share: float = FLOAT_SHARE) -> bool:
    """Whether a picture is in the share whose float features are computed."""
    return _in_share(sha256, 16, share)


def _in_share(sha256: str, digit: int, share: float) -> bool:
    """Whether a picture belongs to a random share, by hex digits of its hash that the split does not use."""
    return int(sha256[digit : digit + 8], 16) / 2**32 < share


def gather_rows(shards: Sequence[FeatureRows], name: str, pictures: Sequence[Picture]) -> NDArray[Any]:
    """Return (N, F) rows of these pictures, in their order, whichever shard has them.

    Where the copies of a training picture are not there, its own features stand in.
    """
    found: dict[str, NDArray[Any]] = {}
    for shard in shards:
        found |= shard.find(f"{name.rpartition('_')[0]}_0") | shard.find(name)
    return np.stack([found[one.sha256] for one in pictures])


def collect_known(
    features: Iterable[FeatureRows], wanted: AbstractSet[str]
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the rows of wanted pictures, by name and content hash.

    Args:
        features: Features of shards that had the pictures before they were moved, touched or merged.
        wanted: Content hashes.
    """
    known: dict[str, dict[str, NDArray[Any]]] = {}
    for rows in features:
        for name in rows.rows:
            found = rows.find(name)
            known.setdefault(name, {}).update({one: found[one] for one in wanted & found.keys()})
    return known
