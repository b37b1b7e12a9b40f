"""Choice of the quantization scheme: the first one that loses no more than the gate allows. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luigi_tasks.settings.values import GateSettings
    from luigi_tasks.training.records import TrainingRecord


def count_tried(records: Iterable[TrainingRecord | None], limits: GateSettings) -> int:
    """Return how many schemes have to be tried: up to the first within the limits, or not trained yet.

    Args:
        records: Of each scheme's head, in the order of the schemes; None while it is not trained. Consumed
            no further than needed.
        limits: The gate's.
    """
    tried = 0
    for record in records:
        tried += 1
        if record is None or within_limits(record, limits):
            break
    return tried


def within_limits(record: TrainingRecord, limits: GateSettings) -> bool:
    """Whether a scheme loses no more against float than the gate allows, overall and in its worst class."""
    return (
        record.float_drop_points <= limits.max_float_drop_points
        and record.class_drop_points <= limits.max_class_drop_points
    )
