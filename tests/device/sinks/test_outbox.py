"""Results on their way to the broker: in order, counted, and none lost that memory or disk can hold."""

from __future__ import annotations

import contextlib
import functools
import json
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from local_services import wait_until

from edge_client.sinks import outbox as outboxes
from edge_client.sinks.kept import KeptResults
from edge_client.sinks.mqtt import MqttSink
from edge_client.sinks.outbox import Outbox
from tests.fakes.bad_disk import fail_to_read
from tests.fakes.results import example_result
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Link:
    """A broker that comes and goes, and acknowledges when it is told to."""

    def __init__(self) -> None:
        self.there = False
        self.acknowledges = True
        self.got: list[tuple[str, bytes]] = []
        self.outbox: Outbox | None = None
        self._held: list[int] = []

    @property
    def frames(self) -> list[int]:
        return [json.loads(payload)["frame"] for _, payload in self.got]

    def send(self, topic: str, payload: bytes) -> int | None:
        if not self.there:
            return None
        self.got.append((topic, payload))
        self._held.append(len(self.got))
        if self.acknowledges:
            self.acknowledge()
        return len(self.got)

    def acknowledge(self, count: int | None = None) -> None:
        assert self.outbox is not None
        ready, self._held = self._held[:count], self._held[len(self._held[:count]) :]
        for number in ready:
            self.outbox.acknowledged(number)

    def come(self) -> None:
        self.there = True
        assert self.outbox is not None
        self.outbox.wake()


class Device:
    """A sink over a state folder, as one run of the daemon has it."""

    def __init__(self, folder: Path, *, max_bytes: int = 20_000_000) -> None:
        self.link = Link()
        self.outbox = Outbox(
            KeptResults(folder, max_bytes),
            send=self.link.send,
            connected=lambda: self.link.there,
            topic_of=lambda channel: f"t/{channel}",
        )
        self.link.outbox = self.outbox
        self.sink = MqttSink(self.outbox)
        self.safe: list[int] = []

    def classify(self, first: int, last: int) -> None:
        for frame in range(first, last + 1):
            result = example_result(frame=frame, channel="stable")
            self.sink.write(result, None, functools.partial(self.safe.append, frame))

    def wait(self, **counts: int | None) -> None:
        def reached() -> bool:
            now = self.sink.metrics()
            return all(getattr(now, name) == value for name, value in counts.items())

        with contextlib.suppress(TimeoutError):
            wait_until(reached, str(counts), 10.0)
        now = self.sink.metrics()
        assert {name: getattr(now, name) for name in counts} == counts


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "unsent"


@pytest.fixture
def start(folder: Path) -> Iterator[Any]:
    started: list[Device] = []

    def start_(**options: int) -> Device:
        started.append(Device(folder, **options))
        return started[-1]

    yield start_
    for device in started:
        device.link.there = False
        device.sink.close()


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*")) if folder.exists() else []


def test_each_result_is_one_compact_document_on_its_topic(start):
    device = start()
    device.link.come()
    device.sink.write(msgspec.structs.replace(example_result(source="Grüße.jpg"), channel="stable"))
    device.wait(written=1, unsent=0)
    [(topic, payload)] = device.link.got
    assert topic == "t/stable"
    assert b"\n" not in payload
    assert json.loads(payload)["source"] == "Grüße.jpg"


def test_three_thousand_results_wait_for_the_broker(start, folder):
    device = start()
    device.classify(1, 900)
    device.wait(unsent=900, kept=0)
    assert not device.safe  # a power cut would lose them: their pictures stay
    for first in range(901, 3001, 300):
        device.classify(first, first + 299)
        device.wait(kept=500 * max((first + 299) // 500 - 1, 0))
    device.classify(3001, 3001)
    device.wait(unsent=3001, kept=2500, dropped=0)
    assert {path.stat().st_mode & 0o777 for path in files(folder)} == {0o600}
    wait_until(lambda: len(device.safe) == device.sink.metrics().kept, "their pictures to be released")
    device.link.come()
    device.wait(written=3001, unsent=0, kept=0, dropped=0)
    assert device.link.frames == list(range(1, 3002))
    wait_until(lambda: device.safe == list(range(1, 3002)), "all pictures to be released")
    wait_until(lambda: not files(folder), "the files to be removed")


def test_few_results_do_not_wait_in_memory_for_long(start, folder, monkeypatch):
    device = start()
    monkeypatch.setattr(outboxes, "KEPT_AFTER_S", 0.0)  # a quarter of an hour has passed
    device.classify(1, 3)
    device.wait(kept=3)
    wait_until(lambda: device.safe == [1, 2, 3], "their pictures to be released")
    device.link.come()
    device.wait(written=3, unsent=0, kept=0)
    assert device.link.frames == [1, 2, 3]


def test_long_results_go_to_the_disk_before_the_memory_is_full_of_them(start, folder):
    device = start()
    names = {f"a class with a long name, number {number}": 0.001 for number in range(1000)}
    for frame in range(1, 121):  # of 50 kB each
        device.sink.write(
            example_result(frame=frame, channel="stable", top=names),
            None,
            functools.partial(device.safe.append, frame),
        )
        wait_until(lambda: not device.outbox._crowded, "the results to go to the disk")
    device.wait(unsent=120, dropped=0)
    assert max(path.stat().st_size for path in files(folder)) < 2_000_000
    device.link.come()
    device.wait(written=120, unsent=0)
    assert device.link.frames == list(range(1, 121))


def test_what_neither_memory_nor_disk_holds_is_counted_and_told(start, caplog):
    device = start(max_bytes=0)
    device.classify(1, outboxes.MAX_WAITING)
    device.classify(outboxes.MAX_WAITING + 1, outboxes.MAX_WAITING + 501)
    device.wait(dropped=501, unsent=outboxes.MAX_WAITING)
    assert "newer results are dropped" in device.sink.metrics().error
    assert not device.safe
    device.link.come()
    device.wait(unsent=0)
    device.classify(9001, 9001)
    device.wait(written=outboxes.MAX_WAITING + 1, error=None)
    told = [message for message in caplog.messages if "dropped" in message]
    assert told == [
        "2000 results wait for the broker; newer ones are dropped",
        "501 results were dropped, because too many waited for the broker",
    ]


def test_what_is_not_acknowledged_at_the_end_is_sent_after_the_next_start_once_and_in_order(start, folder):
    device = start()
    device.classify(1, 1200)  # 500 of them go to the disk
    device.wait(kept=500)
    device.link.acknowledges = False
    device.link.come()
    wait_until(lambda: len(device.link.got) == outboxes.WINDOW, "a full window")
    device.link.acknowledge(30)
    device.wait(written=30)
    device.link.there = False
    device.sink.close()
    assert device.safe == list(range(1, 1201))  # the disk has them: their pictures may go
    assert device.sink.metrics().unsent == 1170

    second = start()
    second.classify(1201, 1210)
    assert second.sink.metrics().unsent == 1180
    second.sink.close()
    third = start()
    third.link.come()
    third.wait(written=1180, unsent=0)
    assert third.link.frames == list(range(31, 1211))
    wait_until(lambda: not files(folder), "the files to be removed")


def test_the_rest_is_sent_before_the_end_while_the_broker_is_there(start, folder):
    device = start()
    device.classify(1, 300)
    device.link.come()
    device.sink.close()
    assert device.link.frames == list(range(1, 301))
    assert device.safe == list(range(1, 301))
    assert not files(folder)


def test_a_disk_that_takes_nothing_costs_no_result_that_the_memory_holds(start, folder, caplog):
    folder.write_bytes(b"a file in the place of the folder")
    device = start()
    device.classify(1, 1500)
    wait_until(lambda: "File exists" in (device.sink.metrics().error or ""), "the fault to be shown")
    device.link.come()
    device.wait(written=1500, unsent=0, dropped=0)
    device.link.there = False
    device.classify(1501, 1501)
    device.sink.close()
    assert device.sink.metrics().dropped == 1
    assert 1501 not in device.safe
    assert "1 results are lost: they are neither sent nor kept on the disk" in caplog.messages


def test_a_file_that_cannot_be_read_now_is_kept_and_sent_after_the_next_start(start, folder, monkeypatch):
    device = start()
    device.classify(1, 3)
    device.sink.close()
    [path] = files(folder)
    with monkeypatch.context() as broken:
        fail_to_read(broken, path.name)
        device = start()  # its size cannot be told either
        device.classify(4, 5)
        device.sink.close()
    with monkeypatch.context() as broken:
        device = start()
        fail_to_read(broken, path.name)
        device.link.come()
        device.wait(written=2)
        device.link.there = False
        device.classify(6, 6)
        device.sink.close()
    device = start()
    device.link.come()
    device.wait(written=4, unsent=0)
    assert device.link.frames == [1, 2, 3, 6]


def test_what_a_killed_write_left_is_removed_at_the_next_start(start, folder):
    folder.mkdir()
    (folder / ".50000001.jsonl.k2x9").write_bytes(b"x" * 1000)
    device = start()
    device.classify(1, 2)
    device.sink.close()
    assert [path.name for path in files(folder)] == ["50000001.jsonl"]


def test_any_flipped_bit_costs_its_own_result_at_most(start, folder, faults):
    device = start()
    device.classify(1, 5)
    device.sink.close()
    [path] = files(folder)
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for bit in faults.sample(range(len(content) * 8), by_default=100):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        for old in files(folder):
            old.unlink()
        path.write_bytes(broken)
        with faults.injected(Kind.RESULTS, "results kept on the disk", "one bit flipped"):
            reader = KeptResults(folder, 20_000_000)
            found = reader.take()
            assert found is not None
            _, payloads, damaged = found
            assert damaged >= 1
            assert len(payloads) >= len(lines) - 2  # a lost line break takes two
            assert all(any(payload in line for line in lines) for payload in payloads)


def test_sending_never_waits_for_an_acknowledgement_that_waits_for_sending(start):
    """Paho holds its lock while it reports acknowledgements, and takes it to send."""
    device = start()
    paho = threading.Lock()
    send = device.link.send

    def locked(topic: str, payload: bytes) -> int | None:
        with paho:
            number: int | None = send(topic, payload)
        return number

    device.outbox._send = locked
    device.link.acknowledges = False
    device.link.come()
    for frame in range(1, 501):
        device.classify(frame, frame)
        with paho:
            device.link.acknowledge()
    wait_until(lambda: (device.link.acknowledge(), device.sink.metrics().written == 500)[1], "all of them")
