"""A result as a device publishes it, for tests that only care about some of its fields."""

from __future__ import annotations

from typing import Any

from edge_client.contract.messages import Result


def example_result(**fields: Any) -> Result:
    """Return a complete result of the device `pi-1`; `fields` replace its values."""
    values: dict[str, Any] = {
        "device": "pi-1",
        "source": "x.png",
        "frame": 1,
        "label": "ripe",
        "confidence": 0.4,
        "top": {"ripe": 0.4},
        "release": "r1",
        "latency_ms": 1.0,
        "at": "2026-11-24T12:00:00.000+00:00",
    }
    return Result(**(values | fields))
