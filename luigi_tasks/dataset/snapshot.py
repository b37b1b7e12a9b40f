"""Snapshot: the exact list of pictures of one run, and the rules that make pictures usable.

What is not usable is left out, within `[dataset] max_left_out_percent`: see `left_out.py`.
"""

from __future__ import annotations

import collections
import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.layout import find_layout, name_folders
from luigi_tasks.dataset.left_out import (
    EMPTY_CLASS,
    NO_CLASS,
    SMALL_CLASS,
    TWO_CLASSES,
    UNDECODABLE,
    Sieve,
    count_reasons,
)
from luigi_tasks.dataset.records import HOLDOUT, LeftOut, Picture, Snapshot
from luigi_tasks.dataset.splits import choose_splits, find_moved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from luigi_tasks.dataset.layout import Layout
    from luigi_tasks.dataset.records import ReadPicture
    from luigi_tasks.settings.values import DatasetSettings


def make_snapshot(
    read: Sequence[ReadPicture],
    url: str,
    settings: DatasetSettings,
    passed_over: Iterable[LeftOut] = (),
    keep: Callable[[Sequence[LeftOut]], str] = lambda _left_out: "",
) -> Snapshot:
    """Make the snapshot from the pictures that were read.

    Args:
        read: Every picture of the listing, sorted by path.
        url: The dataset, for messages.
        settings: The rules.
        passed_over: What the listing leaves out.
        keep: Saves the list of what is left out, and returns where it lies; also called before an error.
    Raises: InputError if a classifier cannot be trained on the pictures: more is left out than the limit
        allows, less than two classes are left, two classes have one name, or the folders are unclear.
    """
    layout = find_layout((one.path for one in read), url)
    sieve = Sieve(read, passed_over)
    labels = _sift(sieve, layout, settings.min_images_per_class)
    left_out = sieve.sorted_left_out()
    place = keep(left_out)
    sieve.check(url, settings.max_left_out_percent, place)
    found = {one.sha256: labels[one.path] for one in sieve.kept}
    classes = tuple(sorted(set(found.values())))
    if len(classes) < 2:
        gone = f" (left out: {count_reasons(left_out)}; all in {place})" if left_out else ""
        msg = (
            f"{url}: {f'only one class ({classes[0]})' if classes else 'no class'} with "
            f"{settings.min_images_per_class} usable pictures{gone}; a classifier needs at least two folders "
            "of pictures"
        )
        raise InputError(msg)
    splits = choose_splits(found, settings.holdout_percent, _given_splits(sieve.kept, layout))
    paths = {one.sha256: one.path for one in reversed(sieve.kept)}
    pictures = tuple(
        Picture(paths[digest], digest, found[digest], splits[digest], digest) for digest in sorted(found)
    )
    return Snapshot(
        digest=_digest(pictures),
        labels=classes,
        pictures=pictures,
        left_out=left_out,
        layout=layout.in_words(),
        moved=find_moved(read, splits, settings.holdout_percent),
    )


def _sift(sieve: Sieve, layout: Layout, least_pictures: int) -> dict[str, str]:
    """Take out what is not usable; return the label of each picture that is left, by path."""
    folders = {one.path: layout.class_folder(one.path) for one in sieve.kept}
    for reason in sorted({one.reason for one in sieve.kept if one.fault}):
        faults = {one.path: one.fault for one in sieve.kept if one.fault and one.reason == reason}
        sieve.take_out(faults, reason or UNDECODABLE)
    outside = "lies in no class folder; move it into one"
    sieve.take_out({one.path: outside for one in sieve.kept if not folders[one.path]}, NO_CLASS)
    names = name_folders({folders[one.path] for one in sieve.kept})
    labels = {one.path: names[folders[one.path]] for one in sieve.kept}
    sieve.take_out(_find_in_two_classes(sieve.kept, labels), TWO_CLASSES)
    sieve.take_out(_find_in_small_classes(sieve.kept, labels, least_pictures), SMALL_CLASS)
    for folder in sorted({*folders.values()} - {""} - names.keys()):
        sieve.left_out.append(LeftOut(f"{layout.above}{folder}/", EMPTY_CLASS, "no usable picture in it"))
    return labels


def _find_in_two_classes(pictures: Iterable[ReadPicture], labels: Mapping[str, str]) -> dict[str, str]:
    """Return all copies of the pictures that lie in several classes, each with where another one lies."""
    first: dict[str, str] = {}
    clashes: set[str] = set()
    for one in pictures:
        if labels[first.setdefault(one.sha256, one.path)] != labels[one.path]:
            clashes.add(one.sha256)
    copies: dict[str, list[str]] = {}
    for one in pictures:
        if one.sha256 in clashes:
            copies.setdefault(one.sha256, []).append(one.path)
    return {
        path: f"the same picture as {other}; keep the right one"
        for same in copies.values()
        for path in same
        for other in [next(one for one in same if labels[one] != labels[path])]
    }


def _find_in_small_classes(
    pictures: Iterable[ReadPicture], labels: Mapping[str, str], least_pictures: int
) -> dict[str, str]:
    """Return the pictures of classes with too few different pictures."""
    different: dict[str, set[str]] = collections.defaultdict(set)
    for one in pictures:
        different[labels[one.path]].add(one.sha256)
    return {
        one.path: (
            f"{labels[one.path]!r} has {count} usable different pictures, [dataset] min_images_per_class is "
            f"{least_pictures}; add pictures, or remove the folder"
        )
        for one in pictures
        if (count := len(different[labels[one.path]])) < least_pictures
    }


def _given_splits(pictures: Iterable[ReadPicture], layout: Layout) -> dict[str, str]:
    """Return the split that folders give, by content hash; a copy in the hold-out's folder decides."""
    given: dict[str, str] = {}
    for one in pictures:
        side = layout.given_split(one.path)
        if side and given.get(one.sha256) != HOLDOUT:
            given[one.sha256] = side
    return given


def _digest(pictures: Iterable[Picture]) -> str:
    """Return the digest of a snapshot; groups of one picture add nothing to it."""
    rows = [
        f"{one.sha256} {one.split} {one.label}\n"
        if one.group == one.sha256
        else f"{one.sha256} {one.split} {one.label}\0{one.group}\n"
        for one in pictures
    ]
    return hashlib.sha256("".join(rows).encode()).hexdigest()[:20]
