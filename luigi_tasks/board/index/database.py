"""The file of the index: its tables, how it is written, how it is read."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from array import array
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import SettingsError, TransportError
from luigi_tasks.board.index.records import IndexContent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FILE, PART = "index.sqlite", "index.sqlite.part"
# Another number for each change of the tables: an index of another one is made anew.
SCHEMA = 1
# Columns of `devices` in the order of `IndexedDevice`; `text` is what free text is looked for in.
COLUMNS = (
    "device",
    "channel",
    "site",
    "class",
    "tags",
    "enrolled",
    "release",
    "expected",
    "heard",
    "rollout_state",
    "online",
    "is_signed",
    "last_seen",
    "latency_ms",
    "unsure",
    "failed_frames",
    "restarts",
    "drift_alarm",
    "warning",
    "notes",
    "odd",
    "clones",
)
# What the table can be sorted by.
SORTED = (
    "channel",
    "site",
    "class",
    "release",
    "expected",
    "heard",
    "rollout_state",
    "online",
    "enrolled",
    "last_seen",
    "latency_ms",
    "unsure",
    "failed_frames",
    "restarts",
)
_TABLES = f"""
CREATE TABLE devices (id INTEGER PRIMARY KEY, {", ".join(COLUMNS)}, text);
CREATE TABLE facts (kind, value, id, PRIMARY KEY (kind, value, id)) WITHOUT ROWID;
CREATE TABLE more (id INTEGER PRIMARY KEY, content BLOB);
CREATE TABLE content (content BLOB);
CREATE TABLE orders (name PRIMARY KEY, ids BLOB) WITHOUT ROWID;
"""
_BY_DEVICE = "CREATE INDEX by_device ON devices (device)"
_PAGE_BYTES, _CACHE_KB = 16384, 4096


class DamagedIndexError(Exception):
    """The file is no index, or not one of this version."""


@contextlib.contextmanager
def new_index(folder: Path) -> Iterator[sqlite3.Connection]:
    """Give a new database, which takes the place of the index at once when the block ends.

    Raises: TransportError, SettingsError where the folder cannot be written; the index before stays then.
    """
    part = folder / PART
    with database_faults(part):
        part.unlink(missing_ok=True)
        part.touch(mode=0o600)
        connection = sqlite3.connect(part, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            # Nothing is worth keeping of what a killed process wrote.
            connection.execute("PRAGMA journal_mode = OFF")
            connection.execute("PRAGMA synchronous = OFF")
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute(f"PRAGMA cache_size = -{8 * _CACHE_KB}")
            connection.execute("BEGIN")
            create_tables(connection)
            yield connection
            connection.execute(_BY_DEVICE)
            _write_orders(connection)
            connection.execute("COMMIT")
            connection.close()
            _sync(part)
            part.replace(folder / FILE)
        finally:
            connection.close()
            part.unlink(missing_ok=True)


def create_tables(connection: sqlite3.Connection) -> None:
    """Make the tables, empty, also where a first try has filled them."""
    for name in ("devices", "facts", "more", "content", "orders"):
        connection.execute(f"DROP TABLE IF EXISTS {name}")
    for statement in _TABLES.strip().split("\n"):
        connection.execute(statement)


def open_index(path: Path) -> sqlite3.Connection:
    """Open an index for reading. It goes on being read when another one took its place.

    Raises: DamagedIndexError; FileNotFoundError.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        # `immutable`: nobody writes a file that was renamed into place.
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode=ro&immutable=1", uri=True, check_same_thread=False
        )
        connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
        connection.execute("PRAGMA temp_store = MEMORY")
        [schema] = connection.execute("PRAGMA user_version").fetchone()
    except sqlite3.DatabaseError as e:
        raise DamagedIndexError(str(e)) from e
    if schema != SCHEMA:
        connection.close()
        msg = f"{path}: of version {schema}"
        raise DamagedIndexError(msg)
    return connection


def read_content(connection: sqlite3.Connection) -> IndexContent:
    """Return what an index was made of.

    Raises: DamagedIndexError.
    """
    try:
        [packed] = connection.execute("SELECT content FROM content").fetchone()
        return msgspec.msgpack.decode(packed, type=IndexContent)
    except (sqlite3.DatabaseError, msgspec.MsgspecError, TypeError, ValueError) as e:
        raise DamagedIndexError(str(e)) from e


def _write_orders(connection: sqlite3.Connection) -> None:
    """Write the rows' numbers in the order of each column that the table can be sorted by.

    A page takes its part of them; sorting at each question takes five times as long as all the rest.
    """
    for name in SORTED:
        order = f"SELECT id FROM devices ORDER BY {name}, id"  # noqa: S608 - a column
        ids = array("I", (one for (one,) in connection.execute(order)))
        connection.execute("INSERT INTO orders VALUES (?, ?)", (name, ids.tobytes()))


def read_order(connection: sqlite3.Connection, name: str) -> array[int]:
    """Return the rows' numbers in the order of a column, the least first; unknown is less than all."""
    [stored] = connection.execute("SELECT ids FROM orders WHERE name = ?", (name,)).fetchone()
    ids = array("I")
    ids.frombytes(stored)
    return ids


@contextlib.contextmanager
def database_faults(path: Path) -> Iterator[None]:
    """Turn a disk that is full or refuses into errors that say so."""
    try:
        yield
    except (sqlite3.Error, OSError) as e:
        if isinstance(e, PermissionError):
            msg = f"{path}: {e.strerror}; let this user write there, or correct [board] state_dir"
            raise SettingsError(msg) from e
        msg = f"{path}: {e}; is the disk full? Tried again later"
        raise TransportError(msg) from e


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
