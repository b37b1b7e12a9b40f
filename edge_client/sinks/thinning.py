"""Results that are published: all, or only changes, and not more than one in an interval.

A camera at frame rate would fill the database of whoever records each message. Each channel is thinned by
itself. What the last published result says is never out of date for long:

- `on_change`: a result is news if its label, `sure` or release differs from those published last, or if these
  are `heartbeat_s` old.
- `min_interval_s`: news within the interval waits. At its end, or when the sink is closed, the newest is
  published, unless meanwhile all is again as it was published.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.sinks.sink import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result, SinkMetrics
    from edge_client.settings.results import SinkSettings
    from edge_client.sinks.sink import Sink


@dataclasses.dataclass
class _Channel:
    """What was published of one channel.

    Attributes:
        published: What the last published result says; None before the first.
        at: When it was published, monotonic seconds.
        held: A result that waits for the end of the interval, and what to call once it is safe.
    """

    published: tuple[object, ...] | None = None
    at: float = float("-inf")
    held: tuple[Result, Callable[[], None]] | None = None


class ThinnedSink:
    """Hands to another sink the results that are to be published; the others count as safe."""

    def __init__(
        self, sink: Sink, settings: SinkSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Start the thread that publishes at the end of an interval, if there is one.

        Args:
            sink: Publishes.
            settings: `on_change`, `heartbeat_s` and `min_interval_s`.
            clock: Seconds that only grow.
        """
        self.name, self.keeps = sink.name, sink.keeps
        self._sink = sink
        self._settings = settings
        self._clock = clock
        self._channels: dict[str, _Channel] = {}
        self._skipped = 0
        self._closed = False
        self._changing = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="thinning", daemon=True)
        if settings.min_interval_s > 0:
            self._thread.start()

    def write(
        self, result: Result, _prediction: object = None, safe: Callable[[], None] = nothing, /
    ) -> None:
        """See `Sink.write`."""
        with self._changing:
            now, channel = self._clock(), self._channels.setdefault(result.channel, _Channel())
            passed_over = [channel.held[1]] if channel.held is not None else []
            channel.held = None
            if not self._is_news(channel, result, now):
                passed_over.append(safe)
            elif now < self._free_at(channel):
                channel.held = (result, safe)
                self._changing.notify()
            else:
                self._publish(channel, result, safe)
            self._skipped += len(passed_over)
        for done in passed_over:
            done()

    def metrics(self) -> SinkMetrics:
        """See `Sink.metrics`."""
        return msgspec.structs.replace(self._sink.metrics(), skipped=self._skipped)

    def reopen(self) -> None:
        """See `Sink.reopen`."""
        self._sink.reopen()

    def close(self) -> None:
        """Publish what waits, and close the sink."""
        with self._changing:
            self._closed = True
            for channel in self._channels.values():
                self._publish_held(channel)
            self._changing.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._sink.close()

    def _is_news(self, channel: _Channel, result: Result, now: float) -> bool:
        if not self._settings.on_change or _state(result) != channel.published:
            return True
        return 0 < self._settings.heartbeat_s <= now - channel.at

    def _free_at(self, channel: _Channel) -> float:
        return channel.at + self._settings.min_interval_s

    def _publish(self, channel: _Channel, result: Result, safe: Callable[[], None]) -> None:
        channel.published, channel.at = _state(result), self._clock()
        self._sink.write(result, None, safe)

    def _publish_held(self, channel: _Channel) -> None:
        if channel.held is not None:
            held, channel.held = channel.held, None
            self._publish(channel, *held)

    def _run(self) -> None:
        with self._changing:
            while not self._closed:
                now = self._clock()
                for channel in self._channels.values():
                    if now >= self._free_at(channel):
                        self._publish_held(channel)
                due = [self._free_at(one) for one in self._channels.values() if one.held is not None]
                self._changing.wait(max(min(due) - now, 0.0) if due else None)


def _state(result: Result) -> tuple[object, ...]:
    """Return what a change of is news."""
    return result.label, result.sure, result.release
