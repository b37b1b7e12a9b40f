"""Entities that are no longer wanted leave Home Assistant, once."""

from __future__ import annotations

import pytest

from edge_client.reporting.discovery import DISCOVERY_FILE, Discovery

FIRST = {"homeassistant/sensor/f_pi/label/config": b"{}", "homeassistant/sensor/f_pi/latency/config": b"{}"}
SECOND = {"ha/sensor/f_pi/label/config": b"{}"}


class Broker:
    """What is retained, and a number for each message."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.numbers: list[int] = []
        self.there = True

    def publish(self, topic: str, payload: bytes) -> int | None:
        if not self.there:
            return None
        self.retained = {**self.retained, topic: payload} if payload else self.without(topic)
        self.numbers.append(len(self.numbers) + 1)
        return self.numbers[-1]

    def without(self, topic: str) -> dict[str, bytes]:
        return {name: value for name, value in self.retained.items() if name != topic}

    def run(self, discovery: Discovery) -> None:
        discovery.publish(self.publish)
        for number in self.numbers:
            discovery.acknowledged(number)
        discovery.settle()


@pytest.fixture
def file(tmp_path):
    return tmp_path / DISCOVERY_FILE


@pytest.mark.parametrize("then", [{}, SECOND], ids=["off", "another prefix"])
def test_what_is_no_longer_wanted_is_removed_once(file, then):
    broker = Broker()
    broker.run(Discovery(file, FIRST))
    assert broker.retained == FIRST
    broker.run(Discovery(file, then))
    assert broker.retained == then
    broker.numbers.clear()
    broker.run(Discovery(file, then))
    assert len(broker.numbers) == len(then)


def test_a_removal_that_the_broker_did_not_confirm_is_repeated_after_a_restart(file):
    broker = Broker()
    broker.run(Discovery(file, FIRST))
    unconfirmed = Discovery(file, {})
    unconfirmed.publish(broker.publish)
    unconfirmed.settle()
    broker.retained = dict(FIRST)
    broker.there = False
    away = Discovery(file, {})
    broker.run(away)
    assert broker.retained == FIRST
    broker.there = True
    broker.run(away)
    assert not broker.retained


def test_a_device_that_never_had_discovery_writes_nothing(file):
    broker = Broker()
    broker.run(Discovery(file, {}))
    assert not broker.numbers
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"\xff", b'{"topics": 3}', b'{"topics": ["#", "a/b"]}'])
def test_a_damaged_memory_removes_nothing_and_stops_nothing(file, content):
    file.write_bytes(content)
    broker = Broker()
    broker.run(Discovery(file, FIRST))
    assert broker.retained == FIRST
