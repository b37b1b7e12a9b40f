"""Places in drawings, as percent of their width: the pages allow no style attribute, SVG has its own."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

# Part of the width that stays free at each end.
_MARGIN = 0.04


@dataclasses.dataclass(frozen=True)
class IntervalMarks:
    """Where the marks of a measured value lie, in percent of the width; None: not drawn."""

    point: float | None
    low: float | None
    high: float | None
    limit: float | None
    zero: float | None


def interval_marks(
    point: float | None,
    low: float | None = None,
    high: float | None = None,
    limit: float | None = None,
    zero: float | None = None,
) -> IntervalMarks:
    """Return where a value, the ends of its interval, its limit and a zero lie on a line that shows all."""
    values = (point, low, high, limit, zero)
    known = [one for one in values if one is not None]
    least, most = min(known, default=0.0), max(known, default=0.0)
    span = most - least

    def place(value: float | None) -> float | None:
        if value is None:
            return None
        share = (value - least) / span if span else 0.5
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * share), 2)

    return IntervalMarks(*map(place, values))


def shares_placed(parts: Iterable[Sequence[object]]) -> list[tuple[float, Sequence[object]]]:
    """Return each part of a bar with where it begins, in percent; a part starts with its share, 0 to 1."""
    known = list(parts)
    ends = itertools.accumulate((float(part[0]) for part in known), initial=0.0)  # type: ignore[arg-type]
    return [(round(100 * at, 3), part) for at, part in zip(ends, known, strict=False)]
