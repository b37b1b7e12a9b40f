"""Messages to the MQTT broker, and retained ones read back."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import logging
import queue
import random
import select
import socket
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge_client.contract.broker_tls import (
    broker_doubt,
    explain_connect_failure,
    explain_early_end,
    explain_refusal,
    is_passing_refusal,
    open_tls_context,
)
from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.hosts import is_this_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.reasoncodes import ReasonCode

    from edge_client.contract.errors import EdgeError
    from luigi_tasks.settings.values import BrokerSettings

logger = logging.getLogger("luigi-interface")

# Brokers send a retained message right behind the SUBACK: none within this time means that none is retained.
RETAINED_WAIT_S = 1.0
# The first byte of a SUBACK's answer from which on it is a refusal (MQTT 3.1.1, section 3.9.3).
_REFUSED = 0x80
# While messages are heard: longest wait before others are looked after, and packets that are read at once.
_TICK_MS, _READ_AT_ONCE = 200, 64


# Where a broker ties client ids to user names (configs/mosquitto.conf), a second connection ends the first:
# two machines of the pipeline may announce at once.
_ATTEMPTS, _PAUSE_S = 6, 0.5

T = TypeVar("T")


class _ConnectionLostError(TransportError):
    """The broker ended a connection that it had accepted; doing the same again may succeed."""


class _Lost(Exception):  # noqa: N818 - no error yet: who uses the connection says what it means
    """The connection ended."""


@dataclasses.dataclass(frozen=True)
class Message:
    """A message to publish; a retained one is kept for subscribers to come."""

    topic: str
    payload: bytes
    is_retained: bool = False


class BrokerClient:
    """Client that publishes messages, and reads retained ones back.

    Args:
        settings: Which broker.
        retained_wait_s: Seconds after which a topic counts as without a retained message.
    """

    def __init__(self, settings: BrokerSettings, *, retained_wait_s: float = RETAINED_WAIT_S) -> None:
        self._settings = settings
        self._retained_wait_s = retained_wait_s
        self._client_id = ""

    @property
    def is_set(self) -> bool:
        """Whether there is a broker: without one nothing is announced."""
        return bool(self._settings.host)

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def fleet(self) -> str:
        """Part of all topics that names the fleet."""
        return self._settings.fleet

    def check(self) -> None:
        """Connect, and do nothing else.

        Raises: TransportError if the broker cannot be reached; SettingsError if it refuses.
        """

        def connect() -> None:
            with self._connected():
                pass

        _repeat(connect)

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish a message that the broker keeps for subscribers to come.

        Raises: As `publish`.
        """
        self.publish(Message(topic, payload, is_retained=True))

    def publish(self, *messages: Message) -> None:
        """Publish messages in their order, on one connection.

        Raises: TransportError if the broker cannot be reached or does not take a message; SettingsError.
        """

        def publish() -> None:
            with self._connected() as connection:
                for one in messages:
                    kind = "a retained message" if one.is_retained else "a message"
                    right = f"iot:Publish {'and iot:RetainPublish ' * one.is_retained}on topic/{one.topic}"
                    silence = (
                        f"{self.address}: no acknowledgement for {one.topic} within "
                        f"{self._settings.timeout_s} s; the next run announces it"
                    )
                    with self._explained(f"sending {kind} on", one.topic, right, silence):
                        connection.publish(one)

        _repeat(publish)

    def read_retained(self, topic: str) -> bytes | None:
        """Return the retained message of a topic; None if the broker keeps none.

        Raises: TransportError if the broker cannot be reached; SettingsError.
        """

        def read() -> bytes | None:
            with self._connected() as connection:
                rights = f"iot:Subscribe on topicfilter/{topic}, iot:Receive on topic/{topic}"
                silence = (
                    f"{self.address}: no answer to the subscription of {topic}; the next run continues here"
                )
                with self._explained("subscribing", topic, rights, silence):
                    is_allowed = connection.subscribe(topic)
                    message = connection.message(self._retained_wait_s) if is_allowed else None
            if not is_allowed:
                raise self._unreadable_topic(topic)
            return message

        return _repeat(read)

    def hear(
        self,
        topics: Iterable[str],
        take: Callable[[str, bytes, bool], None],
        *,
        client_id: str,
        on_ready: Callable[[Callable[[Message], None]], None],
        is_stopped: Callable[[], bool],
    ) -> None:
        """Receive what is published on topics, on one connection, until it ends or `is_stopped`.

        Args:
            topics: Filters to subscribe.
            take: Gets topic, payload and whether the broker had retained it; must not block.
            client_id: Id of the connection; the broker ends an older one with the same.
            on_ready: Called when all topics are subscribed, with what publishes a message on this connection.
            is_stopped: Asked a few times a second.
        Raises: TransportError if the broker cannot be reached or the connection ended; SettingsError if the
            broker refuses.
        """
        with self._connected(client_id) as connection:
            connection.hand_over(take)
            for topic in topics:
                rights = f"iot:Subscribe on topicfilter/{topic}, iot:Receive on topic/{topic}"
                silence = f"{self.address}: no answer to the subscription of {topic}"
                with self._explained("subscribing", topic, rights, silence):
                    if not connection.subscribe(topic):
                        raise self._unreadable_topic(topic)
            on_ready(connection.send)
            connection.serve(is_stopped)
        if not is_stopped():
            msg = f"MQTT broker {self.address}: the connection ended"
            raise TransportError(msg)

    def find_retained(self, topic_filter: str) -> dict[str, bytes]:
        """Return the retained messages of a filter by topic, as far as the broker tells them.

        Some brokers send none for a filter with wildcards (AWS IoT Core, RabbitMQ).
        Raises: TransportError; SettingsError if the broker does not let this user read them.
        """

        def find() -> dict[str, bytes]:
            with self._connected() as connection:
                rights = f"iot:Subscribe on topicfilter/{topic_filter}"
                with self._explained("subscribing", topic_filter, rights, f"{self.address}: no answer"):
                    is_allowed = connection.subscribe(topic_filter)
                    while is_allowed and connection.message(self._retained_wait_s) is not None:
                        pass
            if not is_allowed:
                raise self._unreadable_topic(topic_filter)
            return dict(connection.retained)

        return _repeat(find)

    def _unreadable_topic(self, topic: str) -> SettingsError:
        user = self._settings.username or self._client_id
        msg = (
            f"MQTT broker {self.address}: does not let {user} read {topic}; allow it in the broker's ACL or "
            "policy"
        )
        return SettingsError(msg)

    @contextlib.contextmanager
    def _explained(self, act: str, topic: str, rights: str, silence: str) -> Iterator[None]:
        """Tell an end of the connection as a denial, and an answer that does not come as `silence`."""
        try:
            yield
        except _Lost:
            raise self._denied(act, topic, rights) from None
        except TimeoutError:
            raise TransportError(silence) from None

    def _denied(self, act: str, topic: str, rights: str) -> _ConnectionLostError:
        msg = (
            f"MQTT broker {self.address}: it ended the connection right after {act} {topic}, again and "
            "again: brokers do that where a policy or an ACL forbids it. Allow it there (AWS IoT Core: "
            f"{rights}), or keep other clients from connecting under the same name. The next run continues "
            "here"
        )
        return _ConnectionLostError(msg)

    @contextlib.contextmanager
    def _connected(self, client_id: str = "") -> Iterator[_Connection]:
        # A new one each time: AWS IoT Core takes one connection a second with an id.
        self._client_id = client_id or f"pipeline-{uuid.uuid4().hex[:12]}"
        client = _make_client(self._client_id)
        self._authenticate(client)
        self._warn()
        connection = _Connection(client, self._settings.timeout_s)
        try:
            client.connect_timeout = self._settings.timeout_s
            client.connect(self._settings.host, self._settings.port, keepalive=30)
        except (OSError, ValueError) as e:
            msg = (
                f"{explain_connect_failure(e, self._settings)}. Nothing is lost: the next run continues "
                "here, and to announce nothing, leave [broker] host empty"
            )
            raise TransportError(msg) from e
        client.loop_start()
        try:
            self._check_accepted(connection)
            yield connection
        finally:
            client.disconnect()
            client.loop_stop()

    def _check_accepted(self, connection: _Connection) -> None:
        try:
            refusal = connection.answer()
        except _Lost:
            why = explain_early_end(self._settings, self._client_id, last_words=connection.last_words)
            msg = f"{why}. The next run continues here"
            raise TransportError(msg) from None
        except TimeoutError:
            doubt = broker_doubt(self._settings)
            msg = (
                f"MQTT broker {self.address}: no answer within {self._settings.timeout_s} s; "
                f"{doubt or 'correct [broker] host, port and tls'}"
            )
            raise TransportError(msg) from None
        if refusal:
            why = explain_refusal(self._settings, self._client_id, refusal)
            if is_passing_refusal(refusal):
                msg = f"{why}. The next run continues here"
                raise TransportError(msg)
            raise SettingsError(why)

    def _authenticate(self, client: Client) -> None:
        s = self._settings
        if s.username:
            client.username_pw_set(s.username, _read_password(s.password_file))
        if s.tls:
            client.tls_set_context(open_tls_context(s, _unreadable))

    def _warn(self) -> None:
        s = self._settings
        if s.password_file and s.username and not s.tls and not is_this_machine(s.host):
            _warn_once(
                f"[broker] tls = false: the password goes to {self.address} in the clear; set tls = true"
            )
        if doubt := broker_doubt(s):
            _warn_once(doubt)


class _Connection:
    """What happens on one connection, in order; paho's thread only hands it over.

    Args:
        client: Not connected yet.
        timeout_s: Limit on each answer.
    """

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._events: queue.Queue[tuple[str, Any]] = queue.Queue()
        self._messages: collections.deque[bytes] = collections.deque()
        self.retained: dict[str, bytes] = {}  # by topic
        self._heard = 0
        self.last_words = ""  # of the connection: paho tells them its log alone
        put = self._events.put
        # An exception in a callback would end paho's thread without a message.
        client.on_connect = lambda _c, _u, _f, reason, _p: put(("connect", reason))
        client.on_message = self._received
        client.on_disconnect = lambda *_: put(("lost", None))
        client.on_publish = lambda _c, _u, number, *_: put(("publish", number))
        client.on_subscribe = self._subscribed
        client.on_log = self._logged

    def answer(self) -> str:
        """Return the reason of a refused connection; empty for an accepted one."""
        reason = self._wait("connect")
        return str(reason) if reason.is_failure else ""

    def publish(self, message: Message) -> None:
        """Publish a message, and wait until the broker has it."""
        self._client.publish(message.topic, message.payload, qos=1, retain=message.is_retained)
        self._wait("publish")

    def subscribe(self, topic: str) -> bool:
        """Subscribe a topic; return whether the broker allows it."""
        self._client.subscribe(topic, qos=1)
        return all(reason.value < _REFUSED for reason in self._wait("subscribe"))

    def send(self, message: Message) -> None:
        """Publish a message without waiting for the broker."""
        self._client.publish(message.topic, message.payload, qos=1, retain=message.is_retained)

    def hand_over(self, take: Callable[[str, bytes, bool], None]) -> None:
        """Give all messages from now on to `take`."""

        def on_message(_client: Client, _userdata: object, message: MQTTMessage) -> None:
            self._heard += 1
            with contextlib.suppress(UnicodeDecodeError):  # a topic that is no text
                take(message.topic, bytes(message.payload), message.retain)

        self._client.on_message = on_message

    def serve(self, is_stopped: Callable[[], bool]) -> None:
        """Read and write in this thread, until the connection ends or `is_stopped`.

        paho's own thread takes twice the time for a message: it asks the system before each of them.
        """
        client = self._client
        client.loop_stop()
        client.on_log = None  # paho would write each message in words
        client.on_publish = None
        while (connection := client.socket()) is not None and not is_stopped():
            waiting = select.poll()
            with contextlib.suppress(OSError, ValueError):  # closed meanwhile: `loop_misc` finds out
                waiting.register(connection, select.POLLIN | (select.POLLOUT if client.want_write() else 0))
                waiting.poll(0 if _has_read_ahead(connection) else _TICK_MS)
            for _ in range(_READ_AT_ONCE):
                heard = self._heard
                client.loop_read()
                if heard == self._heard:
                    break
            if client.want_write():
                client.loop_write()
            client.loop_misc()

    def message(self, wait_s: float) -> bytes | None:
        """Return the first message that was received; None if there is none within so many seconds."""
        if not self._messages:
            with contextlib.suppress(TimeoutError):
                return bytes(self._wait("message", wait_s))
        return self._messages.popleft() if self._messages else None

    def _received(self, _client: Client, _userdata: object, message: MQTTMessage) -> None:
        if message.retain:
            self.retained[message.topic] = bytes(message.payload)
        self._events.put(("message", bytes(message.payload)))

    def _subscribed(
        self, client: Client, _userdata: object, _number: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        _acknowledge_at_once(client)
        self._events.put(("subscribe", reasons))

    def _logged(self, _client: Client, _userdata: object, _level: int, text: str) -> None:
        if "SSL" in text:
            self.last_words = text

    def _wait(self, wanted: str, timeout_s: float | None = None) -> Any:  # noqa: ANN401 - as its kind has it
        deadline = time.monotonic() + (self._timeout_s if timeout_s is None else timeout_s)
        while True:
            try:
                kind, value = self._events.get(timeout=max(deadline - time.monotonic(), 0))
            except queue.Empty:
                raise TimeoutError from None
            if kind == wanted:
                return value
            if kind == "message":
                self._messages.append(value)
            elif kind == "lost":
                raise _Lost


def _repeat(act: Callable[[], T]) -> T:
    """Do what may be done again until the broker lets it finish, a few times.

    Raises: TransportError.
    """
    for attempt in range(1, _ATTEMPTS):
        with contextlib.suppress(_ConnectionLostError):
            return act()
        time.sleep(random.uniform(0, _PAUSE_S * attempt))  # noqa: S311 - no secret
    return act()


def _make_client(client_id: str) -> Client:
    """Return a client that is not connected yet."""
    from paho.mqtt import client as mqtt  # noqa: PLC0415 - most runs announce nothing
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

    return mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        protocol=mqtt.MQTTv311,
        reconnect_on_failure=False,
    )


def _has_read_ahead(connection: Any) -> bool:  # noqa: ANN401 - as below
    """Whether TLS has decrypted more than was asked for, which polling does not tell."""
    return hasattr(connection, "pending") and connection.pending() > 0


def _acknowledge_at_once(client: Any) -> None:  # noqa: ANN401 - paho's socket type is narrower
    """Acknowledge the SUBACK at once: brokers wait for that, 40 ms by default, before a retained message."""
    connection = client.socket()
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@functools.cache
def _warn_once(text: str) -> None:
    logger.warning("%s", text)


def _unreadable(error: OSError, _file: Path, what: str) -> EdgeError:
    return SettingsError(
        f"{what}: cannot be read ({error.strerror or error}); correct the path, or its owner"
    )


def _read_password(path: str) -> str | None:
    if not path:
        return None
    what, way_out = f"[broker] password_file {path}", "its first line is the password"
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        msg = f"{what}: cannot be read ({e.strerror or e}); {way_out}"
        raise SettingsError(msg) from e
    except UnicodeDecodeError as e:
        msg = f"{what}: is not UTF-8; save it as UTF-8: {way_out}"
        raise SettingsError(msg) from e
    if not lines or not lines[0]:
        msg = f"{what}: has nothing in its first line; {way_out}"
        raise SettingsError(msg)
    return lines[0]
