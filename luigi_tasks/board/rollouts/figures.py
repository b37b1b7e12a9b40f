"""Figures of the pages of rollouts: the bar of stages, a check with interval and limit; words for both."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING, NamedTuple

from luigi_tasks.board import colours
from luigi_tasks.board.rollouts.view import SKIPPED
from luigi_tasks.board.templating import duration, text
from luigi_tasks.fleet import records
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.board.rollouts.view import ShownStage
    from luigi_tasks.fleet.records import Check, Common, VerdictRecord

# A part of the bar is so wide at least, in percent: its name stands in it.
_LEAST = 9.0
# Checks whose limit is to be reached; of the others it is not to be passed.
_TO_REACH = {"passed", "quorum", "soak"}
_ORDER = {records.HALT: 0, records.INCONCLUSIVE: 1, records.PASS: 2}


class BarPart(NamedTuple):
    """A stage in the bar: where it begins and how wide it is, in percent."""

    stage: ShownStage
    at: float
    width: float
    more: int | None


class CheckFigure(NamedTuple):
    """A check as it is drawn, and in words.

    Attributes:
        point: The value; None: nothing was measured.
        low: Lower end of the interval.
        high: Upper end.
        limit: Where the limit is drawn.
        zero: Where zero is drawn; None: nowhere.
        value: The value in words.
        interval: The interval in words; empty: there is none.
        bound: The limit in words; empty: there is none.
    """

    point: float | None
    low: float | None
    high: float | None
    limit: float | None
    zero: float | None
    value: str
    interval: str
    bound: str

    @property
    def words(self) -> str:
        """All of it in words, for who does not see the drawing."""
        return ", ".join(one for one in (self.value, self.interval, self.bound) if one)


def place_stages(stages: Sequence[ShownStage]) -> list[BarPart]:
    """Return the stages as parts of one bar: each as wide as the devices that it adds, and wide enough."""
    drawn = [one for one in stages if one.state != SKIPPED]
    if not drawn:
        return []
    added, below = list[int | None](), 0
    for one in drawn:
        added.append(None if one.size is None else max(one.size - below, 0))
        below = max(below, one.size or 0)
    least = min(_LEAST, 100 / len(drawn))
    left, total = 100 - least * len(drawn), sum(one or 0 for one in added) if None not in added else 0
    parts, at = [], 0.0
    for one, more in zip(drawn, added, strict=True):
        share = (more or 0) / total if total else 1 / len(drawn)
        width = round(least + left * share, 3)
        parts.append(BarPart(one, round(at, 3), width, more))
        at += width
    return parts


def reach(stage: str) -> str:
    """Return how far a stage of a plan goes: `2d` is `2 devices`, `10%` stays."""
    number = stage.removesuffix("d")
    return count(int(number), "device") if number.isdecimal() and number != stage else text(stage)


def draw_check(check: Check) -> CheckFigure:
    """Return a check as it is drawn, and in words."""
    name = check.name.partition(":")[0]
    is_difference = name not in {"failures", "silence", *_TO_REACH}
    limit, low, high = check.limit, check.low, check.high
    is_fall = name == "confidence" or (name == "drift" and (check.value or 0) < 0)
    if limit is not None and is_fall:
        limit = -limit
    zero = None if check.unit == "s" and not limit else 0.0
    interval = bound = ""
    if low is not None and high is not None:
        interval = f"{_number(low, check.unit, is_difference)} to {_number(high, check.unit, is_difference)}"
    if limit is not None:
        at = "at least" if name in _TO_REACH or limit < 0 else "at most"
        bound = f"limit {at} {_number(limit, check.unit, is_difference)}"
    value = "not measured" if check.value is None else _number(check.value, check.unit, is_difference)
    return CheckFigure(check.value, low, high, limit, zero, value, interval, bound)


class Hit(NamedTuple):
    """Who is hit, for the head of the page: how many of how many, in which states, and the strongest fact."""

    hit: int
    of: int
    states: tuple[str, ...]
    common: Common | None


def who_is_hit(verdict: VerdictRecord | None) -> Hit | None:
    """Return who is hit by a release, by a verdict that halted or asks; None: nobody is known to be."""
    if verdict is None:
        return None
    failed = {state: verdict.counts.get(state, 0) for state in records.FAILURES}
    common = verdict.common[0] if verdict.common else None
    hit = common.hit_of if common is not None else sum(failed.values())
    if not hit:
        return None
    are_failed = hit == sum(failed.values())  # else they are slower, or answer otherwise
    states = tuple(one for one, number in failed.items() if number and are_failed)
    return Hit(hit, sum(verdict.counts.values()), states, common)


def filter_of(fact: str) -> str:
    """Return the query that shows the devices with a fact in their table; empty: it has no such filter."""
    name, _, value = fact.partition("=")
    return urllib.parse.urlencode({name: value}) if name in {"site", "class", "tag"} else ""


def order_checks(verdict: VerdictRecord | None) -> list[Check]:
    """Return the checks of a verdict that judge: those that halt first, then those that are not certain."""
    checks = [one for one in verdict.checks if one.kind != records.REPORT] if verdict is not None else []
    return sorted(checks, key=lambda one: _ORDER.get(one.result, 1))


def bar_of_states(counts: Mapping[str, int]) -> list[tuple[float, str, str]]:
    """Return the devices of a stage by state, as parts of a bar."""
    total, parts = max(sum(counts.values()), 1), list[tuple[float, str, str]]()
    for state, number in counts.items():
        kind = f"state-{colours.of_device(state)}"
        parts.append((number / total, kind, f"{number} {state.replace('_', ' ')}"))
    return parts


def _number(value: float, unit: str, is_difference: bool) -> str:
    if unit == "s":
        return duration(value) if value >= 1 else f"{value:.0f} s"
    sign = "+" if is_difference and round(value, 3) else ""
    value = value if round(value, 3) else 0.0
    if unit == "per hour":
        return f"{value:{sign}.2f} per hour"
    if unit in {"share", "relative"}:
        return f"{value:{sign}.1%}".replace(".0%", "%")
    return f"{value:{sign}g} {unit}".rstrip()
