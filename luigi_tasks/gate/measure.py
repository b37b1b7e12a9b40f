"""Measurement of a TFLite file on labelled pictures, through the device's own classifier in a child."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_client.contract.errors import InputError
from edge_client.contract.release import CONFIDENCE_BINS, HoldOut
from luigi_tasks.gate.records import ClassMetrics, Measurement, Mistake
from luigi_tasks.gate.statistics import effective_size, wilson_interval
from luigi_tasks.inference.model_process import open_model
from luigi_tasks.training.strangers import LEAST_KNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixels import PixelRows
    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.inference.model_process import ModelFile, ModelProcess
    from luigi_tasks.progress import Progress

MISTAKES_AT_MOST = 24
LATENCY_PICTURES = 50


@dataclasses.dataclass(frozen=True)
class Answers:
    """A model's answers to N pictures.

    Attributes:
        scores: (N, outputs) float32.
        known: (N,) values of the output `known`; None: the model has none.
    """

    scores: NDArray[np.float32]
    known: NDArray[np.float64] | None = None


def measure(
    file: ModelFile,
    labels: Sequence[str],
    pictures: Sequence[Picture],
    pixels: PixelRows,
    progress: Progress,
    what: str,
) -> tuple[Measurement, Answers]:
    """Run a model on pictures, in a child process.

    Args:
        file: The model; the bytes that are given here are those that run.
        labels: Classes of the pictures; answers outside them count as wrong.
        pictures: The pictures, with their labels.
        pixels: (N, H, W, 3) RGB of `pictures`.
        progress: Gets pictures done.
        what: Named in progress.
    Returns: The measurement, and the answers behind it.
    Raises: InputError if the file is no classifier with these labels, or crashes the runtime, or does not
        answer; DeviceError if the runtime cannot run it.
    """
    process = open_model(file)
    answers = _answer_all(process, pixels, progress, f"measuring the {what}")
    latencies = _time_alone(process, pixels)
    best = answers.scores.argmax(1) if len(answers.scores) else np.zeros(0, int)
    measurement = summarize(
        labels,
        pictures,
        [file.labels[int(index)] for index in best],
        [float(row[index]) for row, index in zip(answers.scores, best, strict=True)],
        latencies,
        process.loaded.runtime,
    )
    if answers.known is None or not len(answers.known):
        return measurement, answers
    strangers = int((answers.known < LEAST_KNOWN).sum())
    return msgspec.structs.replace(measurement, strangers=strangers), answers


def right_answers(
    labels: Sequence[str], pictures: Sequence[Picture], scores: NDArray[np.float32]
) -> NDArray[np.bool_]:
    """Return whether each answer is right.

    Args:
        labels: Label of each output.
        pictures: What was shown.
        scores: (N, outputs) scores.
    """
    return np.array(
        [labels[int(row.argmax())] == one.label for row, one in zip(scores, pictures, strict=True)], np.bool_
    )


def classify_all(file: ModelFile, pixels: PixelRows, progress: Progress, what: str) -> list[str]:
    """Return the label that a model gives each picture, in order.

    Raises: as `measure`.
    """
    scores = _answer_all(open_model(file), pixels, progress, what).scores
    return [file.labels[int(row.argmax())] for row in scores]


def _answer_all(process: ModelProcess, pixels: PixelRows, progress: Progress, what: str) -> Answers:
    rows = process.run(pixels, progress, what)  # (N, outputs + 2)
    scores = rows[:, :-2].astype(np.float32)
    if not ((scores >= 0) & (scores <= 1)).all():  # NaN neither
        msg = f"{process.file.full_name}: scores are not numbers from 0 to 1; {process.file.remedy}"
        raise InputError(msg)
    return Answers(scores, rows[:, -2] if process.loaded.tells_strangers else None)


def summarize(
    labels: Sequence[str],
    pictures: Sequence[Picture],
    answers: Sequence[str],
    confidences: Sequence[float],
    latencies: Sequence[float],
    runtime: str,
) -> Measurement:
    """Return the metrics of a model's answers to pictures.

    Args:
        labels: Classes of the pictures; answers outside them count as wrong.
        pictures: What was shown.
        answers: Best label for each.
        confidences: Score of that label for each.
        latencies: Milliseconds of some of them; may be empty.
        runtime: What ran it.
    """
    number = {label: index for index, label in enumerate(labels)}
    confusion = np.zeros((len(labels), len(labels)), int)
    wrong = []
    for picture, answer, confidence in zip(pictures, answers, confidences, strict=True):
        if answer in number:
            confusion[number[picture.label], number[answer]] += 1
        if answer != picture.label:
            wrong.append(
                Mistake(
                    path=picture.path,
                    sha256=picture.sha256,
                    truth=picture.label,
                    predicted=answer,
                    confidence=round(confidence, 4),
                )
            )
    wrong.sort(key=lambda mistake: (-mistake.confidence, mistake.sha256))
    accuracy = (len(pictures) - len(wrong)) / max(len(pictures), 1)
    groups = collections.Counter(picture.group_id for picture in pictures)
    by_class = {label: collections.Counter[str]() for label in labels}
    for picture in pictures:
        by_class[picture.label][picture.group_id] += 1
    return Measurement(
        accuracy=accuracy,
        pictures=len(pictures),
        labels=tuple(labels),
        classes=tuple(
            _class_metrics(confusion, index, label, by_class[label]) for index, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        latency_ms_p50=round(float(np.percentile(latencies, 50)), 4) if latencies else None,
        latency_ms_p90=round(float(np.percentile(latencies, 90)), 4) if latencies else None,
        runtime=runtime,
        mistakes=tuple(wrong[:MISTAKES_AT_MOST]),
        hold_out=count_answers(labels, answers, confidences),
        groups=len(groups),
        effective=effective_size(groups.values()),
        interval=wilson_interval(accuracy, effective_size(groups.values())),
    )


def count_answers(labels: Sequence[str], answers: Sequence[str], confidences: Sequence[float]) -> HoldOut:
    """Return how often each label was the answer, and a histogram of how sure the answers were.

    Args:
        labels: The bins of the first, in order; answers outside them are not counted there.
        answers: Best labels.
        confidences: Score of each in [0, 1]; 1 itself falls into the last bin.
    """
    said = collections.Counter(answers)
    bins = collections.Counter(
        min(max(int(one * CONFIDENCE_BINS), 0), CONFIDENCE_BINS - 1) for one in confidences
    )
    return HoldOut(
        labels=tuple(said[label] for label in labels),
        confidence=tuple(bins[number] for number in range(CONFIDENCE_BINS)),
    )


def _time_alone(process: ModelProcess, pixels: PixelRows) -> list[float]:
    """Milliseconds a picture with nothing else running in the child, while this process waits."""
    if not len(pixels):
        return [0.0]
    latencies: list[float] = process.run_alone(pixels[:LATENCY_PICTURES])[:, -1].tolist()
    return latencies


def _class_metrics(
    confusion: NDArray[np.int_], index: int, label: str, groups: collections.Counter[str]
) -> ClassMetrics:
    """Return the metrics of a class; `groups` are the sizes of the groups of its pictures."""
    right, said, support = int(confusion[index, index]), int(confusion[:, index].sum()), groups.total()
    recall, effective = right / support if support else 0.0, effective_size(groups.values())
    return ClassMetrics(
        label=label,
        support=support,
        precision=round(right / said, 6) if said else 0.0,
        recall=round(recall, 6),
        groups=len(groups),
        effective=effective,
        interval=wilson_interval(recall, effective),
    )
