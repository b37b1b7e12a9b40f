"""The collector's SQLite database: the last report of each device, its history, its marks.

One process and one thread of it write, in batches; WAL lets the snapshots read meanwhile. A commit is on the
disk when it returns. What the database does not have any more (it was damaged, it is new) is not known, and
never counted as nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

from edge_client.contract.documents import encode_compact
from edge_client.contract.errors import SettingsError
from edge_client.contract.report import DeviceReport
from luigi_tasks.fleet.clones import RunHistory, note_run
from luigi_tasks.fleet.device_state import LONGEST_INTERVAL_S
from luigi_tasks.fleet.history import RowState, cohort_of, sight, why_not_newer
from luigi_tasks.fleet.intake import TOO_MANY_ACTIVATIONS, TOO_MANY_CHANNELS, RejectedError
from luigi_tasks.fleet.marks import marks_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping
    from pathlib import Path
    from typing import Self

    from luigi_tasks.fleet.intake import Heard
    from luigi_tasks.fleet.marks import Mark

_SCHEMA = 1
_TABLES = """
CREATE TABLE rows (
    id INTEGER PRIMARY KEY, device TEXT NOT NULL, channel TEXT NOT NULL, enrolled INTEGER NOT NULL,
    is_signed INTEGER NOT NULL, epoch INTEGER NOT NULL, start INTEGER NOT NULL, sequence INTEGER NOT NULL,
    first_seen REAL NOT NULL, last_seen REAL NOT NULL, interval_s REAL NOT NULL, cohort TEXT NOT NULL,
    report BLOB NOT NULL, state BLOB NOT NULL, UNIQUE (device, channel)
);
CREATE INDEX strangers ON rows (last_seen) WHERE enrolled = 0;
CREATE TABLE marks (
    row INTEGER NOT NULL, period INTEGER NOT NULL, release TEXT NOT NULL, activated_at TEXT NOT NULL,
    mark BLOB NOT NULL, PRIMARY KEY (row, period, release, activated_at)
) WITHOUT ROWID;
CREATE TABLE online (device TEXT PRIMARY KEY, online INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE taken (object TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_READ = "SELECT id, epoch, start, sequence, report, state FROM rows WHERE device = ? AND channel = ?"
_UPDATE = (
    "UPDATE rows SET enrolled = ?, is_signed = ?, epoch = ?, start = ?, sequence = ?, "
    "last_seen = coalesce(nullif(?, 0), last_seen), interval_s = ?, cohort = ?, report = ?, state = ? "
    "WHERE id = ?"
)
_INSERT = (
    "INSERT INTO rows (enrolled, is_signed, epoch, start, sequence, last_seen, interval_s, cohort, report, "
    "state, first_seen, device, channel) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_MARK = "INSERT OR REPLACE INTO marks VALUES (?, ?, ?, ?, ?)"
_CHANNELS_AT_MOST = 16
_ACTIVATIONS_AT_MOST = 16
# Pages of 4 kB before the log is written back: batches of thousands of devices touch as many.
_LOG_PAGES = 16384
_CACHE_KB = 32768

_REPORT = msgspec.json.Decoder(DeviceReport)


_STATE = msgspec.msgpack.Decoder(RowState)
_pack = msgspec.msgpack.Encoder().encode


@dataclasses.dataclass(frozen=True)
class Keeping:
    """How much of the past is kept.

    Attributes:
        period_s: Length of a period.
        periods: Periods whose marks stay.
        unknown: Rows of devices that are not in the registry.
    """

    period_s: int
    periods: int
    unknown: int


class DamagedError(Exception):
    """The file is no database any more."""


class DatabaseBusyError(Exception):
    """The disk is full or refuses, or something else holds the database; it may pass."""


class Database:
    """The database, as its one writer has it.

    Args:
        path: The file; its folder is made.
        keeping: How much is kept.
    Raises: SettingsError if another collector has it, or the folder cannot be written.
    """

    def __init__(self, path: Path, keeping: Keeping) -> None:
        self.path = path
        self._keeping = keeping
        self._lock = _lock(path)
        self._strangers = 0
        # Reports are compressed: four rows fit into a page where one would. No two threads may share these.
        self._compressor = zstandard.ZstdCompressor(level=1)
        self._decompressor = zstandard.ZstdDecompressor()
        self.replaced = ""
        try:
            self._open()
        except DamagedError as e:
            self.replace(str(e))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; another collector may have it then."""
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
        self._lock.close()

    def replace(self, why: str) -> None:
        """Put a damaged file aside and begin an empty one.

        Raises: SettingsError if the folder refuses.
        """
        with contextlib.suppress(sqlite3.Error, AttributeError):
            self._connection.close()
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time())}")
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(f"{aside}{suffix}")
        self.replaced = f"{self.path}: damaged ({why}); put aside as {aside.name}, and begun anew"
        self._open()

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        """Let all changes of the block take effect at once, or none.

        Raises: DatabaseBusyError, DamagedError.
        """
        with self._faults():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    def note_report(self, heard: Heard) -> None:
        """Take a report into the batch.

        Raises: RejectedError if a later one is there already.
        """
        report, execute = heard.report, self._connection.execute
        found = execute(_READ, (report.device, report.channel)).fetchone()
        if found is None:
            self._check_channels(report.device)
            self._write_new(heard)
            return
        row, epoch, start, sequence, known, packed = found
        if heard.is_status and start:
            return  # the device reports: its status tells nothing more
        state, before = self._remembered(packed, known)
        runs = state.runs if heard.is_status else note_run(state.runs, report, heard.at)
        is_other_run, state.runs = runs is not state.runs, runs
        if heard.epoch > epoch:  # enrolled, or enrolled again: what came before may be of another device
            before, state.began = None, {}
        elif before and (reason := why_not_newer(heard, before, start, sequence)):
            if is_other_run:
                execute("UPDATE rows SET state = ? WHERE id = ?", (_pack(state), row))
            raise RejectedError(reason)
        marks = self._marks(heard, before, state, row)
        execute(_UPDATE, (*self._values(heard, state), row))
        self._write_marks(row, marks)

    def note_online(self, device: str, *, is_online: bool, is_member: bool) -> None:
        """Take a device's last will into the batch, if it is known: a member is, before its first report."""
        execute = self._connection.execute
        if is_member or execute("SELECT 1 FROM rows WHERE device = ? LIMIT 1", (device,)).fetchone():
            execute("INSERT OR REPLACE INTO online VALUES (?, ?)", (device, is_online))

    def forget_online(self) -> None:
        """Forget who is online: the collector was away."""
        with self.batch():
            self._connection.execute("DELETE FROM online")

    def set_members(self, members: Mapping[str, Any]) -> None:
        """Bring the rows to the registry, and forget the strangers that are too many."""
        with self.batch():
            execute = self._connection.execute
            for device, enrolled in execute("SELECT DISTINCT device, enrolled FROM rows").fetchall():
                if bool(enrolled) != (device in members):
                    execute("UPDATE rows SET enrolled = ? WHERE device = ?", (device in members, device))
            self.forget_strangers()

    def forget_strangers(self) -> None:
        """Forget the devices that nobody enrolled and that were silent for longest, if there are too many."""
        execute = self._connection.execute
        [number] = execute("SELECT count(*) FROM rows WHERE enrolled = 0").fetchone()
        if (surplus := number - self._keeping.unknown) <= 0:
            return
        doomed = execute(
            "SELECT id, device FROM rows WHERE enrolled = 0 ORDER BY last_seen LIMIT ?", (surplus,)
        ).fetchall()
        for row, device in doomed:
            execute("DELETE FROM rows WHERE id = ?", (row,))
            execute("DELETE FROM marks WHERE row = ?", (row,))
            execute("DELETE FROM online WHERE device = ?", (device,))

    def was_taken(self, name: str) -> bool:
        """Whether an object of recorded messages was read before."""
        with self._faults():
            return (
                self._connection.execute("SELECT 1 FROM taken WHERE object = ?", (name,)).fetchone()
                is not None
            )

    def keep_taken(self, names: Collection[str]) -> None:
        """Forget the objects that are not among these any more: the bucket's lifecycle removed them."""
        with self.batch():
            execute = self._connection.execute
            found = execute("SELECT object FROM taken").fetchall()
            for (name,) in found:
                if name not in names:
                    execute("DELETE FROM taken WHERE object = ?", (name,))

    def note_taken(self, name: str) -> None:
        """Note that an object of recorded messages was read, with the batch."""
        self._connection.execute("INSERT OR REPLACE INTO taken VALUES (?)", (name,))

    def _open(self) -> None:
        with self._faults():
            self._connection = connection = connect(self.path)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            [version] = connection.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA:
                msg = f"{self.path}: of a newer collector; update this one, or move the file away"
                raise SettingsError(msg)
            if version == 0:
                connection.executescript(f"BEGIN;{_TABLES}PRAGMA user_version = {_SCHEMA};COMMIT;")

    def _faults(self) -> contextlib.AbstractContextManager[None]:
        return database_faults(self.path)

    def _check_channels(self, device: str) -> None:
        execute = self._connection.execute
        [number] = execute("SELECT count(*) FROM rows WHERE device = ?", (device,)).fetchone()
        if number >= _CHANNELS_AT_MOST:
            raise RejectedError(TOO_MANY_CHANNELS)

    def _write_new(self, heard: Heard) -> None:
        state = (
            RowState() if heard.is_status else RowState(runs=note_run(RunHistory(), heard.report, heard.at))
        )
        marks = self._marks(heard, None, state, -1)
        values = (*self._values(heard, state), heard.at, heard.report.device, heard.report.channel)
        row = self._connection.execute(_INSERT, values).lastrowid
        self._write_marks(row or 0, marks)
        if heard.epoch == 0:
            self._strangers += 1
            if self._strangers > self._keeping.unknown // 10:
                self._strangers = 0
                self.forget_strangers()

    def _remembered(self, packed: bytes, known: bytes) -> tuple[RowState, DeviceReport | None]:
        try:
            return _STATE.decode(packed), _REPORT.decode(self._decompressor.decompress(known))
        except (msgspec.DecodeError, zstandard.ZstdError) as e:
            msg = f"a row holds something else: {e}"
            raise DamagedError(msg) from e

    def _write_marks(self, row: int, marks: Iterable[Mark]) -> None:
        for mark in marks:
            self._connection.execute(_MARK, (row, mark.period, *mark.count, _pack(mark)))

    def _values(self, heard: Heard, state: RowState) -> tuple[object, ...]:
        """Return the values of `_UPDATE`; takes the report's sighting into the state."""
        report = heard.report
        state.sightings = sight(state.sightings, report, heard.at)
        return (
            heard.epoch > 0,
            heard.is_signed,
            heard.epoch,
            report.start,
            report.sequence,
            heard.at,
            max(0.0, min(report.interval_s, LONGEST_INTERVAL_S)),
            cohort_of(report, state.sightings),
            self._compressor.compress(encode_compact(report)),
            _pack(state),
        )

    def _marks(self, heard: Heard, before: DeviceReport | None, state: RowState, row: int) -> list[Mark]:
        """Return the marks of a report; devices that vote for nothing have none."""
        if heard.epoch == 0 or heard.is_status:
            return []
        period = int(heard.at // self._keeping.period_s) * self._keeping.period_s
        began = dict(state.began)
        marks = marks_of(heard.report, before, began, period, self._keeping.period_s)
        if period != state.period:
            state.period, state.activations = period, 0
            oldest = period - self._keeping.periods * self._keeping.period_s
            self._connection.execute("DELETE FROM marks WHERE row = ? AND period < ?", (row, oldest))
        state.activations += sum(began[one] != state.began.get(one) for one in began)
        if state.activations > _ACTIVATIONS_AT_MOST:
            raise RejectedError(TOO_MANY_ACTIVATIONS)
        state.began = began
        return marks


@contextlib.contextmanager
def database_faults(path: Path) -> Iterator[None]:
    """Tell the errors of SQLite apart: what may pass, and a file that is damaged."""
    try:
        yield
    except (msgspec.DecodeError, zstandard.ZstdError) as e:
        msg = f"a row holds something else: {e}"
        raise DamagedError(msg) from e
    except sqlite3.DatabaseError as e:
        code = getattr(e, "sqlite_errorcode", 0) & 0xFF  # Python 3.11; the words of SQLite before
        if code in {_CORRUPT, _NOT_A_DATABASE} or any(one in str(e) for one in _DAMAGE):
            raise DamagedError(str(e)) from e
        msg = f"{path}: {e}; free some space there, or see what else holds it"
        raise DatabaseBusyError(msg) from e


# SQLITE_CORRUPT and SQLITE_NOTADB, https://sqlite.org/rescode.html
_CORRUPT, _NOT_A_DATABASE = 11, 26
_DAMAGE = ("malformed", "not a database", "no such table", "no such column")


def connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KB}")
    return connection


def _lock(path: Path) -> Any:  # noqa: ANN401 - an open file
    """Hold a lock beside the database for as long as this process lives.

    Raises: SettingsError if another process holds it, or the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.with_name(f"{path.name}.lock").open("w")
    except OSError as e:
        msg = f"[fleet] database_file {path}: {e.strerror or e}; name a file in a folder that can be written"
        raise SettingsError(msg) from e
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        file.close()
        msg = (
            f"[fleet] database_file {path}: another collector writes it; stop that one, or name another file"
        )
        raise SettingsError(msg) from e
    return file
