"""Sink that publishes results over MQTT."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result


class MqttSink:
    """Publishes each result, not retained: the last result is an event, not a state."""

    def __init__(self, publish: Callable[[str, bytes], None], topic_of: Callable[[str], str]) -> None:
        """See `open_sinks`."""
        self._publish = publish
        self._topic_of = topic_of

    def write(self, result: Result, _prediction: object = None, /) -> None:
        """Queue the result as one compact JSON object."""
        self._publish(self._topic_of(result.channel), msgspec.json.encode(result))

    def close(self) -> None:
        """Do nothing: the connection belongs to the daemon."""
