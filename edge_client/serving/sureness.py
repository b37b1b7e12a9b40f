"""Sureness: share of a release's predictions on this device that are sure, by its own operating point.

A share far below that on the calibration pictures: the camera sees what the release was not proven on.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from edge_client.contract.messages import SureMetrics

if TYPE_CHECKING:
    from edge_client.contract.release import OperatingPoint

WINDOW = 1000


class SureWatch:
    """The last predictions of one release."""

    def __init__(self, release: str, point: OperatingPoint) -> None:
        self.release = release
        self._point = point
        self._sure: collections.deque[bool] = collections.deque(maxlen=WINDOW)

    def add(self, *, sure: bool) -> None:
        """Add a prediction."""
        self._sure.append(sure)

    def metrics(self) -> SureMetrics:
        """Return the share, beside what was measured on the calibration pictures."""
        last = tuple(self._sure)  # in one step: another thread may be adding to them
        return SureMetrics(
            precision=self._point.precision,
            coverage=self._point.coverage,
            answers=len(last),
            share=round(sum(last) / len(last), 4) if last else None,
        )
