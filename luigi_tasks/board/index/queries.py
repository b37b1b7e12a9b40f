"""Questions to the index: the table of devices, and one device."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

from luigi_tasks.board.index.database import COLUMNS, SORTED, DamagedIndexError
from luigi_tasks.board.index.records import (
    ROWS_AT_MOST,
    DeviceDetail,
    DeviceMore,
    DevicePage,
    DeviceQuery,
    IndexedDevice,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SORTS = ("device", *SORTED)
_WORDS_AT_MOST = 8
_OFFSET_AT_MOST = 100_000_000
_MORE_LIMIT_BYTES = 16 << 20
_SWITCHES = {"yes": "= 1", "no": "= 0", "unknown": "IS NULL"}
# Fields of a query that are columns, and those that are facts: a site may be the registry's or the device's.
_EQUAL = {"channel": "channel", "release": "release", "heard": "heard", "state": "rollout_state"}
_FACTS = {"site": "site", "device_class": "class", "tag": "tag", "odd": "odd"}
_LISTS, _CLAIMS = ("tags", "notes", "odd"), ("enrolled", "online", "is_signed", "drift_alarm")


def find_devices(connection: sqlite3.Connection, query: DeviceQuery, rows: int) -> DevicePage:
    """Return a part of the table of devices.

    Args:
        connection: The index.
        query: What is asked for.
        rows: Rows in the index.
    Raises: DamagedIndexError.
    """
    query = _understood(query)
    where, values = _conditions(query)
    order = "id" if query.sort == "device" else f"{query.sort}, id"
    if query.descending:
        order = ", ".join(f"{one} DESC" for one in order.split(", "))
    chosen = f"SELECT id FROM devices{where} ORDER BY {order} LIMIT ? OFFSET ?"  # noqa: S608 - columns, and question marks
    # The ids alone are sorted, and the rows of this page read then.
    page = f"SELECT {', '.join(COLUMNS)} FROM devices WHERE id IN ({chosen}) ORDER BY {order}"  # noqa: S608 - columns, and question marks
    try:
        total = rows
        if where:
            count = f"SELECT count(*) FROM devices{where}"  # noqa: S608 - columns, and question marks
            [total] = connection.execute(count, values).fetchone()
        found = connection.execute(page, (*values, query.limit, query.offset)).fetchall()
        return DevicePage(query=query, total=total, devices=tuple(_to_device(row) for row in found))
    except (sqlite3.DatabaseError, msgspec.MsgspecError) as e:
        raise DamagedIndexError(str(e)) from e


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
