"""Validation pictures: training pictures that a backbone is not tuned on.

What is decided by a head's errors on them (when to stop, how sure an answer is) holds for unseen pictures.
Features of pictures that tuned the backbone look too good: fine-tuned on sign digits, 0.98 of them are right,
and 0.89 of the hold-out.
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

import numpy as np

from luigi_tasks.dataset.splits import is_validation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.dataset.records import Picture


def choose_validation(pictures: Sequence[Picture]) -> NDArray[np.bool_]:
    """Return (N,) bool: which training pictures are for validation.

    A class without any other training picture gives none: it would not be learned at all.
    """
    chosen = [is_validation(one) for one in pictures]
    learned = collections.Counter(one.label for one, held in zip(pictures, chosen, strict=True) if not held)
    return np.array(
        [held and learned[one.label] > 0 for one, held in zip(pictures, chosen, strict=True)], bool
    )
