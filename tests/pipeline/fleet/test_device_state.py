"""The state of a device in a rollout, from what it reported and from what the collector knows."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from edge_client.contract.report import DeviceReport, ReleaseFigures
from luigi_tasks.fleet.device_state import report_state, state_in_rollout
from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice, RolloutRecord, Sighting, StageRecord

NEW, OLD = "r2", "r1"
OPENED = 1000.0


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    state: str
    report: dict[str, Any]


def figures(**fields: Any) -> tuple[ReleaseFigures, ...]:
    return (ReleaseFigures(release=NEW, **fields), ReleaseFigures(release=OLD, seconds=1e6))


CASES = (
    Case("another rollout's device", "waiting", {"release": OLD, "offered": OLD}),
    Case("a device that has nothing", "waiting", {}),
    Case("offered", "offered", {"release": OLD, "offered": NEW}),
    Case(
        "until it is asked", "held", {"release": OLD, "offered": NEW, "decision": "held", "stage": "offered"}
    ),
    Case("its window is closed", "held", {"release": OLD, "offered": NEW, "waits_for": "window"}),
    Case("downloads", "fetching", {"release": OLD, "offered": NEW, "stage": "fetching"}),
    Case("beside the serving one", "shadow", {"release": OLD, "offered": NEW, "stage": "shadow"}),
    Case(
        "on probation",
        "probation",
        {"release": NEW, "offered": NEW, "stage": "probation", "releases": figures(probation="running")},
    ),
    Case("installed is not passed", "probation", {"release": NEW, "offered": NEW}),
    Case("passed", "passed", {"release": NEW, "offered": NEW, "releases": figures(probation="passed")}),
    Case(
        "passed, and another release meanwhile",
        "passed",
        {"release": "r3", "offered": "r3", "releases": figures(probation="passed")},
    ),
    Case(
        "sent back",
        "sent_back",
        {"release": OLD, "offered": NEW, "releases": figures(probation="sent_back", reason_code="worse")},
    ),
    Case(
        "sent back, and tried again",
        "shadow",
        {"release": OLD, "offered": NEW, "stage": "shadow", "releases": figures(probation="sent_back")},
    ),
    Case("refused by its self-test", "refused", {"release": OLD, "offered": NEW, "decision": "refused"}),
    Case(
        "failed for a reason that may pass",
        "held",
        {"release": OLD, "offered": NEW, "decision": "postponed", "releases": figures(reason_code="disk")},
    ),
)


def report(**fields: Any) -> DeviceReport:
    return DeviceReport(
        fleet="f", device="d", channel="stable", **{"interval_s": 60.0, "rollout": "x", **fields}
    )


def rollout() -> RolloutRecord:
    stage = StageRecord(number=1, size=1, threshold=1 << 52, opened_at=OPENED)
    return RolloutRecord(id="x", channel="stable", release=NEW, from_release=OLD, stages=(stage,))


def state(row: DeviceRow | None, now: float = OPENED + 100, *, key: str = "", since: float = 0.0) -> str:
    return state_in_rollout(
        row, rollout(), EnrolledDevice(device="d", key=key), now, 3, listening_since=since
    )


def row(last_seen: float = OPENED + 90, *, signed: bool = False, **fields: Any) -> DeviceRow:
    return DeviceRow(
        device="d", channel="stable", is_signed=signed, last_seen=last_seen, report=report(**fields)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_state_by_one_report(case: Case) -> None:
    assert report_state(report(**case.report), "x", NEW) == case.state
    assert state(row(**case.report)) == case.state


def test_silence_is_a_failure_only_after_the_device_began_to_fetch() -> None:
    fetching = row(release=OLD, offered=NEW, stage="fetching")
    waiting = row(release=OLD, offered=NEW, waits_for="window")
    passed = row(release=NEW, offered=NEW, releases=figures(probation="passed"))
    later = OPENED + 90 + 3 * 60 + 1
    assert state(fetching, later - 2) == "fetching"
    assert state(fetching, later) == "silent"
    assert state(waiting, later) == "held"
    assert state(passed, later) == "passed"
    assert state(fetching, later, since=later - 10) == "fetching", "the collector was away"
    assert state(row(later + 10**8, release=OLD, offered=NEW, stage="fetching"), later) == "silent", (
        "wrong clock"
    )
    endless = row(release=OLD, offered=NEW, stage="fetching", interval_s=1e308)
    assert state(endless, OPENED + 4 * 86400) == "silent", "whatever a device says about its interval"


def test_what_was_not_heard_since_the_rollout_opened_is_unseen() -> None:
    assert state(None) == "unseen"
    assert state(DeviceRow(device="d", channel="stable", last_seen=OPENED)) == "unseen"
    assert state(row(OPENED - 1, release=OLD, offered=OLD)) == "unseen"


def test_unsigned_reports_of_a_device_with_a_key_are_silence() -> None:
    passed: dict[str, Any] = {"release": NEW, "offered": NEW, "releases": figures(probation="passed")}
    assert state(row(**passed), key="PEM") == "unseen"
    assert state(row(signed=True, **passed), key="PEM") == "passed"
    began = (Sighting(rollout="x", state="shadow", at=OPENED),)
    forged = DeviceRow(
        device="d", channel="stable", last_seen=OPENED + 90, report=report(**passed), sightings=began
    )
    assert state(forged, key="PEM") == "silent"


def test_without_a_probation_a_device_passes_once_it_served_for_the_soak() -> None:
    for seconds, expected in ((7199.0, "probation"), (7200.0, "passed")):
        assert state(row(release=NEW, offered=NEW, releases=figures(seconds=seconds))) == expected


def test_two_machines_under_one_id_say_nothing() -> None:
    cloned = DeviceRow(
        device="d",
        channel="stable",
        last_seen=OPENED + 90,
        report=report(release=NEW, offered=NEW, releases=figures(probation="passed")),
        clones=("a", "b"),
    )
    assert state(cloned) == "unseen"
