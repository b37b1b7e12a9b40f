"""Report of an evaluation: one HTML page, without scripts or other files."""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import TYPE_CHECKING

from luigi_tasks.dataset.groups import WORDS, count_groups
from luigi_tasks.dataset.left_out import by_reason
from luigi_tasks.dataset.pixels import to_png
from luigi_tasks.gate.confidence import draw_reliability
from luigi_tasks.gate.words import (
    describe_check,
    describe_check_interval,
    describe_interval,
    mark_check,
    mark_verdict,
    megabytes,
    milliseconds,
    percent,
)
from luigi_tasks.pages import render_template

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture, Snapshot
    from luigi_tasks.gate.records import Evaluation, Measurement
    from luigi_tasks.quantization.records import QuantizationRecord
    from luigi_tasks.training.records import DoubtedLabel, TrainingRecord, TunedRecord

# A matrix of more classes is too large to read; the list of confusions is shown instead.
MATRIX_CLASSES = 40
CONFUSIONS = 15
THUMBNAIL_PIXELS = 128
LEFT_OUT_SHOWN = 20  # of each reason

# Size of a chart in its own units; the page scales it.
CHART_WIDTH, CHART_HEIGHT = 480, 200
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 64, 14, 12, 26
GRID_LINES = 4


@dataclasses.dataclass(frozen=True)
class Past:
    """An earlier release, with its accuracy in [0, 1] on the hold-out at that time."""

    release: str
    accuracy: float
    created_at: str


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a chart, in the chart's units, with its tooltip."""

    x: float
    y: float
    text: str


@dataclasses.dataclass(frozen=True)
class Chart:
    """Line chart over equal steps.

    Attributes:
        title: Quantity that the line shows.
        points: From left to right.
        grid: Height and label of each grid line.
        first: Label of the left end.
        last: Label of the right end.
    """

    title: str
    points: tuple[Point, ...]
    grid: tuple[tuple[float, str], ...]
    first: str
    last: str
    width: int = CHART_WIDTH
    height: int = CHART_HEIGHT
    left: int = MARGIN_LEFT
    right: int = CHART_WIDTH - MARGIN_RIGHT


@dataclasses.dataclass(frozen=True)
class Cell:
    """One cell of the confusion matrix; `share` is its share of the row, in [0, 1]."""

    count: int
    share: float
    right: bool
    text: str


def render_report(
    evaluation: Evaluation,
    *,
    snapshot: Snapshot,
    training: TrainingRecord,
    tuned: TunedRecord | None,
    quantization: QuantizationRecord,
    settings: Mapping[str, str],
    thumbnails: Mapping[str, bytes],
    past: Sequence[Past],
    left_out_place: str = "",
) -> str:
    """Return the report as HTML.

    Args:
        evaluation: Measurements and verdict.
        snapshot: The pictures of the run.
        training: How the head was trained.
        tuned: How the backbone was fine-tuned; None where it was not.
        quantization: How the file was quantized.
        settings: Flat settings, e.g. {"training.epochs": "20"}.
        thumbnails: PNG by content hash; a mistake without a thumbnail is shown without picture.
        past: Releases before this one, oldest first.
        left_out_place: Address of the list of what the snapshot leaves out.
    """
    candidate = evaluation.candidate
    history = {f"tuning {name}": values for name, values in tuned.history.items()} if tuned else {}
    history |= training.history
    values = {
        "evaluation": evaluation,
        "snapshot": snapshot,
        "training": training,
        "quantization": quantization,
        "settings": dict(sorted(settings.items())),
        "outcome": mark_verdict(evaluation.verdict),
        "checks": [
            (check, *describe_check(check), describe_check_interval(check), mark_check(check))
            for check in evaluation.verdict.checks
        ],
        "models": _name_models(evaluation),
        "classes": sorted(candidate.classes, key=lambda one: (min(one.recall, one.precision), one.label)),
        "matrix": build_matrix(candidate) if len(candidate.labels) <= MATRIX_CLASSES else None,
        "confusions": list_confusions(candidate),
        "pictures": {digest: base64.b64encode(png).decode() for digest, png in thumbnails.items()},
        "curves": [draw_curve(name, values) for name, values in history.items() if values],
        "past": draw_past(evaluation, past) if past else None,
        "reliability": draw_reliability(evaluation.confidence) if evaluation.confidence else None,
        "groups": count_groups(snapshot.pictures),
        "source_words": WORDS,
        "paths": {one.sha256: one.path for one in snapshot.pictures} if training.doubted else {},
        "left_out": by_reason(snapshot.left_out),
        "left_out_place": left_out_place,
        "shown": LEFT_OUT_SHOWN,
    }
    filters: dict[str, Callable[..., str]] = {
        "percent": percent,
        "interval": describe_interval,
        "megabytes": megabytes,
        "milliseconds": milliseconds,
    }
    return render_template("report.html", values, filters)


def load_thumbnails(
    evaluation: Evaluation,
    doubted: Sequence[DoubtedLabel],
    pictures: Sequence[Picture],
    pixels_of: PixelLoader,
) -> dict[str, bytes]:
    """Return a PNG of each mistake of the candidate and of each doubted picture, by content hash."""
    wanted = {one.sha256 for one in evaluation.candidate.mistakes} | {one.sha256 for one in doubted}
    pictures = [picture for picture in pictures if picture.sha256 in wanted]
    pixels = pixels_of(pictures, THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    return {picture.sha256: to_png(pixels[index]) for index, picture in enumerate(pictures)}


def build_matrix(measurement: Measurement) -> list[tuple[str, list[Cell]]]:
    """Return the confusion matrix: a row for each true class, with a cell for each predicted class."""
    rows = []
    for truth, counts in zip(measurement.labels, measurement.confusion, strict=True):
        total = max(sum(counts), 1)
        cells = [
            Cell(count, count / total, truth == answer, f"{truth} taken for {answer}: {count} of {total}")
            for answer, count in zip(measurement.labels, counts, strict=True)
        ]
        rows.append((truth, cells))
    return rows


def list_confusions(measurement: Measurement) -> list[tuple[str, str, int, int]]:
    """Return (truth, prediction, count, pictures of that truth) of the most frequent confusions."""
    found = [
        (truth, answer, count, sum(counts))
        for truth, counts in zip(measurement.labels, measurement.confusion, strict=True)
        for answer, count in zip(measurement.labels, counts, strict=True)
        if count and truth != answer
    ]
    return sorted(found, key=lambda one: (-one[2], one[0], one[1]))[:CONFUSIONS]


def draw_curve(name: str, values: Sequence[float]) -> Chart:
    """Draw one metric of the training, epoch by epoch."""
    is_share = "acc" in name
    shown = percent if is_share else "{:.3f}".format
    texts = [f"epoch {number}: {shown(value)}" for number, value in enumerate(values, start=1)]
    top = 1.0 if is_share else None
    points, grid = _place(values, texts, shown, top)
    return Chart(name.replace("_", " "), points, grid, "epoch 1", f"epoch {len(values)}")


def draw_past(evaluation: Evaluation, past: Sequence[Past]) -> Chart:
    """Draw the accuracies of earlier releases and, as the last point, of this candidate."""
    accuracies = [*(one.accuracy for one in past), evaluation.candidate.accuracy]
    texts = [f"{one.release}, {one.created_at}: {percent(one.accuracy)}" for one in past]
    texts.append(f"this candidate: {percent(evaluation.candidate.accuracy)}")
    points, grid = _place(accuracies, texts, percent, 1.0)
    return Chart("hold-out accuracy", points, grid, past[0].created_at[:10], "this candidate")


def _place(
    values: Sequence[float],
    texts: Sequence[str],
    shown: Callable[[float], str],
    top: float | None,
) -> tuple[tuple[Point, ...], tuple[tuple[float, str], ...]]:
    """Place values in the chart; values that are not finite are skipped."""
    finite = [value for value in values if math.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite) if top is None else top
    if high - low < 1e-6:
        low, high = low - 0.05, high + (0.05 if top is None else 0.0)
    wide = CHART_WIDTH - MARGIN_LEFT - MARGIN_RIGHT
    tall = CHART_HEIGHT - MARGIN_TOP - MARGIN_BOTTOM

    def height(value: float) -> float:
        return round(MARGIN_TOP + tall * (high - value) / (high - low), 1)

    steps = max(len(values) - 1, 1)
    points = tuple(
        Point(round(MARGIN_LEFT + wide * index / steps, 1), height(value), text)
        for index, (value, text) in enumerate(zip(values, texts, strict=True))
        if math.isfinite(value)
    )
    marks = [low + (high - low) * step / GRID_LINES for step in range(GRID_LINES + 1)]
    return points, tuple((height(mark), shown(mark)) for mark in marks)


def _name_models(evaluation: Evaluation) -> list[tuple[str, Measurement]]:
    models = [("this candidate", evaluation.candidate), ("float network", evaluation.float_model)]
    if evaluation.champion is not None:
        models.append((f"deployed, {evaluation.champion_release}", evaluation.champion))
    return models
