"""Groups of few devices a side: too few for a test by ranks, and enough to ask a person about.

Nine devices against nine have ranks that chance gives once in 50,000 rollouts at best, which is not certain
enough among all that is looked at. What they lack is told by the others: how far devices of this fleet move
by themselves. A group is compared by its mean, in units of that spread, and of its own where that is larger.
The test takes the noise as normal, and as alike on all devices; so it asks, and does not judge.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from luigi_tasks.fleet.statistics import tamed

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Rows = NDArray[np.int_]

# Median distance from the median, of a normal figure, in units of its spread.
MEDIAN_DISTANCE = 0.6744897501960817
# The covariance of so many labels needs so many times as many devices.
DEVICES_A_LABEL = 2


class SmallGroups:
    """The spread of a fleet's changes, and tests of groups by it."""

    def __init__(self, stage: Numbers, control: Numbers, figures: int) -> None:
        """Measure the spread.

        Args:
            stage: (N, F), a row a device: changes under the release.
            control: (M, F), changes of those that it is compared with.
            figures: Columns before those that are tested together.
        """
        self._stage, self._control = stage, control
        self._freedom = max(len(stage) + len(control) - 2, 1)
        apart = np.concatenate([side - np.median(side, axis=0) for side in (stage, control)])
        self._spread = np.median(np.abs(apart), axis=0) / MEDIAN_DISTANCE
        calm = [tamed(side) for side in (stage, control)]
        residuals = np.concatenate([side - side.mean(axis=0) for side in calm])[:, figures:]
        covariance = residuals.T @ residuals / self._freedom
        self._variance = np.maximum(np.diag(covariance), 1e-18)
        self._inverse = np.linalg.pinv(covariance, rcond=1e-4, hermitian=True)
        self._together = slice(figures, None)

    def p_above(self, stage: Rows, control: Rows) -> Numbers:
        """Return one-sided p-values, figure by figure, that devices of the stage changed more than others."""
        from scipy.special import stdtr  # noqa: PLC0415 - looking at a fleet does not need SciPy

        first, second = self._stage[stage], self._control[control]
        n, m = len(first), len(second)
        own = np.sqrt(_own_variance(first, second))
        spread = np.maximum(np.maximum(self._spread, own), 1e-9) * math.sqrt(1 / n + 1 / m)
        return np.asarray(
            stdtr(self._freedom, (second.mean(axis=0) - first.mean(axis=0)) / spread), np.float64
        )

    def p_together(self, stage: Rows, control: Rows) -> float:
        """Return the p-value that none of the last columns moved: the test of Hotelling (1931).

        It is 1 where the fleet has too few devices to know how the figures move together. A group that moves
        more by itself than the fleet does is measured by its own spread.
        """
        from scipy.special import fdtrc  # noqa: PLC0415 - as above

        first, second = self._stage[stage, self._together], self._control[control, self._together]
        difference = first.mean(axis=0) - second.mean(axis=0)
        labels = len(difference)
        if not labels or self._freedom < DEVICES_A_LABEL * labels:
            return 1.0
        distance = float(difference @ self._inverse @ difference) * len(first) * len(second)
        distance /= len(first) + len(second)
        distance /= max(1.0, float((_own_variance(first, second) / self._variance).mean()))
        rest = self._freedom - labels + 1
        return float(fdtrc(labels, rest, distance * rest / (self._freedom * labels)))


def _own_variance(first: Numbers, second: Numbers) -> Numbers:
    n, m = len(first), len(second)
    return np.asarray((n * first.var(axis=0) + m * second.var(axis=0)) / (n + m - 2), np.float64)
