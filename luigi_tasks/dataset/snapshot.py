"""Snapshot: the exact list of pictures of one run, and the rules that make pictures usable.

What is not usable is left out, within `[dataset] max_left_out_percent`: see `left_out.py`.
"""

from __future__ import annotations

import collections
import hashlib
import logging
import shlex
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.group_names import load_group_names
from luigi_tasks.dataset.groups import find_thin_classes, place_pictures
from luigi_tasks.dataset.layout import find_layout, name_folders
from luigi_tasks.dataset.left_out import (
    BRIDGING,
    EMPTY_CLASS,
    NO_CLASS,
    SMALL_CLASS,
    TWO_CLASSES,
    UNDECODABLE,
    Sieve,
    count_reasons,
    find_left_out_classes,
)
from luigi_tasks.dataset.records import HOLDOUT, NAMED, Inventory, LeftOut, Picture, Snapshot
from luigi_tasks.dataset.splits import choose_splits, count_moved, find_moved
from luigi_tasks.logs import LUIGI_LOGGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from luigi_tasks.dataset.layout import Layout
    from luigi_tasks.dataset.records import ReadPicture
    from luigi_tasks.settings.values import DatasetSettings

logger = logging.getLogger(LUIGI_LOGGER)

NOTHING_BEFORE = Inventory(pictures=())


def make_snapshot(
    read: Sequence[ReadPicture],
    url: str,
    settings: DatasetSettings,
    passed_over: Iterable[LeftOut] = (),
    keep: Callable[[Sequence[LeftOut]], str] = lambda _left_out: "",
    before: Inventory = NOTHING_BEFORE,
    archives: str = "",
) -> Snapshot:
    """Make the snapshot from the pictures that were read.

    Args:
        read: Every picture of the listing, sorted by path.
        url: The dataset, for messages.
        settings: The rules.
        passed_over: What the listing leaves out.
        keep: Saves the list of what is left out, and returns where it lies; also called before an error.
        before: The inventory that the listing was compared with.
        archives: Names the archives among the files, which are not unpacked; empty: there is none.
    Raises: InputError if a classifier cannot be trained on the pictures: more is left out than the limit
        allows, less than two classes are left, two classes have one name, or the folders are unclear;
        SettingsError if `[dataset] group` cannot be used.
    """
    folders = [one.path.rpartition("/")[0] for one in read]
    layout = find_layout(folders, url)
    sieve = Sieve(read, passed_over)
    labels = _label_pictures(read, folders, layout)
    found = _sift(sieve, labels, settings.min_images_per_class)
    for label in sorted({*labels.values()} - {*found.values(), ""}):
        sieve.left_out.append(LeftOut(f"{layout.above}{label}/", EMPTY_CLASS, "nothing of it can be used"))
    keep_sides = before.holdout_percent in {None, settings.holdout_percent}
    different = _different_pictures(sieve.kept)
    name_of = load_group_names(settings)
    placed = place_pictures(
        list(different.values()),
        name_of,
        settings.burst_s,
        near_duplicates=settings.near_duplicates,
        keep_sides=keep_sides,
    )
    if name_of is not None and NAMED not in placed.joined.values():
        some = next(iter(different.values())).path if different else "none"
        logger.warning(
            "[dataset] group %r names none of the pictures; their paths are like %r", settings.group, some
        )
    if placed.bridging:
        bridging = placed.bridging
        sieve.take_out(
            {one.path: bridging[one.sha256] for one in sieve.kept if one.sha256 in bridging}, BRIDGING
        )
        found = {digest: label for digest, label in found.items() if digest not in bridging}
    left_out = sieve.sorted_left_out()
    place = keep(left_out)
    classes = tuple(sorted(set(found.values())))
    instead = ""
    if len(classes) < 2:
        instead = _find_classes_below(folders, layout, classes, url)
        instead += archives and f". There is {archives}"
    if not instead:
        sieve.check(url, settings.max_left_out_percent, place)
    if len(classes) < 2:
        there = f"only one class ({classes[0]})" if classes else "no class"
        gone = f" (left out: {count_reasons(left_out)}; all in {place})" if left_out else ""
        msg = (
            f"{url}: {there} with {settings.min_images_per_class} usable pictures{gone}; a classifier needs "
            f"at least two folders of pictures{instead}"
        )
        raise InputError(msg)
    given, groups, joined = _given_splits(sieve.kept, layout), placed.groups, placed.joined
    splits = choose_splits(found, settings.holdout_percent, given, groups, placed.sides)
    if HOLDOUT not in splits.values():
        msg = (
            f"{url}: each class is one group of pictures that look alike or were taken together, so none can "
            "be kept to judge a model; add pictures of other things, or of another time and place, or "
            "correct [dataset] group, burst_s where the times are not those of taking, or near_duplicates "
            "where different things look alike"
        )
        raise InputError(msg)
    pictures = tuple(
        Picture(different[one].path, one, found[one], splits[one], groups[one], joined.get(one, ""))
        for one in sorted(found)
    )
    to_train, to_holdout = count_moved(pictures, different, before.pictures, settings.holdout_percent)
    return Snapshot(
        digest=_digest(pictures),
        labels=classes,
        pictures=pictures,
        left_out=left_out,
        layout=_describe_layout(layout, given, splits),
        moved=find_moved(read, splits, settings.holdout_percent),
        thin_classes=find_thin_classes(pictures),
        left_out_classes=find_left_out_classes(left_out),
        to_train=to_train,
        to_holdout=to_holdout,
    )


def _find_classes_below(folders: Iterable[str], layout: Layout, classes: Sequence[str], url: str) -> str:
    """Return the way out where the only class is a folder of folders; else an empty text."""
    inside = {one for one in folders if layout.class_folder(f"{one}/") in classes}
    above = find_layout(inside, url).above if len(inside) > 1 else ""
    place = shlex.quote(f"{url.rstrip('/')}/{above}")
    return above and f". If the folders in {above} are the classes, give --pictures {place}"


def _different_pictures(kept: Iterable[ReadPicture]) -> dict[str, ReadPicture]:
    """Return one copy of each picture, by hash: the first that has a side already, else the first."""
    found: dict[str, ReadPicture] = {}
    for one in kept:
        if one.split and not found.get(one.sha256, one).split:
            found[one.sha256] = one
        found.setdefault(one.sha256, one)
    return found


def _label_pictures(read: Sequence[ReadPicture], folders: Sequence[str], layout: Layout) -> dict[str, str]:
    """Return the label of each picture by path; empty: it lies in no class folder.

    Raises: InputError as `name_folders`.
    """
    classes = {folder: layout.class_folder(f"{folder}/") for folder in set(folders)}
    names = {"": "", **name_folders({*classes.values()} - {""})}
    labels = {folder: names[one] for folder, one in classes.items()}
    return {one.path: labels[folder] for one, folder in zip(read, folders, strict=True)}


def _sift(sieve: Sieve, labels: Mapping[str, str], least_pictures: int) -> dict[str, str]:
    """Take out what is not usable; return the label of each different picture that is left, by hash.

    Args:
        sieve: The pictures.
        labels: Label by path; empty: the picture lies in no class folder.
        least_pictures: Smallest number of different pictures of a class.
    """
    faulty = [one for one in sieve.kept if one.fault]
    for reason in sorted({one.reason for one in faulty}):
        sieve.take_out({one.path: one.fault for one in faulty if one.reason == reason}, reason or UNDECODABLE)
    outside = [path for path, label in labels.items() if not label]
    kept = {one.path for one in sieve.kept} if outside else set()
    words = "lies in no class folder; move it into one"
    sieve.take_out({path: words for path in outside if path in kept}, NO_CLASS)
    found = {one.sha256: labels[one.path] for one in sieve.kept}
    for find, reason in ((_find_in_two_classes, TWO_CLASSES), (_find_small_classes, SMALL_CLASS)):
        if words_of := find(sieve.kept, labels, found, least_pictures):
            sieve.take_out(words_of, reason)
            found = {one.sha256: labels[one.path] for one in sieve.kept}
    return found


def _find_in_two_classes(
    pictures: Sequence[ReadPicture], labels: Mapping[str, str], found: Mapping[str, str], _least: int
) -> dict[str, str]:
    """Return all copies of the pictures that lie in several classes, each with where another one lies.

    Args:
        pictures: All pictures.
        labels: Label by path.
        found: Label by hash, of any of the copies.
    """
    clashes = {one.sha256 for one in pictures if found[one.sha256] != labels[one.path]}
    copies: dict[str, list[str]] = {}
    for one in pictures if clashes else ():
        if one.sha256 in clashes:
            copies.setdefault(one.sha256, []).append(one.path)
    return {
        path: f"the same picture as {other}; keep the right one"
        for same in copies.values()
        for path in same
        for other in [next(one for one in same if labels[one] != labels[path])]
    }


def _find_small_classes(
    pictures: Sequence[ReadPicture], labels: Mapping[str, str], found: Mapping[str, str], least_pictures: int
) -> dict[str, str]:
    """Return the pictures of classes with too few different pictures, each with what its class lacks."""
    counts = collections.Counter(found.values())
    if min(counts.values(), default=0) >= least_pictures:
        return {}
    return {
        one.path: (
            f"{labels[one.path]!r} has {count} usable different pictures, [dataset] min_images_per_class is "
            f"{least_pictures}; add pictures, or remove the folder"
        )
        for one in pictures
        if (count := counts[labels[one.path]]) < least_pictures
    }


def _given_splits(pictures: Iterable[ReadPicture], layout: Layout) -> dict[str, str]:
    """Return the split that folders give, by content hash; a copy in the hold-out's folder decides."""
    given: dict[str, str] = {}
    for one in pictures if layout.sides else ():
        side = layout.given_split(one.path)
        if side and given.get(one.sha256) != HOLDOUT:
            given[one.sha256] = side
    return given


def _describe_layout(layout: Layout, given: Mapping[str, str], splits: Mapping[str, str]) -> str:
    """Return the layout in words, with how many pictures do not stand where their folders say."""
    words = layout.in_words()
    elsewhere = sum(splits.get(digest, side) != side for digest, side in given.items())
    where = f", but {elsewhere} pictures stand with their groups or where their class needs them"
    return words + where * bool(elsewhere)


def _digest(pictures: Iterable[Picture]) -> str:
    """Return the digest of a snapshot; groups of one picture add nothing to it."""
    rows = [
        f"{one.sha256} {one.split} {one.label}\n"
        if one.group == one.sha256
        else f"{one.sha256} {one.split} {one.label}\0{one.group}\n"
        for one in pictures
    ]
    return hashlib.sha256("".join(rows).encode()).hexdigest()[:20]
