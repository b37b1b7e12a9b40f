"""Labelling folder: pictures, `labels.csv` and a page that fills it in; see `labelling/labels_file.py`.

A folder that was listed into before is brought up to date: only new and changed frames are read.
"""

from __future__ import annotations

import dataclasses
import re
import secrets
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document, encode_compact
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import excerpt
from edge_client.disk import disk_errors, write_durably
from luigi_tasks.cells import guard_formula
from luigi_tasks.labelling.inbox import Skip, hash_picture, list_inbox, read_frame, skip
from luigi_tasks.labelling.labels_file import (
    COLUMNS,
    DISCARD,
    PICTURES,
    Row,
    hold_labels,
    read_labels_file,
    read_rows,
    write_labels,
)
from luigi_tasks.labelling.leftovers import without_leftovers
from luigi_tasks.labelling.records import LabellingRecord, ListedFrame, SkippedObject
from luigi_tasks.pages import render_template
from luigi_tasks.storage.documents import content_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.labelling.inbox import Frame, FrameName, InboxListing
    from luigi_tasks.progress import Progress
    from luigi_tasks.storage.store import Store

LABELLING_VERSION = 2  # raised when the same inbox would give another folder
LABELS_CSV, PAGE, LISTING = "labels.csv", "index.html", "listing.json"
LISTING_LIMIT_BYTES = 64 << 20

# Four at a time: a hostile picture of 50 megapixels takes 150 MB while it is decoded.
THREADS = 4
# Longest time between two frames of one burst, in seconds, as `[dataset] burst_s`.
BURST_S = 10.0

NAMES = r"(?:[0-9a-f]{64}\.jpg|labels\.csv|index\.html|listing\.json)"
_PICTURE = re.compile(r"[0-9a-f]{64}\.jpg")


@dataclasses.dataclass(frozen=True)
class Card:
    """One frame on the page; `accepted` is the suggestion where it is a class of the dataset, else empty."""

    row: Row
    suggested: str
    accepted: str


@dataclasses.dataclass(frozen=True)
class _Copied:
    """A frame that was copied; `small` shows it, None where its fingerprint is known or it has none."""

    frame: ListedFrame
    small: NDArray[np.uint8] | None = None


def folder_digest(listing: InboxListing, labels: Sequence[str], most: int) -> str:
    """Return the digest of a labelling folder: of the inbox, the offered classes and the number of frames."""
    return content_key("labelling", LABELLING_VERSION, listing.digest, labels, most)


def fill_folder(
    store: Store,
    folder: Path,
    labels: Sequence[str],
    most: int,
    progress: Progress,
    paths: AbstractSet[str] | None = None,
) -> LabellingRecord:
    """List the inbox into a folder; `listing.json` is written last and marks it as complete.

    A folder that was listed into before keeps the labels that a person filled in, also those of a person who
    goes on meanwhile, as long as their frames are in the inbox; those that are decided on come before others.
    Pictures that have left the inbox are removed.

    Args:
        store: Store with the inbox.
        folder: Labelling folder, made if it does not exist.
        labels: Classes to offer.
        most: Largest number of frames to list.
        progress: Gets frames done.
        paths: Paths of the dataset: decisions about others are forgotten; None: they are kept.
    Raises: InputError if `labels.csv` in the folder is not a labels file; DeviceError on a disk error;
        TransportError; SettingsError.
    """
    decided = {one.frame for one in _read_filled_in(folder / LABELS_CSV) if one.label}  # else refused at once
    listing = list_inbox(store)
    listed = {*sorted(listing.names, key=lambda one: str(one) not in decided)[:most]}
    chosen = [one for one in listing.names if one in listed]
    pictures = folder / PICTURES
    with without_leftovers(folder, lambda: [folder, pictures], NAMES):
        copied, skipped = _copy_frames(store, listing, chosen, folder, progress)
    frames = _find_groups(copied)
    usable = [one for one in frames if not one.fault]
    record = LabellingRecord(
        digest=folder_digest(listing, labels, most),
        pictures=len(usable),
        waiting=len(listing.names) - len(chosen),
        skipped=tuple(SkippedObject(key=one.key, reason=one.reason) for one in (*skipped, *listing.skipped)),
        frames=tuple(frames),
        labels=tuple(labels),
    )
    cards = _write_rows(folder, frames, {*map(str, listing.names)}, labels, paths)
    write_durably(folder / PAGE, render_page(cards, labels, record).encode())
    _drop_pictures(pictures, {f"{one.sha256}.jpg" for one in usable})
    write_durably(folder / LISTING, encode_compact(record))
    return record


def find_listing(folder: Path) -> LabellingRecord | None:
    """Return what was listed into a folder; None where that is not known.

    Raises: DeviceError.
    """
    path = folder / LISTING
    with disk_errors(path):
        if not path.is_file():
            return None
        data = path.read_bytes()
    try:
        return decode_document(LabellingRecord, data, source=str(path), limit_bytes=LISTING_LIMIT_BYTES)
    except InputError:
        return None  # it is listed again


def is_listed(folder: Path, digest: str) -> bool:
    """Whether the folder is complete and has this digest."""
    if not all((folder / name).is_file() for name in (LABELS_CSV, PAGE, LISTING)):
        return False
    record = find_listing(folder)
    return record is not None and record.digest == digest


def make_row(frame: ListedFrame, label: str) -> Row:
    """Return a frame's row; text from a device cannot act as a formula in it."""
    return Row(
        picture=f"{PICTURES}/{frame.sha256}.jpg",
        label=label,
        suggested=guard(frame.label),
        confidence=f"{abs(frame.confidence):.4f}",
        why=guard(frame.why),
        device=guard(frame.device),
        release=guard(frame.release),
        at=guard(frame.at),
        frame=frame.frame,
    )


def guard(text: str) -> str:
    """Return text from a device for a cell: one line, which no spreadsheet interprets as a formula."""
    return guard_formula(excerpt(text))


def render_page(cards: Sequence[Card], labels: Sequence[str], record: LabellingRecord) -> str:
    """Return the page; it needs the folder `pictures` next to it, and no server."""
    values = {
        "cards": cards,
        "labels": labels,
        "record": record,
        "discard": DISCARD,
        "nonce": secrets.token_hex(16),
        "data": {
            "header": COLUMNS,
            "column": COLUMNS.index("label"),
            "rows": [dataclasses.astuple(card.row)[: len(COLUMNS)] for card in cards],
            "labels": labels,
        },
    }
    return render_template("labelling.html", values)


def _copy_frames(
    store: Store, listing: InboxListing, chosen: Sequence[FrameName], folder: Path, progress: Progress
) -> tuple[list[_Copied], list[Skip]]:
    """Return the frames, read where they are new, and those that cannot be used with the reason."""
    from luigi_tasks.dataset.pixels import in_threads  # noqa: PLC0415 - NumPy

    before = find_listing(folder)
    known = {one.frame: one for one in before.frames} if before is not None else {}
    pictures = folder / PICTURES

    def copy(name: FrameName) -> _Copied | Skip:
        frame = known.get(str(name))
        is_same = frame is not None and frame.version == listing.versions[name]
        if frame is not None and is_same and (frame.fault or (pictures / f"{frame.sha256}.jpg").is_file()):
            return _Copied(frame)
        try:
            return _copy_frame(read_frame(store, name), listing.versions[name], pictures)
        except InputError as e:
            return _refuse(store, name, listing.versions[name], e)

    found = in_threads(copy, chosen, "reading frames", progress, threads=THREADS)
    copied = [one for one in found if isinstance(one, _Copied)]
    skipped = [skip(f"inbox/{one.frame.frame}", one.frame.fault) for one in copied if one.frame.fault]
    return copied, skipped + [one for one in found if isinstance(one, Skip)]


def _copy_frame(frame: Frame, version: str, pictures: Path) -> _Copied:
    from luigi_tasks.dataset.fingerprints import is_large_enough  # noqa: PLC0415 - NumPy

    record = frame.record
    write_durably(pictures / f"{record.sha256}.jpg", frame.picture)
    listed = ListedFrame(
        frame=str(frame.name),
        version=version,
        sha256=record.sha256,
        label=excerpt(record.label),
        confidence=record.confidence,
        why=excerpt(record.why),
        release=excerpt(record.release or ""),
        at=excerpt(record.at),
    )
    return _Copied(listed, frame.small if is_large_enough(frame.picture) else None)


def _refuse(store: Store, name: FrameName, version: str, fault: InputError) -> _Copied | Skip:
    """Return a frame that cannot be used; if its picture is there, it can be thrown away."""
    try:
        sha256 = hash_picture(store, name)
    except InputError as e:
        return skip(name.keys[0], e)
    return _Copied(ListedFrame(frame=str(name), version=version, sha256=sha256, fault=skip("", fault).reason))


def _find_groups(copied: Sequence[_Copied]) -> list[ListedFrame]:
    """Return the frames with fingerprints and groups."""
    import numpy as np  # noqa: PLC0415 - as below

    from luigi_tasks.dataset.fingerprints import encode  # noqa: PLC0415 - NumPy
    from luigi_tasks.labelling.similar import find_groups  # noqa: PLC0415 - NumPy

    new = [one.small for one in copied if one.small is not None]
    prints = iter(encode(np.stack(new)) if new else ())
    frames = [
        one.frame if one.small is None else msgspec.structs.replace(one.frame, fingerprint=next(prints))
        for one in copied
    ]
    groups = find_groups(frames, BURST_S)
    return [msgspec.structs.replace(one, group=groups.get(one.frame, "")) for one in frames]


def _write_rows(
    folder: Path,
    frames: Sequence[ListedFrame],
    inbox: AbstractSet[str],
    labels: Sequence[str],
    paths: AbstractSet[str] | None,
) -> list[Card]:
    """Write `labels.csv`, with the labels that are in it at this moment.

    A frame that was decided on and waits in the inbox keeps its row, also where it is beyond the limit.
    """
    path, offered = folder / LABELS_CSV, set(labels)
    beyond = inbox - {one.frame for one in frames}
    with hold_labels(folder):
        kept = {one.frame or one.path: one for one in _read_filled_in(path)}
        cards, more = [], [one for one in kept.values() if one.path and (paths is None or one.path in paths)]
        more += [one for one in kept.values() if one.label and one.frame in beyond]
        for frame in frames:
            row = make_row(frame, "")
            before = kept.get(frame.frame)
            if before is not None and before.picture == row.picture:
                row = dataclasses.replace(row, label=before.label)
            if not frame.fault:
                cards.append(Card(row, frame.label, frame.label if frame.label in offered else ""))
            elif row.label:
                more.append(row)
        write_durably(path, write_labels([*(card.row for card in cards), *more]))
    return cards


def _read_filled_in(path: Path) -> Iterable[Row]:
    """Return the rows that a person filled in before, so that another listing keeps their labels."""
    if not path.exists():
        return ()
    try:
        read_labels_file(path)
        return read_rows(path)
    except EdgeError as e:
        msg = f"{path} would be overwritten: {e}. Give another folder, or move the file away"
        raise InputError(msg) from e


def _drop_pictures(pictures: Path, listed: set[str]) -> None:
    """Remove pictures of frames that left the inbox: discarded frames must not stay here."""
    if not pictures.is_dir():
        return
    with disk_errors(pictures):
        for path in pictures.iterdir():
            if _PICTURE.fullmatch(path.name) and path.name not in listed:
                path.unlink()
