"""The state of a device in a rollout: from one report, and from all that the collector knows of it.

    unseen   nothing that counts was heard of it since the rollout opened
    waiting  it was heard of, and does not have the release to try
    offered, held, fetching, shadow, probation   how far it is
    passed   it passed its probation under this release
    sent_back, refused, silent   it failed

A device is counted once, by the state that it is in: a try that is repeated and passes is a device that
passed. Silence is a failure only after the device began to fetch: a device that was switched off before the
rollout came to it says nothing about the release. A device that passed and then falls silent has passed; who
judges looks at its silence besides (`is_heard`). The clocks of devices are compared with nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract import report as reports
from luigi_tasks.fleet.records import (
    FETCHING,
    HELD,
    OFFERED,
    PASSED,
    PROBATION,
    REFUSED,
    SENT_BACK,
    SHADOW,
    SILENT,
    UNSEEN,
    WAITING,
)

if TYPE_CHECKING:
    from edge_client.contract.report import DeviceReport
    from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice, RolloutRecord

# States of a device that has begun to fetch and has not come to an end.
TRYING = (FETCHING, SHADOW, PROBATION)
# States of a device of which the release is known to have reached it.
BEGAN = (*TRYING, PASSED, SENT_BACK, REFUSED, SILENT)
# Heartbeat of a device that names none, the default of its settings; seconds.
DEFAULT_INTERVAL_S = 3600.0
# A device that says that it reports once a year would never be silent.
LONGEST_INTERVAL_S = 86400.0
# Clocks of collectors and of the pipeline's machines, kept by NTP. What came later than that by a row came
# while a clock was wrong.
CLOCKS_APART_S = 120.0

_STAGES = {
    reports.OFFERED: OFFERED,
    reports.FETCHING: FETCHING,
    reports.SHADOW: SHADOW,
    reports.PROBATION: PROBATION,
}


def report_state(report: DeviceReport, rollout_id: str, release: str) -> str:
    """Return the state of a device by one report of it.

    A device that serves the release without a probation (the first release of a device has none, and it can
    be switched off) is on `probation` here: how long it has to serve is a matter of the rollout's plan, see
    `state_in_rollout`.

    Args:
        report: The report.
        rollout_id: The rollout.
        release: The release that the rollout has for this device.
    """
    figures = report.figures(release)
    verdict = figures.probation if figures else ""
    ended = {reports.PASSED: PASSED, reports.SENT_BACK: SENT_BACK}.get(verdict, "")
    if report.release == release:
        return ended or PROBATION
    if report.offered == release:
        return _state_of_offer(report, ended)
    if not ended and figures and figures.reason_code and report.rollout == rollout_id:
        return REFUSED
    return ended or WAITING  # it has not looked yet, or the pointer counts for it


def _state_of_offer(report: DeviceReport, ended: str) -> str:
    if report.stage in TRYING:
        return _STAGES[report.stage]
    if report.decision == "refused":
        return SENT_BACK if ended == SENT_BACK else REFUSED
    if ended:
        return ended
    if report.waits_for or report.retry_at or report.decision in {"held", "postponed"}:
        return HELD
    return _STAGES.get(report.stage, OFFERED)


def state_in_rollout(
    row: DeviceRow | None,
    record: RolloutRecord,
    enrolled: EnrolledDevice,
    now: float,
    silent_after: float,
    *,
    listening_since: float = 0.0,
) -> str:
    """Return the state of an enrolled device in a rollout.

    Args:
        row: What the collector knows of the device on the rollout's channel; None: nothing.
        record: The rollout.
        enrolled: The device in the registry.
        now: Time of the snapshot, seconds since 1970.
        silent_after: Missed reports after which a device counts as silent.
        listening_since: Since when the collector has heard the broker without a gap; silence
            before is its own.
    """
    if row is None or row.report is None or row.clones:
        return UNSEEN
    if enrolled.key and not row.is_signed:
        return SILENT if _began_before(row, record.id) else UNSEEN
    state = report_state(row.report, record.id, release_for(record, enrolled))
    if state == PROBATION and _served_without_probation(row.report, record, enrolled):
        state = PASSED
    if state in TRYING and not is_heard(row, now, silent_after, listening_since=listening_since):
        return SILENT
    if state in {WAITING, OFFERED, HELD} and record.stages and row.last_seen < record.stages[0].opened_at:
        return UNSEEN
    return state


def is_heard(row: DeviceRow, now: float, silent_after: float, *, listening_since: float = 0.0) -> bool:
    """Whether a device's last report is not older than `silent_after` of its intervals.

    The time in which the collector did not listen is not held against it.
    """
    told_s = row.report.interval_s if row.report else 0.0
    interval_s = min(told_s, LONGEST_INTERVAL_S) if told_s > 0 else DEFAULT_INTERVAL_S
    age_s = now - max(row.last_seen, listening_since)
    return -CLOCKS_APART_S <= age_s <= silent_after * interval_s


def release_for(record: RolloutRecord, enrolled: EnrolledDevice) -> str:
    """Return the release that a rollout has for a device: its class may have a variant."""
    return record.variants.get(enrolled.device_class, record.release)


def _served_without_probation(report: DeviceReport, record: RolloutRecord, enrolled: EnrolledDevice) -> bool:
    figures = report.figures(release_for(record, enrolled))
    return bool(
        figures
        and not figures.probation
        and report.stage != reports.PROBATION
        and figures.seconds >= record.plan.soak_s
    )


def _began_before(row: DeviceRow, rollout: str) -> bool:
    return any(one.rollout == rollout and one.state in BEGAN for one in row.sightings)
