"""Delivery of each result to all sinks, and the release of a frame once its results are safe."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_client.contract.messages import Result, SinkMetrics
    from edge_client.inference.classifier import Prediction
    from edge_client.sinks.sink import Sink

logger = logging.getLogger(__name__)


class Counter(Protocol):
    """Counts results, for the metrics."""

    def write(self, result: Result, /) -> None:
        """Count one result."""
        ...


class Receipt:
    """What a frame waits for: its picture may be removed once each of its results is out or durable."""

    def __init__(self, done: Callable[[], None]) -> None:
        """Args: done: Called once, in any thread; never if a result is lost, or there is none."""
        self._done = done
        self._changing = threading.Lock()
        self._results = 0
        self._awaited = 1  # until `close`

    def expect(self) -> Callable[[], None]:
        """Wait for one more result, whose sinks call the returned function, once or more."""
        with self._changing:
            self._results += 1
            self._awaited += 1
        called = False

        def safe() -> None:
            nonlocal called
            with self._changing:
                if called:
                    return
                called = True
            self._settle()

        return safe

    def close(self) -> None:
        """Expect no more results."""
        self._settle()

    def _settle(self) -> None:
        with self._changing:
            self._awaited -= 1
            done = self._awaited == 0 and self._results > 0
        if done:
            self._done()


class Delivery:
    """All sinks of the device. A sink that fails keeps no other from the result."""

    def __init__(self, sinks: Sequence[Sink], counters: Sequence[Counter] = ()) -> None:
        self._sinks = tuple(sinks)
        self._counters = tuple(counters)
        self._kept = any(sink.keeps for sink in sinks)
        self._failed: dict[str, int] = {}
        self._failing: set[str] = set()

    def write(self, result: Result, prediction: Prediction, receipt: Receipt) -> None:
        """Hand a result to all sinks; never raises, never waits for the network."""
        safe = receipt.expect()
        for counter in self._counters:
            counter.write(result)
        for sink in self._sinks:
            try:
                sink.write(result, prediction, safe)
            except Exception:
                self._failed[sink.name] = self._failed.get(sink.name, 0) + 1
                if sink.name not in self._failing:
                    logger.exception("%s: a result is lost", sink.name)
                self._failing.add(sink.name)
            else:
                self._failing.discard(sink.name)
        if not self._kept:
            safe()

    def metrics(self) -> dict[str, SinkMetrics]:
        """Return the counts of each sink, for the status."""
        return {sink.name: self._with_failures(sink.name, sink.metrics()) for sink in self._sinks}

    def warnings(self) -> list[str]:
        """Return why results are being dropped, or cannot be kept; empty while all is well."""
        return [metrics.error for metrics in self.metrics().values() if metrics.error is not None]

    def reopen(self) -> None:
        """Open files anew with the next result."""
        for sink in self._sinks:
            sink.reopen()

    def close(self) -> None:
        """Release files and threads; what waits for the broker is sent or kept."""
        for sink in self._sinks:
            sink.close()

    def _with_failures(self, name: str, metrics: SinkMetrics) -> SinkMetrics:
        failed = self._failed.get(name, 0)
        return msgspec.structs.replace(metrics, dropped=metrics.dropped + failed) if failed else metrics
