"""Wrong labels are found, and few right ones are blamed; groups do not vouch for themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luigi_tasks.backbone.extractor import QuantizationParameters
from luigi_tasks.dataset.records import TRAIN, Picture
from luigi_tasks.progress import ignore_progress
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.training.label_noise import (
    DOUBTED,
    NEIGHBOURS,
    LabelledFeatures,
    ask_witnesses,
    count_neighbours,
    estimate_wrong,
    list_doubted,
)

TRAINING = load_settings().training
CLASSES, SIGNS = 4, 40  # each class has features of its own
FEATURES = CLASSES * SIGNS
STEPS = QuantizationParameters(0.05, -3)  # int8 features, as a backbone gives them


def draw(count, *, spread=1.0, seed=0):
    """Int8 features around one corner a class, and the class numbers."""
    rng = np.random.default_rng(seed)
    truths = np.arange(count) % CLASSES
    real = np.repeat(np.eye(CLASSES), SIGNS, 1)[truths] + rng.normal(0, spread, (count, FEATURES))
    return STEPS.quantize(real.astype(np.float16)), truths


def flip(truths, count, seed=0):
    """Return labels of which so many are wrong, and which."""
    rng = np.random.default_rng(seed)
    wrong = rng.choice(len(truths), count, replace=False)
    labels = truths.copy()
    labels[wrong] = (truths[wrong] + rng.integers(1, CLASSES, count)) % CLASSES
    return labels, np.isin(np.arange(len(truths)), wrong)


def ask(features, labels, groups=None):
    ids = groups or [f"{number:064x}" for number in range(len(labels))]
    given_features = LabelledFeatures(features, labels, CLASSES, ids, STEPS)
    return ask_witnesses(given_features, TRAINING, ignore_progress)


@pytest.mark.parametrize("share", [0.02, 0.1])
def test_flipped_labels_are_found_with_their_class(share):
    features, truths = draw(400)
    labels, wrong = flip(truths, round(400 * share))
    doubts = ask(features, labels)
    listed = doubts.chances >= DOUBTED
    assert (listed & wrong).sum() >= 0.85 * wrong.sum()
    assert (listed & wrong).sum() >= 0.8 * listed.sum()
    assert (doubts.probable == truths)[listed & wrong].mean() > 0.9
    assert doubts.wrong_share == pytest.approx(share, abs=0.02)


def test_a_clean_set_has_hardly_a_doubtful_label():
    """Every tenth picture is hard to tell: it is not blamed for that."""
    features, truths = draw(400, spread=2.6)
    doubts = ask(features, truths)
    answers = doubts.probabilities.argmax(1)
    assert (answers != truths).sum() > 12, "the pictures are too easy to show anything"
    assert (doubts.chances >= DOUBTED).sum() <= 4


def test_a_burst_in_the_wrong_class_does_not_vouch_for_itself():
    """Ten frames of one scene, all with the same wrong label, are each other's nearest pictures."""
    features, truths = draw(300)
    burst = np.repeat(features[:1], 10, 0) + np.random.default_rng(1).integers(0, 2, (10, FEATURES), np.int8)
    labels = np.concatenate([truths, np.full(10, (truths[0] + 1) % CLASSES)])
    groups = [f"{number:064x}" for number in range(300)] + [f"{0:064x}"] * 10
    doubts = ask(np.concatenate([features, burst]), labels, groups)
    assert (doubts.chances[300:] > DOUBTED).all()
    assert (doubts.neighbours[300:, truths[0]] >= NEIGHBOURS - 3).all()
    assert doubts.chances[0] < DOUBTED


def test_neighbours_are_counted_in_other_groups_alone():
    features, truths = draw(40)
    nobody = count_neighbours(features, truths, np.zeros(40, np.int64), CLASSES, ignore_progress)
    assert not nobody.any()
    everybody = count_neighbours(features, truths, np.arange(40), CLASSES, ignore_progress)
    assert (everybody.sum(1) == NEIGHBOURS).all()


def test_features_of_no_length_and_constant_ones_are_compared():
    features = np.full((30, FEATURES), STEPS.zero_point, np.int8)
    labels = np.arange(30) % CLASSES
    doubts = ask(features, labels)
    assert np.isfinite(doubts.chances).all()


@settings(max_examples=60, deadline=None)
@given(count=st.integers(0, 50), classes=st.integers(2, 6), seed=st.integers(0, 99), sharp=st.floats(0, 30))
def test_chances_are_shares_and_rise_with_doubt(count, classes, seed, sharp):
    rng = np.random.default_rng(seed)
    raised = np.exp(rng.normal(0, 1, (count, classes)) * sharp)
    probabilities = raised / raised.sum(1, keepdims=True)
    targets = rng.integers(0, classes, count)
    chances, share = estimate_wrong(probabilities, targets)
    assert ((chances >= 0) & (chances <= 1)).all()
    assert 0 <= share <= 1
    own = probabilities[np.arange(count), targets]
    assert (np.diff(chances[np.argsort(own)]) <= 1e-12).all(), "the less a label is believed, the worse"


def test_the_share_of_wrong_labels_is_estimated():
    rng = np.random.default_rng(3)
    probabilities = rng.dirichlet([0.3] * 3, 4000)
    truths = np.array([rng.choice(3, p=one) for one in probabilities])
    labels = np.where(rng.random(4000) < 0.15, (truths + rng.integers(1, 3, 4000)) % 3, truths)
    assert estimate_wrong(probabilities, labels)[1] == pytest.approx(0.15, abs=0.03)


def test_the_first_of_what_unseen_predictions_contradict_is_reported():
    labels = ("a", "b", "c")
    pictures = [
        Picture(path=f"a/{number}.png", sha256=f"{number:064x}", label="a", split=TRAIN)
        for number in range(100)
    ]
    probabilities = np.tile(np.array([0.98, 0.01, 0.01]), (100, 1))
    probabilities[[3, 50]] = [[0.001, 0.001, 0.998], [0.0001, 0.9998, 0.0001]]
    probabilities[7] = [0.4, 0.5, 0.1]  # hard to tell
    found = list_doubted(pictures, labels, probabilities)
    assert [(one.sha256, one.label, one.probable) for one in found] == [
        (pictures[50].sha256, "a", "b"),
        (pictures[3].sha256, "a", "c"),
    ]
    assert list_doubted(pictures[:1], labels, probabilities[:1]) == ()
