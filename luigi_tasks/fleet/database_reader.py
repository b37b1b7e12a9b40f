"""The collector's database as a snapshot reads it."""

from __future__ import annotations

import hashlib
import heapq
from typing import TYPE_CHECKING, Any

import msgspec
import zstandard

from luigi_tasks.fleet.clones import find_clones
from luigi_tasks.fleet.database import Keeping, connect, database_faults
from luigi_tasks.fleet.device_state import CLOCKS_APART_S, DEFAULT_INTERVAL_S
from luigi_tasks.fleet.history import RowState
from luigi_tasks.fleet.marks import Mark
from luigi_tasks.fleet.snapshots import StoredRow

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import Self

_ALL = (
    "SELECT id, rows.device, channel, enrolled, is_signed, online, first_seen, last_seen, epoch, start, "
    "sequence, report, state FROM rows LEFT JOIN online ON online.device = rows.device ORDER BY rows.device, "
    "channel"
)

_REPORT_AT = 10  # of what `_ALL` selects, without the id
_STATE = msgspec.msgpack.Decoder(RowState)
_MARKS = msgspec.msgpack.Decoder(Mark)


class DatabaseReader:
    """The database for a snapshot: all of it at one moment, while the writer goes on.

    Args:
        path: The file.
        keeping: As of the writer.
    Raises: DatabaseBusyError, DamagedError.
    """

    def __init__(self, path: Path, keeping: Keeping) -> None:
        self._path = path
        self._keeping = keeping
        self._decompressor = zstandard.ZstdDecompressor()  # of one thread alone
        with database_faults(path):
            self._connection = connect(path)
            self._connection.execute("PRAGMA query_only = ON")
            self._connection.execute("BEGIN")  # all that is read is of one moment

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def count_rows(self) -> int:
        """Return the number of rows."""
        with database_faults(self._path):
            [number] = self._connection.execute("SELECT count(*) FROM rows").fetchone()
        return int(number)

    def count_heard(self, now: float, silent_after: float) -> int:
        """Return the number of registered devices that do not owe a report."""
        query = (
            "SELECT count(DISTINCT device) FROM rows WHERE enrolled = 1 AND ? - last_seen BETWEEN ? AND ? * "
            "CASE WHEN interval_s > 0 THEN interval_s ELSE ? END"
        )
        with database_faults(self._path):
            [number] = self._connection.execute(
                query, (now, -CLOCKS_APART_S, silent_after, DEFAULT_INTERVAL_S)
            ).fetchone()
        return int(number)

    def rows(self, now: float, sampled: int) -> Iterator[StoredRow]:
        """Yield all rows by device and channel.

        Args:
            now: Seconds since 1970.
            sampled: Devices of each cohort (release, rollout and state) that come with marks: the first ones
                by a hash of their ids, the same in each snapshot.
        """
        oldest = int(now // self._keeping.period_s - self._keeping.periods) * self._keeping.period_s
        with database_faults(self._path):
            with_marks = self._draw(sampled)
            for row, *facts in self._connection.execute(_ALL):
                marks = self._marks(row, oldest) if row in with_marks else ()
                facts[_REPORT_AT] = self._decompressor.decompress(facts[_REPORT_AT])
                yield _stored(facts, marks, now)

    def _draw(self, sampled: int) -> set[int]:
        """Return the ids of the rows that come with marks."""
        cohorts: dict[str, list[tuple[int, int]]] = {}
        query = "SELECT id, device, cohort FROM rows WHERE enrolled = 1"
        for row, device, cohort in self._connection.execute(query):
            drawn = cohorts.setdefault(cohort, [])
            place = (-int.from_bytes(hashlib.blake2b(device.encode(), digest_size=7).digest(), "big"), row)
            if len(drawn) < sampled:
                heapq.heappush(drawn, place)
            elif drawn and place > drawn[0]:
                heapq.heapreplace(drawn, place)
        return {row for drawn in cohorts.values() for _, row in drawn}

    def _marks(self, row: int, oldest: int) -> tuple[Mark, ...]:
        query = "SELECT mark FROM marks WHERE row = ? AND period >= ? ORDER BY period"
        return tuple(_MARKS.decode(packed) for (packed,) in self._connection.execute(query, (row, oldest)))


def _stored(facts: list[Any], marks: tuple[Mark, ...], now: float) -> StoredRow:
    device, channel, enrolled, is_signed, online, first_seen, last_seen, epoch, start, sequence = facts[:10]
    state = _STATE.decode(facts[11])
    return StoredRow(
        device=device,
        channel=channel,
        enrolled=bool(enrolled),
        is_signed=bool(is_signed),
        online=None if online is None else bool(online),
        first_seen=first_seen,
        last_seen=last_seen,
        epoch=epoch,
        start=start,
        sequence=sequence,
        report=msgspec.Raw(facts[_REPORT_AT]),
        sightings=state.sightings,
        marks=marks,
        clones=find_clones(state.runs, now),
    )
