"""The split: which pictures are learned from, which judge, and which decide when learning stops.

Whole groups stand on one side. A group's position is that of its id, a hash; a picture alone is a group whose
id is its own content hash. The hold-out takes the lowest positions, so a picture never moves between training
and hold-out from one retraining to the next, whatever its path and whatever other pictures arrive.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.records import HOLDOUT, TRAIN, Picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luigi_tasks.dataset.records import ReadPicture

VALIDATION_SHARE = 0.1


def choose_splits(
    found: Mapping[str, str], holdout_percent: float, given: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Map each content hash to its split.

    By `is_learned_from`. Where that leaves a class without any picture in one split (15 pictures at 20 %: one
    class in 28), the picture whose hash is nearest to that split goes there; it alone may move back once more
    pictures of its class arrive.

    Args:
        found: Label by content hash.
        holdout_percent: Share of the hold-out.
        given: Split by content hash where folders give one; of a class that has them on one side only, it
            does not count.
    """
    by_class: dict[str, list[str]] = collections.defaultdict(list)
    for digest, label in found.items():
        by_class[label].append(digest)
    splits = {digest: TRAIN if is_learned_from(digest, holdout_percent) else HOLDOUT for digest in found}
    for digests in by_class.values():
        sides = {digest: given[digest] for digest in digests if given and digest in given}
        if len(set(sides.values())) > 1:
            splits |= sides
            continue
        digests.sort()
        if splits[digests[0]] == TRAIN:
            splits[digests[0]] = HOLDOUT
        if splits[digests[-1]] == HOLDOUT:
            splits[digests[-1]] = TRAIN
    return splits


def is_learned_from(group: str, holdout_percent: float) -> bool:
    """Whether a group belongs to training, by its id alone; the hold-out takes the lowest ids.

    `choose_splits` corrects this for classes that would be missing in one split.
    """
    return _position(group[:8]) >= holdout_percent / 100


def is_validation(picture: Picture) -> bool:
    """Whether a training picture is held out for early stopping: all pictures of its group are, or none.

    By bits of the group's id that the split does not use.
    """
    return _position((picture.group or picture.sha256)[8:16]) < VALIDATION_SHARE


def find_moved(
    read: Iterable[ReadPicture], splits: Mapping[str, str], holdout_percent: float
) -> dict[str, tuple[str, ...]]:
    """Return the hashes, by shard, of the pictures that do not stand where their own hash would put them.

    They are few where pictures stand alone, and with them a shard's split is known without the snapshot.
    """
    moved: dict[str, set[str]] = collections.defaultdict(set)
    for one in read:
        split = splits.get(one.sha256)
        if split is not None and (split == TRAIN) != is_learned_from(one.sha256, holdout_percent):
            moved[one.shard].add(one.sha256)
    return {shard: tuple(sorted(moved[shard])) for shard in sorted(moved)}


@dataclasses.dataclass(frozen=True)
class ShardSplit:
    """What decides which features of a shard's pictures are needed.

    Attributes:
        holdout: Content hashes of the hold-out pictures among them.
        train_pictures: Training pictures of the whole snapshot.
    """

    holdout: frozenset[str]
    train_pictures: int

    @classmethod
    def of(cls, pictures: Sequence[Picture] | Sequence[ReadPicture]) -> ShardSplit:
        """Return the split of a whole snapshot's pictures.

        Raises: InputError if they are a shard's: those do not know their split.
        """
        whole = [one for one in pictures if isinstance(one, Picture)]
        if len(whole) < len(pictures):
            raise InputError("split: give that of the shard; its pictures do not know theirs")
        holdout = frozenset(one.sha256 for one in whole if one.split == HOLDOUT)
        return cls(holdout, len(whole) - len(holdout))

    @classmethod
    def find(
        cls, hashes: Iterable[str], moved: Iterable[str], train_pictures: int, holdout_percent: float
    ) -> ShardSplit:
        """Return the split of a shard.

        Args:
            hashes: Content hashes of the shard's pictures.
            moved: Those of them that do not stand where their own hash puts them.
            train_pictures: Training pictures of the whole snapshot.
            holdout_percent: Share of the hold-out.
        """
        away = frozenset(moved)
        held = (one for one in hashes if is_learned_from(one, holdout_percent) == (one in away))
        return cls(frozenset(held), train_pictures)


def _position(digits: str) -> float:
    """Return the position of eight hex digits in [0, 1)."""
    return int(digits, 16) / 2**32
