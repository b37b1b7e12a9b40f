"""Groups: pictures that must stand on one side of the split, and how they are found.

A group is what a person names as one, what one camera took within a few seconds, or what looks the same.
Known pictures keep their groups and sides. A new picture joins the group that it belongs to, and takes its
side; one that belongs to groups on both sides is left out. The rules: docs/decisions/0014-groups.md.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import itertools
from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.dataset.records import HOLDOUT, NAMED, SIMILAR, TAKEN, TRAIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from luigi_tasks.dataset.records import Picture, ReadPicture, Snapshot

# More pictures of one folder and camera with the same time to the millisecond are no burst: the clock stood
# still, or a program wrote the date.
SAME_TIME_AT_MOST = 50
# Scenes of more pictures than this are not joined by a picture that is like both: on plain backgrounds, a
# chain of such pictures would join everything.
SCENE_AT_MOST = 50
# From the strongest source to the weakest.
SOURCES = (NAMED, TAKEN, SIMILAR)
WORDS = {NAMED: "named", TAKEN: "by time", SIMILAR: "near-duplicates", "": "alone"}


@dataclasses.dataclass(frozen=True)
class Placed:
    """Groups of pictures, and the sides that are decided already.

    Attributes:
        groups: Id of each picture's group, by content hash.
        joined: How each picture that did not start its group came to it, by content hash.
        sides: Split of the groups that have known pictures.
        bridging: Pictures that belong to groups on both sides: content hash to words.
    """

    groups: dict[str, str]
    joined: dict[str, str]
    sides: dict[str, str]
    bridging: dict[str, str]


def place_pictures(
    pictures: Sequence[ReadPicture], name_of: Callable[[str], str], burst_s: float, *, keep_sides: bool = True
) -> Placed:
    """Put each picture into a group.

    Args:
        pictures: Different pictures; those that an earlier snapshot placed have `group` and `split`.
        name_of: Returns the name of a path's group.
        burst_s: Longest time between two frames of one burst; 0: times do not count.
        keep_sides: Whether known groups keep their sides; else all are decided anew.
    """
    forest = _Forest(pictures, keep_sides=keep_sides)
    forest.join_named(name_of)
    new = [row for row in forest.order if not pictures[row].split]
    links = _find_bursts(pictures, new, burst_s) if burst_s and new else {}
    similar = _find_similar(pictures, new)
    for row in new:
        forest.add(row, links.get(row, ()), similar.get(row, ()))
    return forest.placed()


class _Forest:
    """Groups that grow (union by a root); a root knows the side, the size and the id of its group."""

    def __init__(self, pictures: Sequence[ReadPicture], *, keep_sides: bool) -> None:
        self._pictures = pictures
        self._roots = list(range(len(pictures)))
        self._sizes = [1] * len(pictures)
        self._sides = [""] * len(pictures)
        self._ids: dict[int, str] = {}
        self._joined: dict[int, str] = {}
        self._bridging: dict[int, str] = {}
        self._waiting = {row for row, one in enumerate(pictures) if not one.split}
        self.order = sorted(range(len(pictures)), key=lambda row: pictures[row].sha256)
        first: dict[str, int] = {}
        for row, one in enumerate(pictures):
            if one.split:
                start = first.setdefault(one.group or one.sha256, row)
                if keep_sides:
                    self._sides[row] = one.split
                if one.joined:
                    self._joined[row] = one.joined
                if start == row:
                    self._ids[row] = one.group or one.sha256
                else:
                    self._roots[row] = start
                    self._sizes[start] += 1

    def find(self, row: int) -> int:
        """Return the root."""
        while self._roots[row] != row:
            self._roots[row] = self._roots[self._roots[row]]
            row = self._roots[row]
        return row

    def join_named(self, name_of: Callable[[str], str]) -> None:
        """Join what a person named as one; where it has known pictures on both sides, it is decided anew."""
        rows: dict[str, list[int]] = collections.defaultdict(list)
        for row in self.order:
            if name := name_of(self._pictures[row].path):
                rows[name].append(row)
        for name in sorted(rows):
            first, *others = rows[name]
            for row in rows[name]:
                self._joined[row] = NAMED
            for row in others:
                self._unite(first, row)
            root = self.find(first)
            self._ids[root] = hashlib.sha256(f"group\0{name}".encode()).hexdigest()

    def add(self, row: int, burst: Iterable[int], similar: Iterable[int]) -> None:
        """Place a new picture by its links to others; those that are not placed yet do not count."""
        self._waiting.discard(row)
        links = [(one, TAKEN) for one in burst] + [(one, SIMILAR) for one in similar]
        links = [(one, how) for one, how in links if one not in self._waiting and one not in self._bridging]
        own = self.find(row)
        sides = {side: one for one, _ in links for side in [self._sides[self.find(one)]] if side}
        if self._sides[own]:
            sides.setdefault(self._sides[own], row)
        if len(sides) > 1:
            self._bridging[row] = (
                f"belongs to {self._pictures[sides[TRAIN]].path} (training) and to "
                f"{self._pictures[sides[HOLDOUT]].path} (hold-out); its group cannot stand on both sides"
            )
            return
        for number, (one, how) in enumerate(links):
            mine, other = self.find(row), self.find(one)
            if mine == other:
                continue
            large = self._sizes[mine] + self._sizes[other] > SCENE_AT_MOST
            if how == SIMILAR and number and large and not self._sides[mine]:
                continue
            self._joined.setdefault(row, how)
            self._unite(other, row)

    def _unite(self, one: int, other: int) -> None:
        root, leaf = self.find(one), self.find(other)
        if root == leaf:
            return
        ids = [self._ids.pop(row) for row in (root, leaf) if row in self._ids]
        if ids:
            self._ids[root] = min(ids)
        both = {self._sides[root], self._sides[leaf]} - {""}
        self._sides[root] = both.pop() if len(both) == 1 else ""
        self._roots[leaf] = root
        self._sizes[root] += self._sizes[leaf]

    def placed(self) -> Placed:
        """Return what was found."""
        members: dict[int, list[int]] = collections.defaultdict(list)
        for row in range(len(self._pictures)):
            if row not in self._bridging:
                members[self.find(row)].append(row)
        hashes = [one.sha256 for one in self._pictures]
        groups: dict[str, str] = {}
        sides: dict[str, str] = {}
        for root, rows in members.items():
            group = self._ids.get(root) or _first_of([hashes[row] for row in rows])
            if self._sides[root]:
                sides[group] = self._sides[root]
            for row in rows:
                groups[hashes[row]] = group
        return Placed(
            groups,
            {hashes[row]: how for row, how in self._joined.items() if row not in self._bridging},
            sides,
            {hashes[row]: words for row, words in self._bridging.items()},
        )


def _first_of(hashes: Sequence[str]) -> str:
    """Return the hash that a found group is named by: lowest in digits that decide nothing else.

    So the group's side is that of one of its pictures, whichever came first; and where the store was cleared,
    most groups that have grown since are named as before.
    """
    return min(hashes, key=lambda one: one[32:])


def _find_bursts(pictures: Sequence[ReadPicture], new: Iterable[int], burst_s: float) -> dict[int, list[int]]:
    """Return the neighbours in time of new pictures: same folder, same camera, within `burst_s`."""
    wanted = {_camera_of(pictures[row]) for row in new if pictures[row].taken}
    rows: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    if wanted:
        for row, one in enumerate(pictures):
            if one.taken and (key := _camera_of(one)) in wanted:
                rows[key].append(row)
    links: dict[int, list[int]] = collections.defaultdict(list)
    for found in rows.values():
        same = collections.Counter(pictures[row].taken for row in found)
        real = [row for row in found if same[pictures[row].taken] <= SAME_TIME_AT_MOST]
        real.sort(key=lambda row: (pictures[row].taken, pictures[row].sha256))
        for before, after in itertools.pairwise(real):
            if pictures[after].taken - pictures[before].taken <= burst_s * 1000:
                links[before].append(after)
                links[after].append(before)
    return links


def _camera_of(picture: ReadPicture) -> tuple[str, str]:
    return picture.path.rpartition("/")[0], picture.camera


def _find_similar(pictures: Sequence[ReadPicture], new: Sequence[int]) -> dict[int, list[int]]:
    """Return the pictures that new ones are near-duplicates of."""
    rows = [row for row in new if pictures[row].fingerprint]
    if not rows:
        return {}
    from luigi_tasks.dataset.alike import find_alike  # noqa: PLC0415 - NumPy, only where pictures are new

    known = [
        row for row, one in enumerate(pictures) if one.split and one.fingerprint and one.joined != SIMILAR
    ]
    order = known + rows
    links: dict[int, list[int]] = collections.defaultdict(list)
    for one, other in find_alike([pictures[row].fingerprint for row in order], len(known)):
        links[order[one]].append(order[other])
    return links


def remember(read: Sequence[ReadPicture], snapshot: Snapshot) -> tuple[ReadPicture, ...]:
    """Return the pictures of a listing with the groups and sides that a snapshot gave them."""
    placed = {one.sha256: one for one in snapshot.pictures}
    found = []
    for one in read:
        now = placed.get(one.sha256)
        group = now.group if now is not None and now.group != one.sha256 else ""
        split, joined = (now.split, now.joined) if now is not None else ("", "")
        if (one.group, one.split, one.joined) != (group, split, joined):
            found.append(msgspec.structs.replace(one, group=group, split=split, joined=joined))
        else:
            found.append(one)
    return tuple(found)


def count_groups(pictures: Iterable[Picture]) -> dict[str, int]:
    """Return the number of groups by what joined them; "": pictures that are alone."""
    sources = find_sources(pictures)
    return dict(collections.Counter(sources.values()))


def describe_groups(snapshot: Snapshot) -> list[str]:
    """Return what is to be told of a snapshot's groups: their number, thin classes, and who changed sides."""
    counts = count_groups(snapshot.pictures)
    together = ", ".join(f"{counts[source]} {WORDS[source]}" for source in SOURCES if source in counts)
    told = [f"{sum(counts.values())} groups ({together})"] * bool(together)
    if snapshot.thin_classes:
        named = ", ".join(repr(one) for one in snapshot.thin_classes)
        told.append(f"too few groups, so nothing judges them: {named}")
    if snapshot.to_train:
        told.append(f"{snapshot.to_train} pictures were hold-out before and are learned from now")
    if snapshot.to_holdout:
        told.append(f"{snapshot.to_holdout} pictures were learned from before and are hold-out now")
    return told


def find_sources(pictures: Iterable[Picture]) -> dict[str, str]:
    """Return what joined each group, by its id: the strongest of `SOURCES`; "": a picture alone."""
    found: dict[str, set[str]] = collections.defaultdict(set)
    for one in pictures:
        found[one.group or one.sha256].add(one.joined)
    return {
        group: next((source for source in SOURCES if source in joined), "") for group, joined in found.items()
    }


def find_contradictions(snapshot: Snapshot) -> list[tuple[Picture, ...]]:
    """Return near-duplicates with different labels: of each such scene, all its pictures."""
    scenes: dict[str, list[Picture]] = collections.defaultdict(list)
    for one in snapshot.pictures:
        scenes[one.group or one.sha256].append(one)
    return [
        tuple(scene)
        for _, scene in sorted(scenes.items())
        if len({one.label for one in scene}) > 1 and any(one.joined == SIMILAR for one in scene)
    ]


def find_thin_classes(pictures: Iterable[Picture]) -> tuple[str, ...]:
    """Return the classes without a hold-out picture: one single group, or groups that other classes need."""
    splits: dict[str, set[str]] = collections.defaultdict(set)
    for one in pictures:
        splits[one.label].add(one.split)
    return tuple(sorted(label for label, found in splits.items() if HOLDOUT not in found))
