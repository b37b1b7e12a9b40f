"""Open the sinks of the settings: MQTT, JSON lines, commands."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from edge_client.sinks.action import ActionSink
from edge_client.sinks.json_lines import JsonLines, StandardOutput
from edge_client.sinks.mqtt import MqttSink
from edge_client.sinks.thinning import ThinnedSink

if TYPE_CHECKING:
    from edge_client.settings.results import ActionSettings, SinkSettings
    from edge_client.sinks.outbox import Outbox
    from edge_client.sinks.sink import Sink


def open_sinks(
    settings: SinkSettings,
    *,
    outbox: Outbox | None,
    action: ActionSettings | None = None,
) -> tuple[Sink, ...]:
    """Build the sinks that the settings select.

    Args:
        settings: Section [sinks].
        outbox: Brings results to the broker; None without one.
        action: Section [action]; None: no commands.
    Raises: SettingsError with all faults.
    """
    faults = settings.faults()
    if faults:
        raise SettingsError("; ".join(f"[sinks] {fault}" for fault in faults))
    sinks: list[Sink] = []
    if settings.mqtt and outbox is not None:
        mqtt = MqttSink(outbox)
        sinks.append(ThinnedSink(mqtt, settings) if settings.thins else mqtt)
    if settings.json_lines == "-":
        sinks.append(StandardOutput())
    elif settings.json_lines:
        path = Path(settings.json_lines).expanduser()
        sinks.append(JsonLines(path, max_bytes=settings.json_lines_max_bytes))
    if action is not None and action.labels:
        sinks.append(ActionSink(action))
    return tuple(sinks)
