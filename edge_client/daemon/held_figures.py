"""The releases of a channel, as its figures are told of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.reporting.figures import Failed, Held

if TYPE_CHECKING:
    from edge_client.serving.serving import Serving


def held_by(serving: Serving, runtime: str) -> Held:
    """Return which releases a channel has, and how some failed."""
    failures = {
        release: Failed(reason=record.reason, code=record.ending, at=record.at)
        for release, record in serving.failures.items()
    }
    return Held(
        serving=serving.release or "",
        since=serving.serving_since or "",
        probation=serving.probation_release or "",
        previous=serving.previous or "",
        shadow=serving.shadow_release or "",
        refused=next(reversed(failures), ""),
        failures=failures,
        runtime=runtime,
        operators=serving.operators,
    )
