"""What a candidate can do: the file itself, through the device's own classifier, on the hold-out."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import io
import os
import threading
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from edge_client.contract.preprocessing import PREPROCESSING_ID
from edge_client.contract.release import CONFIDENCE_BINS, HoldOut
from edge_client.inference.classifier import Classification, Classifier
from edge_client.inference.runtime import runtime_name
from luigi_tasks.gate import ClassPair, judge
from luigi_tasks.records import Candidate, ClassFigures, Evaluation, Measurement, Mistake, Picture

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.pictures import PixelLoader
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings import GateSettings

# A picture of the release before is asked again only if its answer is no close call.
KNOWN_CONFIDENCE = 0.6
MISTAKES_AT_MOST = 24
LATENCY_PICTURES = 50


@dataclasses.dataclass(frozen=True)
class Champion:
    """The deployed model.

    Attributes:
        document: Its signed description.
        model: Its file.
        saw_holdout: Whether it was trained when the hold-out was smaller, so on some of today's.
    """

    document: ReleaseDocument
    model: bytes
    saw_holdout: bool = False


def evaluate(
    candidate: Candidate,
    model: bytes,
    float_scores: NDArray[np.float32],
    champion: Champion | None,
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    settings: GateSettings,
    progress: Progress,
    at: str,
) -> Evaluation:
    """Measure and judge a candidate.

    Args:
        candidate: Its description.
        model: Its file.
        float_scores: (hold-out, classes) answers of the float network.
        champion: What it must meet, if anything is deployed.
        holdout: Pictures that no training saw.
        pixels_of: Loads them.
        settings: The gate's limits.
        progress: Gets pictures done.
        at: UTC, ISO 8601, for the record.
    Raises: DeviceError if the runtime cannot run a file.
    """
    # The float network's answers come from its features: nothing deploys it, so there is no file of it.
    size, norm = candidate.preprocessing, candidate.preprocessing.normalization
    pixels = pixels_of(holdout, size.height, size.width)

    mine = measure(
        lambda: Classifier(model, candidate.labels, normalization=norm),
        candidate.labels,
        holdout,
        pixels,
        progress,
        "candidate",
    )
    floats = _figure_out(
        candidate.labels,
        holdout,
        [candidate.labels[int(row.argmax())] for row in float_scores],
        [float(row.max()) for row in float_scores],
        [],
        "float",
    )
    theirs, shared, note = _measure_champion(champion, candidate, holdout, pixels_of, progress)
    pair = None
    if theirs is not None:
        pair = (_accuracy_within(mine, holdout, shared), theirs.accuracy)
    return Evaluation(
        release=candidate.release,
        candidate=mine,
        float_model=floats,
        champion=theirs,
        champion_release=champion.document.release if champion is not None else None,
        champion_note=note,
        model_bytes=len(model),
        verdict=judge(
            accuracy=mine.accuracy,
            float_accuracy=floats.accuracy,
            classes=[
                ClassPair(one.label, one.support, one.recall, other.recall)
                for one, other in zip(mine.classes, floats.classes, strict=True)
            ],
            champion=pair,
            model_bytes=len(model),
            settings=settings,
        ),
        at=at,
    )


def measure(
    open_classifier: Callable[[], Classifier],
    labels: Sequence[str],
    pictures: Sequence[Picture],
    pixels: NDArray[np.uint8],
    progress: Progress,
    what: str,
) -> Measurement:
    """Show pictures to a model.

    Args:
        open_classifier: Makes one classifier for each thread; they are not shared.
        labels: Classes of the pictures; answers outside them count as wrong.
        pictures: What is shown.
        pixels: (N, H, W, 3) RGB of `pictures`.
        progress: Gets pictures done.
        what: Named in progress.
    """
    answers = _classify_all(open_classifier, pixels, progress, f"measuring the {what}")
    return _figure_out(
        labels,
        pictures,
        [answer.label for answer in answers],
        [answer.confidence for answer in answers],
        _time_alone(open_classifier(), pixels),
        runtime_name(),
    )


def _figure_out(
    labels: Sequence[str],
    pictures: Sequence[Picture],
    answers: Sequence[str],
    confidences: Sequence[float],
    latencies: Sequence[float],
    runtime: str,
) -> Measurement:
    """Return the figures of a model's answers to pictures.

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
    support = collections.Counter(picture.label for picture in pictures)
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
    return Measurement(
        accuracy=(len(pictures) - len(wrong)) / max(len(pictures), 1),
        pictures=len(pictures),
        labels=tuple(labels),
        classes=tuple(
            _figures(confusion, index, label, support[label]) for index, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in confusion),
        latency_ms_p50=round(float(np.percentile(latencies, 50)), 4) if latencies else None,
        latency_ms_p90=round(float(np.percentile(latencies, 90)), 4) if latencies else None,
        runtime=runtime,
        mistakes=tuple(wrong[:MISTAKES_AT_MOST]),
        hold_out=count_answers(labels, answers, confidences),
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


def choose_self_test(
    classifier: Classifier,
    pictures: Sequence[Picture],
    pixels: NDArray[np.uint8],
    count: int,
    known: frozenset[str] = frozenset(),
) -> list[tuple[int, Classification]]:
    """Return the pictures that a device shall answer before it activates the model.

    Right answers, most confident first, classes in turn: another runtime's rounding must not change
    them, another model's answers should. Among confident ones, those in `known` come first: devices have
    them from the release before.

    Returns: (index into `pictures`, the answer) of up to `count`; fewer if fewer were right.
    """
    by_class: dict[str, list[tuple[bool, float, str, int, Classification]]] = {}
    for index, picture in enumerate(pictures):
        answer = classifier.classify(pixels[index])
        if answer.label == picture.label:
            new = picture.sha256 not in known or answer.confidence < KNOWN_CONFIDENCE
            row = (new, -answer.confidence, picture.sha256, index, answer)
            by_class.setdefault(picture.label, []).append(row)
    ranked = [
        (rank, *row)
        for rows in by_class.values()
        for rank, row in enumerate(sorted(rows, key=lambda r: r[:3]))
    ]
    ranked.sort(key=lambda row: row[:4])
    return [(row[4], row[5]) for row in ranked[:count]]


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return (H, W, 3) RGB pixels as a PNG, lossless."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _measure_champion(
    champion: Champion | None,
    candidate: Candidate,
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    progress: Progress,
) -> tuple[Measurement | None, list[int], str]:
    """Return the champion's figures, the positions of the pictures it was shown, and a note."""
    if champion is None:
        return None, [], "Nothing is deployed on this channel yet."
    if champion.document.preprocessing.id != PREPROCESSING_ID:
        note = (
            f"The deployed model wants preprocessing {champion.document.preprocessing.id!r}, not known here."
        )
        return None, [], note
    known = set(champion.document.labels)
    shared = [index for index, picture in enumerate(holdout) if picture.label in known]
    gone = sorted(known - set(candidate.labels))
    new = sorted(set(candidate.labels) - known)
    renamed = _find_renamed(champion, holdout, new, gone, pixels_of, progress) if new and gone else ""
    if not shared:
        note = "The deployed model knows none of these classes; nothing can be compared."
        return None, [], note + renamed
    note = f"Compared on the same {len(shared)} hold-out pictures."
    if gone or new:
        changes = [f"new: {', '.join(new)}"] * bool(new) + [f"gone: {', '.join(gone)}"] * bool(gone)
        note = (
            f"The classes changed ({'; '.join(changes)}); compared on the {len(shared)} of {len(holdout)} "
            "hold-out pictures whose class both models know."
        )
        note += renamed
    if champion.saw_holdout:
        note += (
            " The deployed model was trained on some of them, which flatters it: holdout_percent was smaller."
        )
    size = champion.document.preprocessing
    pictures = [holdout[index] for index in shared]
    measurement = measure(
        lambda: Classifier(champion.model, champion.document.labels, normalization=size.normalization),
        sorted(known & set(candidate.labels)),
        pictures,
        pixels_of(pictures, size.height, size.width),
        progress,
        "deployed model",
    )
    return measurement, shared, note


def _find_renamed(
    champion: Champion,
    holdout: Sequence[Picture],
    new: Sequence[str],
    gone: Sequence[str],
    pixels_of: PixelLoader,
    progress: Progress,
) -> str:
    """Return a sentence for each new class whose pictures the champion takes for one that is gone."""
    size = champion.document.preprocessing
    pictures = [one for one in holdout if one.label in new]
    answers = _classify_all(
        lambda: Classifier(champion.model, champion.document.labels, normalization=size.normalization),
        pixels_of(pictures, size.height, size.width),
        progress,
        "looking for renamed classes",
    )
    note = ""
    for label in new:
        said = [one.label for one, picture in zip(answers, pictures, strict=True) if picture.label == label]
        likely, count = collections.Counter(said).most_common(1)[0] if said else ("", 0)
        if likely in gone and count > len(said) / 2:
            note += (
                f" {label!r} looks like {likely!r} renamed: the deployed model says so of {count} of its "
                f"{len(said)} hold-out pictures."
            )
    return note


def _accuracy_within(mine: Measurement, holdout: Sequence[Picture], shared: list[int]) -> float:
    """Accuracy of the candidate on the pictures that the champion was shown."""
    labels = {holdout[index].label for index in shared}
    rows = [
        (sum(row), row[index])
        for index, (row, label) in enumerate(zip(mine.confusion, mine.labels, strict=True))
        if label in labels
    ]
    return sum(right for _, right in rows) / max(sum(shown for shown, _ in rows), 1)


def _classify_all(
    open_classifier: Callable[[], Classifier], pixels: NDArray[np.uint8], progress: Progress, what: str
) -> list[Classification]:
    local = threading.local()

    def classify(index: int) -> Classification:
        if not hasattr(local, "classifier"):
            local.classifier = open_classifier()
        answer: Classification = local.classifier.classify(pixels[index])
        return answer

    answers = []
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for answer in pool.map(classify, range(len(pixels))):
            answers.append(answer)
            progress(what, len(answers), len(pixels))
    return answers


def _time_alone(classifier: Classifier, pixels: NDArray[np.uint8]) -> list[float]:
    """Milliseconds a picture with nothing else running in this process."""
    if not len(pixels):
        return [0.0]
    classifier.warm()
    return [classifier.classify(picture).latency_ms for picture in pixels[:LATENCY_PICTURES]]


def _figures(confusion: NDArray[np.int_], index: int, label: str, support: int) -> ClassFigures:
    right, said = int(confusion[index, index]), int(confusion[:, index].sum())
    return ClassFigures(
        label=label,
        support=support,
        precision=round(right / said, 6) if said else 0.0,
        recall=round(right / support, 6) if support else 0.0,
    )
