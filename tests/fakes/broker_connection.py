"""One connection to a broker, as `edge-client doctor` makes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.reporting.broker_trial import BrokerTrial
from edge_client.reporting.mqtt_client import serve

if TYPE_CHECKING:
    from edge_client.settings.reporting import BrokerSettings


def try_connection(settings: BrokerSettings, client_id: str) -> None:
    """Connect once and leave.

    Raises: TransportError if the broker cannot be reached or refuses; SettingsError; DeviceError.
    """
    client = BrokerTrial(settings, client_id)._connect()
    client.disconnect()
    serve(client, 0)
