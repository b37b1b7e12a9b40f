"""Soft checks: latency, unsure answers, failed frames, restarts, confidence, mix of labels against control.

A figure halts where Mann-Whitney's test finds the stage's changes worse than those of the control, and the
difference is larger than what is tolerated. The first holds the rate of false halts, whatever the noise; the
second keeps a difference that is real and small from halting a large fleet.

False halts of a rollout are kept at 4% (5% with the hard checks): divided by the stages that can be compared,
then by looks (after the soak, at twice, four times and eight times the soak; in between the data are those of
the last such time, so that asking again is no second look), then by what is looked at: figures of the whole
stage, figures of groups of devices (class, runtime, machine, site, tag, client), the mix of labels of the
stage and of each group; each divided by the number of its tests.

A difference that is larger than what is tolerated, and not yet certain, waits for the next look: the stage
soaks on. One that is still not certain at the last look neither halts nor passes: a person is asked, and so
for what groups of three devices a side and more show by the spread of the fleet, which takes its noise for
normal and asks therefore, and does not judge (`small_groups`).

The mix of labels is tested as a whole: a class that is lost is found again in others, and each of them moves
little. A label is named where it moved by more than is tolerated.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

from luigi_tasks.fleet.changes import (
    CONFIDENCE,
    FAILED,
    FIGURES,
    FRAMES_AT_LEAST,
    LATENCY,
    RESTARTS,
    SECONDS_AT_LEAST,
    UNSURE,
    Changes,
    Sides,
    measure_changes,
)
from luigi_tasks.fleet.evidence import SIDE_AT_LEAST, SMALL_AT_LEAST
from luigi_tasks.fleet.hit_devices import facts_of
from luigi_tasks.fleet.records import HALT, INCONCLUSIVE, PASS, REPORT, SOFT, Check
from luigi_tasks.fleet.small_groups import SmallGroups
from luigi_tasks.fleet.statistics import fisher_p, mean_shift, mixture_p, p_above, rounded, shift, tamed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from luigi_tasks.fleet.records import DeviceRow, RolloutPlan
    from luigi_tasks.fleet.stage_view import StageView, Vote
    from luigi_tasks.fleet.statistics import Shift

# Checks of groups and labels in a verdict, the smallest p-values first: a document stays one.
PARTS_AT_MOST = 20
# False halts of a rollout by soft checks.
ALPHA = 0.04
# Good rollouts in which a person is asked about groups that are too small to judge by.
ASK_ALPHA = 0.01
STAGE_PART, GROUP_PART, DRIFT_PART = 0.4, 0.25, 0.35
# Parts of the looks after the soak, twice, four times and eight times the soak.
LOOK_PARTS = (0.5, 0.2, 0.2, 0.1)
# A difference with so many times the p-value that halts, or asks, is waited for; at the last look it asks.
SUSPECT, SUSPECT_SMALL = 20.0, 100.0
# Devices of each side of a group from which ranks alone tell enough.
SMALL_BELOW = 30
# Smallest effects: share of unsure answers, of failed frames, restarts an hour, mean confidence.
SMALLEST = {LATENCY: 0.0, UNSURE: 0.01, FAILED: 0.005, RESTARTS: 0.05, CONFIDENCE: 0.03}
# A label's share may change by this part of itself: a release that is better changes it too.
LABEL_EFFECT = 0.03
# Figures that are zero on most devices: the median of differences is blind to them, the mean is not.
BY_MEAN = (FAILED, RESTARTS)
# So little may all labels move at once, each by this part of its share.
MIX_EFFECT = 0.006
# A label is named where the mix differs, and its own p-value is below.
LABEL_P = 0.01
DRIFT = "drift"
# Neither: no further look makes it clearer.
ASK = "ask"
# Facts of a device that no hour of the day and no customer changes.
TECHNICAL = ("class", "runtime", "machine", "architecture", "client")
UNITS = {LATENCY: "relative", RESTARTS: "per hour", DRIFT: "relative"}


@dataclasses.dataclass(frozen=True)
class Findings:
    """What the soft checks found.

    Attributes:
        checks: A check for each figure of the whole stage, and one for each group that is hit.
        hit: Devices that are worse by more than what is tolerated, where a check halts or asks.
        asks: Checks that soaking on makes no clearer: a person has to look.
    """

    checks: tuple[Check, ...] = ()
    hit: frozenset[str] = frozenset()
    asks: frozenset[str] = frozenset()


@dataclasses.dataclass(frozen=True)
class _Group:
    """Devices of both sides that share a fact; the name of the whole stage is empty."""

    name: str
    stage: NDArray[np.int_]
    control: NDArray[np.int_]

    @property
    def is_enough(self) -> bool:
        return min(len(self.stage), len(self.control)) >= SIDE_AT_LEAST

    @property
    def is_small(self) -> bool:
        return SMALL_AT_LEAST <= min(len(self.stage), len(self.control)) < SMALL_BELOW


@dataclasses.dataclass(frozen=True)
class _Alpha:
    """p-values below which a figure and the mix of labels halt; `suspect` times as much is waited for.

    At the last look, and in a group that is too small to judge by, a person is asked.
    """

    figure: float
    drift: float
    suspect: float
    is_last: bool
    is_small: bool = False

    def result(self, p: float, *, of_drift: bool) -> str:
        limit = self.drift if of_drift else self.figure
        if p < limit:
            return ASK if self.is_small else HALT
        return PASS if p >= limit * self.suspect else ASK if self.is_last else INCONCLUSIVE


def soft_findings(view: StageView, baseline: Sequence[DeviceRow], *, is_soaked: bool) -> Findings:
    """Return the soft checks of a stage; none before its soak was served, or without a release before."""
    if not is_soaked or not view.record.from_release:
        return Findings()
    number, until = _look(view)
    sides = measure_changes(view, baseline, until)
    part = LOOK_PARTS[number]
    alpha = min(1 - view.record.plan.soft_confidence, ALPHA / comparable_stages(view.record.plan))
    return _compare(
        sides,
        view.record.plan,
        alpha * part,
        ASK_ALPHA * part / (comparable_stages(view.record.plan) + 1),
        _Alpha(0, 0, SUSPECT if view.record.plan.soak_s > 0 else 1.0, number == len(LOOK_PARTS) - 1),
    )


def comparable_stages(plan: RolloutPlan) -> int:
    """Return the number of stages that have a control and are not known to be too small."""
    stages = [one for one in plan.stages if one.strip() != "100%"]
    small = [
        one for one in stages if one.endswith("d") and one[:-1].isdigit() and int(one[:-1]) < SIDE_AT_LEAST
    ]
    return max(len(stages) - len(small), 1)


def _look(view: StageView) -> tuple[int, float]:
    """Return the number of the look, from 0, and the time up to which it has data."""
    soak_s, taken_at = view.record.plan.soak_s, view.head.taken_at
    since = max(view.stage.soaking_since, view.head.listening_since)
    if soak_s <= 0:
        return 0, taken_at
    number = min(int(math.log2(max((taken_at - since) / soak_s, 1.0))), len(LOOK_PARTS) - 1)
    return number, since + soak_s * 2**number


def _compare(sides: Sides, plan: RolloutPlan, alpha: float, ask_alpha: float, rule: _Alpha) -> Findings:
    whole = _Group("", np.arange(len(sides.stage.votes)), np.arange(len(sides.control.votes)))
    if not whole.is_enough and not rule.is_last and _may_come(sides):
        return Findings((*_side_reports(sides, plan), _late(sides)))
    if not whole.is_enough:
        return _without_control(sides, plan, ask_alpha, rule)
    groups, small = _groups(sides)
    small = (*(one for one in [whole] if one.is_small), *small)
    of_groups = max(len(groups), 1)
    judged = dataclasses.replace(
        rule,
        figure=GROUP_PART * alpha / (len(FIGURES) * of_groups),
        drift=DRIFT_PART * alpha / (len(groups) + 1),
    )
    of_stage = dataclasses.replace(judged, figure=STAGE_PART * alpha / len(FIGURES))
    each = ask_alpha / ((len(FIGURES) + 1) * max(len(small), 1))
    suspect = SUSPECT_SMALL if rule.suspect > 1 and not rule.is_last else rule.suspect
    asked = dataclasses.replace(rule, figure=each, drift=each, suspect=suspect, is_small=True)
    stage, control = sides.stage.values * sides.signs, sides.control.values * sides.signs
    spread = SmallGroups(stage, control, sides.figures) if small else None
    looked = [_look_at(sides, whole, plan, of_stage, None)]
    looked += [_look_at(sides, group, plan, judged, None) for group in groups]
    looked += [_look_at(sides, group, plan, asked, spread) for group in small]
    return _findings(looked)


def _may_come(sides: Sides) -> bool:
    """Whether a side that is too small now is not, once the devices that had figures before have them again.

    Devices that report every hour are late, and cameras of a shop that is closed see nothing.
    """
    both = zip((sides.stage, sides.control), sides.late, strict=True)
    return min(len(side.votes) + late for side, late in both) >= SIDE_AT_LEAST


def _late(sides: Sides) -> Check:
    n, m = len(sides.stage.votes), len(sides.control.votes)
    return Check(
        name="figures",
        kind=SOFT,
        result=INCONCLUSIVE,
        counted=n,
        control=m,
        words=(
            f"{n} devices have figures since the soak began, and {m} outside of the stage; "
            f"{sides.late[0]} and {sides.late[1]} more had them before, and are waited for"
        ),
    )


def _without_control(sides: Sides, plan: RolloutPlan, ask_alpha: float, rule: _Alpha) -> Findings:
    """Compare groups of the stage with its other devices, in what neither hours nor customers change.

    In the last stage nobody is left outside. A group that became slower by more than is tolerated, and than
    the rest, is asked about: it may be the release, and it may be the weather where the group is.
    """
    reports = Findings(_side_reports(sides, plan))
    groups = []
    everybody = set(range(len(sides.stage.votes)))
    for fact, members in sorted(_by_fact(sides.stage.votes).items()):
        rest = sorted(everybody - set(members))
        if fact.startswith(tuple(f"{one}=" for one in TECHNICAL)):
            groups.append(_Group(fact, np.array(members), np.array(rest)))
    groups = [one for one in groups if one.is_small or one.is_enough]
    if not groups or len(everybody) < SIDE_AT_LEAST <= len(sides.control.votes):
        return reports
    asked = dataclasses.replace(rule, figure=ask_alpha / len(groups), drift=0.0, is_small=True)
    latency = Sides(sides.stage.only(LATENCY), sides.stage.only(LATENCY), ())
    spread = SmallGroups(latency.stage.values, latency.control.values, latency.figures)
    found = _findings([_look_at(latency, group, plan, asked, spread) for group in groups])
    return dataclasses.replace(found, checks=(*reports.checks, *found.checks))


def _findings(looked: Sequence[tuple[list[_Found], set[str]]]) -> Findings:
    found = _strongest(one for several, _ in looked for one in several)
    parts = sorted(
        (one for one in found if one.check.name not in FIGURES),
        key=lambda one: one.rank,
    )
    shown = [one for one in found if one.check.name in FIGURES] + parts[:PARTS_AT_MOST]
    return Findings(
        tuple(one.check for one in shown),
        frozenset().union(*(hit for _, hit in looked)),
        frozenset(one.check.name for one in shown if one.asks),
    )


def _strongest(found: Iterable[_Found]) -> list[_Found]:
    """Return one check of each name: one that halts, or asks, before one that waits."""
    best: dict[str, _Found] = {}
    for one in found:
        other = best.get(one.check.name)
        if other is None or one.rank < other.rank:
            best[one.check.name] = one
    return list(best.values())


def _groups(sides: Sides) -> tuple[tuple[_Group, ...], tuple[_Group, ...]]:
    """Return the groups that are large enough on both sides, and those that are small; some are both.

    Two facts of the same devices are one group.
    """
    stage, control = _by_fact(sides.stage.votes), _by_fact(sides.control.votes)
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for fact in sorted(stage.keys() & control.keys()):
        members = tuple(stage[fact]), tuple(control[fact])
        if len(members[0]) + len(members[1]) < len(sides.stage.votes) + len(sides.control.votes):
            found.setdefault(members, []).append(fact)
    groups = [_Group(" ".join(facts), np.array(both[0]), np.array(both[1])) for both, facts in found.items()]
    return tuple(one for one in groups if one.is_enough), tuple(one for one in groups if one.is_small)


def _by_fact(votes: Sequence[Vote]) -> dict[str, list[int]]:
    places: dict[str, list[int]] = {}
    for place, vote in enumerate(votes):
        for fact in facts_of(vote):
            places.setdefault(fact, []).append(place)
    return places


def _look_at(
    sides: Sides, group: _Group, plan: RolloutPlan, alpha: _Alpha, spread: SmallGroups | None
) -> tuple[list[_Found], set[str]]:
    """Return checks of a group, and the devices that are hit.

    Of a part of the stage, and of labels, only those that do not pass. Without a spread of the fleet, ranks
    tell what is worse.
    """
    stage, control = sides.stage.of(group.stage), sides.control.of(group.control)
    levels = tamed(np.abs(sides.control.levels[group.control])).mean(axis=0)
    checks: list[_Found] = []
    hit: set[str] = set()
    p_values = _p_of_ranks(stage, control, sides) if spread is None else _p_of_spread(spread, group, sides)
    for place, p_first, is_label in _suspects(p_values, group, alpha, sides):
        name = sides.names[place]
        is_rare = not is_label and name in BY_MEAN
        by = mean_shift if is_rare else shift
        found = by(stage[:, place], control[:, place], 2 * plan.soft_confidence - 1)
        sign = math.copysign(1.0, found.estimate) if is_label else sides.signs[place]
        limit = math.log1p(LABEL_EFFECT) if is_label else _limit(name, plan.tolerance, levels[place])
        is_large = sign * found.estimate > limit
        p_worse = _p_of_worse(stage[:, place], control[:, place], limit) if is_rare else 0.0
        p = max(p_first, p_worse)
        result = alpha.result(p, of_drift=is_label) if is_large else PASS
        if result in {HALT, ASK}:
            worse = sign * (stage[:, place] - np.median(control[:, place])) > limit
            hit |= {sides.stage.votes[row].device for row in group.stage[worse]}
        if result != PASS or (not is_label and not group.name):
            check = _check(name, group, result, found, limit, is_label=is_label)
            checks.append(_Found(p, check, asks=result == ASK))
    return checks, hit


@dataclasses.dataclass(frozen=True)
class _Found:
    """A check, with its p-value and whether a person is asked."""

    p: float
    check: Check
    asks: bool

    @property
    def rank(self) -> tuple[int, float, str]:
        worst_first = (HALT, ASK, INCONCLUSIVE, PASS)
        return worst_first.index(ASK if self.asks else self.check.result), self.p, self.check.name


def _p_of_worse(stage: NDArray[np.float64], control: NDArray[np.float64], limit: float) -> float:
    """Return Fisher's p-value for the number of devices that are worse: exact, where nearly all are alike."""
    middle = np.median(control)
    worse, others = int((stage - middle > limit).sum()), int((control - middle > limit).sum())
    return fisher_p(worse, len(stage), others, len(control))


@dataclasses.dataclass(frozen=True)
class _PValues:
    """Of figures, that they are worse; of the mix of labels; of each label, that it is more or less."""

    figures: NDArray[np.float64]
    drift: float
    labels: NDArray[np.float64]


def _p_of_ranks(stage: NDArray[np.float64], control: NDArray[np.float64], sides: Sides) -> _PValues:
    signs, of_labels = sides.signs, slice(sides.figures, None)
    above = p_above(stage * signs, control * signs)
    below = p_above(-stage[:, of_labels], -control[:, of_labels])
    allowed = np.full(len(sides.labels), MIX_EFFECT)
    return _PValues(
        above[: sides.figures],
        mixture_p(stage[:, of_labels], control[:, of_labels], allowed),
        np.minimum(above[of_labels], below),
    )


def _p_of_spread(spread: SmallGroups, group: _Group, sides: Sides) -> _PValues:
    above, of_labels = spread.p_above(group.stage, group.control), slice(sides.figures, None)
    own = np.minimum(above[of_labels], 1 - above[of_labels])
    return _PValues(above[: sides.figures], spread.p_together(group.stage, group.control), own)


def _suspects(
    found: _PValues, group: _Group, alpha: _Alpha, sides: Sides
) -> Iterator[tuple[int, float, bool]]:
    """Yield columns that may not pass with their p-values, and whether they are labels.

    Of the whole stage all figures; labels have the p-value of the mix.
    """
    for place, p in enumerate(found.figures):
        if not group.name or alpha.result(float(p), of_drift=False) != PASS:
            yield place, float(p), False
    if alpha.result(found.drift, of_drift=True) == PASS:
        return
    for place, own in enumerate(found.labels, start=sides.figures):
        if own < LABEL_P:
            yield place, found.drift, True


def _limit(name: str, tolerance: float, level: float) -> float:
    if name == LATENCY:
        return math.log1p(tolerance)
    if name == CONFIDENCE:
        return SMALLEST[CONFIDENCE]
    return max(SMALLEST[name], tolerance * level)


def _check(name: str, group: _Group, result: str, found: Shift, limit: float, *, is_label: bool) -> Check:
    kind = DRIFT if is_label else name
    unit = UNITS.get(kind, "share")
    value, low, high = found.estimate, found.low, found.high
    if unit == "relative":
        value, low, high, limit = (math.expm1(one) for one in (value, low, high, limit))
    what = f"frames labelled {name!r}" if is_label else name
    where = f" on {group.name}" if group.name else ""
    shown = [f"{one:+.1%}" if unit != "per hour" else f"{one:+.2f}" for one in (value, low, high, limit)]
    certain = {
        INCONCLUSIVE: "; not certain yet: soaks on",
        ASK: "; not enough to judge by: a person has to look",
    }.get(result, "")
    return Check(
        name=":".join(part for part in (kind, group.name, name if is_label else "") if part),
        kind=SOFT,
        result=INCONCLUSIVE if result == ASK else result,
        value=rounded(value),
        low=rounded(low),
        high=rounded(high),
        limit=rounded(limit),
        unit=unit,
        counted=len(group.stage),
        control=len(group.control),
        words=(
            f"{what}{where}: {shown[0]} against control ({shown[1]} to {shown[2]}), {shown[3]} is tolerated"
            f"{certain}"
        ),
    )


def _side_reports(sides: Sides, plan: RolloutPlan) -> tuple[Check, ...]:
    """Report medians where a side has too few devices to be judged."""
    n, m = len(sides.stage.votes), len(sides.control.votes)
    checks = []
    for place, name in enumerate(FIGURES):
        value = _difference(sides.stage, sides.control, place) if n else None
        unit = UNITS.get(name, "share")
        limit = math.log1p(plan.tolerance) if name == LATENCY else SMALLEST[name]
        if unit == "relative":
            value, limit = None if value is None else math.expm1(value), math.expm1(limit)
        checks.append(
            Check(
                name=name,
                kind=REPORT,
                result=INCONCLUSIVE,
                value=None if value is None else rounded(value),
                limit=rounded(limit),
                unit=unit,
                counted=n,
                control=m,
                words=(
                    f"{n} devices against {m} have {FRAMES_AT_LEAST} frames and "
                    f"{SECONDS_AT_LEAST / 60:.0f} min before and since: "
                    f"{SIDE_AT_LEAST} of each side are needed to judge"
                ),
            )
        )
    return tuple(checks)


def _difference(stage: Changes, control: Changes, place: int) -> float:
    """Return the difference of the medians; without any control the change itself."""
    value = float(np.median(stage.values[:, place]))
    return value - float(np.median(control.values[:, place])) if len(control.votes) else value
