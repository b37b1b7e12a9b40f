"""Alarm of drift: a release is less sure of this camera's pictures than of those that it was proven on.

A one-sided rank test of counts, by ridits (Bross, "How to use ridit analysis", Biometrics 1958). The ridit of
a bin of confidence is the share of the hold-out's predictions below it, and half of those in it. The mean
ridit of the camera's last predictions is the chance that one of them is surer than one of the hold-out: 0.5
if nothing changed. `shift` is 0.5 minus that. Predictions of one camera are not independent, so the error of
the mean comes from the means of batches of 50 successive ones (Student's t, 8 to 20 batches), and is never
below that of independent ones: scenes of up to about 50 predictions raise no false alarm.

There is an alarm if the shift is at least `least_shift_points`, and significant. Tests are made after each
fifth of a window; each may be wrong in a fifth of `false_alarm_percent`, the rate for a window of predictions
like the hold-out's. It ends once the shift is below half of the least.
"""

from __future__ import annotations

import collections
import logging
import math
import statistics
from typing import TYPE_CHECKING

from edge_client.contract.times import utc_now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.settings.serving import DriftSettings

logger = logging.getLogger(__name__)

WINDOW, TESTED_EVERY, BATCH = 1000, 200, 50
LEAST_PREDICTIONS = 400


class DriftAlarm:
    """The test, and its last result.

    Attributes:
        bins: Bins of confidence of the last predictions.
        fresh: Predictions since the last test.
        since: When the alarm was raised, UTC, ISO 8601; None without one.
        shift: Of the last test, -0.5 to 0.5; None before the first.
    """

    def __init__(self, release: str, hold_out: Sequence[int], settings: DriftSettings) -> None:
        """Args: hold_out: Number of the hold-out's predictions in each bin of confidence."""
        self._release = release
        self._settings = settings
        self._pictures = max(sum(hold_out), 1)
        self._ridits, self._variance = _ridits(hold_out)
        self._chance = settings.false_alarm_percent / 100 / (WINDOW // TESTED_EVERY)
        self.bins: collections.deque[int] = collections.deque(maxlen=WINDOW)
        self.fresh = 0
        self.since: str | None = None
        self.shift: float | None = None

    def add(self, one: int) -> None:
        """Add the bin of one prediction's confidence."""
        self.bins.append(one)
        self.fresh += 1
        if self.fresh >= TESTED_EVERY:
            self.fresh = 0
            if len(self.bins) >= LEAST_PREDICTIONS:
                self._test()

    def resume(self, bins: Sequence[int], fresh: int, since: str | None, shift: float | None) -> None:
        """Go on where an earlier run ended."""
        self.bins.extend(bins)
        self.fresh, self.since, self.shift = fresh, since, shift

    def _test(self) -> None:
        shift, error = self._estimate()
        self.shift = round(shift, 4)
        least = self._settings.least_shift_points / 100
        limit = student_quantile(self._chance, len(self.bins) // BATCH - 1)
        if self.since is None and shift >= least and shift > limit * error:
            self.since = utc_now()
            logger.warning(
                "drift: release %s is less sure here than where it was proven: by %.0f points over the last "
                "%d predictions; look at the pictures, and label some ([inbox])",
                self._release,
                100 * shift,
                len(self.bins),
            )
        elif self.since is not None and shift < least / 2:
            logger.warning("drift: release %s is as sure as where it was proven again", self._release)
            self.since = None

    def _estimate(self) -> tuple[float, float]:
        """Return the shift and its standard error."""
        values = [self._ridits[one] for one in self.bins]
        starts = range(0, len(values) - BATCH + 1, BATCH)
        means = [statistics.fmean(values[start : start + BATCH]) for start in starts]
        independent = self._variance / len(values)
        found = max(statistics.variance(means) / len(means), independent)
        return 0.5 - statistics.fmean(values), math.sqrt(found + self._variance / self._pictures)


def _ridits(counts: Sequence[int]) -> tuple[list[float], float]:
    """Return the ridit of each bin, and the variance of a prediction's ridit."""
    total = max(sum(counts), 1)
    ridits, below = [], 0
    for count in counts:
        ridits.append((below + count / 2) / total)
        below += count
    return ridits, sum(count / total * (one - 0.5) ** 2 for count, one in zip(counts, ridits, strict=True))


def student_quantile(chance: float, freedom: int) -> float:
    """Return the value that Student's t exceeds with a small chance.

    Source: Abramowitz and Stegun, 26.7.5, with three terms: within 1% from 7 degrees of freedom on.
    """
    x = statistics.NormalDist().inv_cdf(1 - chance)
    terms = (
        x,
        (x**3 + x) / 4,
        (5 * x**5 + 16 * x**3 + 3 * x) / 96,
        (3 * x**7 + 19 * x**5 + 17 * x**3 - 15 * x) / 384,
    )
    return math.fsum(term / freedom**power for power, term in enumerate(terms))
