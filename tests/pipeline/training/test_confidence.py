"""Confidence: temperatures that are found again, errors of calibration, thresholds that keep a precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luigi_tasks.dataset.records import TRAIN, Picture
from luigi_tasks.progress import ignore_progress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.training.confidence import (
    FOLDS,
    calibration_error,
    choose_folds,
    choose_operating_point,
    fit_temperature,
    measure_reliability,
    score_unseen,
)
from luigi_tasks.training.head import NO_FOLD, HeadTrainingData, Unseen, softmax, train_head
from luigi_tasks.training.records import UnseenScores

TRAINING = dataclasses.replace(load_settings().training, batch_size=32, epochs=10)


def draw(count, classes=4, seed=0, spread=2.0):
    """Logits, and truths drawn from the probabilities that they say: calibrated by construction."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, spread, (count, classes)).astype(np.float32)
    below = np.cumsum(softmax(logits), 1) < rng.random((count, 1))
    return logits, np.minimum(below.sum(1), classes - 1)


def pictures_of(groups):
    return [
        Picture(path=f"a/{number}.png", sha256=f"{number:064x}", label="a", split=TRAIN, group=group)
        for number, group in enumerate(groups)
    ]


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_the_temperature_of_calibrated_logits_is_found(temperature):
    logits, truths = draw(4000)
    assert fit_temperature(logits * np.float32(temperature), truths) == pytest.approx(temperature, rel=0.1)


def test_the_temperature_of_a_few_right_predictions_stays_usual():
    """Each more confident score is likelier where all are right: the prior holds it."""
    logits = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]] * 3
    assert 0.3 < fit_temperature(logits, np.array([0, 1, 2, 0])) < 1


def test_without_predictions_nothing_is_scaled():
    assert fit_temperature(np.empty((0, 3), np.float32), np.empty(0, np.int64)) == 1.0


def test_calibrated_scores_have_no_error_and_overconfident_ones_have():
    logits, truths = draw(20000)
    assert calibration_error(softmax(logits), truths) < 0.015
    surer = softmax(logits * 3)
    gap = surer.max(1).mean() - (surer.argmax(1) == truths).mean()
    assert calibration_error(surer, truths) == pytest.approx(gap, abs=0.02)


def test_bins_hold_equally_many_and_all():
    scores = softmax(draw(103)[0])
    bins = measure_reliability(scores, np.zeros(103, int)).bins
    assert sum(one.pictures for one in bins) == 103
    assert {one.pictures for one in bins} == {10, 11}
    assert [one.confidence for one in bins] == sorted(one.confidence for one in bins)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40),
    seed=st.integers(0, 1000),
    precision=st.sampled_from([0.5, 0.9, 1.0]),
    int8=st.booleans(),
)
def test_sure_predictions_are_those_above_the_thresholds(count, seed, precision, int8):
    logits, truths = draw(count, seed=seed)
    unseen = score_unseen(Unseen(np.arange(count), logits), truths, int8=int8)
    point = choose_operating_point(unseen, precision)
    assert point is not None
    answers, confidence = unseen.scores.argmax(1), unseen.scores.max(1)
    sure = [point.is_sure(int(a), float(c)) for a, c in zip(answers, confidence, strict=True)]
    assert point.coverage == pytest.approx(np.mean(sure) if count else 0, abs=1e-5)
    for number, threshold in enumerate(point.thresholds):
        own = confidence[answers == number]
        if threshold is not None:
            assert np.abs(own - threshold).min() < 1e-5, "a threshold is the score of some prediction"
        if not len(own):
            assert threshold is None


@pytest.mark.parametrize("spread", [1.0, 2.0])
def test_the_precision_holds_for_unseen_pictures(spread):
    logits, truths = draw(1500, seed=1, spread=spread)
    unseen = score_unseen(Unseen(np.arange(1500), logits), truths, int8=True)
    point = choose_operating_point(unseen, 0.9)
    assert point is not None
    new_logits, new_truths = draw(20000, seed=2, spread=spread)
    new = score_unseen(Unseen(np.arange(20000), new_logits), new_truths, int8=True)
    answers, confidence = new.scores.argmax(1), new.scores.max(1)
    sure = np.array([point.is_sure(int(a), float(c)) for a, c in zip(answers, confidence, strict=True)])
    assert (answers == new_truths)[sure].mean() == pytest.approx(0.9, abs=0.02)
    assert sure.mean() == pytest.approx(point.coverage, abs=0.05)


def test_a_class_that_is_never_right_enough_is_never_sure():
    """The second class is answered with the same scores, and wrong: the first is not blamed for it."""
    scores = np.array([[0.9, 0.1]] * 200 + [[0.1, 0.9]] * 200, np.float32)
    truths = np.array([0] * 190 + [1] * 10 + [0] * 100 + [1] * 100)
    point = choose_operating_point(UnseenScores(scores, truths), 0.9)
    assert point is not None
    first, second = point.thresholds
    assert first == pytest.approx(0.9, abs=1e-5)
    assert second is None


def test_every_prediction_is_sure_where_no_precision_is_asked_for():
    logits, truths = draw(50)
    assert choose_operating_point(UnseenScores(softmax(logits), truths), 0) is None


def test_an_int8_file_never_says_one():
    unseen = score_unseen(
        Unseen(np.array([0]), np.array([[90.0, 0.0]], np.float32)), np.array([0]), int8=True
    )
    assert unseen.scores.tolist() == [[255 / 256, 0.0]]


def test_a_group_is_in_one_fold_and_a_small_set_all_in_folds():
    groups = [np.random.default_rng(number // 4).bytes(32).hex() for number in range(400)]
    folds = choose_folds(pictures_of(groups), 2)
    assert set(folds) == set(range(FOLDS))
    assert all(len(set(folds[start : start + 4])) == 1 for start in range(0, 400, 4))


def test_of_a_large_set_a_part_is_predicted():
    rng = np.random.default_rng(0)
    groups = [rng.bytes(32).hex() for _ in range(20000)]
    folds = choose_folds(pictures_of(groups), 10)
    assert set(folds) == {NO_FOLD, 0}
    assert 1000 < (folds == 0).sum() < 5000


def test_of_a_tuned_backbone_only_validation_pictures_are_predicted():
    validation = np.array([True, False, False, True])
    folds = choose_folds(pictures_of([""] * 4), 2, validation)
    assert folds.tolist() == [0, NO_FOLD, NO_FOLD, 0]


def training_data(folds, seed=0):
    rng = np.random.default_rng(seed)
    targets = np.arange(120) % 3
    features = (np.eye(3, 8)[targets] * 2 + rng.normal(0, 1, (120, 8))).astype(np.float32)
    return HeadTrainingData([features], targets, 3, np.zeros(120, bool), folds=folds)


@pytest.mark.parametrize("hidden_units", [0, 5])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_folds_leave_the_head_as_it_is(hidden_units, dropout):
    training = dataclasses.replace(TRAINING, hidden_units=hidden_units, dropout=dropout)
    alone = train_head(training_data(None), training, ignore_progress, "head")
    beside = train_head(training_data(np.arange(120) % 4), training, ignore_progress, "head")
    assert not len(alone.unseen.rows)
    assert sorted(beside.unseen.rows) == list(range(120))
    for one, other in zip(alone.layers, beside.layers, strict=True):
        np.testing.assert_allclose(one.weights, other.weights, atol=1e-4)
        np.testing.assert_allclose(one.bias, other.bias, atol=1e-4)


@pytest.mark.parametrize("hidden_units", [0, 5])
def test_out_of_fold_predictions_are_of_a_head_that_did_not_see_the_fold(hidden_units):
    """Labels in the fold are changed: what the others learn, and say of the fold, stays."""
    training = dataclasses.replace(TRAINING, hidden_units=hidden_units)
    folds = np.where(np.arange(120) < 30, 0, NO_FOLD)
    data = training_data(folds)
    changed = dataclasses.replace(data, targets=np.where(folds == 0, (data.targets + 1) % 3, data.targets))
    one, other = (train_head(given, training, ignore_progress, "head") for given in (data, changed))
    np.testing.assert_allclose(one.unseen.logits, other.unseen.logits, atol=1e-4)
    assert np.abs(one.layers[0].weights - other.layers[0].weights).max() > 0.01


def test_a_fold_with_all_pictures_of_a_class_is_not_predicted():
    data = training_data(None)
    folds = np.where(data.targets == 2, 0, 1 + np.arange(120) % 2)
    head = train_head(dataclasses.replace(data, folds=folds), TRAINING, ignore_progress, "head")
    assert set(data.targets[head.unseen.rows]) == {0, 1}


def test_dividing_logits_changes_no_answer():
    head = train_head(training_data(np.arange(120) % 4), TRAINING, ignore_progress, "head")
    surer = head.divide_logits(0.5)
    features = training_data(None, seed=3).copies[0]
    before, after = head.probabilities(features), surer.probabilities(features)
    assert (before.argmax(1) == after.argmax(1)).all()
    assert after.max(1).mean() > before.max(1).mean()
    np.testing.assert_allclose(surer.unseen.logits, head.unseen.logits * 2, rtol=1e-5)
    assert surer.ranges(features)[-1] == pytest.approx([one * 2 for one in head.ranges(features)[-1]])
