"""The broker connection, against a broker that misbehaves on purpose."""

from __future__ import annotations

import queue
import socket
import struct
import threading
import uuid

import pytest
from local_services import MqttBroker, free_ports
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_client import mqtt
from edge_client.contract.errors import SettingsError, TransportError
from edge_client.mqtt import BrokerConnection, try_connection
from edge_client.settings import BrokerSettings

LIMIT_S = 15.0
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
            online_topic=f"{self.name}/online",
            on_connection=self.connected.release,
        )
        self.connection.start()

    def wait(self) -> None:
        assert self.connected.acquire(timeout=LIMIT_S)


@pytest.fixture
def open_connection(monkeypatch):
    monkeypatch.setattr(mqtt, "FAREWELL_S", 0.2)  # a rude broker never acknowledges
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


def test_a_callback_that_raises_does_not_make_it_deaf(mqtt_broker, friend, open_connection):
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_malformed_packet_does_not_make_it_deaf(rude, open_connection):
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


def test_a_lost_connection_is_made_again(rude, open_connection):
    device = open_connection(rude.port)
    rude.next().close()
    device.wait()
    rude.next()
    device.wait()
    assert rude.client_ids == ["camera-1", "camera-1"]


def test_messages_wait_for_the_broker_up_to_a_limit(tmp_path, open_connection, monkeypatch, caplog):
    monkeypatch.setattr(mqtt, "MAX_QUEUED_MESSAGES", 5)
    broker = MqttBroker(tmp_path)
    device = open_connection(broker.port)
    for number in range(8):
        device.connection.publish(f"{device.name}/results", str(number).encode())
    assert caplog.text.count("newer ones are dropped") == 1
    assert not device.connection.publish_state("x", b"state")
    heard: queue.Queue[bytes] = queue.Queue()
    with broker:
        friend = paho.Client(CallbackAPIVersion.VERSION2)
        subscribed = threading.Event()
        friend.on_subscribe = lambda *_: subscribed.set()
        friend.on_message = lambda _c, _u, message: heard.put(bytes(message.payload))
        friend.connect(broker.host, broker.port)
        friend.loop_start()
        friend.subscribe(f"{device.name}/results", qos=1)
        assert subscribed.wait(LIMIT_S)
        device.wait()
        assert [heard.get(timeout=LIMIT_S) for _ in range(5)] == [b"0", b"1", b"2", b"3", b"4"]
        friend.disconnect()
        friend.loop_stop()


def test_a_device_with_the_same_id_is_suspected(rude, open_connection, caplog, monkeypatch):
    monkeypatch.setattr(mqtt, "_TAKEOVERS", 2)
    device = open_connection(rude.port)
    for _ in range(2):
        connection = rude.next()
        device.wait()
        connection.close()
    rude.next()
    assert "does another device use the id camera-1" in caplog.text


def test_doctor_tells_the_ways_in_which_a_broker_says_no(rude, mqtt_broker):
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
