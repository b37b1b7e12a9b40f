"""Statistics of shares and of paired comparisons: exact where counts are small. Pure functions of numbers.

A size may be a fraction: pictures of one burst are one observation rather than many, and `effective_size`
says how many independent ones a set of groups is worth. The tails of the binomial distribution are
incomplete beta functions, which are defined for fractions too (Johnson, Kemp and Kotz, Univariate Discrete
Distributions, 3.4.1). `scipy.special` has them; `scipy.stats` would cost 74 MB and 1.8 s at import.
"""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING

from scipy import special

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

CONFIDENCE = 0.95


def effective_size(group_sizes: Iterable[int]) -> float:
    """Return how many independent pictures a set of groups is worth.

    The worst case within a group: all its pictures are answered right, or all wrong. The share of right
    answers then varies as that of so many independent pictures. Groups of one picture: their number.
    Source: Kish, Survey Sampling (1965), 8.2; design effect of unequal weights.
    """
    sizes = list(group_sizes)
    squares = sum(size * size for size in sizes)
    return sum(sizes) ** 2 / squares if squares else 0.0


def wilson_interval(share: float, size: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval around a share that holds the true one with about this confidence.

    Args:
        share: Share of successes, in [0, 1].
        size: Number of trials; may be a fraction. 0: the interval is all of [0, 1].
        confidence: Two-sided, e.g. 0.95.
    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    if size <= 0:
        return 0.0, 1.0
    z = statistics.NormalDist().inv_cdf((1 + confidence) / 2)
    shrunk = 1 + z * z / size
    middle = (share + z * z / (2 * size)) / shrunk
    half = z / shrunk * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    # The formula is exact at both ends; rounding is not.
    low = 0.0 if share <= 0 else max(0.0, middle - half)
    high = 1.0 if share >= 1 else min(1.0, middle + half)
    return low, high


def at_most(count: float, size: float, probability: float) -> float:
    """Probability of at most `count` successes in `size` trials of this probability each."""
    if count < 0:
        return 0.0
    if count >= size:
        return 1.0
    return float(special.betainc(size - count, count + 1, 1 - probability))


def at_least(count: float, size: float, probability: float) -> float:
    """Probability of at least `count` successes in `size` trials of this probability each."""
    if count <= 0:
        return 1.0
    if count > size:
        return 0.0
    return float(special.betainc(count, size - count + 1, probability))


def sign_test(against: float, in_favour: float) -> float:
    """Probability that of two equal models one loses at least so often, by chance.

    Args:
        against: Pictures (or groups) that only the other model answers right.
        in_favour: Those that only this model answers right.
    Returns: The one-sided exact p-value: each picture that tells the two apart is a toss of a coin.
    Source: McNemar, Note on the sampling error of the difference between correlated proportions or
        percentages, Psychometrika 12 (1947), in its exact form (binomial with 1/2).
    """
    return at_least(against, against + in_favour, 0.5)


def highest_difference(plus: float, minus: float, size: float, confidence: float = CONFIDENCE) -> float:
    """Return a bound that the true difference of two shares of one sample exceeds with little probability.

    Args:
        plus: Count of the first share, e.g. pictures lost.
        minus: Count of the second, e.g. pictures gained; no picture is in both.
        size: Size of the sample.
        confidence: One-sided, e.g. 0.95.
    Returns: Upper bound of (plus - minus) / size, in [-1, 1].
    Source: Newcombe, Improved confidence intervals for the difference between binomial proportions based on
        paired data, Statistics in Medicine 17 (1998): squares of the distances to Wilson's limits are added.
    """
    if size <= 0:
        return 1.0
    two_sided = 2 * confidence - 1
    first, second = plus / size, minus / size
    up = wilson_interval(first, size, two_sided)[1] - first
    down = second - wilson_interval(second, size, two_sided)[0]
    return min(1.0, first - second + math.hypot(up, down))


def find_growth(is_enough: Callable[[float], bool], largest: float = 4096.0) -> float | None:
    """Return by which factor a sample has to grow until it is enough, with the shares that it has now.

    Args:
        is_enough: Whether a sample of this many times the size is enough.
        largest: No larger factor is searched.
    Returns: The factor, at least 1, to within 1 %; None if not even `largest` is enough.
    """
    low = high = 1.0
    while not is_enough(high):
        if high >= largest:
            return None
        low, high = high, high * 1.25
    while high > low * 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
