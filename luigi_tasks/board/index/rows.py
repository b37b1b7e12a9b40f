"""A channel of a device as a row of the index."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.board.index.records import (
    CLONES,
    DIFFERS,
    DRIFT,
    ERROR,
    UNSIGNED,
    WARNING,
    DeviceMore,
    IndexedDevice,
)
from luigi_tasks.fleet.commands.devices import notes_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luigi_tasks.fleet.view import Expectation, FleetView, ShownDevice

# Of texts that devices send; the page of the device has all of them.
_TEXT_CHARACTERS = 300


def to_row(view: FleetView, one: ShownDevice) -> tuple[IndexedDevice, DeviceMore]:
    """Return a channel of a device as the table shows it, and what its page shows besides."""
    expected = view.expected(one.channel, one.member)
    row = one.row
    more = DeviceMore(
        report=one.report,
        entry=one.enrolled,
        why=expected.words,
        first_seen=row.first_seen if row else 0.0,
        sightings=row.sightings if row else (),
        periods=row.periods if row else (),
        clones=row.clones if row else (),
    )
    return _to_indexed(one, expected), more


def _to_indexed(one: ShownDevice, expected: Expectation) -> IndexedDevice:
    row, report, member = one.row, one.report, one.member
    figures = report.figures(report.release) if report is not None else None
    frames = figures.frames if figures is not None else 0
    return IndexedDevice(
        device=one.device,
        channel=one.channel,
        site=member.site,
        device_class=member.device_class,
        tags=tuple(member.tags),
        enrolled=one.enrolled is not None,
        release=one.release,
        expected=expected.release,
        heard=one.heard,
        rollout_state=one.rollout_state,
        online=row.online if row else None,
        is_signed=row.is_signed if row and report else None,
        last_seen=row.last_seen if row and report else None,
        latency_ms=round(figures.latency_ms / frames, 3) if figures and frames else None,
        unsure=round(figures.unsure / frames, 6) if figures and frames else None,
        failed_frames=figures.failed if figures else None,
        restarts=figures.restarts if figures else None,
        drift_alarm=report is not None and report.drift_alarm,
        warning=report.warning[:_TEXT_CHARACTERS] if report else "",
        notes=tuple(note[:_TEXT_CHARACTERS] for note in notes_of(one)),
        odd=tuple(_oddities(one)),
        clones=len(row.clones) if row else 0,
    )


def _oddities(one: ShownDevice) -> list[str]:
    """Return what somebody should look at, as names; strangers vote for nothing, and have none."""
    row, report = one.row, one.report
    if one.enrolled is None or row is None:
        return []
    found = {
        DRIFT: report is not None and report.drift_alarm,
        ERROR: report is not None and bool(report.last_error),
        WARNING: report is not None and bool(report.warning),
        CLONES: bool(row.clones),
        DIFFERS: one.differs,
        UNSIGNED: bool(one.enrolled.key) and report is not None and not row.is_signed,
    }
    return [name for name, is_so in found.items() if is_so]


def text_of(row: IndexedDevice, facts: Iterable[str]) -> str:
    """Return what free text is looked for in, in small letters.

    Args:
        row: A row.
        facts: Its sites, classes and tags, by the registry and by its report.
    """
    online = {True: "online", False: "offline", None: ""}[row.online]
    parts = (
        row.device,
        row.channel,
        row.release,
        row.heard,
        row.rollout_state,
        online,
        *facts,
    )
    return "\n".join(parts).casefold()
