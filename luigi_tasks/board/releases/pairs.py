"""Two releases side by side: figures, labels, settings, pictures."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from luigi_tasks.board.releases.facts import (
    JudgedCheck,
    Setting,
    compare_settings,
    compare_versions,
    describe_gate,
)
from luigi_tasks.board.releases.matrix import LabelRow, list_labels
from luigi_tasks.board.releases.rows import ReleaseRow, row_of, states_by_release

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.board.releases.known import Kept, Published
    from luigi_tasks.gate.records import Evaluation
    from luigi_tasks.release.kept_snapshot import KeptSnapshot, SnapshotChange


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure of both.

    Attributes:
        name: What it is.
        first: Of the first release; None: unknown.
        second: Of the second one.
        unit: `share`, `bytes`, `ms`, `count`, or empty for words.
        intervals: Intervals at 95 %, where they are kept.
    """

    name: str
    first: float | str | None
    second: float | str | None
    unit: str = ""
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None)

    @property
    def difference(self) -> float | None:
        """The second less the first; None: one is unknown, or they are words."""
        if isinstance(self.first, str | None) or isinstance(self.second, str | None):
            return None
        return self.second - self.first

    @property
    def differs(self) -> bool:
        """Whether the two differ."""
        return self.first != self.second


@dataclasses.dataclass(frozen=True)
class LabelPair:
    """A label of both releases, or of one of them."""

    label: str
    first: LabelRow | None
    second: LabelRow | None

    @property
    def difference(self) -> float | None:
        """Recall of the second less that of the first; None: one is unknown."""
        before = None if self.first is None else self.first.recall
        after = None if self.second is None else self.second.recall
        return None if before is None or after is None else after - before


@dataclasses.dataclass(frozen=True)
class ReleasePair:
    """Two releases side by side.

    Attributes:
        first: As in the list.
        second: As in the list.
        figures: What the gate and the devices measure them by.
        labels: Each label, those that lose most first.
        settings: Settings that differ; `value` of the first, `other` of the second.
        versions: Versions of code and packages that differ.
        paired: How the gate compared the two on the same pictures; None: it did not.
        paired_release: Which of the two it judged.
        is_same_holdout: Whether both were judged on the same pictures.
        snapshots: Pictures of each, counted.
        pictures: What differs in the pictures; None: see `pictures_missing`.
        pictures_missing: Why it is not known.
        names: All releases, newest first.
    """

    first: ReleaseRow
    second: ReleaseRow
    figures: tuple[Figure, ...]
    labels: tuple[LabelPair, ...]
    settings: tuple[Setting, ...]
    versions: tuple[Setting, ...]
    paired: JudgedCheck | None
    paired_release: str
    is_same_holdout: bool
    snapshots: tuple[KeptSnapshot | None, KeptSnapshot | None]
    pictures: SnapshotChange | None
    pictures_missing: str
    names: tuple[str, ...]


def compare_releases(
    published: Published,
    releases: tuple[str, str],
    kept: tuple[Kept, Kept],
    pictures: tuple[SnapshotChange | None, str],
    devices: Mapping[str, int] | None,
) -> ReleasePair:
    """Return two releases side by side.

    Args:
        published: What is published.
        releases: Their ids.
        kept: What is kept of each.
        pictures: What differs in their pictures, or why that is not known.
        devices: Number of devices by release; None: unknown.
    """
    states = states_by_release(published)
    rows = [row_of(published, one, states.get(one, ()), devices) for one in releases]
    first, second = (published.documents.get(one) for one in releases)
    records = [one.gate.evaluation for one in kept]
    settings: tuple[Setting, ...] = ()
    versions: tuple[Setting, ...] = ()
    labels: tuple[LabelPair, ...] = ()
    if first is not None and second is not None:
        settings = tuple(one for one in compare_settings(first, second) if one.differs)
        versions = compare_versions(first, second)
        labels = _pair_labels(list_labels(first, records[0]), list_labels(second, records[1]))
    paired, judged = _paired(releases, records[0], records[1])
    return ReleasePair(
        first=rows[0],
        second=rows[1],
        figures=_figures(published, releases, rows, records),
        labels=labels,
        settings=settings,
        versions=versions,
        paired=paired,
        paired_release=judged,
        is_same_holdout=_is_same_holdout(first, second),
        snapshots=(kept[0].snapshot, kept[1].snapshot),
        pictures=pictures[0],
        pictures_missing=pictures[1],
        names=tuple(reversed(published.order)),
    )


def _is_same_holdout(first: ReleaseDocument | None, second: ReleaseDocument | None) -> bool:
    if first is None or second is None or not first.snapshot:
        return False
    return (first.snapshot, first.holdout_percent) == (second.snapshot, second.holdout_percent)


def _paired(
    releases: tuple[str, str], first: Evaluation | None, second: Evaluation | None
) -> tuple[JudgedCheck | None, str]:
    """Return the gate's comparison of the two, whichever of them was the deployed one then."""
    for release, other, record in ((releases[1], releases[0], second), (releases[0], releases[1], first)):
        if record is None or record.champion_release != other:
            continue
        for check in describe_gate(record, "").checks:
            if check.name == "loss against the deployed model":
                return check, release
    return None, ""


def _pair_labels(first: tuple[LabelRow, ...], second: tuple[LabelRow, ...]) -> tuple[LabelPair, ...]:
    before, after = ({one.label: one for one in rows} for rows in (first, second))
    pairs = [LabelPair(one, before.get(one), after.get(one)) for one in dict.fromkeys([*before, *after])]
    # Those of one release alone first: a class came or went.
    return tuple(
        sorted(
            pairs,
            key=lambda one: (
                one.first is not None and one.second is not None,
                2.0 if one.difference is None else one.difference,
                one.label,
            ),
        )
    )


def _figures(
    published: Published, releases: tuple[str, str], rows: list[ReleaseRow], records: list[Evaluation | None]
) -> tuple[Figure, ...]:
    documents = [published.documents.get(one) for one in releases]
    measured = [None if one is None else one.candidate for one in records]
    confidence = [None if one is None else one.confidence for one in records]
    return (
        _figure("hold-out accuracy", rows, "accuracy", "share", (rows[0].interval, rows[1].interval)),
        _figure("hold-out pictures", rows, "pictures", "count"),
        _figure("sure answers", confidence, "coverage", "share"),
        _figure("sure answers that are right", confidence, "precision", "share"),
        _figure("latency, median", measured, "latency_ms_p50", "ms"),
        _figure("latency, 90th percentile", measured, "latency_ms_p90", "ms"),
        _figure("model", rows, "model_bytes", "bytes"),
        _figure("compressed", rows, "packed_bytes", "bytes"),
        _figure("labels", rows, "labels", "count"),
        _figure("devices that run it", rows, "devices", "count"),
        _figure("network", rows, "architecture"),
        _figure("quantization", rows, "quantization"),
        _figure("for devices of class", rows, "device_class"),
        _figure("snapshot of the pictures", documents, "snapshot"),
    )


def _figure(
    name: str,
    of: Sequence[object],
    field: str,
    unit: str = "",
    intervals: tuple[tuple[float, float] | None, tuple[float, float] | None] = (None, None),
) -> Figure:
    """Return a field of what is known of both; unknown where nothing is."""
    first, second = (None if one is None else getattr(one, field) for one in of)
    return Figure(name, first, second, unit, intervals)
