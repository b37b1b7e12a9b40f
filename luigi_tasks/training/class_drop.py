"""Accuracy drop by class, between the float network and the quantized one."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclasses.dataclass(frozen=True)
class ClassPair:
    """One class on the hold-out: its pictures, and the share found by the candidate and in float."""

    label: str
    support: int
    recall: float
    float_recall: float


def find_worst_class(classes: Sequence[ClassPair]) -> tuple[float, str]:
    """Return points and label of the class that loses most; one picture is chance, however few there are."""
    drops = [
        (max(0.0, (one.float_recall - one.recall) * 100 - 100 / max(one.support, 1)), one.label)
        for one in classes
    ]
    return max(drops, default=(0.0, ""))
