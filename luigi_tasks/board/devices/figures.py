"""Figures of one device: latency, what it was unsure of, failures, labels; over time and by release.

Devices send counts in bins and by name. Who lies there gets a wrong picture of its own device, and no error.
"""

from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.report import LATENCY_BINS, latency_of_bin
from edge_client.contract.times import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_client.contract.release import ReleaseDocument
    from edge_client.contract.report import ReleaseFigures
    from luigi_tasks.fleet.records import PeriodSum

_LABELS_AT_MOST = 20
# Bars of a histogram that a reader can tell apart.
_BARS_AT_MOST = 24
_PERIODS_AT_MOST = 200


class Bar(msgspec.Struct, frozen=True, kw_only=True):
    """One bar of the histogram of latencies: frames from one latency to another, milliseconds."""

    from_ms: float
    to_ms: float
    frames: int


class UnderRelease(msgspec.Struct, frozen=True, kw_only=True):
    """What happened under one release on the device, since it was activated.

    Attributes:
        release: Its id.
        is_serving: Whether it serves.
        activated_at: By the device's clock, seconds since 1970; 0: unknown.
        seconds: Seconds that it served.
        frames: Frames that it classified.
        failed: Share of the frames that failed; None: there were none, as for all that follow.
        unsure: Share of the frames that it was not sure of.
        restarts: Restarts that nobody asked for.
        mean_ms: Mean latency.
        median_ms: Median latency, within 9%, as the next two.
        p95_ms: Latency that 95 of 100 frames kept to.
        p99_ms: Latency that 99 of 100 frames kept to.
        histogram: Frames by latency.
        probation: `running`, `passed`, `sent_back`, or empty.
        reason: Why it was sent back or refused.
    """

    release: str
    is_serving: bool = False
    activated_at: float = 0.0
    seconds: float = 0.0
    frames: int = 0
    failed: float | None = None
    unsure: float | None = None
    restarts: int = 0
    mean_ms: float | None = None
    median_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    histogram: tuple[Bar, ...] = ()
    probation: str = ""
    reason: str = ""


class OverTime(msgspec.Struct, frozen=True, kw_only=True):
    """The same by period; None where nothing was classified.

    Attributes:
        times: Starts of the periods, seconds since 1970, ascending.
        releases: Releases that served in each.
        frames: Frames.
        median_ms: Median latency.
        p95_ms: Latency that 95 of 100 frames kept to.
        unsure: Share of frames that it was not sure of.
        failed: Share of frames that failed.
        restarts: Restarts that nobody asked for.
    """

    times: tuple[int, ...] = ()
    releases: tuple[tuple[str, ...], ...] = ()
    frames: tuple[int, ...] = ()
    median_ms: tuple[float | None, ...] = ()
    p95_ms: tuple[float | None, ...] = ()
    unsure: tuple[float | None, ...] = ()
    failed: tuple[float | None, ...] = ()
    restarts: tuple[int, ...] = ()


class LabelShare(msgspec.Struct, frozen=True, kw_only=True):
    """How often a label was answered: on the device, and on the hold-out of its release, 0 to 1."""

    label: str
    device: float
    hold_out: float | None = None


class Drift(msgspec.Struct, frozen=True, kw_only=True):
    """The device's answers beside those on the hold-out that its release was measured on.

    Attributes:
        release: The release that serves.
        frames: Answers on the device.
        since: Since when they count, seconds since 1970; 0: since it was activated.
        labels: Labels, those that lie furthest apart first.
        apart: Share of the answers that would have to be others for both to be alike; None: the release's
            hold-out is not known.
        is_alarm: Whether the device raised its alarm, which looks at the confidence alone.
    """

    release: str
    frames: int = 0
    since: float = 0.0
    labels: tuple[LabelShare, ...] = ()
    apart: float | None = None
    is_alarm: bool = False


def under_release(figures: ReleaseFigures, *, is_serving: bool) -> UnderRelease:
    """Return what happened under a release."""
    bins = _bins(figures.latency)
    frames = max(figures.frames, 0)
    asked = frames + max(figures.failed, 0)
    return UnderRelease(
        release=figures.release,
        is_serving=is_serving,
        activated_at=seconds_of(figures.activated_at),
        seconds=max(figures.seconds, 0.0),
        frames=frames,
        failed=_share(figures.failed, asked),
        unsure=_share(figures.unsure, frames),
        restarts=figures.restarts,
        mean_ms=figures.latency_ms / frames if frames else None,
        median_ms=quantile(bins, 0.5),
        p95_ms=quantile(bins, 0.95),
        p99_ms=quantile(bins, 0.99),
        histogram=_histogram(bins),
        probation=figures.probation,
        reason=figures.reason,
    )


def over_time(periods: Iterable[PeriodSum]) -> OverTime:
    """Return the figures by period, the releases of a period put together."""
    ordered = sorted(periods, key=lambda one: one.start)
    groups = [(start, [*group]) for start, group in itertools.groupby(ordered, key=lambda one: one.start)]
    columns = [_period(start, group) for start, group in groups[-_PERIODS_AT_MOST:]]
    if not columns:
        return OverTime()
    return OverTime(**dict(zip(OverTime.__struct_fields__, zip(*columns, strict=True), strict=True)))


def _period(start: int, group: Sequence[PeriodSum]) -> tuple[object, ...]:
    """Return the values of a period, in the order of the fields of `OverTime`."""
    bins: collections.Counter[int] = collections.Counter()
    for one in group:
        bins.update(_bins(one.latency))
    frames = sum(max(one.frames, 0) for one in group)
    failed = sum(max(one.failed, 0) for one in group)
    return (
        start,
        tuple(one.release for one in group),
        frames,
        quantile(bins, 0.5),
        quantile(bins, 0.95),
        _share(sum(one.unsure for one in group), frames),
        _share(failed, frames + failed),
        sum(one.restarts for one in group),
    )


def drift_of(
    figures: ReleaseFigures, periods: Iterable[PeriodSum], document: ReleaseDocument | None, *, is_alarm: bool
) -> Drift:
    """Return a device's answers beside those on the hold-out.

    Args:
        figures: Of the release that serves.
        periods: The last periods; where none is of that release, all answers since its activation count.
        document: Of that release; None: it cannot be read.
        is_alarm: Whether the device raised its alarm.
    """
    own = [one for one in periods if one.release == figures.release]
    counts: collections.Counter[str] = collections.Counter()
    for labels in [one.labels for one in own] if own else [figures.labels]:
        counts.update({label: count for label, count in labels.items() if count > 0})
    total = sum(counts.values())
    expected = _hold_out(document)
    shares = [
        LabelShare(
            label=label or "others",
            device=counts[label] / total if total else 0.0,
            hold_out=None if expected is None else expected.get(label, 0.0),
        )
        for label in {**counts, **(expected or {})}
    ]
    apart = sum(abs(one.device - (one.hold_out or 0.0)) for one in shares) / 2
    shares.sort(key=lambda one: (-abs(one.device - (one.hold_out or 0.0)), one.label))
    return Drift(
        release=figures.release,
        frames=total,
        since=float(min((one.start for one in own), default=0)),
        labels=tuple(shares[:_LABELS_AT_MOST]),
        apart=apart if expected is not None and total else None,
        is_alarm=is_alarm,
    )


def quantile(bins: Mapping[int, int], share: float) -> float | None:
    """Return the latency that a share of the frames kept to, in milliseconds; None without frames."""
    total, seen = sum(bins.values()), 0
    for number in sorted(bins):
        seen += bins[number]
        if seen >= share * total > 0:
            return round(latency_of_bin(number), 2)
    return None


def _bins(latency: Mapping[str, int]) -> dict[int, int]:
    """Return frames by number of their bin; what is no bin is left out."""
    known = {number: latency.get(str(number), 0) for number in range(LATENCY_BINS)}
    return {number: count for number, count in known.items() if count > 0}


def _histogram(bins: Mapping[int, int]) -> tuple[Bar, ...]:
    if not bins:
        return ()
    first, last = min(bins), max(bins)
    step = -(-(last - first + 1) // _BARS_AT_MOST)
    # A bin reaches from half a step below its middle to half a step above.
    edge = latency_of_bin(1) / latency_of_bin(0)
    return tuple(
        Bar(
            from_ms=round(latency_of_bin(start) / edge**0.5, 3),
            to_ms=round(latency_of_bin(start + step - 1) * edge**0.5, 3),
            frames=sum(bins.get(number, 0) for number in range(start, start + step)),
        )
        for start in range(first, last + 1, step)
    )


def _hold_out(document: ReleaseDocument | None) -> dict[str, float] | None:
    if document is None or document.hold_out is None:
        return None
    counts = dict(zip(document.labels, document.hold_out.labels, strict=False))
    total = sum(counts.values())
    return {label: count / total for label, count in counts.items()} if total else None


def _share(part: int, whole: int) -> float | None:
    return min(max(part / whole, 0.0), 1.0) if whole > 0 else None
