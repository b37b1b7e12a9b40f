"""Accuracy drop by class, between the float network and the quantized one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ClassPair:
    """One class on the hold-out: number of pictures, and recall of the candidate and of the float network."""

    label: str
    support: int
    recall: float
    float_recall: float


def find_worst_class(classes: Sequence[ClassPair]) -> tuple[float, str]:
    """Return the largest drop of recall, in points, and its class; one picture of each class is forgiven."""
    drops = [
        (max(0.0, (one.float_recall - one.recall) * 100 - 100 / max(one.support, 1)), one.label)
        for one in classes
    ]
    return max(drops, default=(0.0, ""))
