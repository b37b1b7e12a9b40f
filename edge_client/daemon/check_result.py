"""Result of an update check in the daemon, and the measurement of an update until its first answer."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.messages import UpdateMetrics

if TYPE_CHECKING:
    from collections.abc import Collection


@dataclasses.dataclass(frozen=True)
class CheckResult:
    """Result of an update check, for the schedule and for `edge-client import`.

    Attributes:
        message: In a sentence, for people.
        error: Kind of the error, see `error_kind`; empty without one.
        settled: Whether checking again soon would not help.
        signed: Releases that the signed documents of the channel name; None if unknown.
        next_in_s: Seconds until another check may find more to do; None: nothing is known of it.
        cancelled: Whether this process cancelled the check.
    """

    message: str
    error: str = ""
    settled: bool = True
    signed: Collection[str] | None = None
    next_in_s: float | None = None
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
