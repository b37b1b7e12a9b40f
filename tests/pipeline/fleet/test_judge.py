"""Verdicts on a stage: what halts, what passes, what waits, and that anybody gets the same bytes."""

from __future__ import annotations

import dataclasses
import random
from typing import TYPE_CHECKING, Any

import hypothesis
import msgspec
import pytest
from hypothesis import strategies as st

from edge_client.contract.documents import encode_document
from edge_client.contract.errors import InputError
from edge_client.contract.report import DeviceReport, MachineFacts, ReleaseFigures
from edge_client.contract.rollout import rollout_hash
from luigi_tasks.fleet.checks import error_limit
from luigi_tasks.fleet.evidence import what_is_not_seen
from luigi_tasks.fleet.judge import judge, rebuild
from luigi_tasks.fleet.records import (
    DeviceRow,
    EnrolledDevice,
    PeriodSum,
    RolloutPlan,
    RolloutRecord,
    SnapshotHead,
    StageRecord,
    VerdictRecord,
)
from luigi_tasks.fleet.stages import Moment, look, resume
from luigi_tasks.fleet.statistics import lower_bound, upper_bound

if TYPE_CHECKING:
    from collections.abc import Callable

NEW, OLD, ROLLOUT, HOUR = "r2", "r1", "x", 3600
OPENED = 480_000 * HOUR
SOAK = 2 * HOUR
NOW = OPENED + 4 * HOUR
State = dict[str, Any]
WAITING: State = {"release": OLD, "offered": OLD}
SHADOW: State = {"release": OLD, "offered": NEW, "stage": "shadow"}
PASSED: State = {
    "release": NEW,
    "offered": NEW,
    "releases": (ReleaseFigures(release=NEW, probation="passed"),),
}
SENT_BACK: State = {
    "release": OLD,
    "offered": NEW,
    "releases": (ReleaseFigures(release=NEW, probation="sent_back", reason="slower", reason_code="slower"),),
}


@dataclasses.dataclass
class Fleet:
    """A fleet of which the first `size` devices are in the stage; devices are numbered in that order."""

    devices: int
    size: int
    plan: dict[str, Any] = dataclasses.field(default_factory=dict)
    soaking_since: float = OPENED + HOUR
    listening_since: float = 0.0

    def __post_init__(self) -> None:
        ids = [f"d{number:04}" for number in range(self.devices)]
        enrolled = {name: EnrolledDevice(device=name, site=f"shop-{n % 7}") for n, name in enumerate(ids)}
        self.order = sorted(ids, key=lambda name: rollout_hash(ROLLOUT, "device", enrolled[name].member))
        self.enrolled = {
            name: msgspec.structs.replace(
                one, device_class="wide" if self.order.index(name) % 3 == 0 else "zoom"
            )
            for name, one in enrolled.items()
        }
        places = [rollout_hash(ROLLOUT, "device", enrolled[name].member) for name in self.order]
        threshold = places[self.size] if self.size < self.devices else 1 << 52
        self.stage = StageRecord(
            number=1, size=self.size, threshold=threshold, opened_at=OPENED, soaking_since=self.soaking_since
        )
        plan = RolloutPlan(**{"soak_s": SOAK, **self.plan})
        self.record = RolloutRecord(
            id=ROLLOUT, channel="stable", release=NEW, from_release=OLD, plan=plan, stages=(self.stage,)
        )
        self.head = SnapshotHead(fleet="f", taken_at=NOW, listening_since=self.listening_since)
        self.rows = [
            self.row(place, PASSED if place < self.size else WAITING) for place in range(self.devices)
        ]

    def row(
        self, place: int, state: State, *, ago: float = 30.0, periods: tuple[PeriodSum, ...] = ()
    ) -> DeviceRow:
        device = self.enrolled[self.order[place]]
        report = DeviceReport(
            fleet="f",
            device=device.device,
            channel="stable",
            interval_s=60.0,
            rollout=ROLLOUT,
            runtime="litert 2.1" if place % 2 else "tflite-runtime 2.14",
            machine=MachineFacts(model="Pi 4"),
            **state,
        )
        return DeviceRow(
            device=device.device,
            channel="stable",
            enrolled=True,
            last_seen=NOW - ago,
            report=report,
            periods=periods,
        )

    def put(self, places: range | tuple[int, ...], state: State, *, ago: float = 30.0) -> Fleet:
        for place in places:
            self.rows[place] = self.row(place, state, ago=ago)
        return self

    def measured(self, change: Callable[[int, PeriodSum], PeriodSum] = lambda _, period: period) -> Fleet:
        """Give all devices hours before and after; `change` is what the release does to a device."""
        chance = random.Random(7)
        for place in range(self.devices):
            speed, state = 20 * chance.lognormvariate(0, 0.3), PASSED if place < self.size else WAITING
            periods = []
            for hour in range(-6, 4):
                is_new = hour >= 0 and place < self.size
                # All cameras see less and take longer in the later hours.
                one = period_of(OPENED + hour * HOUR, speed * (1.3 if hour >= 0 else 1.0), chance)
                periods.append(change(place, msgspec.structs.replace(one, release=NEW)) if is_new else one)
            self.rows[place] = self.row(place, state, periods=tuple(periods))
        return self

    def verdict(self, **inputs: Any) -> VerdictRecord:
        return judge(self.record, self.stage, self.enrolled, self.rows, self.head, **inputs)


def period_of(start: int, latency_ms: float, chance: random.Random) -> PeriodSum:
    frames = 3600
    counts = [round(frames / 4 * chance.lognormvariate(0, 0.05)) for _ in range(4)]
    return PeriodSum(
        start=start,
        release=OLD,
        seconds=HOUR,
        frames=frames,
        unsure=round(frames * 0.05 * chance.lognormvariate(0, 0.2)),
        latency_ms=frames * latency_ms * chance.lognormvariate(0, 0.03),
        confidence=(0, 0, 0, 0, 180, 0, 0, 420, 1200, 1800),
        labels=dict(zip(("bolt", "cap", "nut", "pin"), counts, strict=True)),
    )


def check(verdict: VerdictRecord, name: str) -> Any:
    return next(one for one in verdict.checks if one.name == name)


def test_bounds_are_those_of_the_tables() -> None:
    """0 of n: 1 - 0.05^(1/n)."""
    assert [round(upper_bound(0, n, 0.95), 3) for n in (10, 29, 100)] == [0.259, 0.098, 0.030]
    assert lower_bound(2, 3, 0.95) == pytest.approx(0.1354, abs=1e-4)
    assert (upper_bound(0, 0, 0.95), lower_bound(0, 0, 0.95), upper_bound(3, 3, 0.95)) == (1.0, 0.0, 1.0)


@pytest.mark.parametrize(
    ("errors", "failed", "size", "halts"),
    [
        ("10%|2d", 1, 1, False),
        ("10%|2d", 1, 3, False),
        ("10%|2d", 2, 3, True),
        ("10%|2d", 2, 19, True),
        ("10%|2d", 2, 20, False),
        ("10%|2d", 2, 1000, False),
        ("10%|2d", 118, 1000, True),
        ("10%|2d", 110, 1000, False),
        ("2d", 2, 1000, True),
        ("10%", 2, 10, False),
    ],
)
def test_meaning_of_errors(errors: str, failed: int, size: int, halts: bool) -> None:
    assert error_limit(errors).is_reached(failed, size, size, 0.95) is halts


def test_halt_says_first_what_broke_which_limit() -> None:
    few = Fleet(100, 6, {"errors": "10%|1d"}).put((0,), SENT_BACK)
    assert few.verdict().words == "failures: 1 of 6 devices failed, and the limit is 1 (errors 10%|1d)"
    many = Fleet(100, 40).put(range(10), SENT_BACK)
    assert many.verdict().words.startswith(
        "failures: 10 of 40 devices failed: at least 14% of the fleet would, "
    )


@pytest.mark.parametrize("errors", ["", "ten", "10%|x", "0%", "100%", "0d"])
def test_errors_that_mean_nothing_are_refused(errors: str) -> None:
    with pytest.raises(InputError, match="10%"):
        error_limit(errors)


def test_small_stage_of_which_all_passed_passes_and_says_what_is_not_shown() -> None:
    verdict = Fleet(100, 10).verdict()
    assert (verdict.result, verdict.is_ready) == ("pass", True)
    assert "0 of 10 devices failed: up to 26% of the fleet may still" in verdict.words
    assert "29 devices" in verdict.words


def test_stage_soaks_before_it_passes() -> None:
    assert Fleet(100, 10, soaking_since=0.0).verdict().is_ready
    for since, result in ((0.0, "inconclusive"), (NOW - SOAK + 1, "inconclusive"), (NOW - SOAK, "pass")):
        assert Fleet(100, 10, soaking_since=since).verdict().result == result
    verdict = Fleet(100, 10, listening_since=NOW - 60).verdict()
    assert verdict.result == "inconclusive", "the collector was away: nobody watched"


def test_failures_halt_at_any_look_and_say_what_they_have_in_common() -> None:
    fleet = Fleet(300, 60, soaking_since=0.0).put(range(60), SHADOW)
    hit = tuple(place for place in range(60) if place % 3 == 0)[:16]
    verdict = fleet.put(hit, SENT_BACK).verdict()
    assert (verdict.result, verdict.is_hard) == ("halt", True)
    assert [one.fact for one in verdict.common] == ["class=wide"]
    assert [one.device for one in verdict.examples[:16]] == sorted(fleet.order[place] for place in hit)
    assert verdict.examples[0].reason == "slower"
    assert len(verdict.examples) == 20


def test_first_failures_of_a_large_stage_do_not_halt_it() -> None:
    """Who fails, fails sooner than others pass: six of the six devices that have ended are failures."""
    verdict = Fleet(1000, 500, soaking_since=0.0).put(range(500), SHADOW).put(range(6), SENT_BACK).verdict()
    assert verdict.result == "inconclusive"


def test_devices_that_crash_though_they_passed_are_failures() -> None:
    def figures(restarts: int) -> State:
        now = ReleaseFigures(release=NEW, probation="passed", seconds=7200, frames=999, restarts=restarts)
        return {**PASSED, "releases": (now, ReleaseFigures(release=OLD, seconds=6e5, restarts=7))}

    verdict = Fleet(50, 3).put(range(3), figures(3)).verdict()
    assert (verdict.result, verdict.is_hard) == ("halt", True)
    assert "started 3 times" in verdict.examples[0].reason
    assert Fleet(50, 3).put(range(3), figures(1)).verdict().result == "pass"

    fleet = Fleet(50, 3).put(range(3), figures(3))
    storm = (PeriodSum(start=OPENED, release=OLD, seconds=HOUR, restarts=3),)
    for place in range(3, 40):
        fleet.rows[place] = fleet.row(place, WAITING, periods=storm)
    assert fleet.verdict().result == "pass", "power failed everywhere"


def test_silence_never_advances() -> None:
    """Devices that were never heard, that waited, that passed and then fell silent."""
    for state in (WAITING, PASSED):
        fleet = Fleet(100, 30).put(range(20, 30), state, ago=HOUR)
        verdict = fleet.put(range(60, 90), WAITING, ago=HOUR).verdict()
        assert verdict.result == "inconclusive"
    fleet = Fleet(100, 30)
    gone = set(fleet.order[20:30])
    fleet.rows = [row for row in fleet.rows if row.device not in gone]
    verdict = fleet.verdict()
    assert (verdict.result, verdict.counts) == ("inconclusive", {"passed": 20, "unseen": 10})
    assert "nothing is known of 10 more" in check(verdict, "passed").words


def test_silence_in_the_try_is_a_failure_unless_the_rest_is_silent_too() -> None:
    fleet = Fleet(100, 30).put(range(10), SHADOW, ago=HOUR)
    assert fleet.verdict().is_hard
    outage = fleet.put(range(30, 60), WAITING, ago=HOUR).verdict()
    assert outage.result == "inconclusive"
    assert "an outage" in check(outage, "silence").words


def test_an_outage_of_a_small_fleet_is_none_of_the_release() -> None:
    fleet = Fleet(10, 3).put((0, 1), SHADOW, ago=9999)
    assert fleet.verdict().result == "halt"
    assert fleet.put(range(3, 10), WAITING, ago=9999).verdict().result == "inconclusive"
    last = Fleet(10, 10).put((0, 1, 2), SHADOW, ago=9999)
    assert last.verdict().result == "halt"
    assert last.put(range(3, 10), PASSED, ago=9999).verdict().result == "inconclusive"


def test_what_was_never_enrolled_votes_for_nothing_and_clones_are_named() -> None:
    fleet = Fleet(50, 5)
    forged = dataclasses.replace(fleet)
    names = [f"stranger{number}" for number in range(500)]
    fleet.rows += [msgspec.structs.replace(forged.row(0, SENT_BACK), device=name) for name in names]
    fleet.rows[0] = msgspec.structs.replace(fleet.rows[0], clones=("a", "b"))
    verdict = fleet.verdict()
    assert (verdict.result, verdict.strangers, verdict.clones) == ("pass", 500, (fleet.order[0],))
    assert verdict.counts == {"passed": 4, "unseen": 1}


def test_devices_that_are_made_to_look_like_clones_take_no_failure_away() -> None:
    fleet = Fleet(50, 10).put(range(9), SENT_BACK)
    fleet.rows[:9] = [msgspec.structs.replace(row, clones=("a", "b")) for row in fleet.rows[:9]]
    verdict = fleet.verdict()
    assert verdict.result == "inconclusive"
    assert "under the ids of 9 two machines report" in check(verdict, "quorum").words


def test_change_that_hits_control_too_passes() -> None:
    verdict = Fleet(90, 45).measured().verdict()
    assert verdict.result == "pass"
    assert {one.name for one in verdict.checks if one.kind == "soft"} == {
        "latency",
        "unsure",
        "failed_frames",
        "restarts",
        "confidence",
    }
    assert abs(check(verdict, "latency").value) < 0.05


def slower(place: int, period: PeriodSum) -> PeriodSum:
    """30% slower on one runtime."""
    factor = 1.3 if place % 2 else 1.0
    return msgspec.structs.replace(period, latency_ms=period.latency_ms * factor)


def fewer_bolts(place: int, period: PeriodSum) -> PeriodSum:
    """12% of a class are taken for another on one kind of camera."""
    lost = period.labels["bolt"] // 8 if place % 3 == 0 else 0
    labels = {**period.labels, "bolt": period.labels["bolt"] - lost, "cap": period.labels["cap"] + lost}
    return msgspec.structs.replace(period, labels=labels)


def test_slower_on_one_runtime_halts_softly_and_names_it() -> None:
    verdict = Fleet(120, 60).measured(slower).verdict()
    assert (verdict.result, verdict.is_hard) == ("halt", False)
    found = check(verdict, "latency:runtime=litert 2.1")
    assert found.low < 0.3 < found.high
    assert "runtime=litert 2.1" in verdict.words
    assert verdict.common[0].fact == "runtime=litert 2.1"
    quiet = Fleet(120, 60, plan={"report_only": ("latency",)}).measured(slower).verdict()
    assert quiet.result == "pass"
    assert check(quiet, "latency:runtime=litert 2.1").result == "halt"


def test_class_that_is_lost_on_one_kind_of_camera_halts_softly() -> None:
    verdict = Fleet(120, 60).measured(fewer_bolts).verdict()
    assert (verdict.result, verdict.is_hard) == ("halt", False)
    assert check(verdict, "drift:class=wide:bolt").value < -0.05


def test_control_is_compared_in_the_hours_in_which_the_stage_soaks() -> None:
    """Devices move in their window, long after the stage opened; before, it was day, and warm."""
    fleet = Fleet(90, 45, soaking_since=OPENED + 2 * HOUR).measured()
    for place in range(90):
        row = fleet.rows[place]
        kept = [
            msgspec.structs.replace(one, latency_ms=one.latency_ms * 3) if is_day else one
            for one in row.periods
            if not ((is_day := OPENED <= one.start < OPENED + 2 * HOUR) and place < 45)
        ]
        fleet.rows[place] = msgspec.structs.replace(row, periods=tuple(kept))
    verdict = fleet.verdict()
    assert verdict.result == "pass"
    assert abs(check(verdict, "latency").value) < 0.05


def test_difference_that_is_not_certain_yet_soaks_on_and_asks_at_the_last_look() -> None:
    """Eight devices of twelve are slower by 60%; chance does as much once in 140 times."""

    def mostly_slower(place: int, period: PeriodSum) -> PeriodSum:
        return msgspec.structs.replace(period, latency_ms=period.latency_ms * (1.6 if place < 8 else 1.0))

    fleet = Fleet(24, 12).measured(mostly_slower)
    verdict = fleet.verdict()
    suspects = [one.name for one in verdict.checks if one.result == "inconclusive"]
    assert (verdict.result, verdict.is_ready, suspects[0]) == ("inconclusive", True, "latency")
    assert "soaks on" in verdict.words
    last = fleet.soaking_since + 8 * SOAK
    fleet.head = msgspec.structs.replace(fleet.head, taken_at=last)
    fleet.rows = [msgspec.structs.replace(row, last_seen=last) for row in fleet.rows]
    verdict = fleet.verdict()
    assert (verdict.result, verdict.asks) == ("inconclusive", ("latency",))


def test_figures_of_one_device_that_cannot_be_weigh_nothing() -> None:
    def broken(place: int, period: PeriodSum) -> PeriodSum:
        absurd: dict[int, dict[str, Any]] = {
            0: {"latency_ms": 1e308},
            1: {"frames": -5},
            2: {"labels": {"bolt": -(10**9)}},
        }
        return msgspec.structs.replace(period, **absurd.get(place, {}))

    verdict = Fleet(90, 45).measured(broken).verdict()
    assert verdict.result == "pass"
    assert check(verdict, "latency").counted == 43


@pytest.mark.parametrize(
    ("what", "effect", "hostile"),
    [
        ("restarts", {"restarts": 4}, {"restarts": 2**53}),
        ("unsure", {"unsure": 600}, {"unsure": 2**53}),
        ("failed_frames", {"failed": 90}, {"failed": 2**53}),
        (
            "drift:bolt",
            {"labels": {"bolt": 500, "cap": 1200, "nut": 900, "pin": 900}},
            {"labels": {"x": 2**53}},
        ),
    ],
)
def test_figures_of_one_hostile_device_of_the_control_hide_nothing(
    what: str, effect: dict[str, Any], hostile: dict[str, Any]
) -> None:
    fleet = Fleet(60, 30).measured(lambda _, period: msgspec.structs.replace(period, **effect))
    row = fleet.rows[45]
    absurd = (msgspec.structs.replace(one, **hostile) if one.start >= OPENED else one for one in row.periods)
    fleet.rows[45] = msgspec.structs.replace(row, periods=tuple(absurd))
    assert check(fleet.verdict(), what).result == "halt"


def test_below_ten_devices_a_side_soft_figures_are_reported_and_judge_nothing() -> None:
    verdict = Fleet(50, 9).measured(slower).verdict()
    assert verdict.result == "pass"
    assert (check(verdict, "latency").kind, check(verdict, "latency").counted) == ("report", 9)


def slower_wide(place: int, period: PeriodSum) -> PeriodSum:
    """30% slower on one kind of camera, a third of all."""
    factor = 1.3 if place % 3 == 0 else 1.0
    return msgspec.structs.replace(period, latency_ms=period.latency_ms * factor)


def test_group_too_small_to_judge_asks_a_person_who_may_accept_it() -> None:
    fleet = Fleet(48, 24).measured(slower_wide)
    verdict = fleet.verdict()
    assert (verdict.result, verdict.is_hard, verdict.asks) == ("inconclusive", False, ("latency:class=wide",))
    assert "a person has to look" in verdict.words
    assert {one.device for one in verdict.examples} <= {fleet.order[place] for place in range(0, 24, 3)}
    when = Moment(NOW, "later")
    paused = look(msgspec.structs.replace(fleet.record, state="soaking"), verdict, "key", None, when)
    assert (paused.state, paused.breached) == ("paused", verdict.asks)
    resumed = resume(paused, "the new lens is slower", when)
    again = judge(resumed, resumed.stages[-1], fleet.enrolled, fleet.rows, fleet.head)
    assert (again.result, again.asks) == ("pass", ())


def test_last_stage_asks_where_one_kind_of_device_became_slower_than_the_rest() -> None:
    verdict = Fleet(36, 36).measured(slower_wide).verdict()
    assert verdict.asks == ("latency:class=wide",)
    assert Fleet(36, 36).measured().verdict().result == "pass"  # all are slower: nothing to compare with


def test_figures_that_come_late_are_waited_for() -> None:
    """Devices that report every hour have told nothing of the soak yet."""
    fleet = Fleet(60, 30).measured()
    fleet.rows = [
        msgspec.structs.replace(row, periods=tuple(one for one in row.periods if one.start < OPENED))
        for row in fleet.rows
    ]
    verdict = fleet.verdict()
    assert (verdict.result, verdict.is_ready) == ("inconclusive", True)
    assert "30 and 30 more had them before" in verdict.words
    last = fleet.soaking_since + 8 * SOAK
    fleet.head = msgspec.structs.replace(fleet.head, taken_at=last)
    fleet.rows = [msgspec.structs.replace(row, last_seen=last) for row in fleet.rows]
    assert fleet.verdict().result == "pass"


RANKS = {"pass": 0, "inconclusive": 1, "halt": 2}


@hypothesis.given(
    st.integers(1, 40).flatmap(lambda size: st.tuples(st.just(size), st.sets(st.integers(0, size - 1)))),
    st.sampled_from(["10%|2d", "5%", "1d", "20%|3d"]),
    st.sampled_from([(SENT_BACK, 30.0), (SHADOW, 9999.0)]),
    st.randoms(use_true_random=False),
)
@hypothesis.settings(max_examples=40, deadline=None)
def test_one_more_failure_or_silence_never_helps(drawn: Any, errors: str, fault: Any, chance: Any) -> None:
    size, failed = drawn
    fleet = Fleet(60, size, plan={"errors": errors, "success": 0.5})
    before = None
    for count in range(len(failed) + 1):
        if count:
            fleet.put((sorted(failed)[count - 1],), fault[0], ago=fault[1])
        verdict = fleet.verdict()
        assert before is None or RANKS[verdict.result] >= RANKS[before], (count, verdict.words)
        before = verdict.result
    chance.shuffle(fleet.rows)
    assert encode_document(fleet.verdict()) == encode_document(verdict)


@pytest.mark.parametrize(
    ("devices", "plan", "told"),
    [
        (12, {}, "no stage has 10 devices inside and as many outside"),
        (
            48,
            {},
            "fewer than 6 devices is not seen unless they fail, nor a few points in the labels of one of",
        ),
        (48, {}, "fewer than 50: of the classes wide (16), zoom (32)"),
        (48, {"by": "site"}, "no stage has 10 sites inside"),
        (150, {}, "of one of fewer than 50"),
    ],
)
def test_what_verdicts_will_not_see_is_said_before_the_rollout(
    devices: int, plan: dict[str, Any], told: str
) -> None:
    fleet = Fleet(devices, 1, plan=plan)
    drafted = msgspec.structs.replace(fleet.record, stages=())
    assert told in what_is_not_seen(drafted, fleet.enrolled.values())


def test_same_snapshot_gives_the_same_bytes() -> None:
    fleet = Fleet(60, 30).measured(slower)
    verdict = fleet.verdict(snapshots={"fleet/snapshots/b": "22", "fleet/snapshots/a": "11"})
    later = msgspec.structs.replace(fleet.stage, looks=9, soaking_since=NOW)
    plan = msgspec.structs.replace(fleet.record.plan, report_only=("latency",))
    record = msgspec.structs.replace(fleet.record, stages=(later,), plan=plan)
    shuffled = dict(reversed(fleet.enrolled.items()))
    again = rebuild(verdict, record, shuffled, fleet.rows[::-1], fleet.head)
    assert again == encode_document(verdict)
    changed = fleet.put((0,), SENT_BACK).rows
    with pytest.raises(InputError, match="made again it differs"):
        rebuild(verdict, record, fleet.enrolled, changed, fleet.head)
    fewer = {name: one for name, one in fleet.enrolled.items() if name != fleet.order[-1]}
    with pytest.raises(InputError, match="another state of the registry"):
        rebuild(verdict, record, fewer, fleet.rows, fleet.head)
