"""A broker as strict as AWS IoT Core: its limits, its policies, and its way to refuse, which is to hang up.

Sources: "AWS IoT Core endpoints and quotas" (AWS General Reference) for the limits; "AWS IoT Core policies",
"MQTT" and "Retained message policy examples" (AWS IoT Core Developer Guide) for policies and the last will.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import re
import socket
import struct
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator, Mapping
    from typing import Self

REGION, ACCOUNT = "eu-central-1", "123456789012"
CONFIGS = Path(__file__).resolve().parents[2] / "configs"

FILTERS_PER_SUBSCRIBE, SUBSCRIPTIONS = 8, 50
PAYLOAD_BYTES, TOPIC_BYTES, CLIENT_ID_BYTES, SLASHES = 128 * 1024, 256, 128, 7
PUBLISHES_PER_S, RETAINED_EVERY_S, CONNECT_EVERY_S = 100, 1.0, 1.0
KEEPALIVE_S = (30, 1200)
POLICY_CHARACTERS = 2048  # without white space

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK, PINGREQ, PINGRESP, DISCONNECT = (
    1,
    2,
    3,
    4,
    8,
    9,
    12,
    13,
    14,
)


class HangUpError(Exception):
    """The connection ends, without a word to the client; the reason goes to the log of the broker."""


def load_policy(file: str, fleet: str) -> dict[str, Any]:
    """Return a policy of `configs/`, filled in as docs/brokers.md has it."""
    text = (CONFIGS / file).read_text()
    for word, value in (("REGION", REGION), ("ACCOUNT", ACCOUNT), ("FLEET", fleet)):
        text = text.replace(word, value)
    return dict(json.loads(text))


def without(policy: Mapping[str, Any], *parts: str) -> dict[str, Any]:
    """Return a policy without the resources that hold one of these texts."""
    statements = [
        {
            **statement,
            "Resource": [
                one for one in _listed(statement["Resource"]) if not any(part in one for part in parts)
            ],
        }
        for statement in policy["Statement"]
    ]
    return {**policy, "Statement": statements}


def allows(policy: Mapping[str, Any], action: str, resource: str, context: Mapping[str, Any]) -> bool:
    """Evaluate a policy: an explicit deny wins, and what no statement allows is denied."""
    effects = [
        statement["Effect"]
        for statement in policy["Statement"]
        if action in _listed(statement["Action"])
        and any(_matches(one, resource, context) for one in _listed(statement["Resource"]))
        and _holds(statement.get("Condition", {}), context)
    ]
    return "Allow" in effects and "Deny" not in effects


def _listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _matches(pattern: str, resource: str, context: Mapping[str, Any]) -> bool:
    """`*` is any text, slashes too, `+` and `#` are letters, and an unknown variable matches nothing."""
    for name in re.findall(r"\$\{([^}]+)\}", pattern):
        if name not in context:
            return False
        pattern = pattern.replace(f"${{{name}}}", str(context[name]))
    return fnmatch.fnmatchcase(resource, pattern.replace("[", "[[]"))


def _holds(conditions: Mapping[str, Mapping[str, Any]], context: Mapping[str, Any]) -> bool:
    for operator, keys in conditions.items():
        for key, wanted in keys.items():
            if operator == "Bool":
                holds = str(context.get(key, "false")).lower() in _listed(wanted)
            elif operator == "ForAllValues:StringEquals":
                holds = set(context.get(key, ())) <= set(_listed(wanted))
            else:
                raise ValueError(operator)
            if not holds:
                return False
    return True


@dataclasses.dataclass
class _Client:
    """One connection."""

    socket: socket.socket
    principal: str
    id: str = ""
    will: tuple[str, bytes, bool] | None = None
    filters: set[str] = dataclasses.field(default_factory=set)
    published: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=PUBLISHES_PER_S))
    sending: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def send(self, kind: int, body: bytes, flags: int = 0) -> None:
        length, size = len(body), b""
        while True:
            length, digit = divmod(length, 128)
            size += bytes([digit | (128 if length else 0)])
            if not length:
                break
        with self.sending, contextlib.suppress(OSError):
            self.socket.sendall(bytes([kind << 4 | flags]) + size + body)


class AwsIotBroker:
    """The broker on a loopback port.

    Attributes:
        policies: Policy of each principal (the certificate's name; "" without TLS); may change at any time.
        things: Names of the things that a principal is attached to; without an entry, the one of its name.
        log: What a reader of CloudWatch would see: (client id, act, topic, outcome).
        retained: Retained messages by topic.
    """

    def __init__(self, policies: Mapping[str, Mapping[str, Any]], tls: ssl.SSLContext | None = None) -> None:
        self.policies = dict(policies)
        self.things: dict[str, set[str]] = {}
        self.log: list[tuple[str, str, str, str]] = []
        self.retained: dict[str, bytes] = {}
        self.host = "127.0.0.1"
        self._tls = tls
        self._clients: dict[str, _Client] = {}
        self._connected_at: dict[str, float] = {}
        self._retained_at: dict[str, float] = {}
        self._changing = threading.RLock()
        self._server = socket.create_server((self.host, 0))
        self.port: int = self._server.getsockname()[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.close()
        for client in list(self._clients.values()):
            _close(client.socket)

    def connections(self, client_id: str) -> int:
        """How often a client was accepted."""
        return self.count(client_id, "connect", "ok")

    def count(self, client_id: str, act: str, outcome: str) -> int:
        return sum(one[0] == client_id and one[1] == act and one[3] == outcome for one in tuple(self.log))

    @property
    def refusals(self) -> list[tuple[str, str, str, str]]:
        """What was not allowed."""
        return [one for one in tuple(self.log) if one[3] != "ok"]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        client = None
        left = False
        try:
            principal = ""
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
                if getattr(self._tls, "wants_alpn", False) and connection.selected_alpn_protocol() is None:
                    raise HangUpError("ALPN")
                certificate: Any = connection.getpeercert() or {}
                subject = dict(one[0] for one in certificate.get("subject", ()))
                principal = subject.get("commonName", "")
            client = _Client(connection, principal)
            for kind, flags, body in _packets(connection):
                if kind == DISCONNECT:
                    left = True
                    break
                self._handle(client, kind, flags, body)
        except HangUpError as e:
            self._note(client, *e.args) if len(e.args) == 3 else None
        except (OSError, struct.error, IndexError):
            pass
        finally:
            _close(connection)
            if client is not None:
                self._forget(client, left=left)

    def _forget(self, client: _Client, *, left: bool) -> None:
        with self._changing:
            if self._clients.get(client.id) is client:
                del self._clients[client.id]
        if client.will is not None and not left and client.id:
            self._route(*client.will)

    def _note(self, client: _Client | None, act: str, topic: str, outcome: str) -> None:
        self.log.append((client.id if client else "", act, topic, outcome))

    def _handle(self, client: _Client, kind: int, flags: int, body: bytes) -> None:
        if kind == CONNECT:
            self._connect(client, body)
        elif not client.id:
            raise HangUpError("protocol", "", "no CONNECT")
        elif kind == PUBLISH:
            self._publish(client, flags, body)
        elif kind == SUBSCRIBE:
            self._subscribe(client, body)
        elif kind == PINGREQ:
            client.send(PINGRESP, b"")

    def _check(self, client: _Client, action: str, kind: str, name: str, **context: object) -> None:
        things = self.things.get(client.principal, {client.principal} if client.principal else {client.id})
        known: dict[str, object] = {"iot:ClientId": client.id, **context}
        if client.id in things:
            known |= {"iot:Connection.Thing.ThingName": client.id, "iot:Connection.Thing.IsAttached": "true"}
        policy = self.policies.get(client.principal, {"Statement": []})
        if not allows(policy, f"iot:{action}", f"arn:aws:iot:{REGION}:{ACCOUNT}:{kind}/{name}", known):
            raise HangUpError(action, name, "denied by policy")

    def _connect(self, client: _Client, body: bytes) -> None:
        level, options, keepalive_s = struct.unpack_from(">BBH", body, 6)
        assert body[:6] == b"\x00\x04MQTT"
        name, position = _text(body, 10)
        client.id, attributes = name.decode(), []
        if options & 4:
            topic, position = _text(body, position)
            payload, position = _text(body, position)
            client.will = (topic.decode(), payload, bool(options & 0x20))
            attributes.append("LastWill")
        if not options & 2:
            attributes.append("PersistentConnect")
        if level != 4 or not 0 < len(name) <= CLIENT_ID_BYTES or client.id.startswith("$"):
            raise HangUpError("connect", client.id, "not a client id, or not MQTT 3.1.1")
        will, client.will = client.will, None
        self._check(client, "Connect", "client", client.id, **{"iot:ConnectAttributes": attributes})
        if will is not None:
            self._check_publish(client, will[0], will[1], retain=will[2])
        with self._changing:
            now = time.monotonic()
            if now - self._connected_at.get(client.id, float("-inf")) < CONNECT_EVERY_S:
                raise HangUpError("connect", client.id, "more than one CONNECT a second")
            self._connected_at[client.id] = now
            before, self._clients[client.id] = self._clients.get(client.id), client
        if before is not None:
            _close(before.socket)
        client.will = will
        client.socket.settimeout(
            1.5 * min(max(keepalive_s or KEEPALIVE_S[1], KEEPALIVE_S[0]), KEEPALIVE_S[1])
        )
        self._note(client, "connect", "", "ok")
        client.send(CONNACK, b"\0\0")

    def _check_topic(self, act: str, topic: str) -> None:
        if len(topic.encode()) > TOPIC_BYTES or topic.count("/") > SLASHES or topic.startswith("$"):
            raise HangUpError(act, topic, "topic too long, too deep, or reserved")

    def _check_publish(self, client: _Client, topic: str, payload: bytes, *, retain: bool) -> None:
        self._check_topic("Publish", topic)
        if len(payload) > PAYLOAD_BYTES:
            raise HangUpError("Publish", topic, "payload too large")
        self._check(client, "Publish", "topic", topic)
        if retain:
            self._check(client, "RetainPublish", "topic", topic)

    def _publish(self, client: _Client, flags: int, body: bytes) -> None:
        qos, retain = flags >> 1 & 3, bool(flags & 1)
        name, position = _text(body, 0)
        topic, number = name.decode(), body[position : position + 2]
        payload = body[position + 2 :] if qos else body[position:]
        if qos == 2:
            raise HangUpError("Publish", topic, "QoS 2")
        self._check_publish(client, topic, payload, retain=retain)
        now = time.monotonic()
        if len(client.published) == PUBLISHES_PER_S and now - client.published[0] < 1.0:
            self._note(client, "publish", topic, "throttled")
            return
        client.published.append(now)
        if retain:
            if now - self._retained_at.get(topic, float("-inf")) < RETAINED_EVERY_S:
                self._note(client, "publish", topic, "throttled")
                return
            self._retained_at[topic] = now
        self._note(client, "publish", topic, "ok")
        self._route(topic, payload, retain)
        if qos:
            client.send(PUBACK, number)

    def _route(self, topic: str, payload: bytes, retain: bool) -> None:
        with self._changing:
            if retain and payload:
                self.retained[topic] = payload
            elif retain:
                self.retained.pop(topic, None)
            receivers = [one for one in self._clients.values() if any(_fits(f, topic) for f in one.filters)]
        for one in receivers:
            self._deliver(one, topic, payload, retained=False)

    def _deliver(self, client: _Client, topic: str, payload: bytes, *, retained: bool) -> None:
        try:
            self._check(client, "Receive", "topic", topic)
        except HangUpError as e:
            self._note(client, *e.args)
            _close(client.socket)
            return
        client.send(
            PUBLISH, struct.pack(">H", len(topic.encode())) + topic.encode() + payload, flags=int(retained)
        )

    def _subscribe(self, client: _Client, body: bytes) -> None:
        filters, position = [], 2
        while position < len(body):
            name, position = _text(body, position)
            filters.append(name.decode())
            position += 1
        if len(filters) > FILTERS_PER_SUBSCRIBE:
            raise HangUpError("Subscribe", ", ".join(filters), "more than 8 filters")
        answers = bytearray()
        for one in filters:
            self._check_topic("Subscribe", one)
            self._check(client, "Subscribe", "topicfilter", one)
            full = len(client.filters) >= SUBSCRIPTIONS
            answers.append(0x80 if full else 1)
            if not full:
                client.filters.add(one)
                self._note(client, "subscribe", one, "ok")
        client.send(SUBACK, body[:2] + bytes(answers))
        for topic, payload in list(self.retained.items()):
            if any(_fits(one, topic) for one in filters):
                self._deliver(client, topic, payload, retained=True)


def _fits(filter_: str, topic: str) -> bool:
    wanted, parts = filter_.split("/"), topic.split("/")
    if wanted[-1] == "#":
        wanted, parts = wanted[:-1], parts[: len(wanted) - 1]
    return len(wanted) == len(parts) and all(
        one in {"+", part} for one, part in zip(wanted, parts, strict=True)
    )


def _text(data: bytes, position: int) -> tuple[bytes, int]:
    (length,) = struct.unpack_from(">H", data, position)
    end = position + 2 + length
    return data[position + 2 : end], end


def _packets(connection: socket.socket) -> Iterator[tuple[int, int, bytes]]:
    while first := connection.recv(1):
        length, shift = 0, 0
        while True:
            (digit,) = _read(connection, 1)
            length |= (digit & 127) << shift
            shift += 7
            if not digit & 128:
                break
        yield first[0] >> 4, first[0] & 15, _read(connection, length)


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise OSError("closed")
        data += more
    return data


def _close(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
