"""Evaluation of a candidate: the file itself, through the device's own classifier, on the hold-out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.gate.champion import accuracy_within, compare_with_champion
from luigi_tasks.gate.measure import measure, summarize
from luigi_tasks.gate.records import Evaluation, Measurement, SchemeResult
from luigi_tasks.gate.verdict import judge
from luigi_tasks.training.class_drop import ClassPair

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixels import PixelLoader
    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.gate.champion import Champion
    from luigi_tasks.progress import Progress
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.settings.values import GateSettings
    from luigi_tasks.training.records import TrainedHead


def evaluate_candidate(
    candidate: Candidate,
    heads: Sequence[TrainedHead],
    champion: Champion | None,
    holdout: Sequence[Picture],
    pixels_of: PixelLoader,
    settings: GateSettings,
    progress: Progress,
    at: str,
) -> tuple[Evaluation, NDArray[np.float32]]:
    """Measure and judge a candidate.

    Args:
        candidate: The candidate.
        heads: The heads of the schemes that were tried; the last one is the candidate's.
        champion: The deployed model, if there is one.
        holdout: Pictures that no training saw.
        pixels_of: Loads them.
        settings: The gate's limits.
        progress: Gets pictures done.
        at: UTC, ISO 8601, for the record.
    Returns: The record, and the candidate's (hold-out, classes) scores.
    Raises: DeviceError if the runtime cannot run a file.
    """
    record, size = candidate.record, candidate.record.preprocessing
    pixels = pixels_of(holdout, size.height, size.width)
    measured, scores = _measure_file(candidate, candidate.model, "candidate", holdout, pixels, progress)
    float_network = _summarize_scores(record.labels, holdout, heads[-1].float_scores)
    compared = compare_with_champion(champion, record, holdout, pixels_of, progress)
    pair = None
    if compared.measurement is not None:
        pair = (accuracy_within(measured, holdout, compared.shown), compared.measurement.accuracy)
    evaluation = Evaluation(
        release=record.release,
        candidate=measured,
        float_model=float_network,
        champion=compared.measurement,
        champion_release=champion.document.release if champion is not None else None,
        champion_note=compared.note,
        model_bytes=len(candidate.model),
        verdict=judge(
            accuracy=measured.accuracy,
            float_accuracy=float_network.accuracy,
            classes=[
                ClassPair(one.label, one.support, one.recall, other.recall)
                for one, other in zip(measured.classes, float_network.classes, strict=True)
            ],
            champion=pair,
            model_bytes=len(candidate.model),
            settings=settings,
        ),
        at=at,
        schemes=_measure_schemes(candidate, heads, measured, holdout, pixels, progress),
    )
    return evaluation, scores


def _measure_schemes(
    candidate: Candidate,
    heads: Sequence[TrainedHead],
    measured: Measurement,
    holdout: Sequence[Picture],
    pixels: NDArray[np.uint8],
    progress: Progress,
) -> tuple[SchemeResult, ...]:
    """Return size, latency and accuracy of each scheme that was tried; empty if the first was chosen."""
    if not candidate.tried:
        return ()
    results = []
    for head, model in zip(heads, (*candidate.tried, candidate.model), strict=True):
        found = measured
        if model is not candidate.model:
            what = f"candidate in {head.scheme}"
            found, _ = _measure_file(candidate, model, what, holdout, pixels, progress)
        results.append(
            SchemeResult(
                scheme=head.scheme,
                accuracy=found.accuracy,
                float_drop_points=head.record.float_drop_points,
                class_drop_points=head.record.class_drop_points,
                model_bytes=len(model),
                latency_ms_p50=found.latency_ms_p50,
            )
        )
    return tuple(results)


def _measure_file(
    candidate: Candidate,
    model: bytes,
    what: str,
    holdout: Sequence[Picture],
    pixels: NDArray[np.uint8],
    progress: Progress,
) -> tuple[Measurement, NDArray[np.float32]]:
    return measure(
        lambda: candidate.open_classifier(model), candidate.record.labels, holdout, pixels, progress, what
    )


def _summarize_scores(
    labels: Sequence[str], holdout: Sequence[Picture], scores: NDArray[np.float32]
) -> Measurement:
    """Return the metrics of the float network, from its features: nothing deploys it, so it has no file."""
    answers = [labels[int(row.argmax())] for row in scores]
    return summarize(labels, holdout, answers, [float(row.max()) for row in scores], [], "float")
