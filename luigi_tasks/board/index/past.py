"""What older snapshots in the bucket tell of the fleet's past, for a board that is new there.

The bucket keeps all snapshots of some days, then one an hour, then one a day. Some of them are read once, the
newest first, for a bounded time; the next index goes on where this one ended.
"""

from __future__ import annotations

import bisect
import collections
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError
from luigi_tasks.board.index.counting import Counter
from luigi_tasks.board.index.history import DAY_S, HOUR_S, History
from luigi_tasks.board.index.records import IndexedDevice
from luigi_tasks.fleet.device_state import is_heard
from luigi_tasks.fleet.reading import read_view_without_rows
from luigi_tasks.fleet.snapshots import FOLDER, SILENT_AFTER, open_rows, parse_key, rows_key, seal_key
from luigi_tasks.fleet.tables import UNKNOWN
from luigi_tasks.fleet.view import HEARD, NEVER, NONE, QUIET
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from luigi_tasks.board.index.records import Counts
    from luigi_tasks.fleet.records import DeviceRow
    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.storage.store import Store

logger = logging.getLogger("edge-fleet")

# Ages that are looked for in the bucket: parts of the last hour, each hour of a day, each day of a month.
AGES_S = (
    *(300 * number for number in range(1, 12)),
    *(HOUR_S * number for number in range(1, 25)),
    *(DAY_S * number for number in range(2, 32)),
)
# A snapshot stands for an age if it is not further from it than this share of it.
_NEAR = 0.25
# Seconds for all of it; a snapshot of 100,000 devices takes some.
_LIMIT_S = 60.0


def fill_past(settings: PipelineSettings, folder: Path) -> int:
    """Read snapshots of times of which the history knows nothing; return how many were read.

    What cannot be trusted or read is left out.

    Args:
        settings: All settings.
        folder: Where the history lies.
    Raises: TransportError, SettingsError, TrustError.
    """
    until, read = time.monotonic() + _LIMIT_S, 0
    view = read_view_without_rows(settings)
    if view.head is None or view.registry is None:
        return 0
    store, trusted = open_store(settings.store), view.registry.collectors
    found = _by_collector(store, trusted)
    times = sorted({at for by_time in found.values() for at in by_time})
    with History(folder) as history:
        for at in wanted(times, history.times(), view.head.taken_at):
            if time.monotonic() > until:
                break
            try:
                rows = open_rows(store, _keys_at(found, at), view.fleet, trusted)
                history.add(at, _count(rows, at, view))
                read += 1
            except EdgeError as e:
                logger.warning("a snapshot of the past is left out: %s", e)
    return read


def wanted(times: Sequence[float], known: Sequence[float], newest: float) -> Iterator[float]:
    """Yield the times of snapshots that tell of ages of which nothing is known, the newest first.

    Args:
        times: When snapshots were taken, ascending.
        known: Times of which the counts are known, ascending.
        newest: From when ages count.
    """
    given = set()
    for age in AGES_S:
        near = _NEAR * age
        if not _nearest(known, newest - age, near):
            for at in _nearest(times, newest - age, near):
                if at not in given and at < newest:
                    given.add(at)
                    yield at


def _nearest(times: Sequence[float], at: float, near: float) -> list[float]:
    """Return the time that is nearest, if it is near enough."""
    place = bisect.bisect_left(times, at)
    around = [one for one in times[max(place - 1, 0) : place + 1] if abs(one - at) <= near]
    return sorted(around, key=lambda one: abs(one - at))[:1]


def _by_collector(store: Store, trusted: Mapping[str, str]) -> dict[str, dict[float, str]]:
    """Return the keys of all snapshots by collector and time."""
    found: dict[str, dict[float, str]] = {}
    for one in store.list_unread(FOLDER):
        place = parse_key(one.key)
        if place is not None and place[1] in trusted and one.key == seal_key(rows_key(one.key)):
            found.setdefault(place[1], {})[place[0]] = rows_key(one.key)
    return found


def _keys_at(found: Mapping[str, Mapping[float, str]], at: float) -> list[str]:
    """Return the newest snapshot of each collector at a time, as `newest_keys` does now."""
    keys = []
    for by_time in found.values():
        before = [one for one in by_time if at - DAY_S <= one <= at]
        if before:
            keys.append(by_time[max(before)])
    return keys


def _count(rows: Iterable[DeviceRow], at: float, view: FleetView) -> dict[str, Counts]:
    """Return the counts of a snapshot; who is registered now and was not heard then is unknown."""
    counter = Counter()
    for row in rows:
        known = row.report is not None
        counter.add(
            IndexedDevice(
                device=row.device,
                channel=row.channel,
                enrolled=row.enrolled,
                release=(row.report.release or NONE) if row.report is not None else UNKNOWN,
                heard=(HEARD if is_heard(row, at, SILENT_AFTER) else QUIET) if known else NEVER,
                online=row.online,
            )
        )
    counts = counter.counts()
    followers = collections.Counter(name for one in view.enrolled.values() for name in {*one.channels, ""})
    for channel, one in counts.items():
        if (missing := followers[channel] - one.devices) > 0:
            one.releases[UNKNOWN] = one.releases.get(UNKNOWN, 0) + missing
            one.heard[NEVER] = one.heard.get(NEVER, 0) + missing
    return counts
