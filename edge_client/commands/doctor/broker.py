"""Check the broker: connection, and the messages of this device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.contract.names import probe_topic

if TYPE_CHECKING:
    from edge_client.settings.file import Settings


def check_broker(settings: Settings) -> str:
    from edge_client.reporting.broker import try_connection, try_echo  # noqa: PLC0415

    device, broker = settings.device, settings.broker
    if not broker.host:
        return "none ([broker] host is empty): this device only polls"
    client_id, address = f"{device.id[:50]}-doctor", f"{broker.host}:{broker.port}"
    topic = probe_topic(device.fleet, device.id)
    try_connection(broker, client_id)
    if not try_echo(broker, client_id, topic):
        msg = (
            f"{address}: accepts this device, but a message published on {topic} does not come back. With "
            f"configs/mosquitto.acl [broker] username (now {broker.username!r}) must be the device id, and "
            "may read and write below edge/+/devices/<id>/"
        )
        raise DeviceError(msg)
    found = f"{address}: accepts this device and its messages"
    return f"{found}; warning: {broker.exposure}" if broker.exposure else found
