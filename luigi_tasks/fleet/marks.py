"""Totals that a device reported at the end of each period, and the sums of the periods between them.

Devices report totals since the activation of a release. The collector keeps the last totals of each period, a
*mark*, and nothing else: a report that is lost, heard twice or heard by another collector changes no sum.
Marks of several collectors are merged by the order of the reports they stem from; sums are the differences.
A total that fell without a new activation adds nothing in that period, and is gone on from: after a kill, a
device counts on from what it had written.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.report import ReleaseFigures
from luigi_tasks.fleet.records import PeriodSum

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edge_client.contract.report import DeviceReport

_NOTHING = ReleaseFigures(release="")


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Totals of a release on a device, by the last report of a period.

    Attributes:
        period: Start of the period, seconds since 1970.
        release: The release.
        activated_at: When it was activated, by the device's clock; only tells activations apart.
        start: Of the report.
        sequence: Of the report.
        is_whole: Whether the counting began in this period: all of it counts.
        is_base: Whether it is what the device had counted when this collector heard it first.
        seconds: As in `ReleaseFigures`, like all that follow.
    """

    period: int
    release: str
    activated_at: str = ""
    start: int = 0
    sequence: int = 0
    is_whole: bool = False
    is_base: bool = False
    seconds: float = 0.0
    frames: int = 0
    failed: int = 0
    unsure: int = 0
    restarts: int = 0
    latency_ms: float = 0.0
    latency: dict[str, int] = {}
    confidence: tuple[int, ...] = ()
    labels: dict[str, int] = {}

    @property
    def count(self) -> tuple[str, str]:
        """What was counted: marks with the same one grow."""
        return self.release, self.activated_at

    @property
    def order(self) -> tuple[int, int]:
        """Place among the reports of the device."""
        return self.start, self.sequence


def marks_of(
    report: DeviceReport, before: DeviceReport | None, began: dict[str, int], period: int, period_s: int
) -> list[Mark]:
    """Return the marks of a report: a release that counted nothing since the report before has none.

    Args:
        report: The report.
        before: The one before, as far as the collector knows; None: it did not know the device.
        began: Period in which the counting of each release began, -1: before the collector knew the device;
            updated.
        period: Start of the period in which the report arrived.
        period_s: Length of a period. What a device had counted when it was heard first is the end of the
            period before.
    """
    marks = []
    for figures in report.releases:
        release = figures.release
        known = before.figures(release) if before is not None else None
        if known is None or known.activated_at != figures.activated_at:
            began[release] = -1 if before is None else period
        elif (known.frames, known.seconds) == (figures.frames, figures.seconds):
            continue
        mark = _mark(figures, report, period, is_whole=began.get(release, -1) == period)
        if before is None:
            mark = msgspec.structs.replace(mark, period=period - period_s, is_base=True)
        marks.append(mark)
    for release in began.keys() - {figures.release for figures in report.releases}:
        del began[release]
    return marks


def merge_marks(several: Iterable[Iterable[Mark]]) -> tuple[Mark, ...]:
    """Return the marks of all collectors: of each count and period the one of the latest report."""
    found: dict[tuple[tuple[str, str], int], Mark] = {}
    whole = set()
    for marks in several:
        for mark in marks:
            place = (mark.count, mark.period)
            if mark.is_whole:
                whole.add(mark.count)
            if place not in found or _counts_before(mark, found[place]):
                found[place] = mark
    ordered = sorted(found.values(), key=lambda mark: (mark.period, mark.order, mark.count))
    return tuple(msgspec.structs.replace(one, is_whole=one.count in whole) for one in ordered)


def sums_of(marks: Iterable[Mark]) -> tuple[PeriodSum, ...]:
    """Return the sums of each period by release, oldest first.

    What was counted before the collector knew the device belongs to no period: the first mark of such a count
    only says where it stands. The same where older marks were dropped.
    """
    last: dict[tuple[str, str], Mark] = {}
    sums: dict[tuple[int, str], PeriodSum] = {}
    for mark in sorted(marks, key=lambda mark: (mark.period, mark.order)):
        before = last.get(mark.count)
        last[mark.count] = mark
        if (before is None and not mark.is_whole) or (before is not None and _fell(mark, before)):
            continue
        place = (mark.period, mark.release)
        sums[place] = _add(sums.get(place), mark, before or _NOTHING)
    return tuple(sums[place] for place in sorted(sums))


def _counts_before(mark: Mark, other: Mark) -> bool:
    """Whether a mark counts in the place of another of the same period.

    The later one does; of what two collectors heard first, the earlier one.
    """
    if mark.is_base or other.is_base:
        return (mark.is_base, mark.order) < (other.is_base, other.order)
    return mark.order > other.order


def _mark(figures: ReleaseFigures, report: DeviceReport, period: int, *, is_whole: bool) -> Mark:
    return Mark(
        period,
        figures.release,
        figures.activated_at,
        report.start,
        report.sequence,
        is_whole,
        False,
        figures.seconds,
        figures.frames,
        figures.failed,
        figures.unsure,
        figures.restarts,
        figures.latency_ms,
        figures.latency,
        figures.confidence,
        figures.labels,
    )


def _fell(mark: Mark, before: Mark) -> bool:
    return mark.frames < before.frames or mark.seconds < before.seconds


def _add(total: PeriodSum | None, mark: Mark, before: Mark | ReleaseFigures) -> PeriodSum:
    total = total or PeriodSum(start=mark.period, release=mark.release)
    return PeriodSum(
        start=mark.period,
        release=mark.release,
        seconds=round(total.seconds + max(0.0, mark.seconds - before.seconds), 3),
        frames=total.frames + max(0, mark.frames - before.frames),
        failed=total.failed + max(0, mark.failed - before.failed),
        unsure=total.unsure + max(0, mark.unsure - before.unsure),
        restarts=total.restarts + max(0, mark.restarts - before.restarts),
        latency_ms=round(total.latency_ms + max(0.0, mark.latency_ms - before.latency_ms), 3),
        latency=_grown(total.latency, mark.latency, before.latency),
        confidence=_grown_list(total.confidence, mark.confidence, before.confidence),
        labels=_grown(total.labels, mark.labels, before.labels),
    )


def _grown(total: Mapping[str, int], now: Mapping[str, int], before: Mapping[str, int]) -> dict[str, int]:
    grown = dict(total)
    for name, number in now.items():
        if (more := number - before.get(name, 0)) > 0:
            grown[name] = grown.get(name, 0) + more
    return grown


def _grown_list(total: tuple[int, ...], now: tuple[int, ...], before: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sums by position; lists may be of different length."""
    size = max(len(total), len(now))
    padded = [(*one, *(0,) * (size - len(one))) for one in (total, now, before)]
    return tuple(t + max(0, n - b) for t, n, b in zip(*padded, strict=False))
