"""Strangers are told by what known pictures look like alone; 95% of the known ones pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from luigi_tasks.training.strangers import (
    LEAST_KNOWN,
    LEAST_PICTURES,
    fit_familiarity,
    measure_known,
    measure_length,
)

if TYPE_CHECKING:
    from luigi_tasks.training.records import Familiarity


def draw(count, *, margin=6.0, length=40.0, together=0.0, seed=0):
    """Logits of five classes, one of which stands out, and lengths of features that go with the margin."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=count)
    logits = np.zeros((count, 5), np.float32)
    logits[np.arange(count), rng.integers(0, 5, count)] = margin + common
    lengths = length + 3 * (together * common + np.sqrt(1 - together**2) * rng.normal(size=count))
    return logits, lengths


def fitted(logits, lengths) -> Familiarity:
    found = fit_familiarity(logits, lengths)
    assert found is not None
    return found


@pytest.mark.parametrize("together", [0.0, 0.3, 0.9])
def test_ninety_five_percent_of_known_pictures_pass(together):
    familiarity = fitted(*draw(400, together=together))
    unseen = measure_known(familiarity, *draw(2000, together=together, seed=1))
    assert (unseen >= LEAST_KNOWN).mean() == pytest.approx(0.95, abs=0.03)
    assert 0 <= unseen.min() <= unseen.max() <= 1


def test_a_stranger_has_a_small_margin_or_on_a_frozen_backbone_long_features():
    familiarity = fitted(*draw(400))
    for strangers in (draw(400, margin=1.0), draw(400, length=55.0)):
        assert (measure_known(familiarity, *strangers) < LEAST_KNOWN).mean() > 0.9


def test_where_the_margin_grows_with_the_length_long_features_are_no_sign():
    """As on a tuned backbone, whose features are the longer the more they say."""
    familiarity = fitted(*draw(400, together=0.9))
    assert familiarity.length == 0
    assert (measure_known(familiarity, *draw(400, length=55.0, together=0.9)) >= LEAST_KNOWN).mean() > 0.9
    assert 0 < fitted(*draw(400, together=0.3)).length < fitted(*draw(400)).length


def test_logits_alone_decide_where_all_features_are_of_one_length():
    logits, lengths = draw(400)
    familiarity = fitted(logits, np.full_like(lengths, 7.0))
    assert familiarity.length == 0
    assert familiarity.margin > 0


@pytest.mark.parametrize(
    ("logits", "lengths"),
    [
        draw(LEAST_PICTURES - 1),
        (np.ones((400, 5), np.float32), np.arange(400.0)),
        (np.empty((0, 5), np.float32), np.empty(0)),
    ],
    ids=["too few", "all alike", "none"],
)
def test_pictures_that_say_nothing_make_no_score(logits, lengths):
    assert fit_familiarity(logits, lengths) is None


def test_lengths_are_those_of_the_real_features():
    features = np.random.default_rng(0).integers(-128, 128, (3000, 8), np.int8)
    rows = np.arange(2999, -1, -2)
    real = (features[rows].astype(np.float64) + 5) * 0.25
    np.testing.assert_allclose(measure_length(features, rows, 0.25, -5), np.sqrt((real**2).sum(1)), rtol=1e-6)
