"""Statistics of verdicts: exact bounds of a share, shifts between groups, what devices have in common.

SciPy computes; here is which question is asked. Numbers of a verdict are rounded by `rounded`, so that the
last bits of a library's arithmetic do not change a document.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Significant digits of a number in a verdict.
DIGITS = 6
# Devices of a side beyond which the differences of all pairs are taken between so many of its quantiles.
QUANTILES_AT_MOST = 400
# Devices of a side up to which ranks have their exact distribution: its ends matter, and the normal one
# puts them twenty times too high for ten devices.
EXACT_AT_MOST = 20
# Squared shift of a normal figure, in units of its spread, as its ranks show it.
RANK_EFFICIENCY = 3 / math.pi


def rounded(value: float) -> float:
    """Return a value with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS}g}") + 0.0


def lower_bound(hits: int, of: int, confidence: float) -> float:
    """Return the lower end of the one-sided exact interval of a share (Clopper and Pearson, 1934)."""
    if hits == 0:
        return 0.0
    from scipy.special import betaincinv  # noqa: PLC0415 - looking at a fleet does not need SciPy

    return float(betaincinv(hits, of - hits + 1, 1 - confidence))


def upper_bound(hits: int, of: int, confidence: float) -> float:
    """Return the upper end of the one-sided exact interval of a share; 1 if nothing was counted."""
    if hits >= of:
        return 1.0
    from scipy.special import betaincinv  # noqa: PLC0415 - as above

    return float(betaincinv(hits + 1, of - hits, confidence))


def fisher_p(hit: int, hit_of: int, others: int, others_of: int) -> float:
    """Return the one-sided p-value of Fisher's exact test: the first share is the larger one."""
    from scipy.stats import hypergeom  # noqa: PLC0415 - as above

    return float(hypergeom.sf(hit - 1, hit_of + others_of, hit + others, hit_of))


def poisson_p(count: int, seconds: float, before: int, before_seconds: float) -> float:
    """Return the one-sided p-value that two counts have one rate, against more in the first time.

    Given their sum, the first is binomial. One event is added to the second: a device that never had one has
    a rate too.
    """
    from scipy.special import bdtrc  # noqa: PLC0415 - as above

    if count == 0 or seconds <= 0:
        return 1.0
    share = seconds / (seconds + before_seconds) if before_seconds > 0 else 1.0
    return float(bdtrc(count - 1, count + before + 1, share)) if share < 1 else 1.0


@dataclasses.dataclass(frozen=True)
class Shift:
    """How far one group lies above another.

    Attributes:
        estimate: The difference.
        low: Lower end of its interval.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float


def p_above(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Mann-Whitney's one-sided p-values, figure by figure, that the first group is higher.

    Args:
        first: (N, F), a row a device.
        second: (M, F).
    """
    from scipy.stats import mannwhitneyu  # noqa: PLC0415 - as above

    found = mannwhitneyu(first, second, alternative="greater", axis=0, method="asymptotic").pvalue
    if max(len(first), len(second)) <= EXACT_AT_MOST:
        ordered = np.sort(np.concatenate([first, second]), axis=0)
        differ = (np.diff(ordered, axis=0) > 0).all(axis=0)  # ties have no exact distribution
        if differ.any():
            exact = mannwhitneyu(
                first[:, differ], second[:, differ], alternative="greater", axis=0, method="exact"
            )
            found = np.array(found)
            found[differ] = exact.pvalue
    # All values alike give no p-value: nothing is shown.
    return np.asarray(np.where(np.isnan(found), 1.0, found), np.float64)


def shift(first: NDArray[np.float64], second: NDArray[np.float64], confidence: float) -> Shift:
    """Return the median of the differences of all pairs (Hodges and Lehmann, 1963).

    Args:
        first: (N,), a value a device.
        second: (M,).
        confidence: Of the interval, two-sided.
    """
    from scipy.special import ndtri  # noqa: PLC0415 - as above

    n, m = len(first), len(second)
    pairs = (_quantiles(first)[:, None] - _quantiles(second)[None, :]).ravel()
    half = float(ndtri((1 + confidence) / 2)) * math.sqrt((n + m + 1) / (12 * n * m))
    last = len(pairs) - 1
    low, high = (min(max(round(last * (0.5 + side)), 0), last) for side in (-half, half))
    middle = last // 2, (last + 1) // 2
    pairs.partition(sorted({low, high, *middle}))
    return Shift(float(pairs[middle[0]] + pairs[middle[1]]) / 2, float(pairs[low]), float(pairs[high]))


def mean_shift(first: NDArray[np.float64], second: NDArray[np.float64], confidence: float) -> Shift:
    """Return the difference of the means, for figures that are zero on most devices; arguments as `shift`.

    The means are those of `tamed` values.
    """
    from scipy.special import ndtri  # noqa: PLC0415 - as above

    first, second = tamed(first), tamed(second)
    value = float(first.mean() - second.mean())
    spread = math.sqrt(float(first.var()) / len(first) + float(second.var()) / len(second))
    half = float(ndtri((1 + confidence) / 2)) * spread
    return Shift(value, value - half, value + half)


def tamed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return values with the largest and the smallest of each column set to the one next to it.

    A mean of them is no matter of one device, whatever that says of itself.

    Args:
        values: (N,) or (N, F), a row a device, at least three.
    """
    ordered = np.sort(values, axis=0)
    return np.clip(values, ordered[1], ordered[-2])


def mixture_p(
    first: NDArray[np.float64], second: NDArray[np.float64], tolerated: NDArray[np.float64]
) -> float:
    """Return the p-value that no figure of two groups differs by more than a little, looked at together.

    Figures that each differ a little show it together long before one of them does alone. The test takes the
    ranks of each figure, and their covariance as it would be were the groups drawn by lot: the rank test for
    several variables of Puri and Sen (1971), which for one figure is Mann-Whitney's. What is tolerated moves
    its distribution from chi-squared to a noncentral one.

    Args:
        first: (N, F), a row a device.
        second: (M, F).
        tolerated: (F,), by how much each may differ.
    """
    from scipy.special import chndtr, gammaincc  # noqa: PLC0415 - as above
    from scipy.stats import rankdata  # noqa: PLC0415 - as above

    n, m = len(first), len(second)
    varies = np.ptp(first, axis=0) + np.ptp(second, axis=0) > 0
    first, second, tolerated = first[:, varies], second[:, varies], tolerated[varies]
    if not varies.any():
        return 1.0
    ranks = rankdata(np.concatenate([first, second]), axis=0)  # (N + M, F)
    ranks = ranks - ranks.mean(axis=0)
    covariance = ranks.T @ ranks / (n + m - 1)
    difference = ranks[:n].mean(axis=0)
    distance = float(difference @ np.linalg.pinv(covariance, rcond=1e-8, hermitian=True) @ difference)
    spread = np.sqrt((first.var(axis=0) + second.var(axis=0)) / 2)
    allowed = (
        float(np.sum((tolerated / np.maximum(spread, np.maximum(tolerated, 1e-12))) ** 2)) * RANK_EFFICIENCY
    )
    freedom, scale = len(difference), n * m / (n + m)
    distance *= n * (n + m) / m
    if allowed * scale <= 0:
        return float(gammaincc(freedom / 2, distance / 2))
    return max(1.0 - float(chndtr(distance, freedom, allowed * scale)), 0.0)


def _quantiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    if len(values) <= QUANTILES_AT_MOST:
        return values
    places = np.linspace(0, len(values) - 1, QUANTILES_AT_MOST).round().astype(int)
    return np.asarray(np.sort(values)[places], np.float64)
