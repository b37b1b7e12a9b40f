"""MQTT 3.1.1 clients, with the settings' credentials; the only module of the device that imports paho.

A client serves one connection. Nothing of paho's own reconnecting is used: it would send again, on each new
connection, the very message for which the broker ended the one before.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from typing import TYPE_CHECKING

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.reasoncodes import ReasonCode

from edge_client.contract.broker_tls import open_tls_context
from edge_client.settings.reporting import read_password
from edge_client.settings.update import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.contract.errors import EdgeError
    from edge_client.settings.reporting import BrokerSettings

__all__ = ["Client", "Message", "ReasonCode"]

logger = logging.getLogger(__name__)

Client = paho.Client
Message = paho.MQTTMessage

CONNECT_TIMEOUT_S = 10.0
# AWS IoT Core takes no more filters in one SUBSCRIBE, and ends the connection.
SUBSCRIBED_AT_ONCE = 8


def make_client(client_id: str) -> Client:
    """Build a client without credentials, not connected yet."""
    client = Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=paho.MQTTv311,
        clean_session=True,
        reconnect_on_failure=False,
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    return client


def open_client(settings: BrokerSettings, client_id: str) -> Client:
    """Build a client with credentials, not connected yet.

    Raises: SettingsError if password, CA or certificate cannot be used; DeviceError if they cannot be read.
    """
    client = make_client(client_id)
    if settings.username:
        client.username_pw_set(settings.username, read_password(settings))
    if settings.tls:
        client.tls_set_context(open_tls_context(settings, _unreadable))
    return client


def serve(client: Client, wait_s: float, wake: socket.socket | None = None) -> bool:
    """Read and write what is due on a client's connection.

    Args:
        client: Connected, with no thread of its own.
        wait_s: Longest time to wait for the broker, or for `wake`.
        wake: Ends the waiting when it can be read.
    Returns: Whether the connection goes on.
    """
    connection = client.socket()
    if connection is None:
        return False
    events = select.poll()
    with contextlib.suppress(OSError, ValueError):  # closed meanwhile: `loop_misc` finds out
        events.register(connection, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
        if wake is not None:
            events.register(wake, select.POLLIN)
        events.poll(0 if _has_read_ahead(client) else 1000 * wait_s)
    client.loop_read()
    while _has_read_ahead(client):
        client.loop_read()
    if client.want_write():
        client.loop_write()
    client.loop_misc()
    return client.socket() is not None


def last_words(client: Client) -> Callable[[], str]:
    """Return what gives the last error of a client's connection, which paho tells its log alone."""
    errors = [""]

    def note(_client: Client, _userdata: object, level: int, text: str) -> None:
        if level == paho.MQTT_LOG_ERR:
            errors[0] = text
            logger.debug("%s", text)  # who uses the client says what it means

    client.on_log = note
    return lambda: errors[0]


def hang_up(client: Client) -> None:
    """Close the socket without a DISCONNECT packet, so that the broker publishes the last will."""
    connection = client.socket()
    if isinstance(connection, socket.socket):
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def is_sent(code: MQTTErrorCode) -> bool:
    """Whether paho took a message."""
    return code == MQTTErrorCode.MQTT_ERR_SUCCESS


def was_silent(reason: ReasonCode) -> bool:
    """Whether a connection ended because the broker was not heard of, and not by its own doing."""
    return str(reason) == "Keep alive timeout"


def _has_read_ahead(client: Client) -> bool:
    """Whether TLS has decrypted more than was asked for: the socket then has nothing to read."""
    connection = client.socket()
    pending = getattr(connection, "pending", None)
    return pending is not None and pending() > 0


def _unreadable(error: OSError, file: Path, what: str) -> EdgeError:
    way_out = "copy it there, or correct the setting"
    return unreadable(error, file, what, way_out, secret="key_file" in what)
