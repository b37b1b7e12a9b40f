"""Self-test of a release on the disk, for the tests of what it finds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.update.selftest import SelfTest

if TYPE_CHECKING:
    from pathlib import Path


def run_self_test(
    folder: Path, *, timeout_s: float, memory_bytes: int | None = None, latency_budget_ms: float = 0.0
) -> int:
    """Try the release in `folder` in a child process; see `SelfTest.run`."""
    test = SelfTest(timeout_s=timeout_s, memory_bytes=memory_bytes, latency_budget_ms=latency_budget_ms)
    with test:
        return test.run(folder)
