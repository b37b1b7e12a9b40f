"""The split: which pictures are learned from, which judge, and which decide when learning stops.

Whole groups stand on one side. A group's position is that of its id, a hash; a picture alone is a group whose
id is its own content hash. The hold-out takes the lowest positions, so a picture never moves between training
and hold-out from one retraining to the next, whatever its path and whatever other pictures arrive.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import math
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.records import HOLDOUT, TRAIN, Picture

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from collections.abc import Set as AbstractSet

    from luigi_tasks.dataset.records import ReadPicture

VALIDATION_SHARE = 0.1


def choose_splits(
    found: Mapping[str, str],
    holdout_percent: float,
    given: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    kept: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Map each content hash to its split.

    A group keeps the side that it has; a new one stands by `is_learned_from`. Where that leaves a class
    without any group in one split (15 pictures at 20 %: one class in 28), the group whose id is nearest to
    that split goes there, a new one if there is any. A class that is one single group is learned from.

    Args:
        found: Label by content hash.
        holdout_percent: Share of the hold-out.
        given: Split by content hash where folders give one; of a class that has them on one side only, it
            does not count.
        groups: Id of the group by content hash; None: each picture is alone.
        kept: Sides of groups that were decided before.
    """
    group_of = groups if groups is not None else dict.fromkeys(found)
    kept, owner = kept or {}, {digest: group_of[digest] or digest for digest in found}
    sides = {group: kept.get(group) or _side(group, holdout_percent) for group in set(owner.values())}
    fixed = _apply_given(found, given or {}, owner, sides)
    _Balance(found, owner, sides, kept).even_out(fixed, holdout_percent)
    return {digest: sides[group] for digest, group in owner.items()}


def _side(group: str, holdout_percent: float) -> str:
    return TRAIN if is_learned_from(group, holdout_percent) else HOLDOUT


def _apply_given(
    found: Mapping[str, str], given: Mapping[str, str], owner: Mapping[str, str], sides: dict[str, str]
) -> set[str]:
    """Put groups where folders say, those of both sides in the hold-out; return the classes that have both.

    Where that would make the hold-out half larger than the folders say, as with frames of videos that were
    divided one by one, the groups of both sides stay where they would stand without folders.
    """
    both: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    wanted: dict[str, set[str]] = collections.defaultdict(set)
    for digest, side in given.items():
        if digest in found:
            both[found[digest]][side] += 1
    fixed = {label for label, some in both.items() if len(some) > 1}
    for digest, side in given.items():
        if found.get(digest) in fixed:
            wanted[owner[digest]].add(side)
    held = collections.Counter(found[one] for one in given if one in found and HOLDOUT in wanted[owner[one]])
    torn = {label for label in fixed if held[label] > 1.5 * both[label][HOLDOUT]}
    kept = {
        owner[digest] for digest, label in found.items() if label in torn and len(wanted[owner[digest]]) > 1
    }
    sides |= {
        group: HOLDOUT if HOLDOUT in some else TRAIN for group, some in wanted.items() if group not in kept
    }
    return fixed - {found[digest] for digest in found if owner[digest] in kept}


class _Balance:
    """Moves of whole groups, so that each class has both sides; none takes another class its last group."""

    def __init__(
        self,
        found: Mapping[str, str],
        owner: Mapping[str, str],
        sides: dict[str, str],
        kept: Mapping[str, str],
    ) -> None:
        self._sides, self._kept = sides, kept
        self._classes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
        for digest, label in found.items():
            self._classes[label][owner[digest]] += 1
        self._pinned: set[str] = set()

    def even_out(self, fixed: AbstractSet[str], holdout_percent: float) -> None:
        """Balance all classes but those whose split is given."""
        for label, sizes in self._classes.items():
            if len(sizes) == 1 and label not in fixed:
                self._pinned |= sizes.keys()
                self._sides.update(dict.fromkeys(sizes, TRAIN))
        labels = [one for one in sorted(self._classes) if len(self._classes[one]) > 1 and one not in fixed]
        self._fill(labels)
        for label in labels:
            if self._classes[label].total() > len(self._classes[label]):
                self._approach(self._classes[label], holdout_percent)
        self._fill(labels)

    def _fill(self, labels: Sequence[str]) -> None:
        """Move the nearest group to the side that a class lacks, a new group if there is any."""
        while any(self._fill_class(self._classes[label]) for label in labels):
            pass

    def _fill_class(self, sizes: Mapping[str, int]) -> bool:
        own = {self._sides[group] for group in sizes}
        if len(own) > 1:
            return False
        to_train = HOLDOUT in own
        order = sorted(sizes, reverse=to_train)
        for group in sorted(order, key=lambda one: one in self._kept):
            if self._may_move(group):
                self._sides[group] = TRAIN if to_train else HOLDOUT
                return True
        return False

    def _may_move(self, group: str) -> bool:
        """Whether each class of a group that has both sides would still have them."""
        side = self._sides[group]
        if group in self._pinned:
            return False
        counts = [
            (sum(self._sides[one] == side for one in sizes), len(sizes))
            for sizes in self._classes.values()
            if group in sizes
        ]
        return all(same > 1 or total == 1 for same, total in counts)

    def _approach(self, sizes: Mapping[str, int], holdout_percent: float) -> None:
        """Move new groups while the hold-out has less than half of its share, or half more, and it helps."""
        wanted = sum(sizes.values()) * holdout_percent / 100
        fresh = sorted(group for group in sizes if group not in self._kept)
        held = sum(size for group, size in sizes.items() if self._sides[group] == HOLDOUT)
        for group in [*fresh, *reversed(fresh)]:
            side, sign = self._sides[group], 1 if self._sides[group] == TRAIN else -1
            is_off = held < wanted / 2 if side == TRAIN else held > wanted * 1.5
            after = held + sign * sizes[group]
            if not is_off or abs(after - wanted) >= abs(held - wanted):
                continue
            if self._may_move(group):
                self._sides[group], held = HOLDOUT if side == TRAIN else TRAIN, after
            elif side == HOLDOUT:
                held += self._exchange(group, [one for one in fresh if sizes[one] < sizes[group]], sizes)

    def _exchange(self, group: str, others: Iterable[str], sizes: Mapping[str, int]) -> int:
        """Let a smaller group judge in place of the only one; return by how much the hold-out grows."""
        for other in others:
            if self._sides[other] == TRAIN and not self._pinned & {group, other}:
                self._sides[group], self._sides[other] = TRAIN, HOLDOUT
                if self._have_both_sides({group, other}):
                    return sizes[other] - sizes[group]
                self._sides[group], self._sides[other] = HOLDOUT, TRAIN
        return 0

    def _have_both_sides(self, groups: AbstractSet[str]) -> bool:
        """Whether each class of these groups that has several groups has both sides."""
        return all(
            len({self._sides[one] for one in sizes}) > 1
            for sizes in self._classes.values()
            if len(sizes) > 1 and not groups.isdisjoint(sizes)
        )


def count_moved(
    pictures: Iterable[Picture],
    known: Mapping[str, ReadPicture],
    before: Iterable[ReadPicture],
    holdout_percent: float,
) -> tuple[int, int]:
    """Return how many pictures went from the hold-out to training, and the other way, since they were placed.

    Args:
        pictures: The pictures of the snapshot.
        known: What was known of each, by content hash.
        before: The pictures of the last inventory; one of a version without groups stood by its own hash.
        holdout_percent: Share of the hold-out.
    """
    old = {
        one.sha256: _side(one.sha256, holdout_percent) for one in before if one.sha256 and not one.fingerprint
    }
    moved = collections.Counter(
        one.split
        for one in pictures
        if (side := known[one.sha256].split or old.get(one.sha256)) and side != one.split
    )
    return moved[TRAIN], moved[HOLDOUT]


def is_learned_from(group: str, holdout_percent: float) -> bool:
    """Whether a group belongs to training, by its id alone; the hold-out takes the lowest ids.

    `choose_splits` corrects this for classes that would be missing in one split.
    """
    return group[:8] >= _limit(holdout_percent)


def is_validation(picture: Picture) -> bool:
    """Whether a training picture is held out for early stopping: all pictures of its group are, or none.

    By bits of the group's id that the split does not use.
    """
    return _position(picture.group_id[8:16]) < VALIDATION_SHARE


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


@functools.cache
def _limit(holdout_percent: float) -> str:
    """Return the first eight hex digits of the lowest id that is learned from."""
    return f"{math.ceil(holdout_percent / 100 * 2**32):08x}"


def _position(digits: str) -> float:
    """Return the position of eight hex digits in [0, 1)."""
    return int(digits, 16) / 2**32
