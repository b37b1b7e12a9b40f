"""Checks that ask for evidence: better than a constant answer, every class found, no worse than the champion.

Each has three outcomes. Where there is not enough evidence, the reason says how many more pictures would
do if the candidate went on as it does now. Rules and figures: docs/decisions/0010-gate-evidence.md.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from luigi_tasks.gate.paired import Paired, beats, compare
from luigi_tasks.gate.records import PASSED, REFUSED, THIN, Check
from luigi_tasks.gate.statistics import at_most, find_growth, highest_difference, sign_test

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luigi_tasks.gate.records import ClassMetrics, Measurement
    from luigi_tasks.settings.values import GateSettings

# A class is refused only where a decent one would be found so rarely with this chance, all classes together.
SIGNIFICANT = 0.05
NAMED_AT_MOST = 10
# Of each end of an interval that holds 95 %.
_ONE_SIDED = 0.975


@dataclasses.dataclass(frozen=True)
class Rival:
    """What a candidate is compared with on the same pictures: the champion, or a constant answer.

    Attributes:
        label: The constant answer; empty: the champion.
        accuracy: Of the rival on these pictures.
        own_accuracy: Of the candidate on them.
        paired: The candidate against it, in groups.
    """

    label: str
    accuracy: float
    own_accuracy: float
    paired: Paired


@dataclasses.dataclass(frozen=True)
class Ask:
    """Words for what is missing.

    Attributes:
        holdout_percent: Share of the pictures that comes into the hold-out.
        noun: `pictures`, or `groups of pictures` where some belong together.
    """

    holdout_percent: float
    noun: str

    @classmethod
    def of(cls, candidate: Measurement, holdout_percent: float) -> Ask:
        """Ask for pictures, or for groups where the hold-out has bursts in it."""
        grouped = 0 < candidate.groups < candidate.pictures
        return cls(holdout_percent, "groups of pictures" if grouped else "pictures")

    def more(self, units: float, of: str = "") -> str:
        """Return e.g. `about 15 more pictures of 'cat' (3 of them in the hold-out) would do`."""
        held = max(1, math.ceil(units - 1e-9))
        total = math.ceil(held * 100 / self.holdout_percent - 1e-9)
        return f"about {total} more {self.noun}{of} ({held} of them in the hold-out) would do"

    def growth(self, units: float, is_enough: Callable[[float], bool], of: str = "") -> str:
        """Return how many more would do for a sample of `units` that has to be enough."""
        factor = find_growth(is_enough)
        return (
            "no number of pictures is likely to do" if factor is None else self.more(units * (factor - 1), of)
        )


def check_constant(rival: Rival, ask: Ask) -> Check:
    """Check that the candidate beats the best constant answer by more than chance."""
    paired, outcome = rival.paired, beats(rival.paired)
    reason = ""
    if rival.accuracy >= 1:  # also a perfect model is no better then
        outcome = THIN
        reason = (
            f"the hold-out has pictures of {rival.label!r} only, so that always answering {rival.label!r} is "
            f"right; add {ask.noun} of the other classes"
        )
    elif outcome == REFUSED:
        reason = (
            f"accuracy {rival.own_accuracy:.4f} is no better than always answering {rival.label!r} "
            f"({rival.accuracy:.4f}); look at the labels and at the classes' sizes"
        )
    elif outcome == THIN:
        wanted = ask.growth(paired.units, lambda factor: beats(paired.times(factor)) == PASSED)
        reason = (
            f"accuracy {rival.own_accuracy:.4f} is better than always answering {rival.label!r} "
            f"({rival.accuracy:.4f}), but so much may be chance: {wanted}"
        )
    return Check(
        name=f"accuracy above that of always answering {rival.label!r}",
        limit=rival.accuracy,
        measured=rival.own_accuracy,
        unit="share above",
        passed=outcome == PASSED,
        reason=reason,
        outcome=outcome,
        note=_describe(paired, "a constant answer", sign_test(paired.gained, paired.lost)),
    )


def check_class_sizes(candidate: Measurement, settings: GateSettings, ask: Ask) -> Check:
    """Check that the hold-out has enough pictures of each class to judge it."""
    limit = settings.min_class_holdout
    sizes = [(_units(one), one.label) for one in candidate.classes]
    few = [(size, label) for size, label in sizes if size < limit]
    named = [
        f"{label!r} has {size} in the hold-out: {ask.more(limit - size, f' of {label!r}')}"
        for size, label in sorted(few)
    ]
    reason = f"{_list(named)} ([gate] min_class_holdout {limit})" if named else ""
    return Check(
        name=f"hold-out {ask.noun} of each class",
        limit=float(limit),
        measured=float(min((size for size, _ in sizes), default=0)),
        unit=ask.noun,
        passed=not named,
        reason=reason,
        outcome=THIN if named else PASSED,
    )


def check_recalls(candidate: Measurement, settings: GateSettings, ask: Ask) -> Check:
    """Check that the candidate finds enough of each class.

    A class below the limit is refused where a decent one, halfway between the limit and always found, would
    hardly ever be found so rarely; else there is not enough evidence. The classes share the chance of a
    wrong refusal (Bonferroni), so a hundred small classes are not refused for one unlucky class.
    """
    limit = settings.min_class_recall
    known = [one for one in candidate.classes if one.support]
    chance = SIGNIFICANT / max(len(known), 1)
    below = [one for one in known if one.recall < limit - 1e-9]
    bad = [one for one in below if _is_bad(one, limit, chance)]
    # A class that is too small is named by `check_class_sizes`.
    open_ones = [one for one in below if one not in bad and _units(one) >= settings.min_class_holdout]
    outcome = REFUSED if bad else THIN if open_ones else PASSED
    named = [_describe_recall(one) for one in bad]
    if not bad:
        named = [f"{_describe_recall(one)}: {_ask_class(one, limit, chance, ask)}" for one in open_ones]
    reason = f"{_list(named)}: [gate] min_class_recall is {limit:g}" if named else ""
    worst = min(known, key=lambda one: (one.recall, one.label), default=None)
    return Check(
        name=f"recall of each class{f', least: {worst.label!r}' if worst else ''}",
        limit=limit,
        measured=worst.recall if worst else 0.0,
        unit="share",
        passed=outcome == PASSED,
        reason=reason,
        outcome=outcome,
        interval=worst.interval if worst else None,
    )


def check_champion(rival: Rival, settings: GateSettings, ask: Ask) -> Check:
    """Check that the candidate is not worse than the deployed model on the same pictures."""
    paired, limit, margin = rival.paired, settings.max_champion_drop_points, settings.champion_margin_points
    if not paired.units:
        return _nothing_unseen(limit, ask.more(settings.min_class_holdout or 1))
    outcome = compare(paired, limit, margin)
    loss = (rival.accuracy - rival.own_accuracy) * 100
    worse = sign_test(paired.lost, paired.gained)
    counted = f"it loses {paired.lost:g} {ask.noun} to it and gains {paired.gained:g} of {paired.units:g}"
    reason = ""
    if outcome == REFUSED:
        reason = (
            f"loss against the deployed model {loss:.2f} points is more than chance: {counted}; equal models "
            f"lose so many in {worse:.1%} of comparisons ([gate] max_champion_drop_points {limit:g})"
        )
    elif outcome == THIN:
        wanted = ask.growth(paired.units, lambda factor: compare(paired.times(factor), limit, margin) != THIN)
        reason = (
            f"whether the candidate is worse than the deployed model by up to {margin:g} points cannot be "
            f"told: {counted}; {wanted} ([gate] champion_margin_points {margin:g})"
        )
    return Check(
        name="loss against the deployed model",
        limit=limit,
        measured=loss,
        unit="points",
        passed=outcome == PASSED,
        reason=reason,
        outcome=outcome,
        interval=_interval_of_loss(paired),
        note=_describe(paired, "the deployed model", worse),
    )


def _interval_of_loss(paired: Paired) -> tuple[float, float]:
    """Return the interval of the loss at 95 %, percentage points."""
    low = -highest_difference(paired.gained, paired.lost, paired.units, _ONE_SIDED)
    return low * 100, highest_difference(paired.lost, paired.gained, paired.units, _ONE_SIDED) * 100


def _nothing_unseen(limit: float, wanted: str) -> Check:
    """Return the check of a champion that may have learned from all that it could be compared on."""
    return Check(
        name="loss against the deployed model",
        limit=limit,
        measured=0.0,
        unit="points",
        passed=False,
        reason=(
            "the deployed model may have learned from all hold-out pictures whose class it knows, so nothing "
            f"shows whether the candidate is worse: {wanted}, or [gate] thin_evidence = publish for one run"
        ),
        outcome=THIN,
    )


def check_kept_classes(
    classes: Sequence[str], kept: int, set_aside: Mapping[str, str], *, may_replace: bool
) -> Check:
    """Check that the fleet keeps its task: a class of the deployed one is left, and none fell out unasked.

    A class without a folder was taken out by a person. One whose folder is there, but has too few pictures,
    may have been lost by accident: there is not enough evidence that it should go.

    Args:
        classes: Classes of the deployed release.
        kept: How many of them the candidate has.
        set_aside: Those whose pictures were left out of the snapshot, with the reason.
        may_replace: Whether that is meant.
    """
    outcome, reason = PASSED, ""
    if not kept and not may_replace:
        outcome = REFUSED
        named = _list([repr(one) for one in classes], ", ")
        reason = (
            f"none of the deployed release's classes is left ({named}); look at the folder of the pictures, "
            "or, where other classes are meant, run Deploy --replace-classes"
        )
    elif set_aside and not may_replace:
        outcome = THIN
        reason = _list(
            [f"class {one!r} of the deployed release is left out: {why}" for one, why in set_aside.items()]
        )
    return Check(
        name="classes of the deployed release that are left",
        limit=0.0 if may_replace else 1.0,
        measured=float(kept),
        unit="classes",
        passed=outcome == PASSED,
        reason=reason,
        outcome=outcome,
        note=f"of {len(classes)}",
    )


def _is_bad(one: ClassMetrics, limit: float, chance: float, factor: float = 1.0) -> bool:
    """Whether a class is found more rarely than a decent one would be by chance."""
    size = (one.effective or one.support) * factor
    return at_most(one.recall * size, size, (1 + limit) / 2) < chance


def _ask_class(one: ClassMetrics, limit: float, chance: float, ask: Ask) -> str:
    return ask.growth(
        one.effective or one.support,
        lambda factor: _is_bad(one, limit, chance, factor),
        f" of {one.label!r}",
    )


def _describe_recall(one: ClassMetrics) -> str:
    return (
        f"{one.label!r} is found in {round(one.recall * one.support)} of its {one.support} hold-out pictures"
    )


def _describe(paired: Paired, rival: str, chance: float) -> str:
    """Return the counts of a paired comparison and what they prove, for the report."""
    return (
        f"against {rival}: {paired.gained:g} won, {paired.lost:g} lost, {paired.units:g} compared; so much "
        f"or more by chance: {chance:.1%}"
    )


def _units(one: ClassMetrics) -> int:
    return one.groups or one.support


def _list(named: Sequence[str], separator: str = "; ") -> str:
    """Join what is named; at most NAMED_AT_MOST of it."""
    more = len(named) - NAMED_AT_MOST
    return separator.join(named[:NAMED_AT_MOST]) + (f"{separator}and {more} more" if more > 0 else "")
