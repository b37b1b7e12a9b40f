"""Drift: distance between a camera's answers and those on the hold-out that the release was evaluated on.

Labels and confidence are compared by the population stability index: sum of (p - q) ln(p / q) over the bins
of two distributions. Below 0.1 is usually called stable, above 0.25 a shift. A camera that sees one kind of
thing all day has a high index of labels without anything being wrong; a change in it means more than its
level. Source: Yurdakul, "Statistical Properties of Population Stability Index", 2018.
"""

from __future__ import annotations

import collections
import math
from typing import TYPE_CHECKING

from edge_client.contract.messages import Drift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.contract.release import HoldOut

WINDOW = 1000
# With fewer answers, chance varies as much as a shift.
LEAST_ANSWERS = 200
# Added to every bin: one that is empty on one side would make the index infinite.
_PRIOR = 0.5


class DriftWatch:
    """The last answers of one release."""

    def __init__(self, release: str, hold_out: HoldOut) -> None:
        self.release = release
        self._hold_out = hold_out
        self._answers: collections.deque[tuple[int, int]] = collections.deque()
        self._labels = [0] * len(hold_out.labels)
        self._confidence = [0] * len(hold_out.confidence)

    def add(self, index: int, confidence: float) -> None:
        """Add an answer: the index of its label, and its score in [0, 1]."""
        bins = len(self._confidence)
        answer = (index, min(max(int(confidence * bins), 0), bins - 1))
        self._answers.append(answer)
        self._count(answer, 1)
        if len(self._answers) > WINDOW:
            self._count(self._answers.popleft(), -1)

    def metrics(self) -> Drift | None:
        """Return both indices; None while there are too few answers."""
        if len(self._answers) < LEAST_ANSWERS:
            return None
        return Drift(
            answers=len(self._answers),
            labels=round(stability_index(self._hold_out.labels, self._labels), 4),
            confidence=round(stability_index(self._hold_out.confidence, self._confidence), 4),
        )

    def _count(self, answer: tuple[int, int], by: int) -> None:
        self._labels[answer[0]] += by
        self._confidence[answer[1]] += by


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the index of two histograms over the same bins; 0 if they are equal, see the source above."""
    p, q = _shares(expected), _shares(found)
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _PRIOR * len(counts)
    return [(count + _PRIOR) / total for count in counts]
