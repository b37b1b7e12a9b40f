"""Confusions and figures of each label of a release, readable with 3 and with 1,000 classes."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.gate.records import ClassMetrics, ClassSureness, Evaluation, Measurement

# A matrix of more classes is too large to read: it shows those that are confused most, and the rest as one.
MATRIX_CLASSES = 30
CONFUSIONS = 12
# Shades of a cell, see `releases.css`.
SHADES = 8


@dataclasses.dataclass(frozen=True)
class Cell:
    """How often a class got an answer.

    Attributes:
        count: Pictures.
        shade: 0 (none) to `SHADES`, by its share of the row.
        is_right: Whether the answer is the class itself.
    """

    count: int
    shade: int
    is_right: bool


@dataclasses.dataclass(frozen=True)
class MatrixRow:
    """The answers to the pictures of one class; `label` None: of all classes that are not shown."""

    label: str | None
    pictures: int
    cells: tuple[Cell, ...]


@dataclasses.dataclass(frozen=True)
class Confusion:
    """How often pictures of a class got the answer of another."""

    truth: str
    answer: str
    count: int
    pictures: int


@dataclasses.dataclass(frozen=True)
class Matrix:
    """The confusion matrix.

    Attributes:
        labels: Classes that have a row and a column.
        others: Classes that share the last row and column; 0: there are none.
        rows: A row for each class.
        confusions: The most frequent confusions of all classes.
        pictures: Pictures of the hold-out.
    """

    labels: tuple[str, ...]
    others: int
    rows: tuple[MatrixRow, ...]
    confusions: tuple[Confusion, ...]
    pictures: int


@dataclasses.dataclass(frozen=True)
class LabelRow:
    """Figures of one label.

    Attributes:
        label: The label.
        pictures: Its hold-out pictures; None: not kept.
        groups: Groups of them; 0: unknown.
        precision: Share of the answers with it that were right.
        recall: Share of its pictures that were found.
        interval: Interval of the recall at 95 %.
        threshold: Score from which on an answer is sure; None: none is.
        sure: Share of the answers with it that were sure; None: not kept, or never the answer.
        sure_right: Share of those that were right.
        taken_for: The answer that its pictures got most often when it was wrong; empty: it never was.
        answers: How often the answer was this label, in the hold-out; None: not kept.
    """

    label: str
    pictures: int | None = None
    groups: int = 0
    precision: float | None = None
    recall: float | None = None
    interval: tuple[float, float] | None = None
    threshold: float | None = None
    sure: float | None = None
    sure_right: float | None = None
    taken_for: str = ""
    answers: int | None = None


def build_matrix(measured: Measurement) -> Matrix | None:
    """Return the confusion matrix of a measurement; None where it has none."""
    labels, counts = measured.labels, measured.confusion
    if not counts or len(counts) != len(labels) or any(len(row) != len(labels) for row in counts):
        return None
    shown = list(range(len(labels)))
    if len(labels) > MATRIX_CLASSES:
        shown = _most_confused(counts, MATRIX_CLASSES - 1)
    rest = sorted(set(range(len(labels))) - set(shown))
    rows = [_row(labels[number], [counts[number]], shown, rest, place) for place, number in enumerate(shown)]
    if rest:
        rows.append(_row(None, [counts[number] for number in rest], shown, rest, len(shown)))
    return Matrix(
        tuple(labels[number] for number in shown),
        len(rest),
        tuple(rows),
        _confusions(measured),
        measured.pictures,
    )


def _most_confused(counts: Sequence[Sequence[int]], at_most: int) -> list[int]:
    """Return the numbers of the classes of the most frequent confusions, both classes of each."""
    cells = [
        (-count, truth, answer)
        for truth, row in enumerate(counts)
        for answer, count in enumerate(row)
        if count and truth != answer
    ]
    found: set[int] = set()
    for _, *pair in sorted(cells):
        if len(found.union(pair)) <= at_most:
            found.update(pair)
    missing = (number for number in range(len(counts)) if number not in found)
    while len(found) < at_most:
        found.add(next(missing))
    return sorted(found)


def _row(
    label: str | None, counts: Sequence[Sequence[int]], shown: Sequence[int], rest: Sequence[int], own: int
) -> MatrixRow:
    columns = [sum(row[number] for row in counts) for number in shown]
    if rest:
        columns.append(sum(row[number] for row in counts for number in rest))
    total = sum(columns)
    cells = (
        Cell(count, math.ceil(SHADES * count / total) if total else 0, place == own)
        for place, count in enumerate(columns)
    )
    return MatrixRow(label, total, tuple(cells))


def _confusions(measured: Measurement) -> tuple[Confusion, ...]:
    found = [
        Confusion(truth, answer, count, sum(counts))
        for truth, counts in zip(measured.labels, measured.confusion, strict=True)
        for answer, count in zip(measured.labels, counts, strict=True)
        if count and truth != answer
    ]
    return tuple(
        sorted(found, key=lambda one: (-one.count, one.pictures, one.truth, one.answer))[:CONFUSIONS]
    )


def list_labels(document: ReleaseDocument, evaluation: Evaluation | None) -> tuple[LabelRow, ...]:
    """Return the figures of each label, those that are found least often first."""
    point, hold_out = document.operating_point, document.hold_out
    metrics: dict[str, ClassMetrics] = {}
    sureness: dict[str, ClassSureness] = {}
    taken: dict[str, str] = {}
    if evaluation is not None:
        metrics = {one.label: one for one in evaluation.candidate.classes}
        taken = _taken_for(evaluation.candidate)
        if evaluation.confidence is not None:
            sureness = {one.label: one for one in evaluation.confidence.classes}
    rows = []
    for number, label in enumerate(document.labels):
        found, sure = metrics.get(label), sureness.get(label)
        rows.append(
            LabelRow(
                label=label,
                pictures=found.support if found is not None else None,
                groups=found.groups if found is not None else 0,
                precision=found.precision if found is not None else None,
                recall=found.recall if found is not None and found.support else None,
                interval=found.interval if found is not None and found.support else None,
                threshold=point.thresholds[number] if point is not None else 0.0,
                sure=sure.sure / sure.answers if sure is not None and sure.answers else None,
                sure_right=sure.right / sure.sure if sure is not None and sure.sure else None,
                taken_for=taken.get(label, ""),
                answers=hold_out.labels[number]
                if hold_out is not None and number < len(hold_out.labels)
                else None,
            )
        )
    return tuple(sorted(rows, key=lambda one: (2.0 if one.recall is None else one.recall, one.label)))


def _taken_for(measured: Measurement) -> dict[str, str]:
    found = {}
    for number, (label, counts) in enumerate(zip(measured.labels, measured.confusion, strict=False)):
        wrong = [(count, -place) for place, count in enumerate(counts) if place != number and count]
        if wrong:
            found[label] = measured.labels[-max(wrong)[1]]
    return found
