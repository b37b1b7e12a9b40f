"""The head: classes weigh alike, training ends in time, steps get smaller, same input gives the same head."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from luigi_tasks.progress import ignore_progress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.training.head import (
    LEVELS,
    PART_ROWS,
    PATIENCE,
    FittedHead,
    HeadTrainingData,
    Layer,
    Unseen,
    softmax,
    train_head,
)

FEATURES = 12
TRAINING = dataclasses.replace(load_settings().training, batch_size=32)


def draw(counts, *, spread=1.0, seed=0):
    """Features around one corner for each class; return them and the class numbers."""
    rng = np.random.default_rng(seed)
    targets = np.repeat(np.arange(len(counts)), counts)
    corners = np.eye(len(counts), FEATURES) * 1.5
    features = corners[targets] + rng.normal(0, spread, (len(targets), FEATURES))
    return features.astype(np.float32), targets


def training_data(features, targets, *, validation=None):
    chosen = np.zeros(len(targets), bool) if validation is None else validation
    return HeadTrainingData([features], targets, int(targets.max()) + 1, chosen)


def recalls(head, counts, *, spread=1.0):
    features, targets = draw(counts, spread=spread, seed=99)
    answers = head.probabilities(features).argmax(1)
    return [float((answers[targets == one] == one).mean()) for one in range(len(counts))]


def test_a_class_of_few_pictures_weighs_as_much_as_one_of_many():
    features, targets = draw([400, 20], spread=1.3)
    head = train_head(training_data(features, targets), TRAINING, ignore_progress, "head")
    many, few = recalls(head, [2000, 2000], spread=1.3)
    # Without weights the large class wins where both overlap: 0.98 against 0.5.
    assert abs(many - few) < 0.15
    assert min(many, few) > 0.7


def test_training_stops_when_validation_gets_worse():
    """Labels of the training pictures are noise: there is nothing to learn, and more epochs only harm."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(120, FEATURES)).astype(np.float32) * 3
    targets = np.arange(120) % 3
    validation = np.arange(120) % 4 == 0
    training = dataclasses.replace(TRAINING, epochs=60, learning_rate=0.05)
    reports = []
    head = train_head(
        training_data(features, targets, validation=validation),
        training,
        lambda *one: reports.append(one),
        "x",
    )
    tried, taken = len(head.history["validation loss"]), len(head.history["loss"])
    assert taken == int(np.argmin(head.history["validation loss"])) + 1
    assert tried == taken + PATIENCE < 60
    assert reports[-1] == ("x", taken, taken), "the second course has as many epochs as the first needed"


def test_all_pictures_are_learned_from_in_the_end():
    """Of the second class there are validation pictures only but one: it is known all the same."""
    features, targets = draw([40, 40], spread=0.3)
    validation = (targets == 1) & (np.arange(80) != 79)
    head = train_head(
        training_data(features, targets, validation=validation), TRAINING, ignore_progress, "head"
    )
    assert min(recalls(head, [200, 200], spread=0.3)) > 0.9


def test_a_class_that_only_validation_has_is_learned_without_a_trial():
    features, targets = draw([30, 30], spread=0.3)
    head = train_head(
        training_data(features, targets, validation=targets == 1), TRAINING, ignore_progress, "head"
    )
    assert set(head.history) == {"loss", "accuracy"}
    assert min(recalls(head, [200, 200], spread=0.3)) > 0.9


def test_steps_get_smaller_to_the_end():
    """The rate falls along a cosine to 0: the last of many epochs hardly moves the loss."""
    features, targets = draw([100, 100, 100], spread=2.0)
    training = dataclasses.replace(TRAINING, epochs=40, learning_rate=0.05)
    losses = train_head(training_data(features, targets), training, ignore_progress, "head").history["loss"]
    moves = np.abs(np.diff(losses))
    assert moves[-5:].mean() < 0.05 * moves[:5].mean()


@pytest.mark.parametrize("hidden", [0, 16])
def test_same_input_gives_the_same_head_and_another_seed_another(hidden):
    features, targets = draw([50, 50])
    training = dataclasses.replace(TRAINING, hidden_units=hidden, dropout=0.2)
    first, second, other = (
        train_head(
            training_data(features, targets),
            dataclasses.replace(training, seed=seed),
            ignore_progress,
            "head",
        )
        for seed in (1, 1, 2)
    )
    for one, two in zip(first.layers, second.layers, strict=True):
        np.testing.assert_array_equal(one.weights, two.weights)
        np.testing.assert_array_equal(one.bias, two.bias)
    assert any(
        (one.weights != two.weights).any() for one, two in zip(first.layers, other.layers, strict=True)
    )


def test_quantized_features_are_learned_as_what_they_stand_for():
    features, targets = draw([80, 80, 80], spread=0.5)
    scale, zero_point = 0.05, -20
    steps = np.clip(np.round(features / scale) + zero_point, -128, 127).astype(np.int8)
    data = HeadTrainingData([steps], targets, 3, np.zeros(240, bool), scale, zero_point)
    in_int8 = train_head(data, TRAINING, ignore_progress, "head")
    in_float = train_head(training_data(features, targets), TRAINING, ignore_progress, "head")
    shown = in_int8.probabilities(steps, scale, zero_point)
    np.testing.assert_allclose(shown, in_float.probabilities(features), atol=0.05)


def test_weights_have_few_levels_so_that_patches_are_small():
    features, targets = draw([60, 60, 60])
    [layer] = train_head(training_data(features, targets), TRAINING, ignore_progress, "head").layers
    for unit in layer.weights.T:
        steps = unit / (np.abs(unit).max() / LEVELS)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-3)


def test_many_pictures_are_shown_in_parts_and_none_is_left_out():
    rng = np.random.default_rng(1)
    layer = Layer(rng.normal(size=(FEATURES, 3)).astype(np.float32), np.zeros(3, np.float32))
    head = FittedHead((layer,), {}, Unseen(np.empty(0, np.intp), np.empty((0, 3), np.float32)))
    features = rng.normal(size=(PART_ROWS + 5, FEATURES)).astype(np.float32)
    features[[0, -1]] = [100 * layer.weights[:, 0], -100 * layer.weights[:, 0]]
    logits = features @ layer.weights
    [(low, high)] = head.ranges(features)
    assert (low, high) == pytest.approx((float(logits.min()), float(logits.max())), rel=1e-5)
    shown = head.probabilities(features)
    assert np.allclose(shown, softmax(logits), atol=1e-5)
    assert head.probabilities(features[:0]).shape == (0, 3)
