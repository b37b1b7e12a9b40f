"""Evaluation of a candidate: the file itself, through the device's own classifier, on the hold-out."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np

from luigi_tasks.dataset.pixels import LazyPixels
from luigi_tasks.gate.champion import compare_with_champion, find_set_aside
from luigi_tasks.gate.confidence import describe_confidence
from luigi_tasks.gate.evidence import Rival
from luigi_tasks.gate.measure import measure, right_answers, summarize
from luigi_tasks.gate.paired import count_pairs
from luigi_tasks.gate.records import Evaluation, Measurement, SchemeResult
from luigi_tasks.gate.simulation import TYPICAL_APART, simulate
from luigi_tasks.gate.sources import measure_sources
from luigi_tasks.gate.verdict import Facts, judge

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.dataset.pixels import PixelLoader, PixelRows
    from luigi_tasks.dataset.records import LeftOut, Picture
    from luigi_tasks.gate.champion import Champion
    from luigi_tasks.gate.measure import Answers
    from luigi_tasks.gate.records import ErrorRates
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
    *,
    holdout_percent: float = 20.0,
    left_out: Sequence[LeftOut] = (),
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
        holdout_percent: Share of the pictures that comes into the hold-out, for what the gate asks for.
        left_out: What the snapshot left out.
    Returns: The record, and the candidate's (hold-out, classes) scores.
    Raises: DeviceError if the runtime cannot run a file; InputError if one crashes it or does not answer.
    """
    record, size = candidate.record, candidate.record.preprocessing
    pixels = LazyPixels(holdout, pixels_of, size.height, size.width)
    measured, answers = measure_file(candidate, candidate.model, "candidate", holdout, pixels, progress)
    float_network = _summarize_scores(record.labels, holdout, heads[-1].float_scores)
    right = right_answers(record.labels, holdout, answers.scores)
    compared = compare_with_champion(champion, record, right, holdout, pixels_of, progress, holdout_percent)
    deployed = champion.document.labels if champion is not None else ()
    facts = Facts(
        candidate=measured,
        float_model=float_network,
        model_bytes=len(candidate.model),
        constant=compare_with_constant(right, holdout),
        champion=compared.rival,
        deployed_classes=deployed,
        holdout_percent=holdout_percent,
        set_aside=find_set_aside(sorted({*deployed} - {*record.labels}), left_out),
    )
    evaluation = Evaluation(
        release=record.release,
        candidate=measured,
        float_model=float_network,
        champion=compared.measurement,
        champion_release=champion.document.release if champion is not None else None,
        champion_note=compared.note,
        model_bytes=len(candidate.model),
        verdict=judge(facts, settings),
        at=at,
        schemes=_measure_schemes(candidate, heads, measured, holdout, pixels, progress),
        error_rates=_simulate_errors(measured, compared.rival, settings),
        confidence=describe_confidence(
            record.labels,
            [one.label for one in holdout],
            answers,
            heads[-1].record,
            record.operating_point,
        ),
        sources=measure_sources(holdout, right),
    )
    return evaluation, answers.scores


def compare_with_constant(right: NDArray[np.bool_], holdout: Sequence[Picture]) -> Rival:
    """Compare a candidate with always answering the hold-out's largest class: the best constant answer."""
    counts = collections.Counter(one.label for one in holdout)
    label = max(sorted(counts), key=lambda one: counts[one], default="")
    constant = np.array([one.label == label for one in holdout], np.bool_)
    paired = count_pairs(right, constant, [one.group_id for one in holdout])
    shown = max(len(holdout), 1)
    return Rival(label, float(constant.sum()) / shown, float(right.sum()) / shown, paired)


def _simulate_errors(measured: Measurement, rival: Rival | None, settings: GateSettings) -> ErrorRates:
    """Simulate how often the gate errs on this hold-out, with models as far apart as these two."""
    paired = rival.paired if rival is not None and rival.paired.units else None
    apart = (paired.lost + paired.gained) / paired.units if paired is not None else TYPICAL_APART
    return simulate(
        int(paired.units) if paired is not None else measured.groups,
        apart=apart,
        worse_points=settings.champion_margin_points,
        allowed_points=settings.max_champion_drop_points,
        margin_points=settings.champion_margin_points,
    )


def _measure_schemes(
    candidate: Candidate,
    heads: Sequence[TrainedHead],
    measured: Measurement,
    holdout: Sequence[Picture],
    pixels: PixelRows,
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
            found, _ = measure_file(candidate, model, what, holdout, pixels, progress)
        results.append(
            SchemeResult(
                scheme=head.scheme,
                accuracy=found.accuracy,
                float_drop_points=head.record.float_drop_points,
                class_drop_points=head.record.class_drop_points,
                model_bytes=len(model),
                latency_ms_p50=found.latency_ms_p50,
                interval=found.interval,
            )
        )
    return tuple(results)


def measure_file(
    candidate: Candidate,
    model: bytes,
    what: str,
    holdout: Sequence[Picture],
    pixels: PixelRows,
    progress: Progress,
) -> tuple[Measurement, Answers]:
    """Measure a file of a candidate; `what` names it in progress."""
    return measure(candidate.file(model), candidate.record.labels, holdout, pixels, progress, what)


def _summarize_scores(
    labels: Sequence[str], holdout: Sequence[Picture], scores: NDArray[np.float32]
) -> Measurement:
    """Return the metrics of the float network, from its features: nothing deploys it, so it has no file."""
    answers = [labels[int(row.argmax())] for row in scores]
    return summarize(labels, holdout, answers, [float(row.max()) for row in scores], [], "float")
