"""Questions to the index: the table of devices, and one device."""

from __future__ import annotations

import collections
import sqlite3
import threading
from array import array
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

from luigi_tasks.board.index.database import COLUMNS, SORTED, DamagedIndexError, read_order
from luigi_tasks.board.index.records import (
    ROWS_AT_MOST,
    DeviceDetail,
    DeviceMore,
    DeviceQuery,
    IndexedDevice,
    TablePart,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.board.index.records import IndexContent

SORTS = ("device", *SORTED)
_WORDS_AT_MOST = 8
_OFFSET_AT_MOST = 100_000_000
# Numbers of so many rows are remembered, 4 bytes each.
_REMEMBERED_ROWS = 2_000_000
_MORE_LIMIT_BYTES = 16 << 20
_SWITCHES = {"yes": "= 1", "no": "= 0", "unknown": "IS NULL"}
# Fields of a query that are columns, and those that are facts: a site may be the registry's or the device's.
_EQUAL = {"channel": "channel", "release": "release", "heard": "heard", "state": "rollout_state"}
_FACTS = {"site": "site", "device_class": "class", "tag": "tag", "odd": "odd"}
_LISTS, _CLAIMS = ("tags", "notes", "odd"), ("enrolled", "online", "is_signed", "drift_alarm")


class Finder:
    """Answers questions for the table of devices, and remembers which rows the last filters let through.

    Who turns pages or types gets them without looking through all rows again.
    """

    def __init__(self) -> None:
        self._known: collections.OrderedDict[object, array[int]] = collections.OrderedDict()
        self._lock = threading.Lock()

    def find(self, connection: sqlite3.Connection, query: DeviceQuery, content: IndexContent) -> TablePart:
        """Return a part of the table of devices.

        Args:
            connection: The index.
            query: What is asked for.
            content: What the index is made of.
        Raises: DamagedIndexError.
        """
        query = _understood(query)
        where, values = _conditions(query)
        key = (content.version, where, tuple(values))
        try:
            with self._lock:
                matches = self._known.get(key)
            if matches is None and where:
                matches = _match(connection, where, values)
                self._remember(key, matches)
            total, part = _cut(connection, query, content.rows, matches)
            return TablePart(query=query, total=total, devices=_read(connection, part))
        except (sqlite3.DatabaseError, msgspec.MsgspecError, TypeError, ValueError, LookupError) as e:
            raise DamagedIndexError(str(e)) from e

    def _remember(self, key: object, ids: array[int]) -> None:
        with self._lock:
            self._known[key] = ids
            while sum(map(len, self._known.values())) > _REMEMBERED_ROWS and len(self._known) > 1:
                self._known.popitem(last=False)


def find_device(connection: sqlite3.Connection, device: str) -> tuple[DeviceDetail, ...]:
    """Return the channels of a device, by name; empty: nothing is known of it.

    Raises: DamagedIndexError.
    """
    columns = ", ".join(COLUMNS)
    query = f"SELECT {columns}, content FROM devices JOIN more USING (id) WHERE device = ? ORDER BY id"  # noqa: S608 - columns, and question marks
    try:
        found = connection.execute(query, (device,)).fetchall()
        return tuple(DeviceDetail(row=_to_device(row[:-1]), more=_to_more(row[-1])) for row in found)
    except (sqlite3.DatabaseError, msgspec.MsgspecError, zstandard.ZstdError) as e:
        raise DamagedIndexError(str(e)) from e


def _match(connection: sqlite3.Connection, where: str, values: Sequence[object]) -> array[int]:
    """Return the numbers of the rows that the filters let through, ascending.

    All rows are looked at in the order of the file, which takes the same short time whatever is asked for.
    """
    chosen = f"SELECT id FROM devices{where} ORDER BY id"  # noqa: S608 - columns, and question marks
    return array("I", (one for (one,) in connection.execute(chosen, values)))


def _cut(
    connection: sqlite3.Connection, query: DeviceQuery, rows: int, matches: array[int] | None
) -> tuple[int, Sequence[int]]:
    """Return how many rows there are, and the numbers of those that are asked for, in order."""
    ordered: Sequence[int] = range(1, rows + 1)
    if query.sort == "device":
        ordered = ordered if matches is None else matches
    else:
        ordered = read_order(connection, query.sort)
        if matches is not None:
            is_in = bytearray(rows + 1)
            for one in matches:
                is_in[one] = 1
            ordered = array("I", (one for one in ordered if is_in[one]))
    end = query.offset + query.limit
    if query.descending:
        total = len(ordered)
        return total, ordered[max(total - end, 0) : max(total - query.offset, 0)][::-1]
    return len(ordered), ordered[query.offset : end]


def _read(connection: sqlite3.Connection, ids: Sequence[int]) -> tuple[IndexedDevice, ...]:
    """Return rows by their numbers, in the same order."""
    marks = ", ".join("?" * len(ids))
    page = f"SELECT id, {', '.join(COLUMNS)} FROM devices WHERE id IN ({marks})"  # noqa: S608 - as above
    found = {number: row for number, *row in connection.execute(page, tuple(ids))}
    return tuple(_to_device(found[one]) for one in ids)


def _understood(query: DeviceQuery) -> DeviceQuery:
    """Return a query with what is out of range in range: addresses are typed and shortened by people."""
    return msgspec.structs.replace(
        query,
        sort=query.sort if query.sort in SORTS else "device",
        limit=min(max(query.limit, 1), ROWS_AT_MOST),
        offset=min(max(query.offset, 0), _OFFSET_AT_MOST),
    )


def _conditions(query: DeviceQuery) -> tuple[str, Sequence[object]]:
    conditions: list[str] = []
    values: list[object] = []
    for field, column in _EQUAL.items():
        if given := getattr(query, field):
            conditions.append(f"{column} = ?")
            values.append(given)
    for field, kind in _FACTS.items():
        if given := getattr(query, field):
            conditions.append("id IN (SELECT id FROM facts WHERE kind = ? AND value = ?)")
            values += [kind, given]
    asked = {field: getattr(query, field) for field in ("online", "enrolled")}
    conditions += [
        f"{field} {_SWITCHES.get(given, 'IS 2')}"  # what nobody is
        for field, given in asked.items()
        if given
    ]
    for word in query.text.casefold().split()[:_WORDS_AT_MOST]:
        conditions.append("instr(text, ?)")
        values.append(word)
    return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), values


def _to_device(row: Sequence[object]) -> IndexedDevice:
    values: dict[str, Any] = dict(zip(COLUMNS, row, strict=True))
    for name in _LISTS:
        values[name] = msgspec.json.decode(values[name] or "[]")
    for name in _CLAIMS:
        values[name] = None if values[name] is None else bool(values[name])
    return msgspec.convert(values, IndexedDevice)


def _to_more(content: bytes) -> DeviceMore:
    plain = zstandard.ZstdDecompressor().decompress(content, max_output_size=_MORE_LIMIT_BYTES)
    return msgspec.json.decode(plain, type=DeviceMore)
