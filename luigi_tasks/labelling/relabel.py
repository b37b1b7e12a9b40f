"""Decisions about pictures of the dataset itself: into another class, confirmed, or removed.

Each picture is moved by itself: it is read and compared with the hash that the person saw, written into the
other class, and only then removed from its own. An interrupted run can be repeated.
"""

from __future__ import annotations

import dataclasses
import hashlib
import unicodedata
from typing import TYPE_CHECKING

from luigi_tasks.dataset.layout import name_folders

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from luigi_tasks.labelling.class_folders import ClassFolders
    from luigi_tasks.labelling.labels_file import Relabelled

_HASH_DIGITS = 16


@dataclasses.dataclass(frozen=True)
class Change:
    """Change of one picture of the dataset.

    Attributes:
        path: Where it lies.
        sha256: Its digest when a person saw it.
        folder: The class folder that was chosen; empty: the picture is removed.
        to: Where it is to lie; empty: it is removed.
    """

    path: str
    sha256: str
    folder: str
    to: str


def plan_changes(
    rows: Sequence[Relabelled],
    paths: Mapping[str, str],
    place_of: Callable[[str, str], str],
    folders: Mapping[str, str],
) -> tuple[tuple[Change, ...], list[str]]:
    """Turn decisions into changes, without touching the dataset; return faults too.

    A decision that confirms a picture's label changes nothing, as does one that was carried out before.

    Args:
        rows: Rows of the file; those without a label are skipped.
        paths: Class folder of each picture of the dataset.
        place_of: Returns where a picture (path) of a class folder belongs.
        folders: Class folder of each label; of those that are refused elsewhere, there is none.
    """
    faults: list[str] = []
    chosen: dict[str, Relabelled] = {}
    changes: dict[str, Change] = {}
    for row in rows:
        if not row.label:
            continue
        first = chosen.setdefault(row.path, row)
        if (first.label, first.sha256) != (row.label, row.sha256):
            faults.append(f"lines {first.line} and {row.line} label the same picture differently")
            continue
        own, folder = paths.get(row.path, ""), folders.get(row.label)
        if own and folder is not None and folder != own:
            to = place_of(row.path, folder) if folder else ""
            changes[row.path] = Change(row.path, row.sha256, folder, to)
    return tuple(changes.values()), faults


def is_carried_out(rows: Iterable[Relabelled], paths: Mapping[str, str]) -> bool:
    """Whether no picture that was decided on is left in another class than was chosen for it."""
    labels = name_folders({*paths.values()} - {""})
    return all(
        labels[paths[row.path]] == unicodedata.normalize("NFC", row.label)
        for row in rows
        if row.label and paths.get(row.path)
    )


def apply_change(folders: ClassFolders, change: Change) -> str:
    """Carry out one change; return the reason if it cannot be done, or ""."""
    picture = folders.read_path(change.path)
    if picture is None:
        return "gone from the dataset since its label was doubted"
    if hashlib.sha256(picture).hexdigest() != change.sha256:
        return "changed since its label was doubted; run DoubtfulLabels again, and look at it anew"
    if fault := folders.why_not_removable(change.path):
        return fault
    if change.to:
        to = _free_place(folders, change)
        if to is None:
            return f"{change.to} in the dataset is another picture; rename that one"
        if folders.read_path(to) is None:
            folders.write_path(to, picture)
    folders.remove_path(change.path)
    return ""


def _free_place(folders: ClassFolders, change: Change) -> str | None:
    """Return the place for a picture, one that an interrupted run wrote included; None: there is none.

    Cameras number their pictures alike: where the other class has one of this name, the hash tells the two
    apart.
    """
    folder, _, name = change.to.rpartition("/")
    stem, dot, suffix = name.rpartition(".")
    other = f"{stem or suffix}-{change.sha256[:_HASH_DIGITS]}{dot if stem else ''}{suffix if stem else ''}"
    for place in (change.to, f"{folder}/{other}"):
        there = folders.read_path(place)
        if there is None or hashlib.sha256(there).hexdigest() == change.sha256:
            return place
    return None
