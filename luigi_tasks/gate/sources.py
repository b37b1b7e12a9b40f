"""Accuracy of a candidate by what joined the groups of the hold-out."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING

from luigi_tasks.dataset.groups import find_sources
from luigi_tasks.gate.records import SourceResult
from luigi_tasks.gate.statistics import effective_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.dataset.records import Picture


def measure_sources(holdout: Sequence[Picture], right: NDArray[np.bool_]) -> tuple[SourceResult, ...]:
    """Return the accuracy on the groups of each source; pictures that are alone come last.

    Args:
        holdout: The N pictures.
        right: (N,) whether the candidate answers right.
    """
    sources = find_sources(holdout)
    rows: dict[str, list[int]] = collections.defaultdict(list)
    for row, one in enumerate(holdout):
        rows[sources[one.group_id]].append(row)
    found = []
    for source in sorted(rows, key=lambda one: (not one, one)):
        own = rows[source]
        sizes = collections.Counter(holdout[row].group_id for row in own)
        found.append(
            SourceResult(
                source=source,
                groups=len(sizes),
                pictures=len(own),
                effective=effective_size(sizes.values()),
                accuracy=float(right[own].mean()),
            )
        )
    return tuple(found)
