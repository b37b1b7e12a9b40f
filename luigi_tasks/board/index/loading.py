"""Writing of the index: registry and snapshot go by, and of the rows no two are in memory."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import heapq
import itertools
import time
from typing import TYPE_CHECKING

import msgspec
import zstandard

from edge_client.contract.errors import InputError, TrustError
from luigi_tasks.board.index.counting import Counter
from luigi_tasks.board.index.database import COLUMNS, create_tables, database_faults, new_index
from luigi_tasks.board.index.history import History
from luigi_tasks.board.index.records import IndexContent, IndexedDevice
from luigi_tasks.board.index.rows import text_of, to_row
from luigi_tasks.fleet.device_state import is_heard
from luigi_tasks.fleet.reading import read_view_without_rows
from luigi_tasks.fleet.snapshots import SILENT_AFTER, open_rows
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from luigi_tasks.board.index.records import Counts
    from luigi_tasks.fleet.records import DeviceRow, SnapshotHead
    from luigi_tasks.fleet.view import FleetView, ShownDevice
    from luigi_tasks.settings.values import PipelineSettings

_INSERT = f"INSERT INTO devices VALUES ({', '.join('?' * (len(COLUMNS) + 2))})"  # noqa: S608 - question marks
_FACTS = "INSERT OR IGNORE INTO facts VALUES (?, ?, ?)"
_MORE = "INSERT INTO more VALUES (?, ?)"
_BATCH = 1000
_encode = msgspec.json.Encoder().encode


def load(settings: PipelineSettings, folder: Path, version: str) -> IndexContent:
    """Read the fleet and write its index in the place of the one before; return what it is made of.

    Args:
        settings: All settings.
        folder: Where the index lies; made where it is missing.
        version: Names what is read, as it was looked at.
    Raises: TrustError if the signed repository cannot be trusted; TransportError, SettingsError. The index
        before stays then.
    """
    with _one_at_a_time(folder):
        began = time.monotonic()
        view = read_view_without_rows(settings)
        with new_index(folder) as connection:
            content = _write(connection, settings, view)
            load_s = round(time.monotonic() - began, 2)
            content = msgspec.structs.replace(content, version=version, load_s=load_s)
            connection.execute("INSERT INTO content VALUES (?)", (msgspec.msgpack.encode(content),))
        if content.head is not None:
            with History(folder) as history:
                history.add(content.head.taken_at, content.counts)
        return content


def source_of(settings: PipelineSettings) -> str:
    """Return what an index is of: another bucket or fleet needs another one."""
    return f"{settings.store.url} {settings.broker.fleet}"


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let two boards with one folder write one after the other; a process that is killed holds nothing."""
    with database_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "index.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@dataclasses.dataclass(frozen=True)
class _Filled:
    rows: int
    heard: int
    counts: dict[str, Counts]


def _write(connection: sqlite3.Connection, settings: PipelineSettings, view: FleetView) -> IndexContent:
    """Write all rows; where those of the snapshot cannot be read, the registry's, and say so."""
    faults, head = list(view.faults), view.head
    try:
        filled = _fill(connection, view, _open_rows(settings, view))
    except (InputError, TrustError) as e:
        faults.append(str(e))
        create_tables(connection)
        filled, head = _fill(connection, dataclasses.replace(view, snapshot=None), ()), None
    if head is not None and view.snapshot is not None and len(view.snapshot.sources) > 1:
        head = msgspec.structs.replace(head, heard=filled.heard)
    return IndexContent(
        version="",
        source=source_of(settings),
        fleet=view.fleet,
        head=head,
        has_registry=view.registry is not None,
        rows=filled.rows,
        counts=filled.counts,
        faults=tuple(faults),
        notes=view.notes,
    )


def _open_rows(settings: PipelineSettings, view: FleetView) -> Iterable[DeviceRow]:
    if view.snapshot is None or view.registry is None:
        return ()
    store = open_store(settings.store)
    return open_rows(store, view.snapshot.sources, view.fleet, view.registry.collectors)


def _fill(connection: sqlite3.Connection, view: FleetView, rows: Iterable[DeviceRow]) -> _Filled:
    counter, heard, number = Counter(), _HeardCounter(view.head), 0
    compress = zstandard.ZstdCompressor(level=1).compress
    shown = _put_together(view, rows)
    while batch := list(itertools.islice(shown, _BATCH)):
        devices, facts, further = [], [], []
        for number, one in enumerate(batch, number + 1):  # noqa: B020 - goes on from the batch before
            row, more = to_row(view, one)
            counter.add(row)
            heard.add(one.row)
            named = [(kind, value) for kind, values in one.facts().items() for value in values if value]
            devices.append(_values(number, row, text_of(row, (value for _, value in named))))
            facts += [(kind, value, number) for kind, value in named]
            facts += [("odd", name, number) for name in row.odd]
            further.append((number, compress(_encode(more))))
        connection.executemany(_INSERT, devices)
        connection.executemany(_FACTS, facts)
        connection.executemany(_MORE, further)
    return _Filled(number, heard.devices, counter.counts())


def _put_together(view: FleetView, rows: Iterable[DeviceRow]) -> Iterator[ShownDevice]:
    """Yield each channel of each device, those of the registry and others that reported, by name."""
    enrolled = (
        (device, channel, None)
        for device in sorted(view.enrolled)
        for channel in sorted(set(view.enrolled[device].channels))
    )
    heard = ((row.device, row.channel, row) for row in rows)
    merged: Iterator[tuple[str, str, DeviceRow | None]] = heapq.merge(
        enrolled, heard, key=lambda one: one[:2]
    )
    for (device, channel), group in itertools.groupby(merged, key=lambda one: one[:2]):
        found = [row for _, _, row in group if row is not None]
        yield view.show(device, channel, view.enrolled.get(device), found[0] if found else None)


class _HeardCounter:
    """Counts the devices that do not owe a report, as `snapshots.count_heard`."""

    def __init__(self, head: SnapshotHead | None) -> None:
        self.devices = 0
        self._head = head
        self._last = ""

    def add(self, row: DeviceRow | None) -> None:
        if row is None or self._head is None or not row.enrolled or row.device == self._last:
            return
        if is_heard(row, self._head.taken_at, SILENT_AFTER):
            self.devices += 1
            self._last = row.device


def _values(number: int, row: IndexedDevice, text: str) -> tuple[object, ...]:
    """Return a row as SQLite has it: `COLUMNS` with the number in front, the text behind."""
    values = (getattr(row, name) for name in IndexedDevice.__struct_fields__)
    return (number, *(list_of(one) if isinstance(one, tuple) else one for one in values), text)


def list_of(texts: tuple[str, ...]) -> str | None:
    """Return a list as a cell; None where it is empty."""
    return _encode(texts).decode() if texts else None
