"""Comparison of two models on the same pictures: what each loses to the other, and what that proves.

Only pictures that one of the two answers right tell them apart. The unit is the group, because frames of a
burst stand or fall together: a group counts for the model that is right on more of its pictures. For
groups of one picture this is McNemar's test. Rules and error rates: docs/decisions/0010-gate-evidence.md.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from luigi_tasks.gate.records import PASSED, REFUSED, THIN
from luigi_tasks.gate.statistics import at_most, highest_difference, sign_test

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

# A refusal and "better than chance" are wrong about equal models at most this often.
SIGNIFICANT = 0.05
# A loss that equal models show at least this often points to nothing.
UNSUSPICIOUS = 0.25
# Largest chance to pass a model that is worse by the margin: a quarter where evidence is scarce, less where
# there is more of it. At 400 units 0.25, at 2,000 0.01; see the table in docs/decisions/0010.
LARGEST_RISK = 0.25
FULL_RISK_UNITS = 400


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on the same pictures, counted in groups.

    Attributes:
        units: Groups that both were shown.
        lost: Groups of which the other model answers more right.
        gained: Groups of which this model answers more right.
    """

    units: float
    lost: float
    gained: float

    def times(self, factor: float) -> Paired:
        """Return the same shares in a larger sample."""
        return Paired(self.units * factor, self.lost * factor, self.gained * factor)


def count_pairs(own: NDArray[np.bool_], other: NDArray[np.bool_], groups: Sequence[str]) -> Paired:
    """Count the groups that two models win of each other.

    Args:
        own: (N,) whether this model is right.
        other: (N,) whether the other one is.
        groups: Group of each picture.
    """
    numbers: dict[str, int] = {}
    of_picture = [numbers.setdefault(group, len(numbers)) for group in groups]
    difference = own.astype(np.int64) - other.astype(np.int64)
    balance = np.bincount(of_picture, weights=difference, minlength=len(numbers))
    return Paired(float(len(numbers)), float((balance < 0).sum()), float((balance > 0).sum()))


def accepted_risk(units: float) -> float:
    """Return the largest chance to pass a model that is worse by the margin, for a hold-out of this size."""
    return min(LARGEST_RISK, LARGEST_RISK * (FULL_RISK_UNITS / max(units, 1.0)) ** 2)


def chance_if_worse(paired: Paired, margin_points: float) -> float:
    """Probability that a model that is worse by the margin loses as few groups as this one, or fewer.

    Exact, given the number of groups that tell the models apart: of those, a model worse by `margin` loses
    the share 1/2 + margin / (2 x their share).
    """
    apart = paired.lost + paired.gained
    if not apart:
        return 1.0
    share = min(1.0, 0.5 + margin_points / 100 * paired.units / (2 * apart))
    return at_most(paired.lost, apart, share)


def compare(paired: Paired, allowed_points: float, margin_points: float) -> str:
    """Decide whether a candidate may follow the champion.

    Args:
        paired: The candidate against the champion.
        allowed_points: A loss that is provably smaller passes, however significant.
        margin_points: A candidate that is worse by so much must rarely pass.
    Returns: `passed`, `refused` (worse by more than chance) or `thin` (neither is shown).
    """
    worse_by_chance = sign_test(paired.lost, paired.gained)
    largest_loss = highest_difference(paired.lost, paired.gained, paired.units) * 100
    if largest_loss <= allowed_points:
        return PASSED
    if worse_by_chance < SIGNIFICANT:
        return REFUSED
    margin = max(margin_points, allowed_points)
    is_shown = chance_if_worse(paired, margin) <= accepted_risk(paired.units)
    return PASSED if is_shown or worse_by_chance > UNSUSPICIOUS else THIN


def beats(paired: Paired) -> str:
    """Decide whether a model is better than another by more than chance; `thin` where only by chance."""
    if paired.gained <= paired.lost:
        return REFUSED
    return PASSED if sign_test(paired.gained, paired.lost) < SIGNIFICANT else THIN
