"""Result of an update check in the daemon, and the measurement of an update until its first answer."""

from __future__ import annotations

import dataclasses

from edge_client.contract.messages import UpdateMetrics


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Result of an update check, for the schedule and for `edge-client import`.

    Attributes:
        message: In a sentence, for people.
        error: Kind of the error, see `error_kind`; empty without one.
        settled: Whether checking again soon would not help.
        signed: Release that the signed channel points to; None if unknown.
        cancelled: Whether this process cancelled the check.
    """

    message: str
    error: str = ""
    settled: bool = True
    signed: str | None = None
    cancelled: bool = False


@dataclasses.dataclass(frozen=True)
class RunningUpdate:
    """An update until the first answer of its release.

    Attributes:
        release: The new release.
        bytes_pulled: Bytes read from the store.
        started: Monotonic seconds at which its announcement arrived, or its check started.
    """

    release: str
    bytes_pulled: int
    started: float

    def metrics(self, now: float) -> UpdateMetrics:
        """Return the cost of the update, with its first answer at `now`."""
        return UpdateMetrics(
            release=self.release, bytes_pulled=self.bytes_pulled, seconds=round(now - self.started, 3)
        )
