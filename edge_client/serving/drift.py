"""Drift: how far what a camera sees has moved from what its release was proven on.

The labels answered here, and how sure the answers are, are compared with those on the release's own
hold-out, by the population stability index: sum of (p - q) ln(p / q) over the bins of two distributions.
Below 0.1 is usually called stable, above 0.25 a shift. A camera that sees one kind of thing all day has
a high index of labels without anything being wrong; a change in it says more than its level.
Source: Yurdakul, "Statistical Properties of Population Stability Index", 2018.
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
# Fewer answers vary by themselves as much as a shift would show.
LEAST_ANSWERS = 200
# Counted once in every bin: one that is empty on one side would make the index infinite.
_PRIOR = 0.5


class DriftWatch:
    """The last answers of one release."""

    def __init__(self, release: str, hold_out: HoldOut) -> None:
        self.release = release
        self._hold_out = hold_out
        self._answers: collections.deque[tuple[int, int]] = collections.deque()
        self._labels = [0] * len(hold_out.labels)
        self._confidence = [0] * len(hold_out.confidence)

    def take(self, index: int, confidence: float) -> None:
        """Count an answer: the place of its label, and its score in [0, 1]."""
        bins = len(self._confidence)
        answer = (index, min(max(int(confidence * bins), 0), bins - 1))
        self._answers.append(answer)
        self._count(answer, 1)
        if len(self._answers) > WINDOW:
            self._count(self._answers.popleft(), -1)

    def figures(self) -> Drift | None:
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
    """Compare two histograms over the same bins; 0 if they are alike, see the source above."""
    p, q = _shares(expected), _shares(found)
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _PRIOR * len(counts)
    return [(count + _PRIOR) / total for count in counts]
