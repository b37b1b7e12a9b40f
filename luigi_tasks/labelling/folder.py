"""Labelling folder: pictures, `labels.csv` and a page that fills it in.

`labels.csv` is self-contained, so it may come back from a spreadsheet or from a browser's downloads without
the folder. It has one row for each frame; a person fills in the column `label`: a class, or `-` to discard
the frame.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import secrets
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import excerpt
from edge_client.disk import disk_errors, write_durably
from luigi_tasks.cells import guard_formula
from luigi_tasks.labelling.inbox import FrameName, Skip, list_inbox, read_frame, skip
from luigi_tasks.labelling.leftovers import without_leftovers
from luigi_tasks.labelling.records import LabellingRecord, SkippedObject
from luigi_tasks.pages import render_template
from luigi_tasks.storage.documents import content_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from luigi_tasks.labelling.inbox import Frame, InboxListing
    from luigi_tasks.progress import Progress
    from luigi_tasks.storage.store import Store

LABELLING_VERSION = 1  # raised when the same inbox would give another folder
LABELS_CSV, PAGE, LISTING, PICTURES = "labels.csv", "index.html", "listing.json", "pictures"
LABELS_LIMIT_BYTES = 64 << 20
LISTING_LIMIT_BYTES = 64 << 20
DISCARD = "-"

# Four at a time: a hostile picture of 50 megapixels takes 150 MB while it is decoded.
THREADS = 4

NAMES = r"(?:[0-9a-f]{64}\.jpg|labels\.csv|index\.html|listing\.json)"
_PICTURE = re.compile(rf"{PICTURES}/([0-9a-f]{{64}})\.jpg")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of `labels.csv`, as text.

    Attributes:
        picture: Path in the folder; its name is the picture's SHA-256.
        label: Label that a person chose; empty: not decided.
        suggested: The device's best label.
        confidence: Confidence of the suggested label.
        why: Reason why the device kept the frame.
        device: Device id.
        release: Release that classified it.
        at: Time of the frame.
        frame: `<device>/<name>` in the inbox; a spreadsheet cannot mistake it for a number or a date.
    """

    picture: str
    label: str
    suggested: str
    confidence: str
    why: str
    device: str
    release: str
    at: str
    frame: str


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
NEEDED_COLUMNS = ("picture", "label", "frame")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One row of a filled-in file.

    Attributes:
        line: Line in the file, for messages.
        name: The frame.
        sha256: Digest of its picture when it was listed.
        label: Label that a person chose; empty: not decided.
    """

    line: int
    name: FrameName
    sha256: str
    label: str


@dataclasses.dataclass(frozen=True)
class Card:
    """One frame on the page; `accepted` is the suggestion where it is a class of the dataset, else empty."""

    row: Row
    suggested: str
    accepted: str


def folder_digest(listing: InboxListing, labels: Sequence[str], most: int) -> str:
    """Return the digest of a labelling folder: of the inbox, the offered classes and the number of frames."""
    return content_key("labelling", LABELLING_VERSION, listing.digest, labels, most)


def fill_folder(
    store: Store, folder: Path, labels: Sequence[str], most: int, progress: Progress
) -> LabellingRecord:
    """List the inbox into a folder; `listing.json` is written last and marks it as complete.

    A folder that was listed into before keeps the labels that a person filled in; pictures that have left the
    inbox are removed.

    Args:
        store: Store with the inbox.
        folder: Labelling folder, made if it does not exist.
        labels: Classes to offer.
        most: Largest number of frames to list.
        progress: Gets frames done.
    Raises: InputError if `labels.csv` in the folder is not a labels file; DeviceError on a disk error;
        TransportError; SettingsError.
    """
    kept = _read_filled_in(folder / LABELS_CSV)
    listing = list_inbox(store)
    chosen = listing.names[:most]
    pictures = folder / PICTURES
    with without_leftovers(folder, lambda: [folder, pictures], NAMES):
        cards, skipped = _copy_frames(store, chosen, pictures, labels, kept, progress)
    record = LabellingRecord(
        digest=folder_digest(listing, labels, most),
        pictures=len(cards),
        waiting=len(listing.names) - len(chosen),
        skipped=tuple(SkippedObject(key=one.key, reason=one.reason) for one in (*skipped, *listing.skipped)),
    )
    write_durably(folder / LABELS_CSV, write_labels(card.row for card in cards))
    write_durably(folder / PAGE, render_page(cards, labels, record).encode())
    _drop_pictures(folder / PICTURES, {card.row.picture for card in cards})
    write_durably(folder / LISTING, encode_document(record))
    return record


def is_listed(folder: Path, digest: str) -> bool:
    """Whether the folder is complete and has this digest."""
    if not all((folder / name).is_file() for name in (LABELS_CSV, PAGE, LISTING)):
        return False
    path = folder / LISTING
    with disk_errors(path):
        data = path.read_bytes()
    try:
        record = decode_document(LabellingRecord, data, source=str(path), limit_bytes=LISTING_LIMIT_BYTES)
    except InputError:
        return False  # it is listed again
    return record.digest == digest


def make_row(frame: Frame, label: str) -> Row:
    """Return a frame's row; text from a device cannot act as a formula in it."""
    record = frame.record
    return Row(
        picture=f"{PICTURES}/{record.sha256}.jpg",
        label=label,
        suggested=guard(record.label),
        confidence=f"{abs(record.confidence):.4f}",
        why=guard(record.why),
        device=guard(record.device),
        release=guard(record.release or ""),
        at=guard(record.at),
        frame=str(frame.name),
    )


def guard(text: str) -> str:
    """Return text from a device for a cell: one line, which no spreadsheet interprets as a formula."""
    return guard_formula(excerpt(text))


def write_labels(rows: Iterable[Row]) -> bytes:
    """Return `labels.csv`: UTF-8 with a byte order mark for Excel, every cell quoted."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows(dataclasses.astuple(row) for row in rows)
    return file.getvalue().encode("utf-8-sig")


def read_labels(path: Path) -> tuple[Labelled, ...]:
    """Read a filled-in `labels.csv`, separated by commas, semicolons or tabs.

    Raises: InputError that lists every fault at once.
    """
    rows, faults = [], []
    for line, cells in _read_rows(path):
        try:
            rows.append(_parse_row(line, cells))
        except InputError as e:
            faults.append(f"line {line}: {e}")
    if faults:
        msg = f"{path}: {'; '.join(faults)}. Change only the column `label`; list the inbox again"
        raise InputError(msg)
    return tuple(rows)


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
            "rows": [dataclasses.astuple(card.row) for card in cards],
            "labels": labels,
        },
    }
    return render_template("labelling.html", values)


def _copy_frames(
    store: Store,
    names: Sequence[FrameName],
    pictures: Path,
    labels: Sequence[str],
    kept: Mapping[tuple[FrameName, str], str],
    progress: Progress,
) -> tuple[list[Card], list[Skip]]:
    from luigi_tasks.dataset.pixels import in_threads  # noqa: PLC0415 - NumPy

    known = set(labels)

    def copy(name: FrameName) -> Card | Skip:
        try:
            frame = read_frame(store, name)
        except InputError as e:
            return skip(name.keys[0], e)
        record = frame.record
        write_durably(pictures / f"{record.sha256}.jpg", frame.picture)
        row = make_row(frame, kept.get((name, record.sha256), ""))
        return Card(row, excerpt(record.label), record.label if record.label in known else "")

    found = in_threads(copy, names, "reading frames", progress, threads=THREADS)
    return [one for one in found if isinstance(one, Card)], [one for one in found if isinstance(one, Skip)]


def _read_filled_in(path: Path) -> dict[tuple[FrameName, str], str]:
    """Return the labels that a person filled in before, so that another listing keeps them."""
    if not path.exists():
        return {}
    try:
        return {(row.name, row.sha256): row.label for row in read_labels(path)}
    except EdgeError as e:
        msg = f"{path} would be overwritten: {e}. Give another folder, or move the file away"
        raise InputError(msg) from e


def _drop_pictures(pictures: Path, listed: set[str]) -> None:
    """Remove pictures of frames that left the inbox: discarded frames must not stay here."""
    if not pictures.is_dir():
        return
    with disk_errors(pictures):
        for path in pictures.iterdir():
            name = f"{PICTURES}/{path.name}"
            if _PICTURE.fullmatch(name) and name not in listed:
                path.unlink()


def _read_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the cells of each row by column, with the line number."""
    text = _read_text(path)
    header = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        columns = [one.strip().lower() for one in next(reader, [])]
        missing = [one for one in NEEDED_COLUMNS if one not in columns]
        if missing:
            msg = f"{path}: no column {', '.join(missing)}; give a labels.csv of ListInbox, with its header"
            raise InputError(msg)
        return [
            (reader.line_num, dict(zip(columns, cells, strict=False)))
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as e:
        msg = f"{path}: not a CSV file ({e}); save it as `CSV UTF-8` from the spreadsheet"
        raise InputError(msg) from e


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > LABELS_LIMIT_BYTES:
            msg = f"{path}: larger than {LABELS_LIMIT_BYTES} bytes, so not a labels.csv; check the path"
            raise InputError(msg)
        return path.read_bytes().decode("utf-8-sig")
    except OSError as e:
        msg = f"{path}: {e.strerror}; give the filled-in labels.csv"
        raise InputError(msg) from e
    except UnicodeDecodeError as e:
        msg = f"{path}: not UTF-8; save it as `CSV UTF-8` from the spreadsheet"
        raise InputError(msg) from e


def _parse_row(line: int, cells: Mapping[str, str]) -> Labelled:
    picture = _PICTURE.fullmatch(cells.get("picture", "").strip().replace("\\", "/"))
    if picture is None:
        msg = f"picture {cells.get('picture', '')[:80]!r} is not a picture of a listing"
        raise InputError(msg)
    device, _, name = cells.get("frame", "").strip().partition("/")
    return Labelled(line, FrameName.of(device, name), picture[1], cells.get("label", "").strip())
