"""Counts of the fleet over time: all of the last hour, then each five minutes, each hour, each day."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from typing import TYPE_CHECKING

from luigi_tasks.board.index.database import database_faults
from luigi_tasks.board.index.records import Mix

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Self

    from luigi_tasks.board.index.records import Counts

logger = logging.getLogger("edge-fleet")

FILE = "history.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS points (
    channel TEXT, at INTEGER, kind TEXT, value TEXT, devices INTEGER, PRIMARY KEY (channel, kind, at, value)
) WITHOUT ROWID
"""
KINDS = ("releases", "heard", "online", "states")
HOUR_S, DAY_S = 3600, 86400
# Age, and the time between two points that are that old.
_STEPS = ((HOUR_S, 300), (DAY_S, HOUR_S), (31 * DAY_S, DAY_S))
# Values of a kind at one time; a fleet whose devices make up their releases must not fill the disk.
_VALUES_AT_MOST = 32
RELEASES_SHOWN = 7
_POINTS_AT_MOST = 96
OTHER = "other"


class History:
    """The history, open for one who writes; a damaged one is begun anew.

    Args:
        folder: Where it lies.
    Raises: TransportError, SettingsError where the disk refuses.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        with database_faults(self._path):
            try:
                self._connection = self._open()
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as e:
                logger.warning("%s: damaged (%s); begun anew", self._path, e)
                for name in (FILE, f"{FILE}-wal", f"{FILE}-shm"):
                    (folder / name).unlink(missing_ok=True)
                self._connection = self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def add(self, at: float, counts: Mapping[str, Counts]) -> None:
        """Note counts, by channel, and thin what is older."""
        rows = [
            (channel, int(at), kind, value, number)
            for channel, one in counts.items()
            for kind in KINDS
            for value, number in _largest(getattr(one, kind))
        ]
        with database_faults(self._path), self._connection:
            self._connection.executemany("INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?)", rows)
            newest = self._connection.execute("SELECT max(at) FROM points").fetchone()[0]
            self._thin(int(newest or at))

    def times(self) -> list[int]:
        """Return the times of which something is known, oldest first."""
        with database_faults(self._path):
            found = self._connection.execute("SELECT DISTINCT at FROM points WHERE channel = '' ORDER BY at")
            return [at for (at,) in found]

    def _open(self) -> sqlite3.Connection:
        self._path.touch(mode=0o600)
        connection = sqlite3.connect(self._path, timeout=30)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_TABLES)
            [fault] = connection.execute("PRAGMA quick_check(1)").fetchone()
            if fault != "ok":
                raise sqlite3.DatabaseError(fault)
        except sqlite3.Error:
            connection.close()
            raise
        return connection

    def _thin(self, newest: int) -> None:
        """Keep the last point of each step of time."""
        times = [at for (at,) in self._connection.execute("SELECT DISTINCT at FROM points ORDER BY at DESC")]
        seen, doomed = set(), []
        for at in times:
            steps = [step for age, step in _STEPS if newest - at > age]
            if steps and (place := (steps[-1], at // steps[-1])) in seen:
                doomed.append((at,))
            elif steps:
                seen.add(place)
        self._connection.executemany("DELETE FROM points WHERE at = ?", doomed)


def read_mix(folder: Path, channel: str, since: float) -> Mix:
    """Return the devices by release over time; empty where nothing is known.

    Args:
        folder: Where the history lies.
        channel: A channel; empty: the whole fleet.
        since: Seconds since 1970.
    """
    path = folder / FILE
    if not path.exists():
        return Mix(channel=channel)
    query = (
        "SELECT at, value, devices FROM points "
        "WHERE channel = ? AND kind = 'releases' AND at >= ? ORDER BY at"
    )
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)
        ) as connection:
            points = connection.execute(query, (channel, int(since))).fetchall()
    except sqlite3.OperationalError:  # it is being made
        return Mix(channel=channel)
    except sqlite3.Error as e:  # the next snapshot begins it anew; the page is shown without
        logger.warning("%s: %s", path, e)
        return Mix(channel=channel)
    return _to_mix(channel, points)


def _to_mix(channel: str, points: list[tuple[int, str, int]]) -> Mix:
    times = _spread(sorted({at for at, _, _ in points}))
    place = {at: number for number, at in enumerate(times)}
    series: dict[str, list[int]] = {}
    for at, release, devices in points:
        if at in place:
            series.setdefault(release, [0] * len(times))[place[at]] = devices
    named = sorted(series.keys() - {OTHER}, key=lambda one: (-series[one][-1], -max(series[one]), one))
    shown = {name: series[name] for name in named[:RELEASES_SHOWN]}
    if rest := [*named[RELEASES_SHOWN:], *(series.keys() & {OTHER})]:
        shown[OTHER] = [sum(numbers) for numbers in zip(*(series[name] for name in rest), strict=True)]
    return Mix(
        channel=channel,
        times=tuple(float(at) for at in times),
        releases=tuple(shown),
        devices=tuple(tuple(numbers) for numbers in shown.values()),
    )


def _spread(times: list[int]) -> list[int]:
    """Return at most so many of the times as a chart can show, spread evenly over all, with the last."""
    if len(times) <= _POINTS_AT_MOST:
        return times
    step_s = max((times[-1] - times[0]) / (_POINTS_AT_MOST - 1), 1)
    return [
        at for _, at in sorted({int((times[-1] - at) / step_s): at for at in times}.items(), reverse=True)
    ]


def _largest(numbers: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the values with the most devices; the rest together is `other`."""
    ordered = sorted(numbers.items(), key=lambda one: (-one[1], one[0]))
    rest = sum(number for _, number in ordered[_VALUES_AT_MOST:])
    return ordered[:_VALUES_AT_MOST] + ([(OTHER, rest)] if rest else [])
