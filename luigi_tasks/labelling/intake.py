"""Intake of labelled frames: they become pictures of the dataset, and only then leave the inbox.

Each frame is moved by itself: verified, written as `<class>/inbox-<hash>-<time>-<device>.jpg`, then removed
from the inbox. The hash is the start of its SHA-256, so an interrupted intake can be repeated, and no frame
is added twice. Time and device tell which frames are one burst: see `dataset/capture.py`.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.cells import FORMULA_STARTS
from luigi_tasks.dataset.file_names import is_hidden
from luigi_tasks.dataset.layout import name_folders
from luigi_tasks.labelling.folder import THREADS
from luigi_tasks.labelling.inbox import PICTURE_LIMIT_BYTES, Skip, check_picture, remove_frame, skip
from luigi_tasks.labelling.labels_file import DISCARD
from luigi_tasks.labelling.relabel import Change, apply_change, plan_changes
from luigi_tasks.storage.store import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luigi_tasks.labelling.class_folders import ClassFolders
    from luigi_tasks.labelling.inbox import FrameName
    from luigi_tasks.labelling.labels_file import Labelled, LabelsFile, Relabelled
    from luigi_tasks.progress import Progress
    from luigi_tasks.storage.store import Store

FOLDER_LIMIT_BYTES = 255  # of one name, on every common file system
NAMED_AT_MOST = 10
PREFIX, HASH_DIGITS = "inbox-", 16
# Start of the names that devices give to frames: UTC.
TIME = re.compile(r"\d{8}T\d{6}")


@dataclasses.dataclass(frozen=True)
class Move:
    """Move of one frame into the dataset, or its removal.

    Attributes:
        name: The frame.
        sha256: Digest of its picture when a person saw it.
        path: Destination in the dataset; empty: the frame is discarded.
    """

    name: FrameName
    sha256: str
    path: str

    @property
    def folder(self) -> str:
        """The class folder; empty: the frame is discarded."""
        return self.path.partition("/")[0]


@dataclasses.dataclass(frozen=True)
class IntakeResult:
    """Result of an intake.

    Attributes:
        moved: Number of frames moved into the dataset.
        discarded: Number of frames deleted.
        skipped: Frames that stay in the inbox, each with the reason.
        small: Number of pictures of each new class that has too few for a snapshot.
        relabelled: Number of pictures of the dataset that are in another class now.
        removed: Number of pictures removed from the dataset.
    """

    moved: int
    discarded: int
    skipped: tuple[Skip, ...]
    small: Mapping[str, int]
    relabelled: int = 0
    removed: int = 0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a filled-in file asks for.

    Attributes:
        moves: Moves of frames.
        changes: Changes of pictures of the dataset.
        fresh: Labels that start a class.
    """

    moves: tuple[Move, ...]
    changes: tuple[Change, ...]
    fresh: tuple[str, ...]


def move_labelled(
    store: Store,
    folders: ClassFolders,
    file: LabelsFile,
    least_pictures: int,
    progress: Progress,
    *,
    new_labels: bool,
) -> IntakeResult:
    """Move the frames of a filled-in `labels.csv` into the dataset, and pictures of the dataset within it.

    Args:
        store: Store with the inbox.
        folders: The dataset.
        file: The file.
        least_pictures: Smallest number of pictures of a class in a snapshot.
        progress: Gets frames done.
        new_labels: Whether a label may start a class.
    Raises: InputError that lists every fault of the file, before anything is moved; TransportError,
        DeviceError, SettingsError in between: calling it again finishes the intake.
    """
    from luigi_tasks.dataset.pixels import in_threads  # noqa: PLC0415 - NumPy

    plan = plan_intake(file, folders, new_labels=new_labels)

    def apply(one: Move | Change) -> str:
        return _apply(store, folders, one) if isinstance(one, Move) else apply_change(folders, one)

    steps: tuple[Move | Change, ...] = (*plan.moves, *plan.changes)
    with folders.writing():
        faults = in_threads(apply, steps, "moving frames", progress, threads=THREADS)
    done = [one for one, fault in zip(steps, faults, strict=True) if not fault]
    fresh = {one.path: one.folder for one in done if isinstance(one, Move) and one.path}
    fresh |= {one.path: one.folder for one in done if isinstance(one, Change) and one.to}
    counts = collections.Counter(fresh.values())
    moves = [one for one in done if isinstance(one, Move)]
    changes = [one for one in done if isinstance(one, Change)]
    return IntakeResult(
        moved=sum(bool(one.path) for one in moves),
        discarded=sum(not one.path for one in moves),
        skipped=tuple(
            skip(one.name if isinstance(one, Move) else one.path, fault)
            for one, fault in zip(steps, faults, strict=True)
            if fault
        ),
        small={label: counts[label] for label in plan.fresh if 0 < counts[label] < least_pictures},
        relabelled=sum(bool(one.to) for one in changes),
        removed=sum(not one.to for one in changes),
    )


def plan_intake(file: LabelsFile, folders: ClassFolders, *, new_labels: bool) -> Plan:
    """Return what a filled-in file asks for; the dataset is listed, and nothing is changed.

    Raises: InputError that lists every fault of the file; TransportError; SettingsError.
    """
    contents = folders.contents()
    paths = folders.paths() if any(row.label for row in file.pictures) else {}
    rows: tuple[Labelled | Relabelled, ...] = (*file.frames, *file.pictures)
    found, faults = _find_folders(rows, contents, folders.url, new_labels=new_labels)
    moves = _find_moves(file.frames, contents, found, faults)
    changes, more = plan_changes(file.pictures, paths, folders.place_of, found)
    _refuse(faults + more)
    used = {one.folder for one in moves} | {one.folder for one in changes}
    return Plan(moves, changes, tuple(sorted(used - contents.keys() - {""})))


def decided(rows: Iterable[Labelled]) -> tuple[FrameName, ...]:
    """Return the frames with a label."""
    return tuple(row.name for row in rows if row.label)


def plan_moves(
    rows: Sequence[Labelled], contents: Mapping[str, frozenset[str]], url: str, *, new_labels: bool
) -> tuple[Move, ...]:
    """Turn labels into moves, without touching store or disk.

    Args:
        rows: Rows of the file; rows without a label are skipped.
        contents: Names of the files in each class folder.
        url: The dataset, for messages.
        new_labels: Whether a label may start a class.
    Raises: InputError that lists every fault.
    """
    found, faults = _find_folders(rows, contents, url, new_labels=new_labels)
    moves = _find_moves(rows, contents, found, faults)
    _refuse(faults)
    return moves


def judge_new_label(label: str, known: Iterable[str]) -> str:
    """Return the reason why a label that is no class yet cannot start one, or "".

    Args:
        label: As it was typed.
        known: The classes.
    """
    written = unicodedata.normalize("NFC", label).strip()
    return _judge_new(written, dict.fromkeys(known, ""), "", new_labels=True)


def _find_moves(
    rows: Sequence[Labelled],
    contents: Mapping[str, frozenset[str]],
    folders: Mapping[str, str],
    faults: list[str],
) -> tuple[Move, ...]:
    """Return the moves of frames, each once; `faults` gets what contradicts another or the dataset."""
    moves = [
        (row.line, Move(row.name, row.sha256, _path(folders[row.label], row.name, row.sha256)))
        for row in rows
        if row.label and row.label in folders
    ]
    faults += _find_contradictions(moves) + _find_taken_otherwise(moves, contents)
    return tuple(dict.fromkeys(move for _, move in moves))


def _refuse(faults: Sequence[str]) -> None:
    if faults:
        more = f"; and {len(faults) - NAMED_AT_MOST} more" if len(faults) > NAMED_AT_MOST else ""
        msg = f"labels.csv: {'; '.join(faults[:NAMED_AT_MOST])}{more}. Nothing was moved"
        raise InputError(msg)


def _find_folders(
    rows: Iterable[Labelled | Relabelled],
    contents: Mapping[str, frozenset[str]],
    url: str,
    *,
    new_labels: bool,
) -> tuple[dict[str, str], list[str]]:
    """Return the class folder of each label ("" for discarded frames), and faults."""
    known = {label: folder for folder, label in name_folders(contents).items()}
    found, faults = {DISCARD: ""}, []
    lines: dict[str, list[int]] = collections.defaultdict(list)
    for row in rows:
        if row.label:
            lines[row.label].append(row.line)
    for label in sorted(lines.keys() - {DISCARD}):
        written = unicodedata.normalize("NFC", label)
        fault = "" if written in known else _judge_new(written, known, url, new_labels=new_labels)
        if fault:
            where = ", ".join(map(str, lines[label][:NAMED_AT_MOST]))
            faults.append(f"{label[:80]!r} (line {where}) {fault}")
        else:
            found[label] = known.setdefault(written, written)
    return found, faults


def _judge_new(label: str, known: Mapping[str, str], url: str, *, new_labels: bool) -> str:
    """Return the reason why an unknown label cannot start a class, or ""."""
    if any(one in label for one in "/\\") or is_hidden(label) or len(label.encode()) > FOLDER_LIMIT_BYTES:
        return "cannot name a class folder; no / or \\, no dot in front, at most 255 bytes"
    try:
        name_folders([label])
    except InputError:
        return "cannot be a label; a label is one line of visible text"
    if label.startswith(FORMULA_STARTS):
        return f"cannot start a class: a spreadsheet takes it for a formula; do not begin with {label[0]}"
    twins = [one for one in known if one.casefold() == label.casefold()]
    if twins:
        return f"differs only in case from the class {twins[0]!r}; write it so"
    if new_labels:
        return ""
    close = difflib.get_close_matches(label, known, 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"is not a class of {url}; {hint}Correct it, or start the class with --new-labels"


def _find_contradictions(moves: Sequence[tuple[int, Move]]) -> list[str]:
    """Return a fault for each picture with two labels; also for copies, which a snapshot would leave out."""
    first: dict[object, tuple[int, str]] = {}
    faults = []
    for line, move in moves:
        # A copy may be discarded; but one frame cannot be both moved and discarded.
        for same in {move.name, move.sha256} if move.path else {move.name}:
            other, path = first.setdefault(same, (line, move.path))
            if path != move.path:
                faults.append(f"lines {other} and {line} label the same picture differently; decide for one")
                break
    return faults


def _find_taken_otherwise(
    moves: Sequence[tuple[int, Move]], contents: Mapping[str, frozenset[str]]
) -> list[str]:
    """Return a fault for each picture that the dataset already has in another class."""
    homes: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for folder, names in contents.items():
        for name in names:
            if name.startswith(PREFIX):
                homes[_content_of(name)][folder] = name
    faults = []
    for line, move in moves:
        folder, name = move.folder, move.path.partition("/")[2]
        known = homes.get(_content_of(name), {}) if folder else {}
        if known and folder not in known:
            home = next(iter(known))
            faults.append(
                f"line {line}: the dataset has this picture as {home}/{known[home]}; remove it there, or "
                "give it that label"
            )
    return faults


def _content_of(name: str) -> str:
    """Return the part of a name that is the start of the content's hash."""
    return name[len(PREFIX) : len(PREFIX) + HASH_DIGITS]


def _path(folder: str, frame: FrameName, sha256: str) -> str:
    """Return the path of a frame in the dataset, with time and device where its name has a time."""
    if not folder:
        return ""
    taken = TIME.match(frame.picture)
    return f"{folder}/{PREFIX}{sha256[:HASH_DIGITS]}{f'-{taken[0]}-{frame.device}' if taken else ''}.jpg"


def _apply(store: Store, folders: ClassFolders, move: Move) -> str:
    """Carry out one move; return the reason if it cannot be done, or ""."""
    try:
        found = store.get(move.name.keys[0], limit_bytes=PICTURE_LIMIT_BYTES)
    except TooLargeError as e:
        return str(e)
    if found is not None and hashlib.sha256(found.data).hexdigest() != move.sha256:
        return "its picture changed since it was listed; list the inbox again, and check the label"
    if move.path:
        fault = _put_in_place(folders, move, found.data if found is not None else None)
        if fault:
            return fault
    remove_frame(store, move.name)
    return ""


def _put_in_place(folders: ClassFolders, move: Move, picture: bytes | None) -> str:
    there = folders.read(move.path)
    if there is not None:
        # Written by an interrupted run; or a collision of 64 bits, which an attacker can construct.
        same = hashlib.sha256(there).hexdigest() == move.sha256
        return "" if same else f"{move.path} in the dataset is another picture; rename that one"
    if picture is None:
        return "gone from the inbox, and not in the dataset; it was discarded, or moved and then removed"
    try:
        check_picture(picture)
    except InputError as e:
        return str(e)
    folders.write(move.path, picture)
    return ""
