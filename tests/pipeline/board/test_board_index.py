"""The index has what the commands show, of any fleet; it is replaced at once, or stays; what looks cost."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import threading
import time
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from local_services import wait_until
from securesystemslib.signer import CryptoSigner

from edge_client.contract.errors import EdgeError
from edge_client.contract.report import ReleaseFigures
from luigi_tasks.board.index.child import Child, LoadError
from luigi_tasks.board.index.history import History, read_mix
from luigi_tasks.board.index.index import Index
from luigi_tasks.board.index.loading import load
from luigi_tasks.board.index.past import fill_past, wanted
from luigi_tasks.board.index.queries import SORTS
from luigi_tasks.board.index.records import Counts, DeviceQuery
from luigi_tasks.board.live.looks import SnapshotsLook, looks_at
from luigi_tasks.board.live.streams import STREAMS_AT_MOST, Streams, TooManyStreamsError
from luigi_tasks.board.live.watch import Watch
from luigi_tasks.fleet.commands.devices import notes_of, to_dict
from luigi_tasks.fleet.reading import read_view
from luigi_tasks.fleet.records import CurrentRollout, RolloutRecord, SnapshotHead, StageRecord
from luigi_tasks.fleet.registry import RegistryChange, change_registry
from luigi_tasks.fleet.snapshots import StoredRow, first_key, write_snapshot
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.fleet_reports import FakeDevice

ODD_NAMES = ("a", "Ä", "z'\"%_", "cam-1", "CAM-1", "x" * 120)


def reports(fleet, devices, **facts):
    name = fleet.settings.broker.fleet
    return [one.report(fleet=name, **{"client": "0.1.0", **facts}) for one in devices]


def name_collector(fleet, name: str) -> CryptoSigner:
    """Let a second collector count."""
    signer = CryptoSigner.generate_ed25519()
    key = signer._private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    change = RegistryChange((), {name: key.decode()})
    change_registry(fleet.documents, (), lambda _: change, who="ann")
    return signer


def write_second(fleet, signer, reports, age_s: float) -> None:
    at = time.time() - age_s
    rows = [
        StoredRow(
            device=one.device,
            channel=one.channel,
            enrolled=True,
            online=False,
            last_seen=at,
            start=one.start,
            sequence=one.sequence,
            report=msgspec.Raw(msgspec.json.encode(one)),
            clones=("f1", "f2") if one.device == "cam-1" else (),
        )
        for one in sorted(reports, key=lambda one: one.device)
    ]
    head = SnapshotHead(fleet=fleet.settings.broker.fleet, taken_at=at, collector="c2", devices=len(rows))
    write_snapshot(fleet.documents.store, head, rows, signer)


def open_index(fleet, folder, version="v1") -> Index:
    load(fleet.settings, folder, version)
    index = Index(fleet.settings, folder)
    index.find()
    return index


def test_index_has_what_the_commands_show(fleet, tmp_path):
    """Two collectors, two channels, strangers, devices that never reported, a rollout, names of all kinds."""
    release = fleet.publish().release
    devices = [FakeDevice(name) for name in ODD_NAMES]
    fleet.enroll(
        *(
            one.enrolled(site=f"shop {n % 2}", tags=("a b", "line=1")[: n % 3], channels=("stable", "night"))
            for n, one in enumerate(devices)
        ),
        FakeDevice("never").enrolled(),
    )
    figures = ReleaseFigures(release=release, frames=10, latency_ms=123.0, unsure=1, failed=2, restarts=3)
    told = reports(fleet, [*devices, FakeDevice("stranger")], release=release, releases=(figures,))
    record = RolloutRecord(
        id="r",
        channel="stable",
        release=release,
        state="open",
        stages=(StageRecord(number=1, size=1, threshold=1, opened_at=1.0),),
    )
    fleet.rollouts.save(record, None)
    fleet.rollouts.save_current(CurrentRollout(channel="stable", rollout="r"), None)
    fleet.report(*told, age_s=100)
    write_second(fleet, name_collector(fleet, "c2"), reports(fleet, devices[:4], drift_alarm=True), 10)

    index, view = open_index(fleet, tmp_path / "index"), read_view(fleet.settings)
    shown = sorted(view.devices(), key=lambda one: (one.device, one.channel))
    page = index.devices(DeviceQuery(limit=500))
    assert [(one.device, one.channel) for one in page.devices] == [(o.device, o.channel) for o in shown]
    for one, row in zip(shown, page.devices, strict=True):
        expected = to_dict(view, one)
        found = msgspec.to_builtins(row)
        for name in expected.keys() - {"report", "clones", "tags"}:
            assert found[name] == expected[name], (one.device, name)
        assert row.tags == tuple(one.member.tags)
        assert row.notes == tuple(notes_of(one))
        [detail] = [d for d in index.device(one.device) if d.row.channel == one.channel]
        assert detail.more.report == one.report
        assert detail.more.entry == one.enrolled
        assert detail.more.why == view.expected(one.channel, one.member).words
    assert view.head is not None
    assert index.state().heard == view.head.heard
    assert index.state().collector == "c1,c2"
    assert index.counts().devices == len(ODD_NAMES) + 1
    assert index.counts().strangers == 1
    assert index.counts("night").heard == {"never": len(ODD_NAMES)}
    assert index.counts().odd["clones"] == 1


def test_all_sorts_and_filters_agree_with_the_rows(fleet, tmp_path):
    fleet.publish()
    devices = [FakeDevice(f"d{number:02}") for number in range(40)]
    fleet.enroll(*(one.enrolled(site=f"s{n % 3}", tags=("t",) * (n % 2)) for n, one in enumerate(devices)))
    for number, one in enumerate(devices[:30]):
        one.frames = number * 7 % 11
    fleet.report(*reports(fleet, devices[:30], client=""))
    index = open_index(fleet, tmp_path / "index")
    rows = index.devices(DeviceQuery(limit=500)).devices
    place = {one.device: number for number, one in enumerate(rows)}
    for sort in SORTS:
        field = {"class": "device_class"}.get(sort, sort)

        def rank(one, field=field):
            value = getattr(one, field)
            return (value is not None, value or 0 if not isinstance(value, str) else value, place[one.device])

        ordered = [one.device for one in sorted(rows, key=rank)]
        for filters in (
            DeviceQuery(),
            DeviceQuery(site="s1"),
            DeviceQuery(tag="t", heard="heard"),
            DeviceQuery(text="D s2"),
        ):
            all_of_them = index.devices(msgspec.structs.replace(filters, limit=500)).devices
            matching = {one.device for one in all_of_them}
            wished = [device for device in ordered if device in matching]
            for descending in (False, True):
                query = msgspec.structs.replace(filters, sort=sort, descending=descending, offset=3, limit=7)
                found = [one.device for one in index.devices(query).devices]
                assert found == (wished[::-1] if descending else wished)[3:10], (sort, filters, descending)
    assert index.devices(DeviceQuery(site="s1")).total == 13
    assert index.devices(DeviceQuery(tag="t", heard="never")).total == 5


def test_rows_that_somebody_damaged_are_left_out_and_named(fleet, tmp_path):
    fleet.publish()
    devices = [FakeDevice("cam-1"), FakeDevice("cam-2")]
    fleet.enroll(*(one.enrolled() for one in devices))
    fleet.report(*reports(fleet, devices))
    [rows] = (fleet.bucket / "fleet/snapshots").glob("*.zst")
    rows.write_bytes(rows.read_bytes()[:-1])
    state = open_index(fleet, tmp_path / "index").state()
    assert state.rows == 2, "those of the registry"
    assert state.taken_at is None
    assert "not what its collector signed" in state.faults[0]


def test_channels_that_devices_make_up_stay_in_the_table_alone(fleet, tmp_path):
    fleet.publish()
    devices = [FakeDevice(f"cam-{number:03}") for number in range(30)]
    fleet.enroll(*(one.enrolled() for one in devices))
    made_up = [
        r for n in range(16) for one in devices for r in reports(fleet, [one], channel=f"{one.device}/{n}")
    ]
    fleet.report(*made_up, *reports(fleet, devices))
    index = open_index(fleet, tmp_path / "index")
    assert index.state().rows == 30 * 17
    assert len(index.channels) == 200
    assert index.counts("stable").devices == 30
    assert index.devices(DeviceQuery(channel="cam-029/15")).total == 1


def test_a_child_that_is_killed_leaves_the_index_before(fleet, tmp_path, monkeypatch):
    fleet.publish()
    fleet.enroll(FakeDevice("cam-1").enrolled())
    index = open_index(fleet, tmp_path / "index")
    child, faults = Child(60), []

    def run() -> None:
        try:
            child.load(fleet.settings, tmp_path / "index", "v2")
        except EdgeError as e:
            faults.append(e)

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: child._running is not None, "the child")
    child.close()
    thread.join()
    assert isinstance(faults[0], LoadError)
    assert index.devices(DeviceQuery()).total == 1
    index.find()
    assert index.version == "v1"
    (tmp_path / "index/index.sqlite.part").write_bytes(b"half of it")
    monkeypatch.chdir(tmp_path)  # where no file names [trust] root, it begins at the current folder
    trust = dataclasses.replace(fleet.settings.trust, root=Path("keys/device/root.json"))
    settings = dataclasses.replace(fleet.settings, trust=trust)
    answer = Child(60).load(settings, tmp_path / "index", "v3")
    assert answer.rows == 1
    assert not (tmp_path / "index/index.sqlite.part").exists()
    index.find()
    assert index.version == "v3"
    assert index.devices(DeviceQuery()).total == 1


def test_the_past_is_read_from_what_the_bucket_keeps(fleet, tmp_path):
    old, new = (fleet.publish(bias).release for bias in (0, 1))
    devices = [FakeDevice("cam-1"), FakeDevice("cam-2")]
    fleet.enroll(*(one.enrolled() for one in devices))
    for hours in (30, 5, 2):
        fleet.report(*reports(fleet, devices, release=old), age_s=hours * 3600)
    fleet.report(*reports(fleet, devices[:1], release=new), age_s=60)
    index = open_index(fleet, tmp_path / "index")
    assert fill_past(fleet.settings, tmp_path / "index") == 3
    assert fill_past(fleet.settings, tmp_path / "index") == 0, "what is known is not read again"
    mix = index.mix("stable", 40 * 3600)
    assert len(mix.times) == 4
    assert dict(zip(mix.releases, mix.devices, strict=True)) == {
        old: (2, 2, 2, 0),
        new: (0, 0, 0, 1),
        "unknown": (0, 0, 0, 1),
    }
    assert len(index.mix("stable", 3 * 3600).times) == 2


def test_few_snapshots_stand_for_all_ages():
    """A year of snapshots each five minutes: a bounded number is read, the newest first."""
    times = [float(number * 300) for number in range(12 * 24 * 365)]
    newest = times[-1]
    chosen = list(wanted(times, [newest], newest))
    assert chosen == sorted(chosen, reverse=True)
    assert 40 < len(chosen) < 80
    assert list(wanted(times, sorted(chosen), newest)) == []
    assert list(wanted([], [], newest)) == []


def test_history_is_thinned_and_bounded(tmp_path):
    newest = 40 * 86400
    ages = (*range(0, 3600, 60), *range(3600, 7200, 60), *range(86400, 100_000, 900))
    with History(tmp_path) as history:
        for age in sorted((*ages, *range(32 * 86400, 34 * 86400, 7200)), reverse=True):
            history.add(newest - age, {"": Counts(releases={f"r{one}": 1 for one in range(50)})})
        found = [newest - at for at in history.times()]
    assert sum(age <= 3600 for age in found) == 61, "all of the last hour"
    assert 11 <= sum(3600 < age <= 7200 for age in found) <= 13, "each five minutes of a day"
    assert 4 <= sum(86400 < age <= 100_000 for age in found) <= 6, "each hour of a month"
    assert 2 <= sum(age > 31 * 86400 for age in found) <= 3, "each day before"
    mix = read_mix(tmp_path, "", 0)
    assert len(mix.releases) == 8
    assert {sum(one[number] for one in mix.devices) for number in range(len(mix.times))} == {50}


@pytest.mark.parametrize("broken", [b"", b"no database", b"SQLite format 3\0" + bytes(4080)])
def test_an_index_that_is_none_is_not_taken(fleet, tmp_path, broken):
    (tmp_path / "index").mkdir()
    (tmp_path / "index/index.sqlite").write_bytes(broken)
    index = Index(fleet.settings, tmp_path / "index")
    index.find()
    assert index.state().version == ""
    index.load("v1", 0)
    assert index.state().version == "v1"


class CountingStore(FolderStore):
    """A folder that counts what it is asked; a listing of a thousand objects is one request."""

    requests = 0

    def get(self, key, *, limit_bytes=None):
        self.requests += 1
        return super().get(key, limit_bytes=limit_bytes)

    def list_unread(self, folder, after=""):
        self.requests += 1
        return super().list_unread(folder, after)

    def list_folder(self, folder):
        raise AssertionError("a folder store reads all that it lists so")


def test_a_minute_of_looks_costs_few_requests_and_tells_what_changed(fleet, tmp_path):
    fleet.publish()
    device = FakeDevice("cam-1")
    fleet.enroll(device.enrolled())
    fleet.report(*reports(fleet, [device]), age_s=10)
    store = CountingStore(fleet.settings.store)
    looks = looks_at(store)
    for _ in range(60):
        for look in looks:
            look.look()
    assert store.requests == 5 * 60
    again = looks_at(CountingStore(fleet.settings.store))
    for look in again:
        look.look()
    versions = {look.name: look.version for look in looks}
    assert {look.name: look.version for look in again} == versions, "also after a start of the board"
    fleet.report(*reports(fleet, [device]), age_s=1)
    fleet.publish(1)
    fleet.enroll(FakeDevice("cam-2").enrolled())
    fleet.rollouts.save(RolloutRecord(id="r", channel="stable", release="x"), None)
    for look in looks:
        look.due = 0
        look.look()
    changed = {look.name for look in looks if look.version != versions[look.name]}
    assert changed == {"snapshots", "registry", "rollouts", "repository"}
    watch = Watch(fleet.settings, Index(fleet.settings, tmp_path), Streams())
    assert watch.view().channels == ["stable"], "who asks before the first look reads it"
    watch.close()


def test_seals_that_somebody_put_and_removed_hide_no_snapshot(fleet):
    folder = fleet.bucket / "fleet/snapshots"
    folder.mkdir(parents=True, exist_ok=True)
    look, now = SnapshotsLook(FolderStore(fleet.settings.store)), time.time()

    def put(collector: str, at: float) -> Path:
        path: Path = fleet.bucket / f"{first_key(at)}-{collector}.json"
        path.touch()
        return path

    put("shops", now - 60)
    before = look.read()[0]
    foreign = put("nobody", now + 1e9)
    assert look.read()[0] != before
    put("shops", now - 30)
    with_both = look.read()[0]
    foreign.unlink()
    after = look.read()[0]
    assert len({before, with_both, after}) == 3
    copy = put("shops", now - 10)
    assert look.read()[0] != after
    copy.unlink()
    assert look.read()[0] == after


def test_streams_are_bounded_and_slow_readers_get_the_newest():
    async def follow() -> None:
        streams = Streams()
        open_ones = [streams.open("here") for _ in range(STREAMS_AT_MOST // 2)]
        with pytest.raises(TooManyStreamsError):
            streams.open("here")  # and nobody elsewhere is kept out
        open_ones += [streams.open("there") for _ in range(STREAMS_AT_MOST // 2)]
        with pytest.raises(TooManyStreamsError):
            streams.open("elsewhere")
        for number in range(10_000):
            streams.tell("snapshot", str(number))
        assert await open_ones[0].get() == "event: snapshot\ndata: 9999\n\n"
        streams.close(open_ones[0])
        late = streams.open("elsewhere")
        assert await late.get() == "event: snapshot\ndata: 9999\n\n"
        streams.tell("snapshot", "9999")
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(late.get(), 0.01)

    with concurrent.futures.ThreadPoolExecutor(1) as thread:  # playwright keeps a loop in the main one
        thread.submit(lambda: asyncio.run(follow())).result()
