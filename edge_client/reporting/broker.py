"""Connection to the MQTT broker, kept by a thread of its own.

MQTT 3.1.1, clean session: the broker needs to remember retained messages only. Topics are subscribed at every
connect, a few in one packet. All of a connection happens in the thread: callers only append to a queue.

While the broker is away, results wait in `sinks/outbox.py` and not here: a full queue would reject the
messages of the next connect, too, and the device would stay `offline`.

Where a policy or ACL denies a topic, the others go on: `denials.py` says which one it is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import random
import socket
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.broker_tls import (
    broker_doubt,
    explain_connect_failure,
    explain_early_end,
    explain_refusal,
    is_aws,
)
from edge_client.contract.errors import EdgeError
from edge_client.reporting.denials import Act, Denials, Ending, Use
from edge_client.reporting.mqtt_client import (
    CONNECT_TIMEOUT_S,
    SUBSCRIBED_AT_ONCE,
    hang_up,
    is_sent,
    last_words,
    open_client,
    serve,
    was_silent,
)
from edge_client.reporting.outgoing import GAP_S, QUIET_S, Outgoing, use_of
from edge_client.reporting.refusal import describe_denial, describe_suspicion

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping
    from typing import Any

    from edge_client.reporting.mqtt_client import Client, Message, ReasonCode
    from edge_client.reporting.outgoing import Operation
    from edge_client.settings.reporting import BrokerSettings

logger = logging.getLogger(__name__)

ONLINE, OFFLINE = b"online", b"offline"

# Messages here, sent or not: the results of an outbox's window, and the retained state of one connect, for
# 10 channels with discovery.
MAX_QUEUED_MESSAGES = 250
# Any part of these is waited ("full jitter"): where a broker restarts, all its clients lose it together, and
# with the same delays they would also come back together, each time. How long a fleet needs to come back
# depends on its size, which only the fleet knows: see `spread_s`. A device that is alone is back within 2 s.
FIRST_RECONNECT_DELAY_S, LONGEST_RECONNECT_DELAY_S = 2.0, 60.0
# Limit on `stop`, and on the part of it that waits for the broker to confirm `offline`. systemd gives the
# daemon 30 s to end (TimeoutStopSec); the rest is for the other threads.
STOP_S, OFFLINE_S = 3.0, 2.0
# A message that is not acknowledged for so long: AWS IoT Core drops what is beyond its rates, other brokers
# what they deny.
ACKNOWLEDGED_S = 20.0
_TICK_S = 1.0


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
        start_spread_s: float = 0.0,
        spread_s: Callable[[], float] = float,
        chance: random.Random | None = None,
    ) -> None:
        """Prepare; `start` connects.

        Args:
            settings: Broker and credentials.
            client_id: Device id: a broker accepts one connection for each id.
            handlers: Handler of each subscribed topic, called in the connection's thread with the payload;
                must not block.
            online_topic: Topic of the retained `online`, and of `offline` as last will.
            on_connection: Called in the connection's thread after a connect, and when a topic is tried again,
                to publish retained state again.
            commands: As `handlers`, for topics of commands: retained messages are not passed on, or the
                command would run at every connect.
            on_acknowledged: Called in the connection's thread with the number of each message that the broker
                has, see `send`.
            start_spread_s: Longest wait before the first connect.
            spread_s: Returns the seconds over which the fleet spreads its connects; 0: it is small.
            chance: Draws delays; None: seeded by the system.
        """
        self._settings = settings
        self._client_id = client_id
        self._online_topic = online_topic
        self._commands = frozenset(commands or {})
        self._handlers = {**handlers, **(commands or {})}
        self._on_connection = _logged(on_connection)
        self._on_acknowledged = _logged(on_acknowledged)
        self._start_spread_s, self._spread_s = start_spread_s, spread_s
        self._chance = chance or random.Random()  # noqa: S311 - no secret
        self._denials = Denials()
        self._outgoing = Outgoing(paced=is_aws(settings))
        self._overdue: list[Use] = []
        self._client: Client | None = None
        self._connected_at: float | None = None
        self._answer: ReasonCode | None = None
        self._end: ReasonCode | None = None
        self._last_words: Callable[[], str] = str
        self._unanswered = 0
        self._fault: str | None = None
        self._waker, self._woken = socket.socketpair()
        for one in (self._waker, self._woken):
            one.setblocking(False)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        """Host and port, for messages."""
        return f"{self._settings.host}:{self._settings.port}"

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted the connection."""
        return self._connected_at is not None

    @property
    def fault(self) -> str | None:
        """Why there is no connection; None while there is one, or before the first try."""
        return self._fault

    @property
    def suspected_duplicate_id(self) -> str | None:
        """Message that another client seems to use this device's id; None without such evidence now."""
        if not self._denials.suspects_other_client:
            return None
        return (
            f"MQTT broker {self.address} ends connections though nothing was sent: another client connects "
            f"as {self._client_id}, or the broker fails. Give each device an id of its own, and let the "
            "broker tie ids to user names (configs/mosquitto.conf): else any password there can do this"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is wrong, each with its way out."""
        denied = [describe_denial(self.address, self._client_id, use) for use in self._denials.denied]
        found = (broker_doubt(self._settings), self._fault, self.suspected_duplicate_id, *denied)
        return tuple(one for one in found if one)

    def start(self) -> None:
        """Connect in the background, and again whenever the connection is lost or cannot be made."""
        if self._thread is None and (doubt := broker_doubt(self._settings)):
            logger.warning("%s", doubt)
        self._thread = threading.Thread(target=self._run, name="mqtt", daemon=True)
        self._thread.start()

    def revive(self) -> None:
        """Start the thread again if a bug ended it; to be called periodically."""
        if self._thread is None or not self._thread.is_alive():
            logger.warning("the MQTT thread had ended; started again")
            self.start()

    def send(self, topic: str, payload: bytes) -> int | None:
        """Send a message, again after the next connect if the connection is lost meanwhile; never waits.

        Returns: The number that `on_acknowledged` gets; None if it cannot be sent now.
        """
        if not self._denials.allows(use_of(topic)):
            return None
        return self._hand_over(lambda: self._outgoing.put(topic, payload, retain=False))

    def publish_state(self, topic: str, payload: bytes) -> bool:
        """Publish retained state.

        Returns: False if the caller has to publish it again: at the next connect, or soon if connected.
        """
        return self.retain(topic, payload) is not None

    def retain(self, topic: str, payload: bytes) -> int | None:
        """Publish retained state, as `send` does with a message.

        What the broker denies is dropped: `on_connection` is called when it is tried again.
        """
        if not self._denials.allows(use_of(topic)):
            return self._outgoing.number()
        return self._hand_over(lambda: self._outgoing.put(topic, payload, retain=True))

    def report(self, topic: str, payload: bytes) -> bool:
        """Send state that is not retained; a newer one takes its place.

        Returns: False if the caller has to send it again, after the next connect at the latest.
        """
        return self._denials.allows(use_of(topic)) and (
            self._hand_over(lambda: self._outgoing.report(topic, payload)) is not None
        )

    def stop(self) -> None:
        """Publish `offline` and disconnect, within `STOP_S`."""
        self._stopping.set()
        self._wake()
        if self._thread is not None:
            self._thread.join(STOP_S)

    def _hand_over(self, put: Callable[[], int]) -> int | None:
        """Queue a message and return its number; None if the queue is full, or there is no connection."""
        if not self.connected or len(self._outgoing) >= MAX_QUEUED_MESSAGES:
            return None
        number = put()
        self._wake()
        return number

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it wakes anyway
            self._waker.send(b"\0")

    # The thread

    def _run(self) -> None:
        self._stopping.wait(self._chance.uniform(0, self._start_spread_s))
        while not self._stopping.is_set():
            try:
                self._connect_and_serve()
            except Exception:
                # A malformed packet, or a bug: the next connection begins anew.
                logger.exception("MQTT broker %s: the connection failed", self.address)
                self._denials.failed()
            finally:
                self._connected_at = None
                if self._client is not None:
                    hang_up(self._client)
                self._outgoing.end()
            self._stopping.wait(self._chance.uniform(0, self._longest_delay_s()))

    def _longest_delay_s(self) -> float:
        """Return the longest delay before the next connect; each failure in a row doubles it."""
        doubled = FIRST_RECONNECT_DELAY_S * 2.0 ** min(max(self._denials.failures - 1, 0), 10)
        return max(min(doubled, LONGEST_RECONNECT_DELAY_S), self._spread_s())

    def _connect_and_serve(self) -> None:
        with_will = self._denials.may_try_will(time.monotonic(), self._unanswered)
        client = self._open(with_will=with_will)
        if client is None:
            return
        self._client, self._answer, self._end = client, None, None
        self._last_words = last_words(client)
        try:
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        except (OSError, ValueError) as e:
            self._note_fault(explain_connect_failure(e, self._settings))
            return
        if self._wait_answer(client):
            self._accepted(with_will=with_will)
            self._serve(client)
        else:
            self._not_accepted()

    def _open(self, *, with_will: bool) -> Client | None:
        """Return a client; None where password, CA or certificate cannot be read now."""
        try:
            client = open_client(self._settings, self._client_id)
        except EdgeError as e:
            self._note_fault(str(e))
            return None
        client.suppress_exceptions = True  # last resort to keep the thread alive
        if with_will:
            client.will_set(self._online_topic, OFFLINE, qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = _logged(self._subscribed)
        client.on_message = _logged(self._received)
        client.on_publish = _logged(self._acknowledged)
        return client

    def _on_connect(
        self, _client: Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._answer = reason

    def _on_disconnect(
        self, _client: Client, _userdata: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        self._end = reason

    def _wait_answer(self, client: Client) -> bool:
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        while self._answer is None and not self._stopping.is_set() and time.monotonic() < deadline:
            if not serve(client, _TICK_S, self._woken):
                break
        return self._answer is not None and not self._answer.is_failure

    def _not_accepted(self) -> None:
        if self._stopping.is_set():
            return
        if self._answer is not None:
            self._note_fault(explain_refusal(self._settings, self._client_id, str(self._answer)))
        elif self._end is None:
            way_out = broker_doubt(self._settings) or "correct [broker] host, port and tls"
            self._note_fault(
                f"MQTT broker {self.address}: no answer within {CONNECT_TIMEOUT_S:g} s; {way_out}"
            )
        else:
            self._unanswered += 1
            why = explain_early_end(
                self._settings,
                self._client_id,
                will_topic=self._online_topic,
                last_words=self._last_words(),
            )
            self._note_fault(why)

    def _note_fault(self, fault: str) -> None:
        self._denials.failed()
        if fault != self._fault:
            logger.warning("%s; trying again", fault)
        self._fault = fault

    def _accepted(self, *, with_will: bool) -> None:
        logger.info("MQTT broker %s: connected as %s", self.address, self._client_id)
        will = Use(Act.CONNECT, self._online_topic)
        if with_will:
            self._tell_mended(self._denials.acknowledged([will]))
        elif self._unanswered:
            self._denials.refused([will], time.monotonic())
            logger.error("%s", describe_denial(self.address, self._client_id, will))
        self._fault, self._unanswered = None, 0
        self._denials.accepted()
        self._subscribe()
        self._outgoing.put(self._online_topic, ONLINE, retain=True)
        self._connected_at = time.monotonic()
        self._on_connection()

    def _subscribe(self) -> None:
        uses = [Use(Act.SUBSCRIBE, topic) for topic in self._handlers]
        allowed = [use for use in uses if self._denials.allows(use)]
        size = 1 if self._denials.careful else SUBSCRIBED_AT_ONCE
        for first in range(0, len(allowed), size):
            self._outgoing.subscribe(tuple(allowed[first : first + size]))

    def _serve(self, client: Client) -> None:
        while not self._stopping.is_set():
            self._send_what_may_go(client)
            if not serve(client, self._wait_s(), self._woken):
                self._ended()
                return
            with contextlib.suppress(OSError):
                self._woken.recv(4096)
            self._tick(client)
        self._leave(client)

    def _wait_s(self) -> float:
        hurried = self._denials.careful or is_aws(self._settings)
        return GAP_S if hurried and self._outgoing.waits else _TICK_S

    def _tick(self, client: Client) -> None:
        now = time.monotonic()
        self._denials.lasted(now - (self._connected_at or now))
        if overdue := self._outgoing.overdue(now, ACKNOWLEDGED_S):
            self._overdue = overdue
            hang_up(client)  # `_ended` concludes
        elif (use := self._denials.next_try(now)) is not None:
            logger.info("MQTT broker %s: %s is tried again", self.address, use.topic)
            if use.act is Act.SUBSCRIBE:
                self._outgoing.subscribe((use,))
            elif use == use_of(self._online_topic):
                self._outgoing.put(self._online_topic, ONLINE, retain=True)
            else:
                self._on_connection()

    def _send_what_may_go(self, client: Client) -> None:
        now, careful = time.monotonic(), self._denials.careful
        if careful and now - (self._connected_at or now) < QUIET_S:
            return
        for operation in self._outgoing.take(now, self._denials.allows, careful=careful):
            if not self._send_now(client, operation, now):
                self._outgoing.put_back(operation)
                return

    def _send_now(self, client: Client, operation: Operation, now: float) -> bool:
        if operation.subscribes:
            code, mid = client.subscribe([(topic, 1) for topic in operation.topics])
        else:
            [topic] = operation.topics
            message = client.publish(topic, operation.payload, qos=1, retain=operation.retain)
            code, mid = message.rc, message.mid
        if mid is None or not is_sent(code):
            return False
        self._outgoing.sent(mid, operation, now)
        return True

    def _acknowledged(
        self, _client: Client, _userdata: object, mid: int, _reason: ReasonCode, _properties: object
    ) -> None:
        operation = self._outgoing.done(mid, time.monotonic())
        if operation is not None:
            self._tell_mended(self._denials.acknowledged(operation.uses))
            self._on_acknowledged(operation.number)

    def _subscribed(
        self, _client: Client, _userdata: object, mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        now = time.monotonic()
        operation = self._outgoing.done(mid, now)
        if operation is None:
            return
        answers = list(zip(operation.uses, reasons, strict=False))
        refused = [use for use, reason in answers if reason.is_failure]
        self._tell_mended(self._denials.acknowledged(use for use, reason in answers if not reason.is_failure))
        self._tell_denied(refused, self._denials.denied)
        self._denials.refused(refused, now)

    def _tell_mended(self, uses: Iterable[Use]) -> None:
        for use in uses:
            logger.info(
                "MQTT broker %s: lets %s %s %s now", self.address, self._client_id, use.act.value, use.topic
            )

    def _tell_denied(self, uses: Iterable[Use], known: Collection[Use]) -> None:
        for use in uses:
            level = logging.DEBUG if use in known else logging.ERROR
            logger.log(level, "%s", describe_denial(self.address, self._client_id, use))

    def _ended(self) -> None:
        now = time.monotonic()
        self._connected_at = None
        under_way = self._overdue or self._outgoing.suspects(now, careful=self._denials.careful)
        unanswered, self._overdue = bool(self._overdue), []
        known, by_broker = self._denials.denied, self._end is None or not was_silent(self._end)
        ending, uses = self._denials.ended(under_way, now, by_broker=by_broker)
        if ending is Ending.DENIED:
            self._tell_denied(uses, known)
        elif ending is Ending.SUSPECT:
            logger.warning("%s", describe_suspicion(self.address, uses, unanswered=unanswered))
        elif ending is Ending.TAKEN_OVER:
            logger.error("%s", self.suspected_duplicate_id)
        else:
            by = "it or the network closed it" if by_broker else "nothing was heard of it any more"
            logger.warning("MQTT broker %s: connection lost (%s); trying again", self.address, by)

    def _leave(self, client: Client) -> None:
        """Publish `offline` and disconnect; unconfirmed, the broker shall publish the last will."""
        offline = self._outgoing.state(self._online_topic, OFFLINE)
        deadline = time.monotonic() + OFFLINE_S
        allowed = self._denials.allows(offline.uses[0])
        sent = allowed and self._send_now(client, offline, time.monotonic())
        while sent and self._outgoing.is_under_way(offline):
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not serve(client, left_s):
                logger.debug("offline is not confirmed")
                return
        client.disconnect()
        serve(client, 0)

    def _received(self, _client: Client, _userdata: object, message: Message) -> None:
        if message.retain and message.topic in self._commands:
            logger.warning("%s: a retained command is ignored; publish it without retain", message.topic)
        elif handler := self._handlers.get(message.topic):
            handler(bytes(message.payload))
        else:
            logger.debug("%s: a message on a topic that was not subscribed", message.topic)


def _logged(callback: Callable[..., None]) -> Callable[..., None]:
    """Wrap a callback to log its exceptions: one that raised would end the connection's thread."""

    @functools.wraps(callback)
    def call(*arguments: Any) -> None:  # noqa: ANN401 - paho's
        try:
            callback(*arguments)
        except Exception:
            # The connection stays: one message is lost, or one state until it is published again.
            logger.exception("MQTT: %s failed", getattr(callback, "__name__", callback))

    return call
