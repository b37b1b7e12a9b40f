"""Stages and states: exact sizes, thresholds that only add, and nothing that silence could advance."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_client.contract.errors import InputError
from edge_client.contract.rollout import EVERYBODY, RolloutDocument
from luigi_tasks.fleet import records, stages
from luigi_tasks.fleet.plans import plan_of
from luigi_tasks.fleet.records import Check, EnrolledDevice, RolloutPlan, RolloutRecord, VerdictRecord
from luigi_tasks.fleet.stages import Moment, next_stage, preview
from luigi_tasks.settings.rollout import RolloutSettings, find_rollout_faults

NOW = 1_800_000_000.0


def at(seconds: float = 0.0, who: str = stages.ADVANCE) -> Moment:
    return Moment(NOW + seconds, "2027-01-15T08:00:00+00:00", who)


def fleet(count: int, **facts) -> list[EnrolledDevice]:
    return [EnrolledDevice(device=f"camera-{number}", **facts) for number in range(count)]


def rollout(**changes) -> RolloutRecord:
    plan = RolloutPlan(**changes.pop("plan", {}))
    return RolloutRecord(id="r1", channel="stable", release="new", from_release="old", plan=plan, **changes)


def verdict(result: str, *, hard: bool = False, lacks: tuple[str, ...] = ()) -> VerdictRecord:
    kind = records.HARD if hard else records.SOFT
    checks = [Check(name=name, kind=records.HARD, result=records.INCONCLUSIVE) for name in lacks]
    if result == records.HALT:
        checks.append(Check(name="failures" if hard else "latency", kind=kind, result=result))
    return VerdictRecord(
        rollout="r1",
        channel="stable",
        stage=1,
        look=1,
        at=NOW,
        snapshots={"one": "00"},
        result=result,
        is_hard=hard,
        is_ready=result == records.PASS or lacks == ("soak",),
        checks=tuple(checks),
        words=result,
    )


def sizes(record: RolloutRecord, devices: list[EnrolledDevice]) -> list[tuple[int, int]]:
    return [(one.number, one.size) for one in preview(record, devices, NOW)]


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (2, 2)]),
        (3, [(1, 1), (2, 3)]),
        (10, [(1, 1), (2, 3), (4, 5), (5, 10)]),
        (50, [(1, 1), (2, 3), (3, 5), (4, 25), (5, 50)]),
        (10_000, [(1, 1), (2, 3), (3, 1000), (4, 5000), (5, 10_000)]),
        (0, []),
    ],
)
def test_the_defaults_suit_ten_devices_and_ten_thousand(devices, expected):
    assert sizes(rollout(), fleet(devices)) == expected


def test_the_devices_themselves_decide_as_the_thresholds_say():
    devices = fleet(200)
    for stage in preview(rollout(), devices, NOW):
        document = RolloutDocument(channel="stable", id="r1", release="new", threshold=stage.threshold)
        assert sum(document.release_for(one.member) == "new" for one in devices) == stage.size
    assert stage.threshold == EVERYBODY


@settings(deadline=None, max_examples=60)
@given(
    old=st.sets(st.integers(0, 400), min_size=1, max_size=40),
    new=st.sets(st.integers(0, 400), max_size=40),
    opened=st.integers(1, 4),
)
def test_a_growing_threshold_only_adds_whoever_is_enrolled_or_retired_meanwhile(old, new, opened):
    before = [EnrolledDevice(device=f"d{one}") for one in sorted(old)]
    record = rollout(stages=tuple(preview(rollout(), before, NOW)[:opened]))
    later = [EnrolledDevice(device=f"d{one}") for one in sorted(new)]
    following = next_stage(record, later, NOW)
    if following is not None:
        last = record.stages[-1]
        assert following.threshold > last.threshold
        assert following.number > last.number
        below = sum(stages.place(record, one) < last.threshold for one in later)
        assert following.size > below
    elif later:
        assert all(stages.place(record, one) < record.stages[-1].threshold for one in later)


def test_devices_of_a_site_go_together():
    devices = [EnrolledDevice(device=f"c{one}", site=f"shop-{one // 4}") for one in range(40)]
    opened = preview(rollout(plan={"by": "site"}), devices, NOW)
    assert [one.size for one in opened] == [4, 20, 40]


def test_only_what_is_matched_registered_on_the_channel_and_able_counts():
    devices = [
        *fleet(10, site="shop-7"),
        EnrolledDevice(device="other"),
        EnrolledDevice(device="zero", site="shop-7", device_class="zero2w"),
        EnrolledDevice(device="beta", site="shop-7", channels=("beta",)),
        EnrolledDevice(device="gone", site="shop-7", retired_at="2026-11-27T00:00:00Z"),
    ]
    plan = {"only": ("site=shop-7",), "excluded": ("class=zero2w",), "stages": ("100%",)}
    record = rollout(plan=plan, skipped={"camera-3": "no operator"})
    assert sizes(record, devices) == [(1, 9)]


def test_a_rollout_goes_through_its_states():
    devices = fleet(4)
    record = rollout(plan={"stages": ("1d", "100%"), "approve": (2,)})
    record = stages.look(record, None, "", next_stage(record, devices, NOW), at())
    assert (record.state, record.stages[0].size) == (records.OPEN, 1)
    seen = [record.state]
    for result, lacks in [("inconclusive", ("passed", "soak")), ("inconclusive", ("soak",)), ("pass", ())]:
        record = stages.look(
            record, verdict(result, lacks=lacks), "v", next_stage(record, devices, NOW), at(60)
        )
        seen.append(record.state)
    assert seen == [records.OPEN, records.OPEN, records.SOAKING, records.APPROVAL]
    again = stages.look(record, verdict("pass"), "v", next_stage(record, devices, NOW), at(9e6))
    assert (again.state, again.events) == (records.APPROVAL, record.events), "a person is waited for"
    record = stages.approve(record, 0, "looks good", at(who="ann"))
    assert record.state == records.APPROVAL
    record = stages.look(record, verdict("inconclusive"), "v", next_stage(record, devices, NOW), at(90))
    assert len(record.stages) == 1, "an approval replaces no evidence"
    record = stages.look(record, verdict("pass"), "v", next_stage(record, devices, NOW), at(100))
    assert (record.state, record.stages[-1].size) == (records.OPEN, 4)
    record = stages.look(record, verdict("pass"), "v", next_stage(record, devices, NOW), at(200))
    assert record.state == records.DONE
    told = [one.what for one in record.events]
    assert told == ["stage", "passed", "waiting", "approved", "stage", "passed", "done"]
    assert {one.who for one in record.events if one.what == "approved"} == {"ann"}


def opened(**plan) -> RolloutRecord:
    record = rollout(plan=plan)
    return stages.look(record, None, "", next_stage(record, fleet(10), NOW), at())


@pytest.mark.parametrize(
    ("on_breach", "found", "state", "what"),
    [
        ("back", verdict("halt", hard=True), records.GOING_BACK, "going_back"),
        ("pause", verdict("halt", hard=True), records.HALTED, "halted"),
        ("back", verdict("halt"), records.PAUSED, "paused"),
        ("pause", verdict("halt"), records.PAUSED, "paused"),
    ],
)
def test_a_hard_breach_goes_back_or_halts_and_a_soft_one_pauses(on_breach, found, state, what):
    record = stages.look(opened(on_breach=on_breach), found, "v", None, at(60))
    assert (record.state, record.events[-1].what) == (state, what)
    assert record.events[-1].why == found.words


def test_a_paused_rollout_opens_nothing_and_a_hard_breach_still_breaks_it_off():
    paused = stages.pause(opened(), "lunch", at(who="ann"))
    following = next_stage(paused, fleet(10), NOW)
    assert stages.look(paused, verdict("pass"), "v", following, at(60)).state == records.PAUSED
    assert stages.look(paused, verdict("halt", hard=True), "v", following, at(60)).state == records.GOING_BACK
    assert stages.resume(paused, "", at(who="ann")).state == records.OPEN


def test_silence_never_advances_and_the_time_limit_pauses_and_begins_again_when_it_is_resumed():
    record, following = opened(), next_stage(opened(), fleet(10), NOW)
    late = record.plan.stage_timeout_s + 60
    for seconds in (60, late - 120):
        record = stages.look(record, verdict("inconclusive"), "v", following, at(seconds))
        assert (record.state, len(record.stages)) == (records.OPEN, 1)
    record = stages.look(record, verdict("inconclusive"), "v", following, at(late))
    assert (record.state, record.events[-1].what) == (records.PAUSED, "paused")
    assert "did not pass in 3 d" in record.events[-1].why
    record = stages.resume(record, "they are on holiday", at(late, "ann"))
    record = stages.look(record, verdict("inconclusive"), "v", following, at(late + 60))
    assert record.state == records.OPEN
    assert stages.look(record, None, "", following, at(late + 60)) == record, "no verdict moves nothing"


def test_who_resumes_after_a_soft_breach_accepts_what_was_found():
    record = stages.look(opened(), verdict("halt"), "v", None, at(60))
    record = stages.resume(record, "the new shops are darker", at(120, "ann"))
    assert record.plan.report_only == ("latency",)
    assert record.events[-1].why == "the new shops are darker; accepted: latency"


def test_an_approval_before_a_stage_that_is_skipped_is_asked_for_before_the_end():
    record = rollout(plan={"approve": (3,)})
    record = stages.look(record, None, "", next_stage(record, fleet(1), NOW), at())
    record = stages.look(record, verdict("pass"), "v", next_stage(record, fleet(1), NOW), at(60))
    assert record.state == records.APPROVAL


def test_nobody_in_the_registry_is_no_rollout_that_is_done():
    record = stages.look(rollout(), None, "", None, at())
    assert (record.state, record.stages) == (records.PLANNED, ())


def test_a_rollout_that_goes_back_ends_when_the_devices_left_or_a_time_has_passed():
    record = stages.go_back(opened(pace_per_min=1.0), "it is bad", at(who="ann"))
    assert stages.finish_going_back(record, {"camera-1"}, at(60)).state == records.GOING_BACK
    assert stages.finish_going_back(record, None, at(60)).state == records.GOING_BACK, "unknown is not none"
    assert stages.finish_going_back(record, set(), at(60)).state == records.BACK
    for serving in ({"camera-1"}, None):
        assert stages.finish_going_back(record, serving, at(90_000)).state == records.BACK


def test_it_is_superseded_in_its_first_stage_only():
    record = opened()
    assert stages.supersede(record, "newer", at()).state == records.SUPERSEDED
    second = msgspec.structs.replace(record, stages=(*record.stages, next_stage(record, fleet(10), NOW)))
    with pytest.raises(InputError, match="past its first stage"):
        stages.supersede(second, "newer", at())


def test_what_has_ended_is_changed_by_nobody():
    record = stages.abort(opened(), "", at(who="ann"))
    for change in (stages.go_back, stages.abort, stages.pause):
        with pytest.raises(InputError, match="has ended: aborted"):
            change(record, "", at())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stages": "1d,3d"}, "100% last"),
        ({"stages": "10%,1d,100%"}, "numbers first"),
        ({"stages": "3d,1d,100%"}, "larger than the one before"),
        ({"stages": "half,100%"}, "such as 1d,3d,10%,50%,100%"),
        ({"stages": "0d,100%"}, "such as 1d,3d,10%,50%,100%"),
        ({"stages": "0%,100%"}, "such as 1d,3d,10%,50%,100%"),
        ({"success": "0.95"}, "a share such as 95%"),
        ({"success": "101%"}, "0% to 100%"),
        ({"errors": "10%|two"}, "a number of devices such as 2d"),
        ({"errors": "10%|20%"}, "a number of devices such as 2d"),
        ({"errors": "0%"}, "above 0% and below 100%"),
        ({"soak": "2"}, "30m, 2h or 3d"),
        ({"stage_timeout": "3 days"}, "30m, 2h or 3d"),
        ({"stages": "1d,100%", "approve": "3"}, "1 to 2"),
        ({"approve": "1"}, "none without stages"),
        ({"only": "site=shop 7"}, "site=NAME"),
        ({"window": "1-5"}, "01:00-05:00"),
        ({"window": "05:00-05:00"}, "01:00-05:00"),  # it would never open
        ({"apply": "window"}, "01:00-05:00"),
        ({"pace": "2000"}, "2000/min"),
        ({"soak": "3d"}, "shorter than stage_timeout"),
        ({"min_passed": 0}, "at least 1"),
        ({"report_only": "latency,latncy"}, "failed_frames, restarts"),
    ],
)
def test_a_wrong_value_is_named_with_the_allowed_ones(change, named):
    name = next(reversed(change)) if "apply" not in change else "window"
    (fault,) = find_rollout_faults(RolloutSettings(**change), 100.0)
    assert fault.startswith(f"[rollout] {name}: ")
    assert named in fault


@pytest.mark.parametrize(
    ("given", "apply"),
    [({}, "now"), ({"window": "01:00-05:00"}, "window"), ({"window": "01:00-05:00", "apply": "ask"}, "ask")],
)
def test_a_window_that_is_given_counts(given, apply):
    assert plan_of(RolloutSettings(stages="100%", **given)).apply == apply


def test_a_share_of_the_old_kind_and_stages_exclude_each_other():
    assert find_rollout_faults(RolloutSettings(), 10.0) == []
    (fault,) = find_rollout_faults(RolloutSettings(stages="1d,100%"), 10.0)
    assert "share_percent is 10" in fault
