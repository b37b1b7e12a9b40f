"""Strangers: pictures of no class are told from known ones by their logits and the length of their features.

A stranger's best logit stands out less. On a frozen backbone, whose features are standardized to the
training pictures, its features are also longer: they vary in directions in which those hardly do. On a tuned
backbone the opposite holds, since tuning lengthens the features that speak for a class; there the best logit
of known pictures grows with the length. So the length counts the less the more the two go together.
docs/decisions/0012-strangers.md compares this with other scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.training.head import real_features
from luigi_tasks.training.records import Familiarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Share of the known pictures that have `LEAST_KNOWN` or more. At 95% most of the others are pictures whose
# prediction is not sure anyway.
PASSED_SHARE = 0.95
LEAST_KNOWN = 0.5
# The quantile of fewer pictures says nothing.
LEAST_PICTURES = 20
# Log-odds for each deviation of the sum of both: known pictures get 0.97 on average.
STEEPNESS = 2.0
# From this correlation of margin and length on, the length does not count.
FULL_CORRELATION = 0.5
ROWS_AT_ONCE = 1024


def fit_familiarity(logits: NDArray[np.float32], lengths: NDArray[np.float64]) -> Familiarity | None:
    """Choose the weights of margin and length, so that `PASSED_SHARE` of known pictures pass.

    Both count alike: their deviations over the known pictures are the units. Nothing is learned about
    strangers, of which there are no examples.

    Args:
        logits: (N, classes) of training pictures, each by a head that did not learn from it.
        lengths: (N,) of their features.
    Returns: None if the pictures are too few, or all alike.
    """
    if len(logits) < LEAST_PICTURES:
        return None
    margins = measure_margin(logits)
    spread, spread_of_lengths = margins.std(), lengths.std()
    if not spread > 0 or not np.isfinite([spread, spread_of_lengths]).all():
        return None
    weight = 0.0
    if spread_of_lengths > 0:
        correlation = float(np.corrcoef(margins, lengths)[0, 1])
        weight = 1 - min(1.0, max(0.0, correlation / FULL_CORRELATION))
    length = weight / spread_of_lengths if weight else 0.0
    sums = margins / spread - length * lengths
    least, scale = float(np.quantile(sums, 1 - PASSED_SHARE)), STEEPNESS / float(sums.std() or 1)
    return Familiarity(margin=float(scale / spread), length=float(scale * length), bias=float(-scale * least))


def measure_known(
    familiarity: Familiarity, logits: NDArray[np.float32], lengths: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return what the model's output `known` is for (N, classes) logits and (N,) lengths of features."""
    odds = familiarity.margin * measure_margin(logits) - familiarity.length * lengths + familiarity.bias
    known: NDArray[np.float64] = 1 / (1 + np.exp(-odds))
    return known


def measure_margin(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return (N,) how far the highest logit lies above the mean of all."""
    margins: NDArray[np.float64] = logits.max(1).astype(np.float64) - logits.mean(1, dtype=np.float64)
    return margins


def measure_length(
    features: NDArray[Any], rows: NDArray[np.intp], scale: float, zero_point: int
) -> NDArray[np.float64]:
    """Return Euclidean lengths of some rows of (N, F) features of any type."""
    lengths = np.empty(len(rows))
    for start in range(0, len(rows), ROWS_AT_ONCE):  # a part in float: int8 rows are a quarter of that
        part = slice(start, start + ROWS_AT_ONCE)
        lengths[part] = np.linalg.norm(real_features(features[rows[part]], scale, zero_point), axis=1)
    return lengths
