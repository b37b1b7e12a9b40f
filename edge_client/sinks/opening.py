"""Where results go: the broker, and JSON lines in a file or on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Prediction
    from edge_client.settings.results import ActionSettings, SinkSettings


class Sink(Protocol):
    """Takes results. What goes wrong in it is logged there: inference never stops for a sink."""

    def write(self, result: Result, prediction: Prediction | None = None, /) -> None:
        """Take one result.

        Args:
            result: As it goes out.
            prediction: The prediction it was made from, with the scores of all labels; None where that is not
                available.
        """
        ...

    def close(self) -> None:
        """Let go of files; no results come after."""
        ...


def open_sinks(
    settings: SinkSettings,
    *,
    publish: Callable[[str, bytes], None],
    topic_of: Callable[[str], str],
    action: ActionSettings | None = None,
) -> tuple[Sink, ...]:
    """Build the sinks that the settings name.

    Args:
        settings: Which ones.
        publish: Hands (topic, payload) to the broker's client; must not wait for the network.
        topic_of: Returns the topic for the results of a channel.
        action: Commands to run; None: none.
    Raises: SettingsError with all faults.
    """
    faults = settings.faults()
    if faults:
        raise SettingsError("; ".join(f"[sinks] {fault}" for fault in faults))
    from edge_client.sinks.json_lines import JsonLines, StandardOutput  # noqa: PLC0415 - they import this
    from edge_client.sinks.mqtt import MqttSink  # noqa: PLC0415

    sinks: list[Sink] = []
    if settings.mqtt:
        sinks.append(MqttSink(publish, topic_of))
    if settings.json_lines == "-":
        sinks.append(StandardOutput())
    elif settings.json_lines:
        path = Path(settings.json_lines).expanduser()
        sinks.append(JsonLines(path, max_bytes=settings.json_lines_max_bytes))
    if action is not None and action.names():
        from edge_client.sinks.action import ActionSink  # noqa: PLC0415

        sinks.append(ActionSink(action))
    return tuple(sinks)
