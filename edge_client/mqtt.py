"""The device's connection to the MQTT broker: the one room that talks to paho.

MQTT 3.1.1, clean session: nothing depends on what the broker remembers but retained messages. The
subscription is made at every connect, because paho does not renew it (paho#375). Callbacks only
hand over; one that raised would end paho's thread in silence (paho#528).
"""

from __future__ import annotations

import logging
import ssl
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.settings import read_password

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from paho.mqtt.reasoncodes import ReasonCode

    from edge_client.settings import BrokerSettings

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"

# While the broker is away: about 4 MB of results, then the newest are dropped.
MAX_QUEUED_MESSAGES = 10_000
LONGEST_RECONNECT_DELAY_S = 60
CONNECT_TIMEOUT_S = 10.0
FAREWELL_S = 3.0
# So many lost connections in so many seconds are no bad radio link.
_TAKEOVERS, _TAKEOVER_WINDOW_S = 5, 60.0


class BrokerConnection:
    """Publishes, and hands over what arrives on some topics; reconnects for ever by itself."""

    def __init__(
        self,
        settings: BrokerSettings,
        client_id: str,
        *,
        handlers: Mapping[str, Callable[[bytes], None]],
        online_topic: str,
        on_connection: Callable[[], None],
    ) -> None:
        """Prepare; `start` connects.

        Args:
            settings: Broker and credentials.
            client_id: The device id: a broker lets each id in once.
            handlers: Topics, subscribed at every connect, and who gets the payloads of each, in paho's
                thread: they only hand over.
            online_topic: Retained `online`, and `offline` as last will.
            on_connection: Called in paho's thread after a connect, for retained state to be published anew.
        Raises: SettingsError if password, CA or certificate cannot be read.
        """
        self._settings = settings
        self._client_id = client_id
        self._online_topic = online_topic
        self._handlers = dict(handlers)
        self._on_connection = on_connection
        self._drops: deque[float] = deque(maxlen=_TAKEOVERS)
        self._dropping = False
        self._client = open_client(settings, client_id)
        self._client.suppress_exceptions = True  # the last line of defence for the thread
        self._client.enable_logger(logging.getLogger(f"{__name__}.paho"))
        self._client.max_queued_messages_set(MAX_QUEUED_MESSAGES)
        self._client.reconnect_delay_set(1, LONGEST_RECONNECT_DELAY_S)
        self._client.will_set(online_topic, OFFLINE, qos=1, retain=True)
        self._client.on_connect = self._connected
        self._client.on_connect_fail = self._connect_failed
        self._client.on_disconnect = self._disconnected
        self._client.on_subscribe = self._subscribed
        self._client.on_message = self._received

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def connected(self) -> bool:
        """Whether the broker has let this device in."""
        return self._client.is_connected()

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost."""
        self._client.connect_async(self._settings.host, self._settings.port, self._settings.keepalive_s)
        self._client.loop_start()

    def revive(self) -> None:
        """Start paho's thread again if a malformed packet or a bug ended it; call now and then."""
        if self._client.loop_start() == MQTTErrorCode.MQTT_ERR_SUCCESS:
            logger.warning("the MQTT thread had ended; started again")
            self._client.connect_async(self._settings.host, self._settings.port, self._settings.keepalive_s)

    def publish(self, topic: str, payload: bytes) -> None:
        """Hand over a message that is worth sending later too; never waits for the network."""
        answer = self._client.publish(topic, payload, qos=1)
        if answer.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE and not self._dropping:
            logger.warning("%s: %d messages wait; newer ones are dropped", self.address, MAX_QUEUED_MESSAGES)
        self._dropping = answer.rc == MQTTErrorCode.MQTT_ERR_QUEUE_SIZE

    def publish_state(self, topic: str, payload: bytes) -> bool:
        """Publish retained state; False without a connection, the state is then published at the next."""
        if not self.connected:
            return False
        answer = self._client.publish(topic, payload, qos=1, retain=True)
        return answer.rc == MQTTErrorCode.MQTT_ERR_SUCCESS

    def stop(self) -> None:
        """Say `offline` and go; waits a few seconds at most."""
        if self.connected:
            farewell = self._client.publish(self._online_topic, OFFLINE, qos=1, retain=True)
            try:
                farewell.wait_for_publish(FAREWELL_S)
            except (RuntimeError, ValueError) as e:
                logger.debug("no farewell: %s", e)  # the last will says it then
        self._client.disconnect()
        # paho joins its thread without a limit, and that may be stuck on a broker that hangs.
        leaving = threading.Thread(target=self._client.loop_stop, daemon=True)
        leaving.start()
        leaving.join(FAREWELL_S)

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
        client.subscribe([(topic, 1) for topic in self._handlers])
        client.publish(self._online_topic, ONLINE, qos=1, retain=True)
        self._on_connection()

    def _connect_failed(self, _client: paho.Client, _userdata: object) -> None:
        logger.warning("MQTT broker %s cannot be reached; trying again", self.address)

    def _disconnected(
        self, _client: paho.Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if not reason.is_failure:
            return
        now = time.monotonic()
        self._drops.append(now)
        if len(self._drops) == _TAKEOVERS and now - self._drops[0] < _TAKEOVER_WINDOW_S:
            logger.error(
                "MQTT broker %s ended the connection %d times in a minute: does another device use the id "
                "%s? Give each its own [device] id",
                self.address,
                _TAKEOVERS,
                self._client_id,
            )
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
        if handler := self._handlers.get(message.topic):
            handler(bytes(message.payload))


def open_client(settings: BrokerSettings, client_id: str) -> paho.Client:
    """Build a client with credentials, not connected yet.

    Raises: SettingsError if password, CA or certificate cannot be read.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=client_id, protocol=paho.MQTTv311, clean_session=True
    )
    client.connect_timeout = CONNECT_TIMEOUT_S
    if settings.username:
        client.username_pw_set(settings.username, read_password(settings))
    if settings.tls:
        try:
            client.tls_set(
                ca_certs=settings.ca_file or None,
                certfile=settings.certificate_file or None,
                keyfile=settings.key_file or None,
            )
        except (OSError, ssl.SSLError, ValueError) as e:
            msg = f"[broker] ca_file, certificate_file or key_file: {e}"
            raise SettingsError(msg) from e
    return client


def try_connection(settings: BrokerSettings, client_id: str) -> None:
    """Connect once and leave, for `doctor`.

    Args:
        settings: Broker and credentials.
        client_id: Not the device's own while its daemon may run: that would be thrown out.
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
