"""What the collector remembers of a device's channel beside its last report, and how a report changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.fleet.clones import RunHistory
from luigi_tasks.fleet.device_state import report_state
from luigi_tasks.fleet.intake import OLDER, REPEATED
from luigi_tasks.fleet.records import Sighting

if TYPE_CHECKING:
    from edge_client.contract.report import DeviceReport
    from luigi_tasks.fleet.intake import Heard

_SIGHTINGS_AT_MOST = 24


class RowState(msgspec.Struct, array_like=True):
    """What the collector remembers of a device's channel beside its last report.

    Attributes:
        sightings: History of states.
        began: Period in which the counting of each release began, see `marks_of`.
        runs: Runs of the daemon, for clones.
        period: Period of the last mark.
        activations: Countings that began in it.
    """

    sightings: tuple[Sighting, ...] = ()
    began: dict[str, int] = {}
    runs: RunHistory = RunHistory()
    period: int = 0
    activations: int = 0


def why_not_newer(heard: Heard, before: DeviceReport, start: int, sequence: int) -> str:
    """Return why a report does not follow the one before; empty if it does.

    Of a device without a key, one with a lower number counts after another boot: its card was written anew,
    and nothing that it says is proven anyway. One with a key has to be enrolled again.
    """
    report = heard.report
    if heard.is_status:
        return ""
    if (report.start, report.sequence) > (start, sequence):
        return ""
    if (report.start, report.sequence) == (start, sequence):
        return REPEATED
    return OLDER if heard.is_keyed or report.boot_id == before.boot_id else ""


def sight(sightings: tuple[Sighting, ...], report: DeviceReport, at: float) -> tuple[Sighting, ...]:
    """Return the history with the state of a report in the rollout that the device saw."""
    release = _tried(sightings, report)
    if not release:
        return sightings
    state = report_state(report, report.rollout, release)
    if any((one.rollout, one.state, one.release) == (report.rollout, state, release) for one in sightings):
        return sightings
    figures = report.figures(release)
    sighting = Sighting(
        rollout=report.rollout,
        state=state,
        at=at,
        release=release,
        reason=figures.reason[:300] if figures else "",
        reason_code=figures.reason_code[:60] if figures else "",
    )
    return (*sightings, sighting)[-_SIGHTINGS_AT_MOST:]


def _tried(sightings: tuple[Sighting, ...], report: DeviceReport) -> str:
    """Return the release that the rollout has for the device; empty: none, as far as is known."""
    if not report.rollout:
        return ""
    if report.offered and report.offered != report.steady:
        return report.offered
    return next((one.release for one in reversed(sightings) if one.rollout == report.rollout), "")


def cohort_of(report: DeviceReport, sightings: tuple[Sighting, ...]) -> str:
    """Return what a device is compared within: devices under one release in one state of a rollout."""
    last = sightings[-1] if sightings else None
    return f"{report.release} {last.rollout} {last.state}" if last else report.release
