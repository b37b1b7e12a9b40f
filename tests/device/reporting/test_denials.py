"""A broker that ends connections for topics that it denies: they are named, and all else goes on."""

from __future__ import annotations

import itertools
import json
import struct
import threading
import uuid

import pytest
from local_services import wait_until

from edge_client.reporting import broker as mqtt
from edge_client.reporting import denials, outgoing
from edge_client.reporting.broker import BrokerConnection
from edge_client.reporting.denials import Act, Denials, Ending, Use
from edge_client.reporting.outgoing import Outgoing, use_of
from edge_client.settings.reporting import BrokerSettings
from tests.fakes import aws_iot
from tests.fakes.aws_iot import AwsIotBroker, load_policy, without

DEVICE, FLEET = "camera-1", "shop"
BASE = f"edge/{FLEET}/devices/{DEVICE}"
NAMES = ("doors", "night", "yard", "gate")
CHANNELS = [f"edge/{FLEET}/channels/{name}" for name in ("stable", *NAMES)]
COMMANDS = [f"{BASE}/update", *(f"{BASE}/update/{name}" for name in NAMES)]
STATES = [f"{BASE}/status", f"{BASE}/status/doors", f"homeassistant/sensor/{FLEET}_{DEVICE}/label/config"]


@pytest.fixture(autouse=True)
def _quickly(monkeypatch):
    monkeypatch.setattr(mqtt, "FIRST_RECONNECT_DELAY_S", 0.02)
    monkeypatch.setattr(mqtt, "_TICK_S", 0.05)
    monkeypatch.setattr(mqtt, "QUIET_S", 0.05)
    monkeypatch.setattr(outgoing, "GAP_S", 0.02)
    monkeypatch.setattr(outgoing, "SUBSCRIBED_GAP_S", 0.02)
    monkeypatch.setattr(mqtt, "GAP_S", 0.01)
    monkeypatch.setattr(aws_iot, "CONNECT_EVERY_S", 0.0)
    monkeypatch.setattr(aws_iot, "RETAINED_EVERY_S", 0.0)


@pytest.fixture
def broker():
    with AwsIotBroker({"": load_policy("aws-iot-policy.json", FLEET)}) as broker:
        yield broker


class Device:
    """A connection that publishes states and results as the daemon does."""

    def __init__(self, broker: AwsIotBroker) -> None:
        self.acknowledged: set[int] = set()
        self.heard = threading.Event()
        self.connection = BrokerConnection(
            BrokerSettings(host=broker.host, port=broker.port),
            DEVICE,
            handlers=dict.fromkeys(CHANNELS, lambda _payload: self.heard.set()),
            commands=dict.fromkeys(COMMANDS, lambda _payload: None),
            online_topic=f"{BASE}/online",
            on_connection=self.publish,
            on_acknowledged=self.acknowledged.add,
        )
        self.connection.start()

    def publish(self) -> None:
        for topic in STATES:
            self.connection.publish_state(topic, b"{}")

    @property
    def allowed(self) -> bool:
        """Whether results are not known to be denied."""
        return self.connection._denials.allows(use_of(f"{BASE}/results"))

    def send(self) -> bool:
        """Whether a result reaches the broker."""
        number = self.connection.send(f"{BASE}/results", uuid.uuid4().hex.encode())
        if number is None:
            return False
        # A connection that was ended may be there again before anybody has looked.
        lost = lambda: not self.connection.connected or not self.allowed  # noqa: E731
        wait_until(lambda: number in self.acknowledged or lost(), "an answer")
        return number in self.acknowledged


@pytest.fixture
def open_device(broker):
    opened = []

    def open_() -> Device:
        opened.append(Device(broker))
        return opened[-1]

    yield open_
    for one in opened:
        one.connection.stop()


def test_all_topics_are_used_in_groups_of_eight_at_most(broker, open_device):
    device = open_device()
    wait_until(device.send, "a result")
    wait_until(lambda: len(broker.retained) == 4, "online and states")
    assert len(CHANNELS + COMMANDS) > aws_iot.FILTERS_PER_SUBSCRIBE
    assert broker.refusals == []
    assert {topic for _, act, topic, _ in broker.log if act == "subscribe"} == {*CHANNELS, *COMMANDS}
    device.connection.stop()
    assert broker.retained[f"{BASE}/online"] == b"offline"


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ("topicfilter/edge/shop/channels", "subscribe edge/shop/channels/stable; until then only polling"),
        (
            "/update*",
            "subscribe edge/shop/devices/camera-1/update; until then requests to update are not heard",
        ),
        ("/status*", "publish edge/shop/devices/camera-1/status; its status is not seen"),
        ("homeassistant", "publish homeassistant/#; Home Assistant does not find the device"),
        ("/re*", "publish edge/shop/devices/camera-1/results; results wait"),
    ],
)
def test_a_denied_topic_is_named_and_the_others_go_on(broker, open_device, caplog, part, told, monkeypatch):
    allowed = broker.policies[""]
    broker.policies[""] = without(allowed, part)
    device = open_device()
    others = [topic for topic in STATES if part.strip("*") not in topic]
    if part == "/re*":
        wait_until(lambda: not device.send() and bool(device.connection.warnings), "the denial")
    wait_until(lambda: any(told in one for one in device.connection.warnings), told)
    wait_until(lambda: broker.retained.keys() >= {f"{BASE}/online", *others}, "the other states")
    if part != "/re*":
        wait_until(device.send, "a result")
    assert told in caplog.text
    assert "another client" not in caplog.text
    assert device.connection.suspected_duplicate_id is None

    # It stays away from the denied topic: no storm of connections.
    connections = broker.connections(DEVICE)
    assert connections <= 16
    wait_until(lambda: device.connection.connected, "the connection")

    # Mended: tried again after a pause, and used.
    monkeypatch.setattr(denials, "FIRST_PAUSE_S", 0.1)
    broker.policies[""] = allowed
    for one in device.connection._denials._denied.values():
        one.until = 0.0
    wait_until(lambda: device.connection.warnings == (), "the end of the denial")
    wait_until(lambda: broker.retained.keys() >= {*STATES}, "all states")
    wait_until(device.send, "a result")
    announced = broker.count(DEVICE, "subscribe", "ok")
    assert announced >= len(CHANNELS + COMMANDS)


def test_a_policy_that_knows_no_reports_costs_nothing_else(broker, open_device):
    """As that of AWS IoT Core before this version: the connection ends for what it does not name."""
    policy = json.loads(json.dumps(broker.policies[""]).replace("/re*", "/results*"))
    broker.policies[""] = policy
    device = open_device()
    told = f"publish {BASE}/report; rollouts of its fleet do not count this device"

    def denied() -> bool:
        device.connection.report(f"{BASE}/report", b"{}")
        return any(told in one for one in device.connection.warnings)

    wait_until(denied, "the denial")
    wait_until(device.send, "a result")
    wait_until(lambda: broker.retained.keys() >= {f"{BASE}/online", *STATES}, "all states")
    connections = broker.connections(DEVICE)
    assert not device.connection.report(f"{BASE}/report", b"{}")
    wait_until(device.send, "another result")
    assert broker.connections(DEVICE) == connections
    assert {one.topic for one in device.connection._denials.denied} == {f"{BASE}/report"}


def test_a_subscription_whose_messages_may_not_be_received_is_named(broker, open_device, caplog):
    broker.retained[CHANNELS[0]] = b"{}"
    policy = broker.policies[""]
    receive = [one for one in policy["Statement"] if one["Action"] == "iot:Receive"]
    others = [one for one in policy["Statement"] if one["Action"] != "iot:Receive"]
    broker.policies[""] = {
        **policy,
        "Statement": [*others, *without({"Statement": receive}, "/channels")["Statement"]],
    }
    device = open_device()
    wait_until(lambda: any(CHANNELS[0] in one for one in device.connection.warnings), "the denial")
    wait_until(device.send, "a result")
    assert f"iot:Receive on topic/{CHANNELS[0]}" in caplog.text
    assert "another client" not in caplog.text


def test_a_denied_last_will_is_left_out_and_named(broker, open_device, caplog):
    broker.policies[""] = without(broker.policies[""], "/online")
    device = open_device()
    wait_until(device.send, "a result")
    wait_until(lambda: broker.retained.keys() >= {*STATES}, "the states")
    assert f"have a last will on {BASE}/online; after a power cut the device stays `online`" in caplog.text
    assert f"iot:RetainPublish of the last will's topic {BASE}/online" in caplog.text


def test_a_client_id_that_may_not_connect_is_named_and_tried_ever_more_seldom(broker, open_device, caplog):
    broker.policies[""] = without(broker.policies[""], ":client/")
    device = open_device()
    wait_until(lambda: device.connection.fault is not None, "the fault")
    assert "does not let a client connect as camera-1" in str(device.connection.fault)
    wait_until(lambda: device.connection._denials.failures >= 4, "failures")
    assert device.connection._longest_delay_s() >= 8 * mqtt.FIRST_RECONNECT_DELAY_S
    assert caplog.text.count("ended the connection without an answer") == 1


def test_a_topic_that_is_never_acknowledged_does_not_stop_the_others(open_device, broker, monkeypatch):
    monkeypatch.setattr(mqtt, "ACKNOWLEDGED_S", 0.3)
    publish = broker._publish

    def drop_discovery(client, flags, body):
        if b"homeassistant" not in body:
            publish(client, flags, body)

    monkeypatch.setattr(broker, "_publish", drop_discovery)
    device = open_device()
    wait_until(lambda: any("homeassistant/#" in one for one in device.connection.warnings), "the denial")
    wait_until(device.send, "a result")


def test_one_silent_end_after_another_is_another_client():
    known = Denials()
    endings = [known.ended([], now, by_broker=True)[0] for now in (0.0, 2.0, 4.0, 6.0, 8.0)]
    assert endings == [Ending.LOST] * 4 + [Ending.TAKEN_OVER]
    assert known.suspects_other_client
    known.lasted(denials.SUSPECTED_S)
    assert not known.suspects_other_client


def test_a_topic_is_denied_only_if_two_connections_in_a_row_end_at_it():
    known = Denials()
    one, other = (Use(Act.PUBLISH, f"{BASE}/{name}") for name in ("status", "results"))
    assert known.ended([one, other], 0.0, by_broker=True)[0] is Ending.SUSPECT
    assert known.careful
    for now, use in enumerate((one, other, one)):  # as it happens while another client takes over
        assert known.ended([use], now, by_broker=True) == (Ending.SUSPECT, (use,))
    assert known.ended([], 4.0, by_broker=True)[0] is Ending.LOST
    assert known.ended([one], 5.0, by_broker=True)[0] is Ending.SUSPECT
    assert known.ended([one], 6.0, by_broker=True) == (Ending.DENIED, (one,))
    assert not known.allows(one)
    assert known.allows(other)


def test_a_radio_that_fails_blames_nobody():
    known = Denials()
    results = Use(Act.PUBLISH, f"{BASE}/results")
    for now in range(20):
        assert known.ended([results], now, by_broker=False) == (Ending.LOST, ())
    assert (known.denied, known.suspects_other_client, known.failures) == ((), False, 0)


def test_the_pause_of_a_denied_topic_doubles_and_one_is_tried_at_a_time():
    known, now = Denials(), 0.0
    first, second = (Use(Act.PUBLISH, f"{BASE}/{name}") for name in ("status", "results"))
    known.refused([first, second], now)
    pauses = []
    for _ in range(10):
        while known.next_try(now) is None:
            now += 1.0
        assert known.next_try(now) is None
        assert known.ended([first, second], now, by_broker=True)[0] is Ending.DENIED
        pauses.append(now)
    steps = [later - before for before, later in itertools.pairwise(pauses)]
    assert steps == sorted(steps)
    assert steps[-1] == denials.LONGEST_PAUSE_S


def test_the_rates_of_aws_are_kept():
    paced = Outgoing(paced=True)
    for number in range(300):
        paced.put(f"{BASE}/results", b"%d" % number, retain=False)
    sent: list[float] = []
    for tick in range(60):
        now = tick / 10
        for mid, operation in enumerate(paced.take(now, lambda _use: True, careful=False), len(sent)):
            paced.sent(mid, operation, now)
            paced.done(mid, now)
            sent.append(now)
    assert len(sent) == 300
    assert max(sum(1 for one in sent if start <= one < start + 1) for start in sent) < aws_iot.PUBLISHES_PER_S

    for now, expected in ((10.0, [b"new"]), (10.5, []), (11.2, [b"newest"])):
        paced.put(f"{BASE}/status", b"old", retain=True)
        paced.put(f"{BASE}/status", b"new" if now == 10.0 else b"newest", retain=True)
        took = list(paced.take(now, lambda _use: True, careful=False))
        for operation in took:
            paced.sent(1, operation, now)
            paced.done(1, now)
        assert [one.payload for one in took] == expected


class RefusingBroker(AwsIotBroker):
    """Refuses announcements in the SUBACK, as EMQX and VerneMQ do."""

    def _subscribe(self, client, body: bytes) -> None:
        filters, position = [], 2
        while position < len(body):
            (length,) = struct.unpack_from(">H", body, position)
            filters.append(body[position + 2 : position + 2 + length].decode())
            position += 3 + length
        answers = bytes(0x80 if "/channels/" in one else 1 for one in filters)
        client.send(aws_iot.SUBACK, body[:2] + answers)


def test_each_topic_that_is_refused_by_word_is_named_and_costs_no_connection(caplog):
    with RefusingBroker({"": load_policy("aws-iot-policy.json", FLEET)}) as broker:
        device = Device(broker)
        wait_until(lambda: len(device.connection.warnings) == len(CHANNELS), "the refusals")
        wait_until(device.send, "a result")
        for topic in CHANNELS:
            assert f"does not let {DEVICE} subscribe {topic};" in caplog.text
        assert f"subscribe {COMMANDS[0]}" not in caplog.text
        assert broker.connections(DEVICE) == 1
        device.connection.stop()
