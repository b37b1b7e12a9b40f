"""The broker connection, against a broker that misbehaves on purpose."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
import uuid

import pytest
from local_services import MqttBroker, free_ports, wait_until
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.reporting import broker as mqtt
from edge_client.reporting import denials
from edge_client.reporting.broker import BrokerConnection
from edge_client.settings.reporting import BrokerSettings
from tests.fakes.broker_connection import try_connection

LIMIT_S = 60.0
CONNACK = b"\x20\x02\x00\x00"
NOT_AUTHORIZED = b"\x20\x02\x00\x05"


class RudeBroker:
    """Accepts connections, answers CONNECT as told, and hands the socket to the test."""

    def __init__(self, answer: bytes = CONNACK) -> None:
        self.answer = answer
        self.connections: queue.Queue[socket.socket] = queue.Queue()
        self.client_ids: list[str] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            data = connection.recv(1024)
            position = 2 + 10
            (length,) = struct.unpack_from(">H", data, position)
            self.client_ids.append(data[position + 2 : position + 2 + length].decode())
            connection.sendall(self.answer)
            self.connections.put(connection)

    def next(self) -> socket.socket:
        return self.connections.get(timeout=LIMIT_S)

    def close(self) -> None:
        self._server.close()


@pytest.fixture
def rude():
    broker = RudeBroker()
    yield broker
    broker.close()


class Connection:
    """A connection and what it handed over."""

    def __init__(self, port: int, **options) -> None:
        self.name = uuid.uuid4().hex[:8]
        self.messages: queue.Queue[bytes] = queue.Queue()
        self.connected = threading.Semaphore(0)
        self.connection = BrokerConnection(
            BrokerSettings(port=port, keepalive_s=5),
            "camera-1",
            handlers={f"{self.name}/in": options.get("on_message", self.messages.put)},
            commands={f"{self.name}/do": self.messages.put},
            online_topic=f"{self.name}/online",
            on_connection=options.get("on_connection", self.connected.release),
        )
        if options.get("start", True):
            self.connection.start()

    def wait(self) -> None:
        assert self.connected.acquire(timeout=LIMIT_S)


@pytest.fixture
def open_connection(monkeypatch):
    # A rude broker never acknowledges.
    monkeypatch.setattr(mqtt, "STOP_S", 1.0)
    monkeypatch.setattr(mqtt, "OFFLINE_S", 0.2)
    opened = []

    def open_(port: int, **options) -> Connection:
        opened.append(Connection(port, **options))
        return opened[-1]

    yield open_
    for one in opened:
        one.connection.stop()


@pytest.fixture
def friend(mqtt_broker):
    """Another client of the real broker."""
    client = paho.Client(CallbackAPIVersion.VERSION2)
    client.connect(mqtt_broker.host, mqtt_broker.port)
    client.loop_start()
    yield client
    client.disconnect()
    client.loop_stop()


def test_it_subscribes_again_after_the_broker_forgot_everything(tmp_path, open_connection):
    with MqttBroker(tmp_path) as broker:
        device = open_connection(broker.port)
        device.wait()
        broker.stop()
        broker.start()
        device.wait()
        friend = paho.Client(CallbackAPIVersion.VERSION2)
        friend.connect(broker.host, broker.port)
        friend.loop_start()
        friend.publish(f"{device.name}/in", b"heard", qos=1, retain=True).wait_for_publish(LIMIT_S)
        assert device.messages.get(timeout=LIMIT_S) == b"heard"
        friend.disconnect()
        friend.loop_stop()


def test_an_exception_in_a_callback_does_not_stop_reception(mqtt_broker, friend, open_connection, caplog):
    heard: queue.Queue[bytes] = queue.Queue()

    def fail_first(payload: bytes) -> None:
        heard.put(payload)
        if payload == b"1":
            raise RuntimeError("a bug")

    device = open_connection(mqtt_broker.port, on_message=fail_first)
    device.wait()
    for payload in (b"1", b"2"):
        friend.publish(f"{device.name}/in", payload, qos=1, retain=True).wait_for_publish(LIMIT_S)
        assert heard.get(timeout=LIMIT_S) == payload
    assert "RuntimeError: a bug" in caplog.text  # and where, for whoever has to mend it


def test_an_exception_in_on_connection_keeps_the_connection(mqtt_broker, friend, open_connection, caplog):
    greeted = threading.Event()

    def fail() -> None:
        greeted.set()
        raise RuntimeError("a bug")

    device = open_connection(mqtt_broker.port, on_connection=fail)
    assert greeted.wait(LIMIT_S)
    friend.publish(f"{device.name}/in", b"heard", qos=1, retain=True).wait_for_publish(LIMIT_S)
    assert device.messages.get(timeout=LIMIT_S) == b"heard"
    assert "RuntimeError: a bug" in caplog.text


def wait_subscribed(device: Connection, friend: paho.Client) -> None:
    """Publish until a message arrives: the connection is reported before the broker has the subscription."""
    for number in range(100):
        friend.publish(f"{device.name}/in", str(number).encode(), qos=1).wait_for_publish(LIMIT_S)
        with contextlib.suppress(queue.Empty):
            while device.messages.get(timeout=0.2) != str(number).encode():
                pass
            return
    pytest.fail("no message arrived")


def test_a_retained_command_is_not_run_at_every_connect(mqtt_broker, friend, open_connection, caplog):
    device = open_connection(mqtt_broker.port)
    device.wait()
    wait_subscribed(device, friend)
    friend.publish(f"{device.name}/do", b"now", qos=1, retain=True).wait_for_publish(LIMIT_S)
    assert device.messages.get(timeout=LIMIT_S) == b"now"
    device.connection._client.socket().shutdown(socket.SHUT_RDWR)
    device.wait()
    wait_subscribed(device, friend)
    friend.publish(f"{device.name}/in", b"last", qos=1).wait_for_publish(LIMIT_S)
    assert device.messages.get(timeout=LIMIT_S) == b"last"
    assert "a retained command is ignored" in caplog.text


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_malformed_packet_does_not_stop_reception(rude, open_connection):
    device = open_connection(rude.port)
    connection = rude.next()
    device.wait()
    connection.sendall(b"\x30\x01\x00")  # PUBLISH too short for its topic's length
    for _ in range(100):
        device.connection.revive()
        if device.connected.acquire(timeout=0.1):
            break
    else:
        pytest.fail("it did not come back")
    rude.next()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_ended_is_started_again(mqtt_broker, friend, open_connection):
    heard: queue.Queue[bytes] = queue.Queue()

    def end_thread(payload: bytes) -> None:
        if payload == b"end":
            raise SystemExit
        heard.put(payload)

    device = open_connection(mqtt_broker.port, on_message=end_thread)
    device.wait()
    friend.publish(f"{device.name}/in", b"end", qos=1).wait_for_publish(LIMIT_S)
    friend.publish(f"{device.name}/in", b"heard", qos=1, retain=True).wait_for_publish(LIMIT_S)
    for _ in range(100):
        device.connection.revive()
        if device.connected.acquire(timeout=0.1):
            break
    assert heard.get(timeout=LIMIT_S) == b"heard"


def test_a_lost_connection_is_reestablished(rude, open_connection):
    device = open_connection(rude.port)
    rude.next().close()
    device.wait()
    rude.next()
    device.wait()
    assert rude.client_ids == ["camera-1", "camera-1"]


def test_state_that_does_not_fit_into_the_queue_is_reported_as_unsent(rude, open_connection, monkeypatch):
    monkeypatch.setattr(mqtt, "MAX_QUEUED_MESSAGES", 4)
    device = open_connection(rude.port)
    connection = rude.next()
    device.wait()
    wait_until(lambda: device.connection.connected, "the connection")
    # The subscription and `online` are there too, and nothing is confirmed.
    answers = [device.connection.publish_state(f"edge/{number}", b"state") for number in range(8)]
    assert (answers[0], answers[-1]) == (True, False)
    assert device.connection.send("x", b"result") is None
    connection.close()


def test_an_unconfirmed_offline_leaves_it_to_the_last_will(rude, open_connection):
    device = open_connection(rude.port)
    connection = rude.next()
    device.wait()
    started = time.monotonic()
    device.connection.stop()
    assert time.monotonic() - started < 1.5
    connection.settimeout(LIMIT_S)
    said = b"".join(iter(lambda: connection.recv(4096), b""))
    assert b"offline" in said
    assert not said.endswith(b"\xe0\x00")  # no DISCONNECT, after which a broker forgets the will


def test_a_hanging_broker_does_not_delay_the_stop(open_connection):
    with socket.create_server(("127.0.0.1", 0), backlog=1) as silent:  # accepts, and says nothing
        device = open_connection(silent.getsockname()[1])
        accepted, _ = silent.accept()
        started = time.monotonic()
        device.connection.stop()
        assert time.monotonic() - started < 1.5
        accepted.close()


def test_a_client_with_the_same_id_is_suspected(mqtt_broker, open_connection, caplog, monkeypatch):
    monkeypatch.setattr(denials, "TAKEOVERS", 2)
    device = open_connection(mqtt_broker.port)
    for _ in range(2):
        device.wait()
        wait_until(lambda: not len(device.connection._outgoing), "the acknowledgements")
        assert device.connection.suspected_duplicate_id is None
        twin = paho.Client(CallbackAPIVersion.VERSION2, client_id="camera-1")
        twin.connect(mqtt_broker.host, mqtt_broker.port)
        twin.loop_start()
        wait_until(lambda: not device.connection.connected, "the end of the connection")
        twin.disconnect()
        twin.loop_stop()
    device.wait()
    assert "another client connects as camera-1, or the broker fails" in caplog.text
    assert "policy" not in caplog.text
    assert "another client connects as camera-1" in (device.connection.suspected_duplicate_id or "")
    monkeypatch.setattr(denials, "SUSPECTED_S", 0.0)  # it was long ago
    wait_until(lambda: device.connection.suspected_duplicate_id is None, "trust")


def test_doctor_distinguishes_the_refusals_of_a_broker(rude, mqtt_broker):
    try_connection(BrokerSettings(port=mqtt_broker.port), "probe")
    rude.answer = NOT_AUTHORIZED
    with pytest.raises(TransportError, match="check \\[broker\\] username"):
        try_connection(BrokerSettings(port=rude.port), "probe")
    with pytest.raises(TransportError, match="start it, or correct"):
        try_connection(BrokerSettings(port=free_ports(1)[0]), "probe")


def test_a_missing_ca_file_is_a_settings_error(tmp_path):
    settings = BrokerSettings(tls=True, ca_file=str(tmp_path / "none.pem"))
    with pytest.raises(SettingsError, match="ca_file"):
        try_connection(settings, "probe")
