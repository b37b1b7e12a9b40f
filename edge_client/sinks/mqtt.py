"""Sink that publishes results over MQTT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.sinks.sink import nothing

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result, SinkMetrics
    from edge_client.sinks.outbox import Outbox


class MqttSink:
    """Publishes each result, not retained: the last result is an event, not a state."""

    name = "mqtt"
    keeps = True

    def __init__(self, outbox: Outbox) -> None:
        """Args: outbox: Brings the results to the broker; closed with the sink."""
        self._outbox = outbox

    def write(
        self, result: Result, _prediction: object = None, safe: Callable[[], None] = nothing, /
    ) -> None:
        """Queue the result as one compact JSON object."""
        self._outbox.put(result.channel, msgspec.json.encode(result), safe)

    def metrics(self) -> SinkMetrics:
        """See `Sink.metrics`."""
        return self._outbox.metrics()

    def reopen(self) -> None:
        """Do nothing: the connection is opened anew by itself."""

    def close(self) -> None:
        """Send or keep what waits."""
        self._outbox.close()
