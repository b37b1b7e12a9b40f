"""Connection to the MQTT broker; the only module that uses paho.

MQTT 3.1.1, clean session: the broker needs to remember retained messages only. Topics are subscribed at every
connect, because paho does not renew subscriptions (paho#375). Callbacks only pass payloads on; one that
raised would end paho's thread silently (paho#528).

While the broker is away, results wait in `sinks/outbox.py` and not in paho: a full queue of paho would reject
the messages of the next connect, too, and the device would stay `offline`.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import socket
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edge_client.contract.broker_tls import open_tls_context
from edge_client.contract.errors import EdgeError, TransportError
from edge_client.settings.reporting import read_password
from edge_client.settings.update import unreadable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Any

    from paho.mqtt.reasoncodes import ReasonCode

    from edge_client.settings.reporting import BrokerSettings

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"

# Messages in paho, sent or not: the results of an outbox's window, and the retained state of one connect, for
# 10 channels with discovery.
MAX_QUEUED_MESSAGES = 250
LONGEST_RECONNECT_DELAY_S = 60
CONNECT_TIMEOUT_S = 10.0
ECHO_S = 5.0
# Limit on `stop`, and on the part of it that waits for the broker to confirm `offline`. systemd gives the
# daemon 30 s to end (TimeoutStopSec); the rest is for the other threads.
STOP_S, OFFLINE_S = 3.0, 2.0
# More lost connections in this time than a bad radio link causes: another client uses the id.
_TAKEOVERS, _TAKEOVER_WINDOW_S = 5, 60.0


class BrokerConnection:
    """Publishes messages and passes received payloads to handlers; reconnects by itself, without end."""

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        handlers: Mapping[str, Callable[[bytes], None]],
        online_topic: str,
        on_connection: Callable[[], None],
        commands: Mapping[str, Callable[[bytes], None]] | None = None,
        on_acknowledged: Callable[[int], None] = lambda _number: None,
    ) -> None:
        """Prepare; `start` connects.

        Args:
            settings: Broker and credentials.
            client_id: Device id: a broker accepts one connection for each id.
            handlers: Handler of each subscribed topic, called in paho's thread with the payload; must not
                block.
            online_topic: Topic of the retained `online`, and of `offline` as last will.
            on_connection: Called in paho's thread after a connect, to publish retained state again.
            commands: As `handlers`, for topics of commands: retained messages are not passed on, or the
                command would run at every connect.
            on_acknowledged: Called in paho's thread with the number of each message that the broker has, see
                `send`. Must take no lock that is held while sending: paho holds its own.
        """
        self._settings = settings
        self._client_id = client_id
        self._online_topic = online_topic
        self._commands = frozenset(commands or {})
        self._handlers = {**handlers, **(commands or {})}
        self._on_connection = on_connection
        self._on_acknowledged = on_acknowledged
        self._drops: deque[float] = deque(maxlen=_TAKEOVERS)
        self._client = self._open_client()
        self._fault: str | None = None
        self._started = False

    @property
    def fault(self) -> str | None:
        """Why password, CA or certificate cannot be read; None if they can."""
        return self._fault

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._client.is_connected()

    @property
    def suspected_duplicate_id(self) -> str | None:
        """Message that another client seems to use this device's id; None without such evidence now."""
        now, drops = time.monotonic(), tuple(self._drops)
        if len(drops) < _TAKEOVERS or now - drops[0] >= _TAKEOVER_WINDOW_S:
            return None
        return (
            f"MQTT broker {self.address} ended the connection {_TAKEOVERS} times in a minute: another client "
            f"connects as {self._client_id}, or the broker fails. Give each device an id of its own, and let "
            "the broker tie ids to user names (configs/mosquitto.conf): else any password there can do this"
        )

    def start(self) -> None:
        """Connect in the background, and reconnect whenever the connection is lost.

        Where password, CA or certificate cannot be read, `revive` tries again: the camera serves meanwhile.
        """
        try:
            add_credentials(self._client, self._settings)
        except EdgeError as e:
            if str(e) != self._fault:
                logger.error("%s; trying again", e)  # noqa: TRY400 - one line, no traceback
            self._fault = str(e)
            return
        self._fault, self._started = None, True
        self._client.connect_async(self._settings.host, self._settings.port, self._settings.keepalive_s)
        self._client.loop_start()

    def revive(self) -> None:
        """Start paho's thread again if a malformed packet or a bug ended it; to be called periodically."""
        if not self._started:
            self.start()
        elif self._client.loop_start() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            logger.warning("the MQTT thread had ended; started again")
            self._client.connect_async(self._settings.host, self._settings.port, self._settings.keepalive_s)

    def send(self, topic: str, payload: bytes) -> int | None:
        """Send a message, again after the next connect if the connection is lost meanwhile; never waits.

        Returns: The number that `on_acknowledged` gets; None if it cannot be sent now.
        """
        return self._hand_over(topic, payload, retain=False) if self.connected else None

    def publish_state(self, topic: str, payload: bytes) -> bool:
        """Publish retained state.

        Returns: False if the caller has to publish it again: at the next connect, or soon if connected.
        """
        return self.retain(topic, payload) is not None

    def retain(self, topic: str, payload: bytes) -> int | None:
        """Publish retained state, as `send` does with a message."""
        return self._hand_over(topic, payload, retain=True) if self.connected else None

    def stop(self) -> None:
        """Publish `offline` and disconnect, within `STOP_S`."""
        deadline = time.monotonic() + STOP_S
        confirmed = self._publish_offline() if self.connected else True
        if confirmed:
            self._client.disconnect()
        # paho joins its thread without a limit, and the thread may be stuck on a broker that hangs.
        leaving = threading.Thread(target=self._client.loop_stop, daemon=True)
        leaving.start()
        if not confirmed:
            self._hang_up()
        leaving.join(max(deadline - time.monotonic(), 0))

    def _open_client(self) -> paho.Client:
        client = make_client(self._client_id)
        client.suppress_exceptions = True  # last resort to keep the thread alive
        client.enable_logger(logging.getLogger(f"{__name__}.paho"))
        client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
        client.reconnect_delay_set(1, LONGEST_RECONNECT_DELAY_S)
        client.will_set(self._online_topic, OFFLINE, qos=1, retain=True)
        client.on_connect = _logged(self._connected)
        client.on_connect_fail = _logged(self._connect_failed)
        client.on_disconnect = _logged(self._disconnected)
        client.on_subscribe = _logged(self._subscribed)
        client.on_message = _logged(self._received)
        client.on_publish = _logged(self._published)
        return client

    def _publish_offline(self) -> bool:
        """Publish `offline`; return whether the broker confirmed it."""
        message = self._client.publish(self._online_topic, OFFLINE, qos=1, retain=True)
        try:
            message.wait_for_publish(OFFLINE_S)
            return message.is_published()
        except (RuntimeError, ValueError) as e:
            logger.debug("offline is not published: %s", e)
            return False

    def _hang_up(self) -> None:
        """Close the socket without a DISCONNECT packet, so that the broker publishes the last will."""
        connection = self._client.socket()
        if isinstance(connection, socket.socket):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _hand_over(self, topic: str, payload: bytes, *, retain: bool) -> int | None:
        """Queue a message in paho and return its number; None if the queue is full."""
        answer = self._client.publish(topic, payload, qos=1, retain=retain)
        return None if answer.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE else answer.mid

    def _published(
        self, _client: paho.Client, _userdata: object, mid: int, _reason: ReasonCode, _properties: object
    ) -> None:
        self._on_acknowledged(mid)

    def _connected(
        self, client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            logger.warning(
                "MQTT broker %s refuses this device: %s; check [broker] username and password_file",
                self.address,
                reason,
            )
            return
        logger.info("MQTT broker %s: connected as %s", self.address, self._client_id)
        if self._handlers:
            client.subscribe([(topic, 1) for topic in self._handlers])
        if self._hand_over(self._online_topic, ONLINE, retain=True) is None:
            logger.error("MQTT broker %s: queue full, %s stays offline", self.address, self._client_id)
        self._on_connection()

    def _connect_failed(self, _client: paho.Client, _userdata: object) -> None:
        logger.warning("MQTT broker %s cannot be reached; trying again", self.address)

    def _disconnected(
        self, _client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if not reason.is_failure:
            return
        self._drops.append(time.monotonic())
        if suspected_duplicate_id := self.suspected_duplicate_id:
            logger.error("%s", suspected_duplicate_id)
        else:
            logger.warning("MQTT broker %s: connection lost (%s); trying again", self.address, reason)

    def _subscribed(
        self,
        _client: paho.Client,
        _userdata: object,
        _mid: int,
        reasons: list[ReasonCode],
        _properties: object,
    ) -> None:
        if any(reason.is_failure for reason in reasons):
            logger.warning(
                "MQTT broker %s does not let %s read %s; allow it in its ACL. Until then only polling finds "
                "releases",
                self.address,
                self._client_id,
                ", ".join(self._handlers),
            )

    def _received(self, _client: paho.Client, _userdata: object, message: paho.MQTTMessage) -> None:
        if message.retain and message.topic in self._commands:
            logger.warning("%s: a retained command is ignored; publish it without retain", message.topic)
        elif handler := self._handlers.get(message.topic):
            handler(bytes(message.payload))


def _logged(callback: Callable[..., None]) -> Callable[..., None]:
    """Wrap a callback to log its exceptions: paho only logs that it failed."""

    @functools.wraps(callback)
    def call(*arguments: Any) -> None:  # noqa: ANN401 - paho's
        try:
            callback(*arguments)
        except Exception:
            # The connection stays: one message is lost, or one state until it is published again.
            logger.exception("MQTT: %s failed", callback.__name__)

    return call


def make_client(client_id: str) -> paho.Client:
    """Build a client without credentials, not connected yet."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv311, clean_session=True
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    return client


def open_client(settings: BrokerSettings, client_id: str) -> paho.Client:
    """Build a client with credentials, not connected yet.

    Raises: SettingsError if password, CA or certificate cannot be used; DeviceError if they cannot be read.
    """
    client = make_client(client_id)
    add_credentials(client, settings)
    return client


def add_credentials(client: paho.Client, settings: BrokerSettings) -> None:
    """Give a client its password and certificates, once.

    Raises: SettingsError if they cannot be used; DeviceError if they cannot be read.
    """
    if settings.username:
        client.username_pw_set(settings.username, read_password(settings))
    if settings.tls:
        client.tls_set_context(open_tls_context(settings, _unreadable))


def _unreadable(error: OSError, file: Path, what: str) -> EdgeError:
    way_out = "copy it there, or correct the setting"
    return unreadable(error, file, what, way_out, secret="key_file" in what)


def try_connection(settings: BrokerSettings, client_id: str) -> None:
    """Connect once and leave, for `doctor`.

    Args:
        settings: Broker and credentials.
        client_id: Not the device's own while its daemon may run: the broker would disconnect the daemon.
    Raises: TransportError if the broker cannot be reached or refuses; SettingsError.
    """
    address = f"{settings.host}:{settings.port}"
    client = open_client(settings, client_id)
    answers: list[ReasonCode] = []
    client.on_connect = lambda _c, _u, _f, reason, _p: answers.append(reason)
    try:
        client.connect(settings.host, settings.port, settings.keepalive_s)
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while not answers and time.monotonic() < deadline:
            if client.loop(0.2) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break
    except (OSError, ssl.SSLError, ValueError) as e:
        msg = f"MQTT broker {address}: {e}; start it, or correct [broker] host, port and tls"
        raise TransportError(msg) from e
    finally:
        client.disconnect()
    if not answers:
        msg = f"MQTT broker {address}: no answer; correct [broker] host, port and tls"
        raise TransportError(msg)
    if answers[0].is_failure:
        msg = f"MQTT broker {address}: {answers[0]}; check [broker] username and password_file"
        raise TransportError(msg)


def try_echo(settings: BrokerSettings, client_id: str, topic: str) -> bool:
    """Publish on a subscribed topic, for `doctor`; return whether the message comes back in a few seconds.

    There is no other proof: a broker may silently drop what its ACL forbids (MQTT 3.1.1, section 3.3.5).

    Args:
        settings: Broker and credentials.
        client_id: Not the device's own, see `try_connection`.
        topic: Below the device's own.
    Raises: TransportError if the broker cannot be reached; SettingsError.
    """
    probe, received = os.urandom(16), []
    client = open_client(settings, client_id)
    client.on_connect = lambda connected, *_: connected.subscribe(topic, 1)
    client.on_subscribe = lambda listening, *_: listening.publish(topic, probe, qos=1)
    client.on_message = lambda _client, _userdata, message: received.append(bytes(message.payload))
    try:
        client.connect(settings.host, settings.port, settings.keepalive_s)
        deadline = time.monotonic() + ECHO_S
        while probe not in received and time.monotonic() < deadline:
            if client.loop(0.2) != MQTTErrorCode.MQTT_ERR_SUCCESS:
                break  # some brokers end the connection instead
    except (OSError, ssl.SSLError, ValueError) as e:
        msg = f"MQTT broker {settings.host}:{settings.port}: {e}; start it, or correct [broker] host and port"
        raise TransportError(msg) from e
    finally:
        client.disconnect()
    return probe in received
