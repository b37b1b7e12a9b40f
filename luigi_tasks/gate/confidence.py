"""Confidence on the hold-out: reliability before and after the temperature, and what is sure."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from luigi_tasks.gate.records import ClassSureness, Confidence
from luigi_tasks.training.confidence import mark_sure, measure_reliability

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.contract.release import OperatingPoint
    from luigi_tasks.gate.measure import Answers
    from luigi_tasks.training.records import Reliability, TrainingRecord

# The diagram is a square in its own units; the page scales it.
SIDE, LEFT, TOP, RIGHT, BOTTOM = 300, 46, 12, 14, 40
MARKS = (0.0, 0.25, 0.5, 0.75, 1.0)


def describe_confidence(
    labels: Sequence[str],
    truths: Sequence[str],
    shown: Answers,
    training: TrainingRecord,
    point: OperatingPoint | None,
) -> Confidence:
    """Measure how far the scores of a candidate's file can be trusted.

    Args:
        labels: Label of each output.
        truths: N classes of the hold-out pictures.
        shown: Answers of the file.
        training: Training of its head: the temperature, and the reliability without it.
        point: Which predictions are sure; None: all are.
    """
    scores = shown.scores
    answers = scores.argmax(1)
    number_of = {label: number for number, label in enumerate(labels)}
    numbers = np.array([number_of.get(one, -1) for one in truths], np.int64)
    right = answers == numbers
    thresholds = (0.0,) * len(labels) if point is None else point.thresholds
    sure = mark_sure(scores, shown.known, point)
    return Confidence(
        temperature=training.temperature,
        before=training.uncalibrated,
        after=measure_reliability(scores, numbers),
        wanted_precision=None if point is None else point.precision,
        precision=float(right[sure].mean()) if sure.any() else None,
        coverage=float(sure.mean()) if len(sure) else 0.0,
        classes=tuple(
            ClassSureness(
                label=label,
                threshold=thresholds[number],
                answers=int((answers == number).sum()),
                sure=int((sure & (answers == number)).sum()),
                right=int((sure & right & (answers == number)).sum()),
            )
            for number, label in enumerate(labels)
        ),
    )


@dataclasses.dataclass(frozen=True)
class Dot:
    """One bin of a reliability diagram, in the diagram's units, with its tooltip."""

    x: float
    y: float
    text: str


@dataclasses.dataclass(frozen=True)
class ReliabilityDiagram:
    """Share of right predictions over their mean score; calibrated ones lie on the diagonal.

    Attributes:
        before: Bins without the temperature; empty where they are not on record.
        after: Bins of the file's scores.
        marks: Position along the horizontal axis, position along the vertical one, and label of each mark.
    """

    before: tuple[Dot, ...]
    after: tuple[Dot, ...]
    marks: tuple[tuple[float, float, str], ...]
    side: int = SIDE
    left: int = LEFT
    right: int = SIDE - RIGHT
    top: int = TOP
    bottom: int = SIDE - BOTTOM


def draw_reliability(confidence: Confidence) -> ReliabilityDiagram:
    """Draw the reliability diagram of the hold-out."""
    return ReliabilityDiagram(
        before=_place(confidence.before),
        after=_place(confidence.after),
        marks=tuple((_across(one), _up(one), f"{one:.2f}") for one in MARKS),
    )


def _place(reliability: Reliability | None) -> tuple[Dot, ...]:
    if reliability is None:
        return ()
    return tuple(
        Dot(
            _across(one.confidence),
            _up(one.accuracy),
            f"{one.pictures} pictures: score {one.confidence:.3f}, {one.accuracy:.3f} right",
        )
        for one in reliability.bins
    )


def _across(share: float) -> float:
    return round(LEFT + (SIDE - LEFT - RIGHT) * share, 1)


def _up(share: float) -> float:
    return round(TOP + (SIDE - TOP - BOTTOM) * (1 - share), 1)
