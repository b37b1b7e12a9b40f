"""Interface of result sinks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result, SinkMetrics
    from edge_client.inference.classifier import Prediction


def nothing() -> None:
    """Do nothing: nobody waits for this result to be safe."""


class Sink(Protocol):
    """Receiver of results. A sink logs and counts its own failures: inference never stops for one.

    Attributes:
        name: Name in the status and the metrics.
        keeps: Whether a result that it wrote is safe, so that its picture may be removed.
    """

    name: str
    keeps: bool

    def write(
        self,
        result: Result,
        prediction: Prediction | None = None,
        safe: Callable[[], None] = nothing,
        /,
    ) -> None:
        """Write one result.

        Args:
            result: Message to write.
            prediction: The prediction it was made from, with the scores of all labels; None where that is not
                available.
            safe: To be called once, in any thread, when the result is out or durable; never if it is lost.
        """
        ...

    def metrics(self) -> SinkMetrics:
        """Return the counts since start; called in any thread."""
        ...

    def reopen(self) -> None:
        """Open files anew with the next result; called in any thread."""
        ...

    def close(self) -> None:
        """Release files and threads; no results come after."""
        ...
