"""How far what a camera sees is from what its release was proven on."""

from __future__ import annotations

import math
import random

import pytest

from edge_client.contract.release import CONFIDENCE_BINS, HoldOut
from edge_client.serving.drift import LEAST_ANSWERS, WINDOW, DriftWatch, stability_index

pytestmark = pytest.mark.runtime

HOLD_OUT = HoldOut(labels=(50, 50), confidence=(0,) * 8 + (20, 80))


def watch(answers: list[tuple[int, float]]) -> DriftWatch:
    drift = DriftWatch("r", HOLD_OUT)
    for index, confidence in answers:
        drift.add(index, confidence)
    return drift


def alike(count: int, seed: int = 4) -> list[tuple[int, float]]:
    """Answers drawn as those of the hold-out."""
    moments = random.Random(seed)
    return [(moments.randrange(2), 0.95 if moments.random() < 0.8 else 0.85) for _ in range(count)]


def test_few_answers_give_no_metrics():
    assert watch(alike(LEAST_ANSWERS - 1)).metrics() is None
    assert watch(alike(LEAST_ANSWERS)).metrics() is not None


@pytest.mark.parametrize("seed", range(10))
def test_answers_like_those_of_the_hold_out_are_stable(seed):
    metrics = watch(alike(WINDOW, seed)).metrics()
    assert metrics is not None
    assert metrics.answers == WINDOW
    assert metrics.labels < 0.1
    assert metrics.confidence < 0.1


def test_other_labels_are_a_shift_of_labels_alone():
    metrics = watch([(0, confidence) for _, confidence in alike(WINDOW)]).metrics()
    assert metrics is not None
    assert metrics.labels > 0.25
    assert metrics.confidence < 0.1


def test_less_sure_answers_are_a_shift_of_confidence_alone():
    metrics = watch([(index, confidence - 0.4) for index, confidence in alike(WINDOW)]).metrics()
    assert metrics is not None
    assert metrics.confidence > 0.25
    assert metrics.labels < 0.1


def test_only_the_last_answers_count():
    drift = watch([(0, 0.1)] * WINDOW + alike(WINDOW))
    metrics = drift.metrics()
    assert metrics is not None
    assert metrics.answers == WINDOW
    assert max(metrics.labels, metrics.confidence) < 0.1


@pytest.mark.parametrize("confidence", [-0.1, 0.0, 1.0, 1.5])
def test_a_confidence_at_or_beyond_the_ends_is_counted_there(confidence):
    assert watch([(0, confidence)] * LEAST_ANSWERS).metrics() is not None


def test_the_index_is_the_published_formula():
    # Shares of 0.5, 0.5 and 0.9, 0.1, the halves counted in addition being few among many.
    wanted = (0.9 - 0.5) * math.log(0.9 / 0.5) + (0.1 - 0.5) * math.log(0.1 / 0.5)
    assert stability_index((500_000, 500_000), (900_000, 100_000)) == pytest.approx(wanted, rel=1e-4)
    assert stability_index((3, 4), (3, 4)) == 0
    assert len(HOLD_OUT.confidence) == CONFIDENCE_BINS
