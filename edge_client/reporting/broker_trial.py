"""Use a broker as the daemon will, topic by topic and within a few seconds; for `doctor`."""

from __future__ import annotations

import dataclasses
import enum
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.broker_tls import (
    broker_doubt,
    explain_connect_failure,
    explain_early_end,
    explain_refusal,
    is_aws,
    is_passing_refusal,
)
from edge_client.contract.errors import EdgeError, TransportError
from edge_client.reporting.denials import Act, Use
from edge_client.reporting.mqtt_client import last_words, open_client, serve

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_client.reporting.mqtt_client import Client, Message, ReasonCode
    from edge_client.settings.reporting import BrokerSettings

# Of the whole trial, of one answer, and of a message's way back: `doctor` ends within 10 s.
TRIAL_S, ANSWER_S, ECHO_S = 7.0, 3.0, 1.5
# AWS IoT Core takes one connection a second with an id.
_BETWEEN_S = 1.1


@dataclasses.dataclass(frozen=True)
class Probe:
    """One use of a topic.

    Attributes:
        use: What is done with the topic.
        payload: For a PUBLISH, one that does no harm: what is retained there already, or nothing.
        retain: Whether it is published retained.
    """

    use: Use
    payload: bytes = b""
    retain: bool = False


@dataclasses.dataclass
class Findings:
    """What a trial found.

    Attributes:
        allowed: Topics that may be used, as far as the broker tells.
        denied: Topics that it denies, by word or by ending the connection.
        silent: Topics on which it does not answer, and stays connected.
        unseen: Topics whose messages it took, and dropped.
        untried: Topics for which there was no time.
    """

    allowed: list[Use] = dataclasses.field(default_factory=list)
    denied: list[Use] = dataclasses.field(default_factory=list)
    silent: list[Use] = dataclasses.field(default_factory=list)
    unseen: list[Use] = dataclasses.field(default_factory=list)
    untried: list[Use] = dataclasses.field(default_factory=list)


class RefusedError(TransportError):
    """The broker does not let this client connect."""


class Echo(enum.Enum):
    """What became of a message to a topic that the trial itself listens to."""

    CAME_BACK = "came back"
    DROPPED = "dropped"
    DENIED = "denied"


class BrokerTrial:
    """The trial of one broker, with several connections where it ends them."""

    def __init__(self, settings: BrokerSettings, client_id: str, *, will: Probe | None = None) -> None:
        """Prepare.

        Args:
            settings: Broker and credentials.
            client_id: The device's own only while no daemon runs, whose connection would end.
            will: Last will; None: connect without one. The broker publishes it where it ends the connection.
        """
        self._settings = settings
        self._client_id = client_id
        self._will = will
        self._deadline = time.monotonic() + TRIAL_S
        self._answers: list[ReasonCode] = []
        self._acknowledged: set[int] = set()
        self._granted: dict[int, bool] = {}
        self._received: list[tuple[str, bytes]] = []

    def run(self, probes: Sequence[Probe], echo: Probe) -> tuple[Findings, Echo]:
        """Use each topic.

        Args:
            probes: Uses of topics, each tried alone.
            echo: A message to a topic of the device that only this trial uses; it is subscribed, too.
        Returns: What was found, and what became of the message.
        Raises: TransportError if the broker cannot be reached or refuses; SettingsError; DeviceError.
        """
        outcome: list[tuple[Findings, Echo] | EdgeError] = []

        def act() -> None:
            try:
                outcome.append(self._run(probes, echo))
            except EdgeError as e:
                outcome.append(e)

        # In a thread: a name server that hangs must not hang the command.
        thread = threading.Thread(target=act, name="broker trial", daemon=True)
        thread.start()
        thread.join(TRIAL_S + 0.3)
        if not outcome:
            raise TransportError(self._no_answer(TRIAL_S))
        if isinstance(outcome[0], EdgeError):
            raise outcome[0]
        return outcome[0]

    def _run(self, probes: Sequence[Probe], echo: Probe) -> tuple[Findings, Echo]:
        findings, waiting = Findings(), list(probes)
        client = self._connect()
        client, listens = self._listen(client, echo.use.topic)
        while waiting:
            if self._left_s() < _BETWEEN_S + 1.0:
                findings.untried += [probe.use for probe in waiting]
                break
            probe = waiting.pop(0)
            answer = self._try(client, probe)
            silent = answer is None and client.socket() is not None
            found = findings.silent if silent else findings.allowed if answer else findings.denied
            found.append(probe.use)
            if client.socket() is None:
                client = self._connect_again()
                client, listens = self._listen(client, echo.use.topic) if listens else (client, False)
        outcome = self._echo(client, echo)
        if listens and outcome is Echo.CAME_BACK:
            self._find_unseen(client, findings, echo.use.topic)
        client.disconnect()
        serve(client, 0)
        return findings, outcome

    def _listen(self, client: Client, topic: str) -> tuple[Client, bool]:
        """Subscribe all topics of the device, if it may: what is dropped in silence is then seen."""
        if is_aws(self._settings):
            return client, False  # it drops nothing in silence, and would end the connection
        listens = self._try(client, Probe(Use(Act.SUBSCRIBE, f"{topic.rpartition('/')[0]}/#")))
        return (client, bool(listens)) if client.socket() else (self._connect_again(), False)

    def _find_unseen(self, client: Client, findings: Findings, topic: str) -> None:
        base = topic.rpartition("/")[0]
        sent = [
            use for use in findings.allowed if use.act is Act.PUBLISH and use.topic.startswith(f"{base}/")
        ]

        def unseen() -> list[Use]:
            seen = {received for received, _ in self._received}
            return [use for use in sent if use.topic not in seen]

        self._serve_until(client, lambda: not unseen(), ECHO_S)
        findings.unseen = unseen()
        findings.allowed = [use for use in findings.allowed if use not in findings.unseen]

    def _try(self, client: Client, probe: Probe) -> bool | None:
        """Use a topic once; return whether the broker allows it, None without an answer."""
        topic = probe.use.topic
        if probe.use.act is Act.SUBSCRIBE:
            _, mid = client.subscribe(topic, 1)
            self._serve_until(client, lambda: mid in self._granted)
            return None if mid is None else self._granted.get(mid)
        number = client.publish(topic, probe.payload, qos=1, retain=probe.retain).mid
        return self._serve_until(client, lambda: number in self._acknowledged) or None

    def _echo(self, client: Client, echo: Probe) -> Echo:
        """Return what becomes of a message: there is no other proof that a broker drops none in silence.

        Source: MQTT 3.1.1, section 3.3.5: a server may acknowledge what it does not publish.
        """
        topic, sent = echo.use.topic, (echo.use.topic, echo.payload)
        if not self._try(client, Probe(Use(Act.SUBSCRIBE, topic))) or not self._try(client, echo):
            return Echo.DENIED
        came_back = self._serve_until(client, lambda: sent in self._received, ECHO_S)
        return Echo.CAME_BACK if came_back else Echo.DROPPED

    def _connect_again(self) -> Client:
        time.sleep(_BETWEEN_S)
        return self._connect()

    def _connect(self) -> Client:
        """Return a client that the broker accepted. Raises: TransportError; SettingsError; DeviceError."""
        client = open_client(self._settings, self._client_id)
        words = last_words(client)
        client.connect_timeout = min(ANSWER_S, max(self._left_s(), 0.1))
        if self._will is not None:
            client.will_set(self._will.use.topic, self._will.payload, qos=1, retain=True)
        # Each client numbers its packets from 1.
        self._answers, self._acknowledged, self._granted = [], set(), {}
        client.on_connect = lambda _c, _u, _f, reason, _p: self._answers.append(reason)
        client.on_publish = lambda _c, _u, number, *_: self._acknowledged.add(number)
        client.on_subscribe = self._subscribed
        client.on_message = self._note_message
        try:
            client.connect(self._settings.host, self._settings.port, self._settings.keepalive_s)
        except (OSError, ValueError) as e:
            raise TransportError(explain_connect_failure(e, self._settings)) from e
        self._serve_until(client, lambda: bool(self._answers))
        if not self._answers:
            ended = client.socket() is None
            raise (
                RefusedError(self._ended_early(words()))
                if ended
                else TransportError(self._no_answer(ANSWER_S))
            )
        if self._answers[0].is_failure:
            reason = str(self._answers[0])
            refused = TransportError if is_passing_refusal(reason) else RefusedError
            raise refused(explain_refusal(self._settings, self._client_id, reason))
        return client

    def _subscribed(
        self, _client: Client, _userdata: object, number: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        self._granted[number] = not any(reason.is_failure for reason in reasons)

    def _note_message(self, _client: Client, _userdata: object, message: Message) -> None:
        self._received.append((message.topic, bytes(message.payload)))

    def _serve_until(
        self, client: Client, happened: Callable[[], bool], limit_s: float | None = None
    ) -> bool:
        """Serve until something happened; false if it did not in time, or the connection ended."""
        deadline = min(time.monotonic() + (ANSWER_S if limit_s is None else limit_s), self._deadline)
        while not happened():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not serve(client, left_s):
                break
        return happened()

    def _left_s(self) -> float:
        return self._deadline - time.monotonic()

    @property
    def _address(self) -> str:
        return f"{self._settings.host}:{self._settings.port}"

    def _ended_early(self, words: str) -> str:
        topic = "" if self._will is None else self._will.use.topic
        return explain_early_end(self._settings, self._client_id, will_topic=topic, last_words=words)

    def _no_answer(self, limit_s: float) -> str:
        way_out = broker_doubt(self._settings) or "correct [broker] host, port and tls"
        return f"MQTT broker {self._address}: no answer within {limit_s:g} s; {way_out}"
