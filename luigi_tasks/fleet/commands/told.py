"""What several commands tell machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luigi_tasks.fleet.view import FleetView


def told_snapshot(view: FleetView) -> dict[str, Any] | None:
    """Return which moment is shown, and how complete it is; None: there is no snapshot."""
    head = view.head
    if head is None:
        return None
    return {
        "taken_at": head.taken_at,
        "age_s": round(view.now - head.taken_at, 1),
        "is_old": view.is_old,
        "collector": head.collector,
        "listening_since": head.listening_since,
        "registered": head.registered,
        "heard": head.heard,
        "rejected": head.rejected,
    }
