"""The collector on a real broker and a real bucket: gaps, several collectors, objects that a rule wrote."""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import threading
import uuid
from typing import TYPE_CHECKING

import pytest
from local_services import MqttBroker, wait_until
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from luigi_tasks.fleet.recorded import take_objects
from luigi_tasks.fleet.snapshots import read_newest_snapshot
from luigi_tasks.release.broker import BrokerClient, Message
from luigi_tasks.settings.values import BrokerSettings
from luigi_tasks.storage.opening import open_store
from tests.fakes.fleet_reports import FLEET, Clock, FakeDevice, FakeFleet, make_collector

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.fleet.collector import Collector


def broker_client(broker: MqttBroker) -> BrokerClient:
    return BrokerClient(
        BrokerSettings(
            host=broker.host,
            port=broker.port,
            fleet=FLEET,
            username="",
            password_file="",
            tls=False,
            ca_file="",
            timeout_s=10.0,
        )
    )


@contextlib.contextmanager
def listening(collector: Collector, broker: MqttBroker, *, ask: bool = False) -> Iterator[None]:
    """A collector that hears a broker, and writes."""

    def listen() -> None:
        collector.listen(broker_client(broker), ask=ask)

    with collector.running(listen, collector.write):
        wait_until(lambda: collector.listening_since is not None, "the collector to listen")
        yield
    collector.close()


def publish(broker: MqttBroker, device: FakeDevice, **facts) -> None:
    broker_client(broker).publish(Message(device.topic, device.payload(**facts)))


@pytest.mark.runtime
def test_a_collector_hears_the_broker_again_after_it_was_away(tmp_path, store_settings):
    fleet, clock, device = FakeFleet(), Clock(), FakeDevice("cam")
    fleet.devices = {"cam": device.enrolled()}
    store = open_store(store_settings)
    with MqttBroker(tmp_path / "broker") as broker:
        broker_client(broker).publish_retained(f"edge/{FLEET}/devices/cam/online", b"online")
        asked = listen_for(broker, f"edge/{FLEET}/report")
        collector, clerk = make_collector(tmp_path, fleet, store, clock)
        publish(broker, device)  # nobody hears it
        with listening(collector, broker, ask=True):
            wait_until(asked.is_set, "the request to report")
            publish(broker, device)
            wait_until(lambda: collector.reports == 2, "a report, and who is online")
            clerk.write_snapshot()
            clock.now += 100
            broker.stop()
            wait_until(lambda: collector.listening_since is None, "the collector to notice")
            clerk.write_snapshot()
            away = read_newest_snapshot(store, FLEET, fleet.collectors)
            assert away is not None
            assert away.head.listening_since == away.head.taken_at, "nothing is known of the time up to now"
            clock.now += 100
            broker.start()
            wait_until(lambda: collector.listening_since is not None, "the collector to listen again")
            publish(broker, device)
            wait_until(lambda: collector.reports == 3, "the next report")
            clerk.write_snapshot()
    found = read_newest_snapshot(store, FLEET, fleet.collectors)
    assert found is not None
    [row] = found.rows
    assert row.report is not None
    assert (row.report.sequence, row.online, found.head.listening_since) == (3, None, clock.now)


def listen_for(broker: MqttBroker, topic: str) -> threading.Event:
    """An event that is set when a message comes on a topic."""
    heard, ready = threading.Event(), threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2)
    client.on_message = lambda *_: heard.set()
    client.on_subscribe = lambda *_: ready.set()
    client.connect(broker.host, broker.port)
    client.loop_start()
    client.subscribe(topic)
    assert ready.wait(60)
    return heard


def test_collectors_that_share_the_reports_make_one_picture(tmp_path, mqtt_broker, store_settings):
    if not mqtt_broker.mosquitto:
        pytest.skip("rumqttd of the iotcore wheel has no shared subscriptions")
    fleet, clock = FakeFleet(), Clock()
    devices = [FakeDevice(f"cam-{number}") for number in range(3)]
    fleet.devices = {one.device: one.enrolled() for one in devices}
    store = open_store(store_settings)
    group = uuid.uuid4().hex
    with contextlib.ExitStack() as stack:
        both = []
        for name in ("collector", "second"):
            made = make_collector(tmp_path / name, fleet, store, clock, share_group=group, collector=name)
            stack.enter_context(listening(made[0], mqtt_broker))
            both.append(made)
        for frames in (0, 10, 30, 35):
            for one in devices:
                one.frames = frames
                publish(mqtt_broker, one)
        wait_until(lambda: sum(one.reports for one, _ in both) == 12, "all reports")
        assert all(one.reports for one, _ in both), "each heard some"
        for _, clerk in both:
            clerk.write_snapshot()
    found = read_newest_snapshot(store, FLEET, {**fleet.collectors, "second": fleet.collectors["collector"]})
    assert found is not None
    assert [sum(one.frames for one in row.periods) for row in found.rows] == [35, 35, 35]
    assert [row.report and row.report.sequence for row in found.rows] == [4, 4, 4]
    assert (found.head.registered, found.head.heard) == (3, 3)


def test_reports_that_a_rule_of_aws_wrote_to_the_bucket_count_once(tmp_path, store_settings):
    fleet, clock, device = FakeFleet(), Clock(), FakeDevice("cam")
    fleet.devices = {"cam": device.enrolled()}
    store = open_store(store_settings)

    def line(payload: bytes, at: float) -> bytes:
        text = base64.b64encode(payload).decode()
        told = {"topic": device.topic, "payload_base64": text, "at_ms": at * 1000}
        return json.dumps(told).encode() + b"\n"

    def put(name: str, *lines: bytes) -> None:
        store.put(f"reports/2026/11/27/{name}", gzip.compress(b"".join(lines)))

    put("1.gz", line(device.payload(), clock.now - 60), b"no line\n", line(device.payload(), clock.now - 30))
    store.put("reports/2026/11/27/2.gz", b"\x1f\x8bdamaged")
    store.put("reports/2026/11/27/2.zst", b"\x28\xb5\x2f\xfddamaged")
    put("2-deep.gz", b'{"topic":"x","payload":' + b"[" * 100_000 + b"}\n")
    collector, clerk = make_collector(tmp_path, fleet, store, clock)
    assert take_objects(collector, store, "reports") == 4
    collector.close()
    collector, clerk = make_collector(tmp_path, fleet, store, clock)
    put("3.gz", line(device.payload(), clock.now + 10**9))  # for ever heard, by whoever can write there
    assert take_objects(collector, store, "reports") == 1, "those of before were taken, also after a restart"
    clerk.write_snapshot()
    store.delete("reports/2026/11/27/1.gz")
    assert take_objects(collector, store, "reports") == 0
    [kept] = collector._database._connection.execute("SELECT count(*) FROM taken").fetchone()
    assert kept == 4, "what the bucket does not have any more is forgotten"
    collector.close()
    found = read_newest_snapshot(store, FLEET, fleet.collectors)
    assert found is not None
    [row] = found.rows
    assert (row.report and row.report.sequence, row.first_seen, row.last_seen) == (
        3,
        clock.now - 60,
        clock.now,
    )
