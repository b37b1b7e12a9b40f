"""Where results go: the broker, and JSON lines in a file or on the terminal."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Classification
    from edge_client.sinks.action import ActionSettings

# Two files of this size hold about 60,000 results.
DEFAULT_MAX_BYTES = 10_000_000
_SMALLEST_MAX_BYTES = 10_000


class Sink(Protocol):
    """Takes results. What goes wrong in it is logged there: inference never stops for a sink."""

    def write(self, result: Result, answer: Classification | None = None, /) -> None:
        """Take one result.

        Args:
            result: As it goes out.
            answer: What it was made of, with the scores of all labels; None where they are not at hand.
        """
        ...

    def close(self) -> None:
        """Let go of files; no results come after."""
        ...


@dataclasses.dataclass(frozen=True)
class SinkSettings:
    """Which sinks.

    Attributes:
        mqtt: Publish each result on the device's results topic.
        json_lines: Append each result to this file; `-` means standard output, empty none.
        json_lines_max_bytes: The file is set aside as `<name>.1` when it would grow beyond this, so that
            both together never take more than twice as much of the disk.
    """

    mqtt: bool = True
    json_lines: str = ""
    json_lines_max_bytes: int = DEFAULT_MAX_BYTES

    def faults(self) -> tuple[str, ...]:
        """Say what is wrong with the settings, each with its way out; empty if nothing is."""
        if self.json_lines_max_bytes < _SMALLEST_MAX_BYTES:
            return (f"json_lines_max_bytes {self.json_lines_max_bytes}: give {_SMALLEST_MAX_BYTES} or more",)
        return ()


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
