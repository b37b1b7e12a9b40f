"""Snapshot: the exact list of pictures of one run, and the rules that make pictures usable."""

from __future__ import annotations

import collections
import hashlib
import unicodedata
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.records import Picture, Snapshot
from luigi_tasks.dataset.splits import choose_splits, find_moved

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luigi_tasks.dataset.records import Entry, ReadPicture
    from luigi_tasks.settings.values import DatasetSettings

NAMED_AT_MOST = 10
# Unicode categories of characters that break a line (labels.txt) or cannot be written.
NOT_IN_LABELS = frozenset({"Cc", "Cs", "Zl", "Zp"})


def make_snapshot(read: Sequence[ReadPicture], url: str, settings: DatasetSettings) -> Snapshot:
    """Make the snapshot from the pictures that were read.

    Args:
        read: Every picture of the listing, sorted by path.
        url: The dataset, for messages.
        settings: The rules.
    Raises: InputError if a classifier cannot be trained on the pictures: no picture, one class, too few of a
        class, undecodable pictures, one picture in two classes, two classes of one name.
    """
    classes = name_classes(read)
    hashes = {one.path: one.sha256 for one in read}
    broken = {one.path: one.fault for one in read if one.fault}
    for path in broken:
        del hashes[path]
    if len(broken) > settings.max_broken_pictures:
        raise InputError(_broken_pictures_message(url, broken, settings.max_broken_pictures))
    found = _unique_pictures(hashes, classes)
    check_counts(collections.Counter(found.values()), sorted(set(classes.values())), url, settings)
    splits = choose_splits(found, settings.holdout_percent)
    paths = {digest: path for path, digest in reversed(hashes.items())}
    pictures = tuple(
        Picture(paths[digest], digest, found[digest], splits[digest], digest) for digest in sorted(found)
    )
    return Snapshot(
        digest=_digest(pictures),
        labels=tuple(sorted(set(found.values()))),
        pictures=pictures,
        skipped=tuple(sorted(broken)),
        moved=find_moved(read, splits, settings.holdout_percent),
    )


def name_classes(entries: Iterable[Entry]) -> dict[str, str]:
    """Map the first folder of each path to its label (Unicode NFC, no outer blanks).

    Raises: InputError if two folders would be the same class, or a label is not one line of text.
    """
    return name_folders({entry.path.split("/", 1)[0] for entry in entries})


def name_folders(folders: Iterable[str]) -> dict[str, str]:
    """Map each class folder to its label.

    Raises: InputError as `name_classes`.
    """
    labels = {folder: unicodedata.normalize("NFC", folder).strip() for folder in sorted(folders)}
    seen: dict[str, str] = {}
    for folder, label in labels.items():
        if not label or any(unicodedata.category(one) in NOT_IN_LABELS for one in label):
            msg = f"class folder {folder!r}: rename it; a label is one line of visible text"
            raise InputError(msg)
        twin = seen.setdefault(label.casefold(), folder)
        if twin != folder:
            msg = (
                f"class folders {twin!r} and {folder!r} differ only in case, blanks or Unicode form; "
                "merge them"
            )
            raise InputError(msg)
    return labels


def check_counts(
    counts: collections.Counter[str], labels: Sequence[str], url: str, settings: DatasetSettings
) -> None:
    """Check that there are enough classes, and enough pictures of each.

    Raises: InputError that names each class with too few pictures, and its count.
    """
    if len(labels) < 2:
        msg = f"{url}: only one class ({', '.join(labels)}); a classifier needs at least two folders"
        raise InputError(msg)
    few = [
        f"{label!r} has {counts[label]}" for label in labels if counts[label] < settings.min_images_per_class
    ]
    if few:
        msg = (
            f"{url}: {', '.join(few[:NAMED_AT_MOST])} usable different pictures, [dataset] "
            f"min_images_per_class is {settings.min_images_per_class}; add pictures or remove the folder"
        )
        raise InputError(msg)


def _digest(pictures: Iterable[Picture]) -> str:
    """Return the digest of a snapshot; groups of one picture add nothing to it."""
    rows = [
        f"{one.sha256} {one.split} {one.label}\n"
        if one.group == one.sha256
        else f"{one.sha256} {one.split} {one.label}\0{one.group}\n"
        for one in pictures
    ]
    return hashlib.sha256("".join(rows).encode()).hexdigest()[:20]


def _unique_pictures(hashes: dict[str, str], classes: dict[str, str]) -> dict[str, str]:
    """Map each hash to its label; copies within a class count once.

    Raises: InputError if a picture is in two classes.
    """
    found: dict[str, str] = {}
    first: dict[str, str] = {}
    clashes = []
    for path, digest in hashes.items():
        label = classes[path.split("/", 1)[0]]
        if found.setdefault(digest, label) != label:
            clashes.append(f"{first[digest]} = {path}")
        first.setdefault(digest, path)
    if clashes:
        msg = (
            f"the same picture is in two classes: {'; '.join(clashes[:NAMED_AT_MOST])}"
            f"{' and more' if len(clashes) > NAMED_AT_MOST else ''}. Keep each in the right one"
        )
        raise InputError(msg)
    return found


def _broken_pictures_message(url: str, broken: dict[str, str], allowed: int) -> str:
    named = "; ".join(broken[path] for path in sorted(broken)[:NAMED_AT_MOST])
    more = f"; and {len(broken) - NAMED_AT_MOST} more" if len(broken) > NAMED_AT_MOST else ""
    return (
        f"{url}: {len(broken)} pictures cannot be used, [dataset] max_broken_pictures allows {allowed}: "
        f"{named}{more}"
    )
