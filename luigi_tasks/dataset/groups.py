"""Groups: pictures that must stand on one side of the split, and how they are found.

A group is what a person names as one, what one camera took within a few seconds, or what looks the same.
Known pictures keep their groups and sides. A new picture joins the group that it belongs to, and takes its
side; one that belongs to groups on both sides is left out. The rules: docs/decisions/0015-groups.md.
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

# More pictures of one camera, in whatever folders, with the same time to the millisecond are no burst: the
# clock stood still, or a program wrote the date.
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
    pictures: Sequence[ReadPicture],
    name_of: Callable[[str], str] | None,
    burst_s: float,
    *,
    near_duplicates: bool = True,
    keep_sides: bool = True,
) -> Placed:
    """Put each picture into a group.

    Args:
        pictures: Different pictures; those that an earlier snapshot placed have `group` and `split`.
        name_of: Returns the name of a path's group; None: no group is named.
        burst_s: Longest time between two frames of one burst; 0: times do not count.
        near_duplicates: Whether pictures that look alike are one group. If not, known ones that did join one
            stand alone, on the side where they were.
        keep_sides: Whether known groups keep their sides; else all are decided anew.
    """
    if not near_duplicates:
        pictures = [_alone(one) if one.joined == SIMILAR else one for one in pictures]
    forest = _Forest(pictures, keep_sides=keep_sides)
    if name_of is not None:
        forest.join_named(name_of)
    new = sorted(
        (row for row, one in enumerate(pictures) if not one.split), key=lambda row: pictures[row].sha256
    )
    links = _find_bursts(pictures, new, burst_s) if burst_s and new else {}
    similar = _find_similar(pictures, new) if near_duplicates else {}
    forest.waiting = {*new}
    for row in new:
        forest.add(row, links.get(row, ()), similar.get(row, ()))
    return forest.placed()


def _alone(picture: ReadPicture) -> ReadPicture:
    """Take a picture out of its group, which may go on under the picture's own hash."""
    names_the_group = picture.group_id == picture.sha256
    group = hashlib.sha256(f"alone\0{picture.sha256}".encode()).hexdigest() if names_the_group else ""
    return msgspec.structs.replace(picture, group=group, joined="")


class _Forest:
    """Groups that grow, by their ids: a union points from the id that is given up to the one that stays.

    Attributes:
        waiting: Rows of new pictures that are not placed yet.
    """

    def __init__(self, pictures: Sequence[ReadPicture], *, keep_sides: bool) -> None:
        self.waiting: set[int] = set()
        self._pictures = pictures
        known = [one for one in pictures if one.split]
        self._known = {one.sha256: one.group_id for one in known}
        self._sides = {one.group_id: one.split for one in known} if keep_sides else {}
        self._sizes = collections.Counter(self._known.values())
        self._joined = {one.sha256: one.joined for one in known if one.joined}
        self._known_ids = {*self._known.values()}
        self._named: set[str] = set()
        self._mixed: set[str] = set()  # named groups with known pictures on both sides
        self._parents: dict[str, str] = {}
        self._bridging: dict[int, str] = {}

    def join_named(self, name_of: Callable[[str], str]) -> None:
        """Join what a person named as one; where it has known pictures on both sides, it is decided anew."""
        for row, one in enumerate(self._pictures):
            if name := name_of(one.path):
                group = hashlib.sha256(f"group\0{name}".encode()).hexdigest()
                self._named.add(group)
                self._joined[one.sha256] = NAMED
                self._unite(group, self._start(row))

    def add(self, row: int, burst: Iterable[int], similar: Iterable[int]) -> None:
        """Place a new picture by its links to others; those that are not placed yet do not count."""
        self.waiting.discard(row)
        links = [(one, TAKEN) for one in burst] + [(one, SIMILAR) for one in similar]
        links = [(one, how) for one, how in links if one not in self.waiting and one not in self._bridging]
        own, picture = self._find(self._start(row)), self._pictures[row]
        sides = {side: one for one, _ in links if (side := self._sides.get(self._find(self._start(one))))}
        if side := self._sides.get(own):
            sides.setdefault(side, row)
        if len(sides) > 1:
            self._bridging[row] = (
                f"belongs to {self._pictures[sides[TRAIN]].path} (training) and to "
                f"{self._pictures[sides[HOLDOUT]].path} (hold-out); its group cannot stand on both sides"
            )
            return
        for number, (one, how) in enumerate(links):
            mine, other = self._find(own), self._find(self._start(one))
            large = self._sizes[mine] + self._sizes[other] > SCENE_AT_MOST
            if how == SIMILAR and number and large and not self._sides.get(mine):
                continue
            self._joined.setdefault(picture.sha256, how)
            self._unite(mine, other)

    def _start(self, row: int) -> str:
        """Return the group that a picture came with; a new one is alone."""
        sha256 = self._pictures[row].sha256
        return self._known.get(sha256, sha256)

    def _find(self, group: str) -> str:
        """Return the group that stays of all that were joined with this one."""
        while (parent := self._parents.get(group)) is not None:
            group = parent
        return group

    def _unite(self, one: str, other: str) -> None:
        one, other = self._find(one), self._find(other)
        if one == other:
            return
        stays, goes = sorted((one, other), key=self._rank)
        both = {self._sides.pop(group, "") for group in (stays, goes)} - {""}
        if len(both) > 1 or not self._mixed.isdisjoint((stays, goes)):
            self._mixed.add(stays)
        elif both:
            self._sides[stays] = both.pop()
        self._sizes[stays] = max(self._sizes[stays], 1) + max(self._sizes[goes], 1)
        self._parents[goes] = stays

    def _rank(self, group: str) -> tuple[int, str]:
        """Order ids: those of names, of known groups, then of new ones.

        A new group is named by the picture whose hash is lowest in digits that decide nothing else. So its
        side is that of one of its pictures, whichever came first; and where the store was cleared, most
        groups that have grown since are named as before.
        """
        if group in self._named:
            return 0, group
        return (1, group) if group in self._known_ids else (2, group[32:])

    def placed(self) -> Placed:
        """Return what was found."""
        out = {self._pictures[row].sha256: words for row, words in self._bridging.items()}
        groups = {one.sha256: self._known.get(one.sha256, one.sha256) for one in self._pictures}
        if self._parents:
            groups = {sha256: self._find(group) for sha256, group in groups.items()}
        for sha256 in out:
            del groups[sha256]
            self._joined.pop(sha256, None)
        return Placed(groups, self._joined, self._sides, out)


def _find_bursts(pictures: Sequence[ReadPicture], new: Iterable[int], burst_s: float) -> dict[int, list[int]]:
    """Return the neighbours in time of new pictures: same folder, same camera, within `burst_s`."""
    wanted = {_camera_of(pictures[row]) for row in new if pictures[row].taken}
    rows: dict[tuple[str, str], list[int]] = collections.defaultdict(list)
    same: collections.Counter[tuple[str, int]] = collections.Counter()
    for row, one in enumerate(pictures) if wanted else ():
        if one.taken:
            same[one.camera, one.taken] += 1
            if (key := _camera_of(one)) in wanted:
                rows[key].append(row)
    links: dict[int, list[int]] = collections.defaultdict(list)
    for (_, camera), found in rows.items():
        real = [row for row in found if same[camera, pictures[row].taken] <= SAME_TIME_AT_MOST]
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
    rows = [row for row in new if pictures[row].is_comparable]
    if not rows:
        return {}
    from luigi_tasks.dataset.alike import find_alike  # noqa: PLC0415 - NumPy, only where pictures are new

    known = _find_representatives(pictures)
    order = known + rows
    links: dict[int, list[int]] = collections.defaultdict(list)
    for one, other in find_alike([pictures[row].fingerprint for row in order], len(known)):
        links[order[one]].append(order[other])
    return links


def _find_representatives(pictures: Sequence[ReadPicture]) -> list[int]:
    """Return the known pictures that stand for their scenes: the first of each.

    Where the first was removed, those that are like it stand for it: new frames must still find their group.
    """
    known = [row for row, one in enumerate(pictures) if one.split and one.is_comparable]
    led = {one.group or one.sha256 for row in known if (one := pictures[row]).joined in {"", NAMED}}
    found, left = [], collections.Counter[str]()
    for row in known:
        if pictures[row].joined == SIMILAR:
            group = pictures[row].group or pictures[row].sha256
            if group in led or left[group] == SCENE_AT_MOST:
                continue
            left[group] += 1
        found.append(row)
    return found


def remember(read: Sequence[ReadPicture], snapshot: Snapshot) -> tuple[ReadPicture, ...]:
    """Return the pictures of a listing with the groups and sides that a snapshot gave them.

    Those that it left out keep what they had: their class may have enough pictures again tomorrow.
    """
    placed = {one.sha256: one for one in snapshot.pictures}
    found = []
    for one in read:
        now = placed.get(one.sha256)
        if now is not None:
            group = now.group if now.group != one.sha256 else ""
            if (one.group, one.split, one.joined) != (group, now.split, now.joined):
                one = msgspec.structs.replace(one, group=group, split=now.split, joined=now.joined)  # noqa: PLW2901
        found.append(one)
    return tuple(found)


def count_groups(pictures: Iterable[Picture]) -> dict[str, int]:
    """Return the number of groups by what joined them; "": pictures that are alone."""
    pictures = list(pictures)
    counts = collections.Counter(_joined_sources(pictures).values())
    alone = len({one.group_id for one in pictures}) - counts.total()
    return dict(counts) | ({"": alone} if alone else {})


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
    pictures = list(pictures)
    return {one.group_id: "" for one in pictures} | _joined_sources(pictures)


def _joined_sources(pictures: Iterable[Picture]) -> dict[str, str]:
    """Return what joined each group that something did."""
    found: dict[str, str] = {}
    for one in pictures:
        if one.joined:
            group = one.group_id
            found[group] = min(found.get(group, one.joined), one.joined, key=SOURCES.index)
    return found


def find_contradictions(snapshot: Snapshot) -> list[tuple[Picture, ...]]:
    """Return near-duplicates with different labels: of each such scene, all its pictures."""
    scenes: dict[str, list[Picture]] = collections.defaultdict(list)
    for one in snapshot.pictures:
        scenes[one.group_id].append(one)
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
