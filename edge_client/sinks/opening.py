"""Interface of result sinks, and the sinks of the settings: MQTT, JSON lines, commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import SettingsError
from edge_client.sinks.action import ActionSink
from edge_client.sinks.json_lines import JsonLines, StandardOutput
from edge_client.sinks.mqtt import MqttSink

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Prediction
    from edge_client.settings.results import ActionSettings, SinkSettings


class Sink(Protocol):
    """Receiver of results. A sink logs its own failures: inference never stops for one."""

    def write(self, result: Result, prediction: Prediction | None = None, /) -> None:
        """Write one result.

        Args:
            result: Message to write.
            prediction: The prediction it was made from, with the scores of all labels; None where that is not
                available.
        """
        ...

    def close(self) -> None:
        """Release files and threads; no results come after."""
        ...


def open_sinks(
    settings: SinkSettings,
    *,
    publish: Callable[[str, bytes], None],
    topic_of: Callable[[str], str],
    action: ActionSettings | None = None,
) -> tuple[Sink, ...]:
    """Build the sinks that the settings select.

    Args:
        settings: Section [sinks].
        publish: Queues (topic, payload) for the broker; must not wait for the network.
        topic_of: Returns the topic for the results of a channel.
        action: Section [action]; None: no commands.
    Raises: SettingsError with all faults.
    """
    faults = settings.faults()
    if faults:
        raise SettingsError("; ".join(f"[sinks] {fault}" for fault in faults))
    sinks: list[Sink] = []
    if settings.mqtt:
        sinks.append(MqttSink(publish, topic_of))
    if settings.json_lines == "-":
        sinks.append(StandardOutput())
    elif settings.json_lines:
        path = Path(settings.json_lines).expanduser()
        sinks.append(JsonLines(path, max_bytes=settings.json_lines_max_bytes))
    if action is not None and action.names():
        sinks.append(ActionSink(action))
    return tuple(sinks)
