"""Retained messages on the MQTT broker."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import random
import socket
import ssl
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.hosts import is_this_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from paho.mqtt.client import Client, MQTTMessageInfo

    from luigi_tasks.settings.values import BrokerSettings

logger = logging.getLogger("luigi-interface")

# Brokers send a retained message right behind the SUBACK: none within this time means that none is retained.
RETAINED_WAIT_S = 1.0


# Where a broker ties client ids to user names (configs/mosquitto.conf), a second connection ends the first:
# two machines of the pipeline may announce at once.
_ATTEMPTS, _PAUSE_S = 6, 0.5

T = TypeVar("T")


class _ConnectionLostError(TransportError):
    """The broker ended a connection that it had accepted; doing the same again may succeed."""


class BrokerClient:
    """Client that publishes retained messages and reads them back.

    Args:
        settings: Which broker.
        retained_wait_s: Seconds after which a topic counts as without a retained message.
    """

    def __init__(self, settings: BrokerSettings, *, retained_wait_s: float = RETAINED_WAIT_S) -> None:
        self._settings = settings
        self._retained_wait_s = retained_wait_s

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def fleet(self) -> str:
        """Part of all topics that names the fleet."""
        return self._settings.fleet

    def publish_retained(self, topic: str, payload: bytes) -> None:
        """Publish a message that the broker keeps for subscribers to come.

        Raises: TransportError if the broker cannot be reached or does not take the message; SettingsError.
        """

        def publish() -> None:
            with self._connected() as (client, _):
                information = client.publish(topic, payload, qos=1, retain=True)
                self._wait_published(information, topic)

        _repeat(publish)

    def read_retained(self, topic: str) -> bytes | None:
        """Return the retained message of a topic; None if the broker keeps none.

        Raises: TransportError if the broker cannot be reached; SettingsError.
        """

        def read() -> bytes | None:
            with self._connected() as (client, messages):
                client.subscribe(topic, qos=1)
                try:
                    message = messages.get(timeout=self._retained_wait_s)
                except queue.Empty:
                    return None
                if message is None:
                    msg = f"{self.address}: the connection was lost; the next run continues here"
                    raise _ConnectionLostError(msg)
                return message

        return _repeat(read)

    def _wait_published(self, information: MQTTMessageInfo, topic: str) -> None:
        try:
            information.wait_for_publish(self._settings.timeout_s)
        except (RuntimeError, ValueError) as e:
            msg = f"{self.address}: could not publish to {topic}: {e}; the next run announces it"
            raise _ConnectionLostError(msg) from e
        if not information.is_published():
            msg = (
                f"{self.address}: no acknowledgement for {topic} within {self._settings.timeout_s} s; "
                "the next run announces it"
            )
            raise TransportError(msg)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[tuple[Client, queue.Queue[bytes | None]]]:
        """Yield a connected client, and the queue of its messages, with None for a lost connection."""
        answers: queue.Queue[str] = queue.Queue()
        messages: queue.Queue[bytes | None] = queue.Queue()
        client = _make_client(answers, messages)
        self._authenticate(client)
        if self._settings.password_file and not self._settings.tls:
            _warn_of_exposure(self.address, self._settings.host)
        try:
            client.connect(self._settings.host, self._settings.port, keepalive=30)
        except (OSError, ssl.SSLError) as e:
            msg = (
                f"MQTT broker {self.address}: {e}; start it or correct [broker] host and port. "
                "Nothing is lost: the next run continues here"
            )
            raise TransportError(msg) from e
        client.loop_start()
        try:
            self._check_accepted(answers)
            yield client, messages
        finally:
            client.disconnect()
            client.loop_stop()

    def _check_accepted(self, answers: queue.Queue[str]) -> None:
        try:
            refusal = answers.get(timeout=self._settings.timeout_s)
        except queue.Empty:
            msg = f"MQTT broker {self.address}: no answer within {self._settings.timeout_s} s"
            raise TransportError(msg) from None
        if refusal:
            msg = (
                f"MQTT broker {self.address}: refused the connection: {refusal}; check [broker] "
                "username, password_file and the broker's ACL"
            )
            raise SettingsError(msg)

    def _authenticate(self, client: Client) -> None:
        s = self._settings
        if s.username:
            client.username_pw_set(s.username, _read_password(s.password_file))
        if s.tls:
            try:
                client.tls_set(ca_certs=s.ca_file or None)
            except (OSError, ssl.SSLError) as e:
                msg = f"[broker] ca_file {s.ca_file}: {e}"
                raise SettingsError(msg) from e


def _repeat(act: Callable[[], T]) -> T:
    """Do what may be done again until the broker lets it finish, a few times.

    Raises: TransportError.
    """
    for attempt in range(1, _ATTEMPTS):
        with contextlib.suppress(_ConnectionLostError):
            return act()
        time.sleep(random.uniform(0, _PAUSE_S * attempt))  # noqa: S311 - no secret
    return act()


def _make_client(answers: queue.Queue[str], messages: queue.Queue[bytes | None]) -> Client:
    """Return a client that is not connected yet.

    Args:
        answers: Gets the reason of a refused connection, "" for an accepted one.
        messages: Gets the content of each message, and None where the connection is lost.
    """
    from paho.mqtt import client as mqtt  # noqa: PLC0415 - most runs announce nothing
    from paho.mqtt.enums import CallbackAPIVersion  # noqa: PLC0415

    client = mqtt.Client(
        CallbackAPIVersion.VERSION2,
        client_id=f"pipeline-{uuid.uuid4().hex[:12]}",
        protocol=mqtt.MQTTv311,
    )
    # Callbacks only hand over: an exception in one would end paho's thread without a message.
    client.on_connect = lambda _c, _u, _f, reason, _p: answers.put(str(reason) if reason.is_failure else "")
    client.on_message = lambda _c, _u, message: messages.put(bytes(message.payload))
    client.on_disconnect = lambda *_: messages.put(None)
    client.on_subscribe = lambda subscriber, *_: _acknowledge_at_once(subscriber)
    return client


def _acknowledge_at_once(client: Any) -> None:  # noqa: ANN401 - paho's socket type is narrower
    """Acknowledge the SUBACK at once: brokers wait for that, 40 ms by default, before a retained message."""
    connection = client.socket()
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):  # Linux
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


@functools.cache
def _warn_of_exposure(address: str, host: str) -> None:
    """Warn, once, that the password can be read on the way."""
    if not is_this_machine(host):
        logger.warning("[broker] tls = false: the password goes to %s in the clear; set tls = true", address)


def _read_password(path: str) -> str | None:
    if not path:
        return None
    try:
        return Path(path).expanduser().read_text().splitlines()[0]
    except (OSError, IndexError) as e:
        msg = f"[broker] password_file {path}: cannot be read ({e}); its first line is the password"
        raise SettingsError(msg) from e
