"""`labels.csv` of a labelling folder: what a person, or several, chose for each picture.

It is self-contained, so it may come back from a spreadsheet or from a browser's downloads without the folder.
It has one row for each frame of the inbox; a person fills in the column `label`: a class, or `-` to discard
the frame. Where decisions are about pictures of the dataset too, a further column `path` names them; `frame`
is empty in their rows.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import fcntl
import io
import os
import re
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.labelling.inbox import FrameName

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

PICTURES = "pictures"
LABELS_LIMIT_BYTES = 64 << 20
DISCARD = "-"
_PICTURE = re.compile(rf"{PICTURES}/([0-9a-f]{{64}})\.jpg")
_LOCK = ".labels.lock"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of `labels.csv`, as text.

    Attributes:
        picture: Path in the folder; its name is the picture's SHA-256.
        label: Label that a person chose; empty: not decided.
        suggested: The device's best label; of a picture of the dataset, the class that it probably is of.
        confidence: Confidence of the suggested label.
        why: Reason why the device kept the frame.
        device: Device id.
        release: Release that classified it.
        at: Time of the frame.
        frame: `<device>/<name>` in the inbox; a spreadsheet cannot mistake it for a number or a date.
        path: Path of a picture of the dataset; empty: a frame.
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
    path: str = ""


ALL_COLUMNS = tuple(field.name for field in dataclasses.fields(Row))
COLUMNS = ALL_COLUMNS[:-1]  # of a file about frames alone, as in versions before 0.4
NEEDED_COLUMNS = ("picture", "label", "frame")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """A frame of a filled-in file.

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
class Relabelled:
    """A picture of the dataset in a filled-in file.

    Attributes:
        line: Line in the file, for messages.
        path: Path in the dataset.
        sha256: Digest of the picture when its label was doubted.
        label: Label that a person chose, its own to confirm it; empty: not decided.
    """

    line: int
    path: str
    sha256: str
    label: str


@dataclasses.dataclass(frozen=True)
class LabelsFile:
    """A filled-in file."""

    frames: tuple[Labelled, ...] = ()
    pictures: tuple[Relabelled, ...] = ()


def write_labels(rows: Iterable[Row]) -> bytes:
    """Return `labels.csv`: UTF-8 with a byte order mark for Excel, every cell quoted."""
    rows = list(rows)
    columns = ALL_COLUMNS if any(row.path for row in rows) else COLUMNS
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows(dataclasses.astuple(row)[: len(columns)] for row in rows)
    return file.getvalue().encode("utf-8-sig")


def read_rows(path: Path) -> list[Row]:
    """Return the rows as they are, to be written again.

    Raises: InputError if it is no labels file.
    """
    return [
        Row(**{name: cells.get(name, "") or "" for name in ALL_COLUMNS}) for _, cells in _read_cells(path)
    ]


def read_labels_file(path: Path) -> LabelsFile:
    """Read a filled-in `labels.csv`, separated by commas, semicolons or tabs.

    Raises: InputError that lists every fault at once.
    """
    frames, pictures, faults = [], [], []
    for line, cells in _read_cells(path):
        try:
            found = _parse_row(line, cells)
        except InputError as e:
            faults.append(f"line {line}: {e}")
            continue
        if isinstance(found, Labelled):
            frames.append(found)
        else:
            pictures.append(found)
    if faults:
        msg = f"{path}: {'; '.join(faults)}. Change only the column `label`; list the inbox again"
        raise InputError(msg)
    return LabelsFile(tuple(frames), tuple(pictures))


def read_labels(path: Path) -> tuple[Labelled, ...]:
    """Read the frames of a filled-in `labels.csv`.

    Raises: as `read_labels_file`.
    """
    return read_labels_file(path).frames


@contextlib.contextmanager
def hold_labels(folder: Path) -> Iterator[None]:
    """Hold a folder's `labels.csv` for the block, against all other processes that read and then write it.

    Nothing is held on a file system without locks.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def _read_cells(path: Path) -> list[tuple[int, dict[str, str]]]:
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


def _parse_row(line: int, cells: Mapping[str, str]) -> Labelled | Relabelled:
    picture = _PICTURE.fullmatch(cells.get("picture", "").strip().replace("\\", "/"))
    if picture is None:
        msg = f"picture {cells.get('picture', '')[:80]!r} is not a picture of a listing"
        raise InputError(msg)
    label, frame = cells.get("label", "").strip(), cells.get("frame", "").strip()
    if not frame and (path := cells.get("path", "")):
        return Relabelled(line, path, picture[1], label)
    device, _, name = frame.partition("/")
    return Labelled(line, FrameName.of(device, name), picture[1], label)
