"""How each device changed from one release to the other: the rows that soft checks compare.

A device is compared with itself: its figures under the release, minus its own under the release before. What
happened to all meanwhile (night, weather, a sale) happened to the devices outside of the stage too, whose
change in the same hours is taken off by whoever compares the two groups.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from edge_client.contract.rollout import BY_SITE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from luigi_tasks.fleet.records import DeviceRow, PeriodSum
    from luigi_tasks.fleet.stage_view import StageView, Vote

# A device with less than this before or after has no figures.
FRAMES_AT_LEAST, SECONDS_AT_LEAST = 50, 600.0
# Labels that are looked at: those of at least this share of the frames of a device on average, the most
# frequent ones.
LABEL_SHARE_AT_LEAST, LABELS_AT_MOST = 0.01, 20
# Shares of labels are added in such parts: as whole numbers, whose sum no order changes.
_PARTS = 1_000_000
LATENCY, UNSURE, FAILED, RESTARTS, CONFIDENCE = "latency", "unsure", "failed_frames", "restarts", "confidence"
FIGURES = (LATENCY, UNSURE, FAILED, RESTARTS, CONFIDENCE)


@dataclasses.dataclass(frozen=True)
class Changes:
    """Changes of the devices of one side.

    Attributes:
        votes: The devices, one a row; where a rollout goes by sites, the first device of each site.
        values: (N, F): a column for each of `FIGURES`, then for each label. Latency as logarithm of the mean,
            shares and confidence as they are, restarts an hour, labels as logarithm of their share.
        levels: (N, F): the same figures after the change.
    """

    votes: tuple[Vote, ...]
    values: NDArray[np.float64]
    levels: NDArray[np.float64]

    def of(self, rows: NDArray[np.int_]) -> NDArray[np.float64]:
        """The changes of some devices."""
        return np.asarray(self.values[rows], np.float64)

    def only(self, figure: str) -> Changes:
        """The same devices, with one figure."""
        place = [FIGURES.index(figure)]
        return Changes(self.votes, self.values[:, place], self.levels[:, place])


@dataclasses.dataclass(frozen=True)
class Sides:
    """Both sides of a comparison.

    Attributes:
        stage: Devices under the release.
        control: Devices outside of the stage, under the release before.
        labels: Labels of the columns after the figures.
        late: Devices of each side whose figures may still come: they had them before, and are heard of.
    """

    stage: Changes
    control: Changes
    labels: tuple[str, ...]
    late: tuple[int, int] = (0, 0)

    @property
    def figures(self) -> int:
        """Number of the columns that are no labels."""
        return int(self.stage.values.shape[1]) - len(self.labels)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return (*FIGURES[: self.figures], *self.labels)

    @property
    def signs(self) -> NDArray[np.float64]:
        """A factor for each column: all figures are worse when they are higher, but confidence."""
        return np.array([-1.0 if name == CONFIDENCE else 1.0 for name in self.names])


def measure_changes(view: StageView, baseline: Sequence[DeviceRow], until: float) -> Sides:
    """Return the changes of the devices of a stage, and of those outside.

    The hours afterwards begin with the soak: devices that move in their window move at night, and what their
    control did by day is no measure for them.

    Args:
        view: The stage.
        baseline: Rows from before the first stage.
        until: Periods that start later do not count, seconds since 1970.
    """
    old = {row.device: row for row in baseline if row.channel == view.record.channel}
    hours = _Hours(
        before=view.record.stages[0].opened_at if view.record.stages else view.stage.opened_at,
        since=view.stage.soaking_since or view.stage.opened_at,
        until=until,
        period_s=view.head.period_s,
    )
    from_release = view.record.from_release
    members, late = _measured(((one, one.release) for one in view.members), old, from_release, hours)
    others, others_late = _measured(((one, from_release) for one in view.control), old, from_release, hours)
    labels = _labels([total for _, *both in (*members, *others) for total in both])
    is_by_site = view.record.plan.by == BY_SITE
    stage, control = (_changes(side, labels, by_site=is_by_site) for side in (members, others))
    return Sides(stage, control, labels, (late, others_late))


def _measured(
    votes: Iterable[tuple[Vote, str]], old: Mapping[str, DeviceRow], from_release: str, hours: _Hours
) -> tuple[list[tuple[Vote, _Total, _Total]], int]:
    """Return the devices that have figures before and under a release, and how many may still have them."""
    found, late = [], 0
    for vote, release in votes:
        if vote.enrolled.key and (vote.row is None or not vote.row.is_signed):
            continue  # anybody may have said it
        before, after = _sums(vote, old.get(vote.device), from_release, release, hours)
        if before.is_enough and after.is_enough:
            found.append((vote, before, after))
        elif before.is_enough and vote.is_heard and not vote.fault:
            late += 1
    return found, late


@dataclasses.dataclass(frozen=True)
class _Hours:
    before: float
    since: float
    until: float
    period_s: float

    def is_before(self, period: PeriodSum) -> bool:
        return period.start + self.period_s <= self.before

    def is_after(self, period: PeriodSum) -> bool:
        return self.since < period.start + self.period_s and period.start < self.until


@dataclasses.dataclass
class _Total:
    seconds: float = 0.0
    frames: int = 0
    failed: int = 0
    unsure: int = 0
    restarts: int = 0
    latency_ms: float = 0.0
    confidence: float = 0.0
    sure_of: int = 0
    labels: Counter[str] = dataclasses.field(default_factory=Counter)

    @property
    def is_enough(self) -> bool:
        return self.frames >= FRAMES_AT_LEAST and self.seconds >= SECONDS_AT_LEAST

    def add(self, period: PeriodSum) -> None:
        if min(period.seconds, period.frames, period.failed, period.unsure, period.latency_ms) < 0:
            return  # no device counts so
        self.seconds += period.seconds
        self.frames += period.frames
        self.failed += period.failed
        self.unsure += period.unsure
        self.restarts += period.restarts
        self.latency_ms += period.latency_ms
        for place, count in enumerate(period.confidence):
            self.confidence += count * (place + 0.5) / len(period.confidence)
            self.sure_of += count
        for label, count in period.labels.items():
            self.labels[label] += max(count, 0)

    def figures(self, labels: Sequence[str]) -> list[float]:
        latency = max(self.latency_ms / self.frames, 1e-3)
        # Half a frame more: a label that was not seen has a share too.
        shares = [math.log((self.labels[label] + 0.5) / (self.frames + 1)) for label in labels]
        return [
            math.log(latency),
            self.unsure / self.frames,
            self.failed / (self.frames + self.failed),
            self.restarts / (self.seconds / 3600),
            self.confidence / self.sure_of if self.sure_of else 0.0,
            *shares,
        ]


def _sums(
    vote: Vote, old: DeviceRow | None, from_release: str, release: str, hours: _Hours
) -> tuple[_Total, _Total]:
    before, after = _Total(), _Total()
    for period in _periods(vote.row, old):
        if period.release == from_release and hours.is_before(period):
            before.add(period)
        elif period.release == release and hours.is_after(period):
            after.add(period)
    return before, after


def _periods(row: DeviceRow | None, old: DeviceRow | None) -> Iterable[PeriodSum]:
    """Periods of both snapshots; of one that is in both, the newer sum counts."""
    if old is None or not old.periods:
        return row.periods if row else ()
    both = {(one.start, one.release): one for one in old.periods}
    both |= {(one.start, one.release): one for one in (row.periods if row else ())}
    return both.values()


def _labels(totals: Sequence[_Total]) -> tuple[str, ...]:
    seen: Counter[str] = Counter()
    for total in totals:
        if count := sum(total.labels.values()):
            seen.update({label: round(_PARTS * one / count) for label, one in total.labels.items()})
    least = LABEL_SHARE_AT_LEAST * sum(seen.values())
    frequent = sorted(((-count, label) for label, count in seen.items() if label and count >= least))
    return tuple(sorted(label for _, label in frequent[:LABELS_AT_MOST]))


def _changes(side: Sequence[tuple[Vote, _Total, _Total]], labels: Sequence[str], *, by_site: bool) -> Changes:
    width = len(FIGURES) + len(labels)
    before = np.array([one.figures(labels) for _, one, _ in side], np.float64).reshape(-1, width)
    after = np.array([one.figures(labels) for _, _, one in side], np.float64).reshape(-1, width)
    known = np.flatnonzero(np.isfinite(before).all(axis=1) & np.isfinite(after).all(axis=1))
    before, after = before[known], after[known]
    votes = tuple(side[int(place)][0] for place in known)
    if not by_site:
        return Changes(votes, after - before, after)
    groups: Mapping[str, list[int]] = {}
    groups = {}
    for place, vote in enumerate(votes):
        groups.setdefault(vote.enrolled.site or f"device/{vote.device}", []).append(place)
    places = list(groups.values())
    change, level = (
        np.array([values[group].mean(axis=0) for group in places]).reshape(-1, width)
        for values in (after - before, after)
    )
    return Changes(tuple(votes[group[0]] for group in places), change, level)
