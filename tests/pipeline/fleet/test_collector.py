"""What a collector makes of what it hears: kept, ordered, summed; and what it does not let through."""

from __future__ import annotations

import contextlib
import dataclasses
import sqlite3
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner

from edge_client.contract.documents import encode_compact
from edge_client.contract.errors import SettingsError, TransportError, TrustError
from edge_client.contract.messages import DeviceStatus
from luigi_tasks.fleet.intake import Intake, RejectedError
from luigi_tasks.fleet.registry import NoRegistryError
from luigi_tasks.fleet.snapshots import read_newest_snapshot
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.fleet_reports import FLEET, NEW, Clock, FakeDevice, FakeFleet, make_collector

if TYPE_CHECKING:
    from luigi_tasks.fleet.records import DeviceRow, SnapshotHead


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fleet():
    return FakeFleet()


class Bench:
    """A collector that is given messages, and asked for what it knows."""

    def __init__(self, tmp_path, fleet, clock, **settings):
        self.tmp_path, self.fleet, self.clock, self.settings = tmp_path, fleet, clock, settings
        url = f"file://{tmp_path}/store"
        self.store = FolderStore(StoreSettings(url, "", "", "", conditional_writes=True))
        self.open()

    def open(self):
        self.collector, self.clerk = make_collector(
            self.tmp_path, self.fleet, self.store, self.clock, **self.settings
        )

    def hear(self, topic: str, payload: bytes, *, is_retained: bool = False) -> None:
        self.collector.take(topic, payload, is_retained)
        self.collector.write_now(self.collector.inbox.take_all())

    def enroll(self, *devices: FakeDevice, **facts) -> None:
        self.fleet.devices |= {one.device: one.enrolled(**facts) for one in devices}
        self.fleet.version += 1
        self.clerk.open()

    def look(self) -> tuple[SnapshotHead, dict[str, DeviceRow]]:
        self.clerk.write_snapshot()
        snapshot = read_newest_snapshot(self.store, FLEET, self.fleet.collectors)
        assert snapshot is not None
        return snapshot.head, {row.device: row for row in snapshot.rows}

    def last_sequence(self, device: str) -> int:
        report = self.look()[1][device].report
        assert report is not None
        return report.sequence

    @property
    def rejected(self) -> dict[str, int]:
        return self.collector.intake.rejections.by_reason()


@pytest.fixture
def bench(tmp_path, fleet, clock):
    bench = Bench(tmp_path, fleet, clock)
    yield bench
    bench.collector.close()


def test_what_a_device_reports_is_in_the_snapshot(bench, clock):
    device, stranger = FakeDevice("cam"), FakeDevice("stranger")
    bench.enroll(device)
    bench.hear(f"edge/{FLEET}/devices/cam/online", b"online")  # a device says so before its first report
    bench.hear(device.topic, device.payload())
    for frames in (10, 25):
        clock.now += 1000
        device.frames = frames
        bench.hear(device.topic, device.payload())
    bench.hear(stranger.topic, stranger.payload())
    clock.now += 50
    device.frames = 31
    last = device.report()
    bench.hear(device.topic, encode_compact(last))
    head, rows = bench.look()
    assert (head.registered, head.heard, head.devices, head.rejected) == (1, 1, 2, {})
    row = rows["cam"]
    assert (row.enrolled, row.is_signed, row.online, row.report) == (True, False, True, last)
    assert (row.first_seen, row.last_seen) == (clock.now - 2050, clock.now)
    assert sum(one.frames for one in row.periods) == 31
    assert not rows["stranger"].enrolled
    assert rows["stranger"].online is None
    clock.now += 91
    assert bench.look()[0].heard == 0, "three intervals without a report"


def test_the_states_of_a_device_in_a_rollout_are_kept_with_their_times(bench, clock):
    device = FakeDevice("cam")
    bench.enroll(device)
    seen = {"rollout": "x", "offered": NEW}
    began = clock.now
    for facts in (
        {**seen, "stage": "offered"},
        {**seen, "stage": "fetching"},
        {**seen, "stage": "fetching"},
        {**seen, "release": NEW, "stage": "probation", "probation": "running"},
        {**seen, "release": NEW, "probation": "passed"},
        {"rollout": "x", "release": NEW, "steady": NEW, "offered": NEW, "probation": "passed"},
    ):
        bench.hear(device.topic, device.payload(**facts))
        clock.now += 10
    [row] = bench.look()[1].values()
    told = [(one.state, one.at - began, one.rollout, one.release) for one in row.sightings]
    assert told == [
        ("offered", 0, "x", NEW),
        ("fetching", 10, "x", NEW),
        ("probation", 30, "x", NEW),
        ("passed", 40, "x", NEW),
    ]


def test_a_device_that_died_after_the_clock_was_ahead_is_not_heard_for_ever(bench, clock):
    device = FakeDevice("cam")
    bench.enroll(device)
    clock.now += 10**7
    bench.hear(device.topic, device.payload())
    clock.now -= 10**7
    assert bench.look()[0].heard == 0
    bench.hear(device.topic, device.payload())
    head, rows = bench.look()
    assert (head.heard, rows["cam"].last_seen) == (1, clock.now)


def test_reports_of_before_count_no_more(bench):
    device = FakeDevice("cam")
    bench.enroll(device)
    first, second = device.payload(), device.payload()
    for one in (second, second, first):
        bench.hear(device.topic, one)
    assert bench.rejected == {"repeated": 1, "older": 1}
    assert bench.look()[1]["cam"].report.sequence == 2


def test_of_a_device_with_a_key_only_what_it_signed_counts(bench):
    device = FakeDevice("cam", CryptoSigner.generate_ed25519())
    bench.enroll(device)
    forger = FakeDevice("cam", CryptoSigner.generate_ed25519(), sequence=50)
    bench.hear(device.topic, device.payload())
    bench.hear(device.topic, forger.payload())
    bench.hear(device.topic, encode_compact(forger.report()))
    status = DeviceStatus(device="cam", channel="stable", state="serving")
    bench.hear(f"edge/{FLEET}/devices/cam/status", encode_compact(status))
    assert bench.rejected == {"bad signature": 1, "unsigned": 1}
    row = bench.look()[1]["cam"]
    assert (row.report.sequence, row.is_signed) == (1, True)


def test_a_device_that_is_enrolled_again_begins_anew(bench, clock):
    old = FakeDevice("cam", CryptoSigner.generate_ed25519(), start=70, frames=500)
    bench.enroll(old)
    bench.hear(old.topic, old.payload())
    replay = old.payload()
    new = FakeDevice("cam", CryptoSigner.generate_ed25519(), frames=5)
    bench.enroll(new, epoch=2)
    for payload in (new.payload(), replay):
        bench.hear(new.topic, payload)
    new.frames = 9
    bench.hear(new.topic, new.payload())
    row = bench.look()[1]["cam"]
    assert bench.rejected == {"bad signature": 1}
    assert (row.report.start, row.is_signed) == (1, True)
    assert sum(one.frames for one in row.periods) <= 9


def test_a_stranger_who_spoke_first_does_not_silence_the_device_that_is_enrolled(bench):
    forger = FakeDevice("cam", start=2**52)
    bench.hear(forger.topic, forger.payload())
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.hear(device.topic, device.payload())
    row = bench.look()[1]["cam"]
    assert (row.enrolled, row.report.start) == (True, 1)


def test_two_machines_under_one_id_are_told(bench, clock):
    one, two = FakeDevice("cam", fingerprint="a"), FakeDevice("cam", fingerprint="b", start=2)
    bench.enroll(one)
    for _ in range(4):
        for device in (one, two):
            bench.hear(device.topic, device.payload())
            clock.now += 30
    assert bench.look()[1]["cam"].clones == ("a", "b")


def test_a_status_of_the_version_before_is_shown_and_gives_way_to_reports(bench, clock):
    status = DeviceStatus(
        device="cam", channel="stable", state="serving", release="r0", latest="r1", decision="held"
    )
    topic = f"edge/{FLEET}/devices/cam/status"
    bench.hear(topic, encode_compact(status), is_retained=True)
    row = bench.look()[1]["cam"]
    assert (row.report.release, row.report.steady, row.report.decision) == ("r0", "r1", "held")
    assert (row.report.start, row.is_signed, row.periods) == (0, False, ())
    assert row.last_seen == 0, "what the broker had kept says nothing about now"
    bench.hear(topic, encode_compact(status))
    assert bench.look()[1]["cam"].last_seen == clock.now
    device = FakeDevice("cam")
    bench.hear(device.topic, device.payload())
    bench.hear(topic, encode_compact(status))
    assert bench.look()[1]["cam"].report.start == 1
    assert bench.rejected == {}, "every client sends a status"


@dataclasses.dataclass(frozen=True)
class Hostile:
    """A message that costs a counter."""

    name: str
    reason: str
    payload: bytes | None = None
    topic: str = "cam/report"
    is_retained: bool = False


GOOD = encode_compact(FakeDevice("cam").report())
HOSTILE = (
    Hostile("no JSON", "malformed", b"{"),
    Hostile("nothing", "empty", b""),
    Hostile("deep", "malformed", b"[" * 20000),
    Hostile("huge", "too large", b"x" * 60000),
    Hostile("no text", "malformed", b'{"fleet":"\xff"}'),
    Hostile("half a pair", "malformed", GOOD.replace(b'"boot 1"', b'"\\ud800"')),
    Hostile("start beyond SQLite", "malformed", GOOD.replace(b'"start":1', b'"start":99999999999999999999')),
    Hostile("negative", "malformed", GOOD.replace(b'"start":1', b'"start":-1')),
    Hostile("endless count", "malformed", GOOD.replace(b'"releases":[{', b'"releases":[{"frames":1e300,')),
    Hostile(
        "many releases", "malformed", GOOD.replace(b'"releases":[', b'"releases":[' + b'{"release":"x"},' * 9)
    ),
    Hostile("label of 1,000 characters", "malformed", GOOD.replace(b'"cat"', b'"' + b"x" * 1000 + b'"')),
    Hostile("bin of 1,000 characters", "malformed", GOOD.replace(b'"40"', b'"' + b"4" * 1000 + b'"')),
    Hostile("boot of 1,000 characters", "malformed", GOOD.replace(b'"boot 1"', b'"' + b"x" * 1000 + b'"')),
    Hostile(
        "offer of 1,000 characters",
        "malformed",
        GOOD.replace(b'"offered":"r1"', b'"offered":"%b"' % (b"x" * 1000)),
    ),
    Hostile("other device", "says it is another device", topic="cam-2/report"),
    Hostile("other fleet", "says it is another device", GOOD.replace(FLEET.encode(), b"other")),
    Hostile("other channel", "says it is another device", topic="cam/report/extra"),
    Hostile("channel with a slash", "bad name", GOOD.replace(b'"stable"', b'"a/b"')),
    Hostile("device with a dot", "bad name", topic=".hidden/report"),
    Hostile("device of 1,000 characters", "bad name", topic="x" * 1000 + "/report"),
    Hostile("device with a terminal sequence", "bad name", topic="\x1b[31m/report"),
    Hostile("unknown kind", "foreign topic", topic="cam/results"),
    Hostile("long topic", "foreign topic", topic="cam/report/a/b"),
    Hostile("kept by the broker", "retained", is_retained=True),
    Hostile("endless envelope", "malformed", b'{"payloadType":"x","payload":"","signatures":[]}'),
    *(
        Hostile(
            f"envelope {number}", "malformed", b'{"payload":%b,"payloadType":"x","signatures":%b}' % fields
        )
        for number, fields in enumerate(
            (
                (b"5", b"[]"),
                (b"null", b"[]"),
                (b'"e30="', b"5"),
                (b'"e30="', b"[5]"),
                (b'"e30="', b'[{"keyid":1}]'),
            )
        )
    ),
    Hostile("online, in other words", "malformed", b"yes", topic="cam/online"),
    Hostile("newer schema", "malformed", GOOD.replace(b"{", b'{"schema":9,', 1)),
)


def test_bad_input_costs_a_counter_by_its_reason(bench):
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.hear(device.topic, device.payload())
    before = bench.look()[1]
    for one in HOSTILE:
        known = dict(bench.rejected)
        bench.hear(
            f"edge/{FLEET}/devices/{one.topic}",
            GOOD if one.payload is None else one.payload,
            is_retained=one.is_retained,
        )
        assert bench.rejected == {**known, one.reason: known.get(one.reason, 0) + 1}, one.name
    head, after = bench.look()
    assert after == before
    assert head.rejected == bench.rejected


def test_a_device_that_serves_a_model_file_of_its_own_is_heard(bench):
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.hear(device.topic, encode_compact(device.report(channel="", release="model-0123456789ab")))
    assert bench.rejected == {}
    assert bench.look()[1]["cam"].report.release == "model-0123456789ab"


@given(st.binary(max_size=300) | st.from_regex(rb'\{"(fleet|payloadType)":.*\}', fullmatch=True))
@settings(max_examples=200, deadline=None, database=None, derandomize=True)
def test_any_payload_is_read_or_rejected(payload):
    intake = Intake(FLEET, max_per_min=10**6, max_unknown=10, members={})
    for kind in ("report", "status"):
        message = intake.admit(f"edge/{FLEET}/devices/cam/{kind}", payload, 0.0)
        assert message is not None
        with contextlib.suppress(RejectedError):
            intake.read(message)


def test_a_flood_of_one_device_costs_its_own_reports_alone(tmp_path, fleet, clock):
    bench = Bench(tmp_path, fleet, clock, max_reports_per_min=5)
    loud, quiet = FakeDevice("loud"), FakeDevice("quiet")
    bench.enroll(loud, quiet)
    for _ in range(1000):
        bench.collector.take(loud.topic, loud.payload(), False)
    bench.hear(quiet.topic, quiet.payload())
    assert bench.rejected == {"too many": 995}
    assert (bench.last_sequence("loud"), bench.last_sequence("quiet")) == (5, 1)
    clock.now += 60
    bench.hear(loud.topic, loud.payload())
    assert bench.last_sequence("loud") == 1001
    bench.collector.close()


def test_devices_that_somebody_invents_do_not_fill_the_disk(tmp_path, fleet, clock):
    bench = Bench(tmp_path, fleet, clock, max_unknown_devices=20)
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.hear(device.topic, device.payload())
    for minute in range(5):
        clock.now += 60
        for number in range(50):
            invented = FakeDevice(f"x{minute}-{number}")
            bench.hear(invented.topic, invented.payload())
    _, rows = bench.look()
    assert rows.keys() >= {"cam", *(f"x4-{number}" for number in range(15))}
    assert len(rows) <= 23
    assert bench.rejected == {"too many unknown devices": 5 * 30}
    for number in range(40):
        clock.now += 60
        bench.hear(f"{device.topic}/c{number}", encode_compact(device.report(channel=f"c{number}")))
    assert bench.rejected["too many channels"] == 25
    bench.collector.close()


def test_a_full_queue_drops_with_a_count_and_says_that_there_is_a_gap(bench, clock):
    bench.collector.note_listening(is_heard=True)
    bench.collector.inbox._limits = 3, 10**6
    clock.now += 100
    for number in range(5):
        device = FakeDevice(f"cam-{number}")
        bench.collector.take(device.topic, device.payload(), False)
    assert bench.rejected == {"overload": 2}
    assert bench.collector.listening_since == clock.now


def test_a_collector_that_starts_again_knows_what_it_knew_and_where_the_gap_is(bench, clock):
    device = FakeDevice("cam", frames=10)
    bench.enroll(device)
    bench.collector.note_listening(is_heard=True)
    for frames in (10, 20):
        device.frames = frames
        bench.hear(device.topic, device.payload())
    bench.hear(f"edge/{FLEET}/devices/cam/online", b"online")
    assert bench.look()[0].listening_since == clock.now
    bench.collector.close()
    clock.now += 7200
    bench.fleet.fault = TransportError("the bucket is away")
    bench.open()
    bench.collector.note_listening(is_heard=True)
    device.frames = 80
    device.start, device.sequence = 2, 0
    bench.hear(device.topic, device.payload())
    head, rows = bench.look()
    assert (head.listening_since, head.registered, head.heard) == (clock.now, 1, 1)
    assert rows["cam"].online is None
    assert [one.frames for one in rows["cam"].periods] == [10, 60], "the gap cost no frame"


def test_one_database_has_one_collector(bench):
    with pytest.raises(SettingsError, match="another collector writes it"):
        bench.open()


def test_a_damaged_database_is_put_aside_and_begun_anew(bench, clock):
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.hear(device.topic, device.payload())
    bench.collector.close()
    file = bench.tmp_path / "collector.sqlite"
    data = bytearray(file.read_bytes())
    data[0:16384] = b"damaged!" * 2048
    file.write_bytes(data)
    bench.open()
    bench.hear(device.topic, device.payload())
    assert bench.look()[1]["cam"].report.sequence == 2
    assert list(bench.tmp_path.glob("collector.sqlite.damaged-*"))


DAMAGE = ("UPDATE rows SET state = x'c1'", "UPDATE rows SET report = x'c1'")


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_row_that_cannot_be_read_is_damage_too(bench, damage):
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.hear(device.topic, device.payload())
    bench.collector._database._connection.execute(damage)
    bench.hear(device.topic, device.payload())
    assert bench.last_sequence("cam") == 2
    bench.hear(device.topic, device.payload())
    bench.collector._database._connection.execute("UPDATE marks SET mark = x'c1'")
    with bench.clerk._told_faults("reports are kept"):
        bench.clerk.write_snapshot()
    bench.hear(device.topic, device.payload())
    assert bench.last_sequence("cam") == 4


def test_a_database_that_somebody_else_holds_costs_time_and_no_report(bench, monkeypatch):
    device = FakeDevice("cam")
    bench.enroll(device)
    bench.collector._database._connection.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(
        bench.tmp_path / "collector.sqlite", isolation_level=None, check_same_thread=False
    )
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(bench.collector.stopping, "wait", lambda _s: other.execute("ROLLBACK") is None)
    bench.hear(device.topic, device.payload())
    assert bench.look()[1]["cam"].report.sequence == 1


def test_a_disk_that_is_full_costs_time_and_no_report(bench, monkeypatch):
    device = FakeDevice("cam")
    bench.enroll(device)
    connection = bench.collector._database._connection
    [pages] = connection.execute("PRAGMA page_count").fetchone()
    connection.execute(f"PRAGMA max_page_count = {pages}")
    devices = [FakeDevice(f"cam-{number}") for number in range(50)]

    def room(_s):
        connection.execute("PRAGMA max_page_count = 100000")
        return False

    monkeypatch.setattr(bench.collector.stopping, "wait", room)
    for one in devices:
        bench.collector.take(one.topic, one.payload(), False)
    bench.collector.write_now(bench.collector.inbox.take_all())
    assert bench.look()[0].devices == 50


@pytest.mark.parametrize("fault", [TransportError("away"), TrustError("forged"), NoRegistryError("gone")])
def test_a_registry_that_cannot_be_read_changes_nothing(bench, fault):
    device = FakeDevice("cam", CryptoSigner.generate_ed25519())
    bench.enroll(device)
    bench.fleet.fault = fault
    with contextlib.suppress(TrustError):
        bench.clerk.open()
    bench.hear(device.topic, device.payload())
    head, rows = bench.look()
    assert (head.registered, rows["cam"].is_signed) == (1, True)
    bench.collector.close()
    if not isinstance(fault, TrustError):
        bench.open()
        assert bench.look()[0].registered == 1, "after a restart, too"


def test_sums_come_with_a_sample_of_each_release_that_is_always_the_same(tmp_path, fleet, clock):
    bench = Bench(tmp_path, fleet, clock, sampled_devices=5)
    devices = [FakeDevice(f"cam-{number:02}") for number in range(30)]
    bench.enroll(*devices)
    few = {"cam-03", "cam-17"}
    for frames in (0, 10):
        for one in devices:
            one.frames = frames
            facts = {"rollout": "x", "offered": NEW, "release": NEW} if one.device in few else {}
            bench.hear(one.topic, one.payload(**facts))
    drawn = [{name for name, row in bench.look()[1].items() if row.periods} for _ in range(2)]
    assert drawn[0] == drawn[1] >= few
    assert len(drawn[0]) == 7
    bench.collector.close()
