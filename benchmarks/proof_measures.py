"""What proof.py computes from answers: a dict of lists, as proof_run.py writes it."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.metrics import roc_auc_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

Figures = dict[str, float | None]

CALIBRATION_BINS = 10


def judge_folds(answers: Sequence[dict[str, Any]], precision: float) -> Figures:
    """Return what the folds show together."""
    shown = [one["unseen"] for one in answers]
    figures: Figures = {
        "flowers_head_accuracy": statistics.fmean(accuracy(one) for one in shown),
        "ece": calibration_error(shown),
        "precision_kept": None,
        "precision_coverage": None,
        "strangers_auroc": None,
    }
    if all(one["sure"] is not None for one in shown):
        sure = np.concatenate([one["sure"] for one in shown])
        right = np.concatenate([is_right(one) for one in shown])
        figures["precision_coverage"] = float(sure.mean())
        figures["precision_kept"] = 100 * (float(right[sure].mean()) - precision) if sure.any() else None
    if all("strangers" in one for one in answers):
        figures["strangers_auroc"] = statistics.fmean(
            auroc(one["unseen"], one["strangers"]) for one in answers
        )
    return figures


def compare_doubts(wrong: Sequence[set[str]], doubted: Sequence[list[str] | None]) -> Figures:
    """Return how many of the wrong labels were doubted, and how many of the doubted ones were wrong."""
    pairs = [
        (len(truly.intersection(paths)) / len(truly), len(truly.intersection(paths)) / max(len(paths), 1))
        for truly, paths in zip(wrong, doubted, strict=True)
        if paths is not None
    ]
    return {
        "doubtful_recall": statistics.median(recall for recall, _ in pairs) if pairs else None,
        "doubtful_precision": statistics.median(precision for _, precision in pairs) if pairs else None,
    }


def is_right(answers: dict[str, Any]) -> NDArray[np.bool_]:
    """Return (N,) whether each answer was true."""
    pairs = zip(answers["labels"], answers["truths"], strict=True)
    return np.array([label == truth for label, truth in pairs], bool)


def accuracy(answers: dict[str, Any]) -> float:
    """Return the share of true answers."""
    return float(is_right(answers).mean())


def calibration_error(parts: Sequence[dict[str, Any]]) -> float:
    """Return the expected calibration error of all answers together, in bins of equal mass.

    Source: Guo et al., arXiv:1706.04599, with the bins of Nixon et al., arXiv:1904.01685.
    """
    confidence = np.concatenate([np.max(one["scores"], axis=1) for one in parts])
    right = np.concatenate([is_right(one) for one in parts])[np.argsort(confidence, kind="stable")]
    bins = zip(
        np.array_split(np.sort(confidence), CALIBRATION_BINS),
        np.array_split(right, CALIBRATION_BINS),
        strict=True,
    )
    return float(sum(len(own) * abs(own.mean() - hits.mean()) for own, hits in bins) / len(right))


def auroc(known: dict[str, Any], strangers: dict[str, Any]) -> float:
    """Return how well the model tells known things from strangers: by its own score, else by confidence."""
    scores = np.concatenate([_familiarity(known), _familiarity(strangers)])
    truths = np.arange(len(scores)) < len(known["labels"])
    return float(roc_auc_score(truths, scores))


def _familiarity(answers: dict[str, Any]) -> NDArray[np.float64]:
    found = answers["known"]
    return np.asarray(found if found is not None else np.max(answers["scores"], axis=1), np.float64)
