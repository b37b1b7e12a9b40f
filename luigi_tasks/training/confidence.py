"""Confidence that holds: temperature, calibration error, and the scores from which on answers are sure.

All of it is decided by out-of-fold predictions: what heads trained as the final one say of training pictures
that they did not learn from. docs/decisions/0011-confidence.md has the measurements.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from edge_client.contract.release import OperatingPoint
from luigi_tasks.training.head import NO_FOLD, softmax
from luigi_tasks.training.records import Reliability, ReliabilityBin, UnseenScores
from luigi_tasks.training.strangers import LEAST_KNOWN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.training.head import Unseen

FOLDS = 5
# Pictures whose predictions are enough: with more, temperature and thresholds no longer change, and each
# further fold costs a tenth of the head's training.
ENOUGH, ENOUGH_OF_A_CLASS = 1000, 20
BINS = 10

TEMPERATURES = np.geomspace(0.1, 5, 200)
COARSE = 10  # with 1,000 classes, each temperature takes 0.1 s: every tenth, then those around the best
# Heads with label smoothing and weight decay are too unsure: 0.45 (sign digits) to 0.75 (flowers) is right.
# Weighs as much as a few tens of predictions.
USUAL_TEMPERATURE, USUAL_SPREAD = 0.65, 0.4

# A class's precision above a score is counted on few pictures. So many more are added that are right as often
# as the calibrated scores say. Flowers with 20 pictures a class, at 0.95: precision 0.946 of the unseen
# without, 0.954 with 50; with 20 a class of ten classes as many are sure.
SUPPOSED = 50
SCORE_STEPS = 256  # an int8 file's scores are counts of 1/256, 255 at most


def choose_folds(
    pictures: Sequence[Picture], classes: int, validation: NDArray[np.bool_] | None = None
) -> NDArray[np.int64]:
    """Return the fold of each training picture, `NO_FOLD` for most of a large set; a group is in one fold.

    Args:
        pictures: The training split.
        classes: Number of classes.
        validation: (N,) bool: the pictures that a tuned backbone did not learn from. They are the only fold
            then: features of the others look too good. None: the backbone was not tuned.
    """
    if validation is not None:
        return np.where(validation, 0, NO_FOLD)
    enough = max(ENOUGH, ENOUGH_OF_A_CLASS * classes)
    wanted = min(FOLDS, max(1, round(FOLDS * enough / max(len(pictures), 1))))
    folds = np.array([_position(one.group_id) for one in pictures], np.int64)
    return np.where(folds < wanted, folds, NO_FOLD)


def _position(group: str) -> int:
    """Return the fold of a group, which has nothing to do with its split or its copies."""
    return zlib.crc32(f"fold {group}".encode()) % FOLDS


def fit_temperature(logits: NDArray[np.float32], truths: NDArray[np.int64]) -> float:
    """Return what logits must be divided by to be calibrated; 1 where there are none.

    Maximum likelihood, with a prior that decides where predictions are few or all right. One number is
    enough: scaling each class by its own gains nothing on unseen pictures.
    Source: Guo et al., arXiv:1706.04599, section 4.2.

    Args:
        logits: (M, classes) out-of-fold.
        truths: (M,) class numbers.
    """
    if not len(truths):
        return 1.0

    def loss(number: int) -> float:
        distance = np.log(TEMPERATURES[number] / USUAL_TEMPERATURE) / USUAL_SPREAD
        return _negative_log_likelihood(logits, truths, TEMPERATURES[number]) + float(distance**2) / 2

    near = min(range(0, len(TEMPERATURES), COARSE), key=loss)
    around = range(max(0, near - COARSE), min(len(TEMPERATURES), near + COARSE + 1))
    return float(TEMPERATURES[min(around, key=loss)])


def _negative_log_likelihood(
    logits: NDArray[np.float32], truths: NDArray[np.int64], temperature: float
) -> float:
    scaled = (logits - logits.max(1, keepdims=True)).astype(np.float64) / temperature
    own = scaled[np.arange(len(truths)), truths]
    return float((np.log(np.exp(scaled).sum(1)) - own).sum())


def score_unseen(unseen: Unseen, targets: NDArray[np.int64], *, int8: bool) -> UnseenScores:
    """Return out-of-fold predictions as the file will score them.

    Args:
        unseen: Predictions of a head whose logits are calibrated.
        targets: (N,) class numbers of all training pictures.
        int8: Whether the file's scores are int8.
    """
    scores = softmax(unseen.logits)
    if int8:
        scores = np.minimum(np.round(scores * SCORE_STEPS), SCORE_STEPS - 1).astype(np.float32)
        scores /= np.float32(SCORE_STEPS)
    return UnseenScores(scores, targets[unseen.rows])


def calibration_error(scores: NDArray[np.floating], truths: NDArray[np.integer], bins: int = BINS) -> float:
    """Return the expected calibration error, in bins of equal mass; 0 of no pictures.

    Args:
        scores: (N, classes) scores.
        truths: (N,) class numbers.
        bins: Number of bins.
    """
    return measure_reliability(scores, truths, bins).error


def measure_reliability(
    scores: NDArray[np.floating], truths: NDArray[np.integer], bins: int = BINS
) -> Reliability:
    """Return how often predictions are right beside how sure they are, in bins of equal mass.

    Source: Guo et al., arXiv:1706.04599, with the bins of Nixon et al., arXiv:1904.01685.
    """
    confidence, right = scores.max(1), scores.argmax(1) == truths
    parts = np.array_split(np.argsort(confidence, kind="stable"), bins)
    found = tuple(
        ReliabilityBin(
            confidence=round(float(confidence[part].mean(dtype=np.float64)), 6),
            accuracy=round(float(right[part].mean()), 6),
            pictures=len(part),
        )
        for part in parts
        if len(part)
    )
    off = sum(one.pictures * abs(one.confidence - one.accuracy) for one in found)
    return Reliability(bins=found, error=round(off / max(len(truths), 1), 6))


def choose_operating_point(unseen: UnseenScores, precision: float) -> OperatingPoint | None:
    """Return for each class the smallest score from which on so many of its predictions are right.

    Args:
        unseen: Out-of-fold predictions.
        precision: Share of the sure predictions of each class that should be right; 0: all are sure.
    Returns: None if all predictions are sure. Without predictions to judge by, none is.
    """
    if precision == 0:
        return None
    answers, confidence = unseen.scores.argmax(1), unseen.scores.max(1)
    right = answers == unseen.truths
    thresholds = tuple(
        _find_threshold(confidence[own], right[own], precision)
        for own in (answers == number for number in range(unseen.scores.shape[1]))
    )
    point = OperatingPoint(
        precision=precision,
        thresholds=thresholds,
        coverage=0.0,
        least_known=None if unseen.known is None else LEAST_KNOWN,
    )
    sure = mark_sure(unseen.scores, unseen.known, point)
    return msgspec.structs.replace(point, coverage=round(float(sure.mean()), 6) if len(sure) else 0.0)


def mark_sure(
    scores: NDArray[np.floating], known: NDArray[np.floating] | None, point: OperatingPoint | None
) -> NDArray[np.bool_]:
    """Return (N,) whether each prediction is sure at an operating point; without one, all are.

    Args:
        scores: (N, classes).
        known: (N,) how known each picture is; None: the model does not tell strangers.
        point: The operating point.
    """
    if point is None:
        return np.ones(len(scores), bool)
    limits = np.array([np.inf if one is None else one for one in point.thresholds])
    sure: NDArray[np.bool_] = scores.max(1) >= limits[scores.argmax(1)]
    if known is not None and point.least_known is not None:
        sure &= known >= point.least_known
    return sure


def _find_threshold(
    confidence: NDArray[np.float32], right: NDArray[np.bool_], precision: float
) -> float | None:
    """Return the smallest score from which on enough predictions are right; None: there is none."""
    order = np.argsort(-confidence, kind="stable")
    scores = confidence[order].astype(np.float64)
    counts = np.arange(1, len(scores) + 1)
    supposed = SUPPOSED * np.cumsum(scores) / counts
    share = (np.cumsum(right[order]) + supposed) / (counts + SUPPOSED)
    is_last = np.append(scores[1:] < scores[:-1], np.ones(min(len(scores), 1), bool))  # of equal scores
    enough = np.flatnonzero((share >= precision) & is_last)
    # Rounded down, or the score itself would not reach it.
    return float(np.floor(scores[enough[-1]] * 1e6) / 1e6) if len(enough) else None
