"""Desk: one labelling folder at which several people label at once, over restarts.

What they choose stands in the folder's `labels.csv` alone, as ListInbox makes it and TakeLabelled reads it. A
choice says which label its author saw; where another person chose meanwhile, it is refused and the author
sees that choice. `decisions.jsonl` next to it has who chose what and when; without it, only that is unknown.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import unicodedata
from typing import TYPE_CHECKING, TypeVar

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_compact
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import excerpt
from edge_client.contract.times import utc_now
from edge_client.disk import disk_errors, write_durably
from luigi_tasks.labelling.folder import LABELS_CSV, LISTING, LISTING_LIMIT_BYTES, guard, make_row
from luigi_tasks.labelling.intake import judge_new_label
from luigi_tasks.labelling.labels_file import (
    DISCARD,
    PICTURES,
    Row,
    hold_labels,
    read_rows,
    write_labels,
)
from luigi_tasks.labelling.records import DoubtsFound, LabellingRecord, Taken
from luigi_tasks.labelling.taken import TAKEN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from luigi_tasks.labelling.records import DoubtfulPicture, ListedFrame

DECISIONS, DOUBTFUL = "decisions.jsonl", "doubtful.json"
# Before the path of a picture of the dataset; no id of a frame has a colon.
OF_DATASET = "dataset:"
_DECISIONS_BYTES = 16 << 20
DocumentT = TypeVar("DocumentT", bound=Document)
T = TypeVar("T")


class Decision(Document, frozen=True, kw_only=True):
    """One line of `decisions.jsonl`.

    Attributes:
        at: When, UTC, ISO 8601.
        by: Who; empty: not known.
        chosen: Id of each picture, the label before, and the label now.
    """

    at: str
    by: str
    chosen: tuple[tuple[str, str, str], ...]


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a person chooses for a picture.

    Attributes:
        id: `<device>/<name>` of a frame, or `dataset:<path>`.
        label: The label; `-`: thrown away; empty: undecided.
        was: The label that the person saw.
    """

    id: str
    label: str
    was: str = ""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a choice.

    Attributes:
        id: The picture.
        label: Its label now.
        by: Who chose that; empty: not known, or nobody.
        fault: Why the choice does not count; empty: it does.
        is_new: Whether it does not count since the label would start a class, which is to be confirmed.
    """

    id: str
    label: str
    by: str
    fault: str = ""
    is_new: bool = False


class Desk:
    """A labelling folder; may be used from any thread.

    Args:
        folder: The folder; it may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.RLock()
        self._kept: dict[str, tuple[object, object]] = {}
        self._by: dict[str, str] = {}
        self._read_to = 0

    # What there is

    def listing(self) -> LabellingRecord | None:
        """Return what the inbox had; None: it was not listed yet. Raises DeviceError."""
        return self._fresh(LISTING, functools.partial(self._document, LabellingRecord))

    def doubts(self) -> DoubtsFound:
        """Return the doubtful labels of the dataset. Raises DeviceError."""
        return self._fresh(DOUBTFUL, functools.partial(self._document, DoubtsFound)) or DoubtsFound()

    def taken(self) -> Taken | None:
        """Return what the last TakeLabelled did; None: nothing was taken yet. Raises DeviceError."""
        return self._fresh(TAKEN, functools.partial(self._document, Taken))

    def frames(self) -> dict[str, ListedFrame]:
        """Return the frames by id. Raises DeviceError."""
        record = self.listing()
        if record is None:
            return {}
        return self._of(record, "frames", lambda: {one.frame: one for one in record.frames})

    def pictures(self) -> dict[str, DoubtfulPicture]:
        """Return the doubtful pictures of the dataset by id. Raises DeviceError."""
        doubts = self.doubts()
        return self._of(doubts, "pictures", lambda: {OF_DATASET + one.path: one for one in doubts.doubtful})

    def chosen(self) -> dict[str, str]:
        """Return the label of each picture that is decided on. Raises InputError; DeviceError."""
        return {name: row.label for name, row in self._rows().items() if row.label}

    def labels(self) -> tuple[str, ...]:
        """Return the classes of the dataset, then those that labels start; `-` is none."""
        record = self.listing()
        known = {*record.labels} - {DISCARD} if record is not None else set()
        fresh = {*self.chosen().values()} - {DISCARD, *known}
        return tuple(
            one for some in (known, fresh) for one in sorted(some, key=lambda one: (one.casefold(), one))
        )

    def who(self, name: str) -> str:
        """Return who chose a picture's label; empty: not known."""
        with self._lock:
            self._read_decisions()
            return self._by.get(name, "")

    def since(self, place: int) -> tuple[int, list[tuple[str, str, str]] | None]:
        """Return where the decisions end now, and those after a place: id, label and who.

        Args:
            place: What this returned before.
        Returns: None for the decisions if the place is none of this file: all are to be read again.
        """
        path = self.folder / DECISIONS
        with self._lock, disk_errors(path):
            end = path.stat().st_size if path.exists() else 0
            if not 0 <= place <= end:
                return end, None
            found: list[tuple[str, str, str]] = []
            if place < end:
                with path.open("rb") as file:
                    file.seek(place)
                    decisions = _decisions(file.read(end - place))
                    found = [(name, label, one.by) for one in decisions for name, _, label in one.chosen]
            return end, found

    # What people choose

    def choose(self, choices: Sequence[Choice], by: str, *, new_class: bool = False) -> list[Outcome]:
        """Keep what a person chose, all that can be kept; it is durable on return.

        Args:
            choices: What.
            by: Who; empty: not known.
            new_class: Whether a label may start a class.
        Raises: InputError if `labels.csv` is none; DeviceError.
        """
        with self._lock, hold_labels(self.folder):
            rows = dict(self._rows())
            known = {*self.labels()}
            outcomes, changed = [], []
            for given in choices:
                choice = dataclasses.replace(given, label=unicodedata.normalize("NFC", given.label).strip())
                now = rows[choice.id].label if choice.id in rows else ""
                fault, is_new = self._judge(choice, now, known, new_class=new_class)
                if not fault and now != choice.label:
                    rows[choice.id] = self._row(choice, rows.get(choice.id))
                    changed.append((choice.id, now, choice.label))
                outcomes.append((choice, fault, is_new))
            if changed:
                self._write(rows)
                self._note(Decision(at=utc_now(), by=by, chosen=tuple(changed)))
            return [
                Outcome(
                    one.id,
                    rows[one.id].label if one.id in rows else "",
                    self.who(one.id) if one.id in rows and rows[one.id].label else "",
                    fault,
                    is_new,
                )
                for one, fault, is_new in outcomes
            ]

    def _judge(self, choice: Choice, now: str, known: set[str], *, new_class: bool) -> tuple[str, bool]:
        """Return why a choice does not count, and whether it would with `new_class`."""
        frame, picture = self.frames().get(choice.id), self.pictures().get(choice.id)
        names_class = choice.label not in {"", DISCARD}
        fault, is_new = "", False
        if frame is None and picture is None:
            fault = "it is not here any more: taken meanwhile, or gone"
        elif now not in {choice.was, choice.label}:
            fault = f"{self.who(choice.id) or 'somebody'} chose {_in_words(now)} meanwhile"
        elif picture is not None and self.doubts().fault:
            fault = self.doubts().fault
        elif frame is not None and frame.fault and names_class:
            fault = f"it can only be thrown away: {frame.fault}"
        elif names_class and choice.label not in known:
            reason = judge_new_label(choice.label, known)
            fault = f"{excerpt(choice.label)!r} {reason}" if reason else "it starts a class; confirm that"
            is_new = not reason
        return ("", False) if is_new and new_class else (fault, is_new)

    def _row(self, choice: Choice, row: Row | None) -> Row:
        if row is not None:
            return dataclasses.replace(row, label=choice.label)
        frame = self.frames().get(choice.id)
        if frame is not None:
            return make_row(frame, choice.label)
        picture = self.pictures()[choice.id]
        return Row(
            picture=f"{PICTURES}/{picture.sha256}.jpg",
            label=choice.label,
            suggested=guard(picture.probable),
            confidence=f"{picture.score:.4f}",
            why=guard(picture.why),
            device="",
            release="",
            at="",
            frame="",
            path=picture.path,
        )

    # Files

    def _rows(self) -> dict[str, Row]:
        found = self._fresh(LABELS_CSV, lambda path: {_id_of(row): row for row in read_rows(path)})
        return found if found is not None else {}

    def _write(self, rows: dict[str, Row]) -> None:
        """Write `labels.csv`; rows that were made for a decision alone go with it."""
        own = self.frames()
        kept = {name: row for name, row in rows.items() if row.label or (name in own and not own[name].fault)}
        path = self.folder / LABELS_CSV
        write_durably(path, write_labels(kept.values()))
        self._kept[LABELS_CSV] = (_version(path), kept)

    def _note(self, decision: Decision) -> None:
        path = self.folder / DECISIONS
        with disk_errors(path):
            if path.exists() and path.stat().st_size > _DECISIONS_BYTES:
                path.replace(path.with_name(f"{DECISIONS}.1"))
                self._read_to = 0
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, encode_compact(decision) + b"\n")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def _read_decisions(self) -> None:
        path = self.folder / DECISIONS
        with disk_errors(path):
            if not path.exists() or path.stat().st_size == self._read_to:
                return
            with path.open("rb") as file:
                file.seek(self._read_to)
                data = file.read()
        self._read_to += len(data)
        for one in _decisions(data):
            self._by.update(dict.fromkeys((name for name, _, _ in one.chosen), one.by))

    def _fresh(self, name: str, read: Callable[[Path], T | None]) -> T | None:
        """Return what a file has; it is read again once it was written."""
        path = self.folder / name
        with self._lock, disk_errors(path):
            version = _version(path)
            if version is None:
                return None
            known = self._kept.get(name)
            if known is None or known[0] != version:
                known = self._kept[name] = (version, read(path))
            return known[1]  # type: ignore[return-value]

    def _of(self, record: object, name: str, make: Callable[[], T]) -> T:
        """Return what is made of a record, once."""
        with self._lock:
            known = self._kept.get(name)
            if known is None or known[0] is not record:
                known = self._kept[name] = (record, make())
            return known[1]  # type: ignore[return-value]

    @staticmethod
    def _document(kind: type[DocumentT], path: Path) -> DocumentT | None:
        try:
            return decode_document(kind, path.read_bytes(), source=str(path), limit_bytes=LISTING_LIMIT_BYTES)
        except InputError:
            return None  # it is written again


def _in_words(label: str) -> str:
    return {"": "to leave it undecided", DISCARD: "to throw it away"}.get(label, repr(excerpt(label)))


def _id_of(row: Row) -> str:
    return row.frame or OF_DATASET + row.path


def _version(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _decisions(data: bytes) -> Iterable[Decision]:
    for line in data.splitlines():
        try:
            yield msgspec.json.decode(line, type=Decision)
        except (msgspec.DecodeError, EdgeError):  # half a line, of a power cut
            continue
