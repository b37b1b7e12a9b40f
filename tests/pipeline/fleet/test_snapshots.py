"""Snapshots: signed by the collector that the registry names, merged without counting twice, thinned."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from securesystemslib.signer import CryptoSigner

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.report import DeviceReport, ReleaseFigures
from luigi_tasks.fleet.marks import Mark, marks_of, merge_marks, sums_of
from luigi_tasks.fleet.records import SnapshotHead
from luigi_tasks.fleet.snapshots import (
    FOLDER,
    SnapshotPolicy,
    StoredRow,
    keep_snapshot,
    read_newest_heads,
    read_newest_snapshot,
    read_snapshots,
    seal_key,
    snapshot_key,
    thin_snapshots,
    write_snapshot,
)
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore

NOW = 1_795_822_200.0  # half past an hour
HOUR = 3600


@dataclasses.dataclass(frozen=True)
class Collector:
    """A collector with its key."""

    name: str
    signer: CryptoSigner

    @property
    def pem(self) -> str:
        key = self.signer._private_key.public_key()
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    def head(self, at: float = NOW, **facts) -> SnapshotHead:
        return SnapshotHead(fleet="shops", taken_at=at, collector=self.name, **facts)


@pytest.fixture
def store(tmp_path):
    return FolderStore(
        StoreSettings(
            url=f"file://{tmp_path}/store",
            endpoint_url="",
            region="",
            checksums="",
            conditional_writes=True,
        )
    )


def collector(name: str) -> Collector:
    return Collector(name, CryptoSigner.generate_ed25519())


def report(frames: int, *, start: int = 1, sequence: int = 1, activated_at: str = "A") -> DeviceReport:
    figures = ReleaseFigures(
        release="r1",
        activated_at=activated_at,
        seconds=frames / 10,
        frames=frames,
        latency={"40": frames},
        confidence=(0,) * 9 + (frames,),
        labels={"cat": frames},
    )
    return DeviceReport(
        fleet="shops", device="cam", channel="stable", start=start, sequence=sequence, releases=(figures,)
    )


def marks(*reports: tuple[int, DeviceReport], known: bool = True) -> list[Mark]:
    """The marks that a collector keeps of reports, each with the period in which it arrived."""
    before = DeviceReport(fleet="shops", device="cam", channel="stable") if known else None
    began: dict[str, int] = {}
    kept: dict[object, Mark] = {}
    for period, one in reports:
        for mark in marks_of(one, before, began, period, HOUR):
            kept[mark.period, mark.count] = mark
        before = one
    return list(kept.values())


def frames_by_period(found) -> dict[int, int]:
    return {one.start: one.frames for one in sums_of(found)}


def row(order: int, found=(), **facts) -> StoredRow:
    raw = msgspec.Raw(msgspec.json.encode(report(order, sequence=order)))
    return StoredRow(
        device="cam", channel="stable", start=1, sequence=order, report=raw, marks=tuple(found), **facts
    )


def test_what_a_lost_report_told_is_in_the_next_one():
    every = [(0, report(10)), (0, report(20, sequence=2)), (HOUR, report(50, sequence=3))]
    assert frames_by_period(marks(*every)) == frames_by_period(marks(every[1], every[2])) == {0: 20, HOUR: 30}


def test_what_was_counted_before_the_collector_knew_the_device_belongs_to_no_period():
    found = marks(
        (0, report(900)), (0, report(1000, sequence=2)), (HOUR, report(1010, sequence=3)), known=False
    )
    assert frames_by_period(found) == {0: 100, HOUR: 10}


def test_a_new_activation_is_counted_from_its_beginning():
    again = report(5, sequence=3, activated_at="B")
    found = marks((0, report(100)), (HOUR, report(130, sequence=2)), (HOUR, again))
    assert frames_by_period(found) == {0: 100, HOUR: 35}
    assert sum(one.labels["cat"] for one in sums_of(found)) == 135


def test_a_total_that_fell_counts_nothing_twice():
    """After a kill a device goes on from what it had written; where its file is lost, from nothing."""
    before = [(0, report(1000)), (HOUR, report(1500, sequence=2))]
    killed = [(HOUR, report(1480, start=2)), (HOUR, report(1600, start=2, sequence=2))]
    assert frames_by_period(marks(*before, *killed)) == {0: 1000, HOUR: 600}
    lost = [(2 * HOUR, report(30, start=2)), (3 * HOUR, report(90, start=2, sequence=2))]
    assert frames_by_period(marks(*before, *lost)) == {0: 1000, HOUR: 500, 3 * HOUR: 60}


def test_two_collectors_that_share_the_reports_count_each_frame_once():
    reports = [(HOUR * (n // 3), report(10 * n, sequence=n)) for n in range(1, 13)]
    alone = sums_of(marks(*reports))
    shared = [marks(*reports[0::2]), marks(*reports[1::2])]
    assert sums_of(merge_marks(shared)) == alone
    assert sums_of(merge_marks([marks(*reports), marks(*reports)])) == alone, "both heard all"


def test_a_snapshot_is_read_as_it_was_written(store):
    one = collector("one")
    found = marks((0, report(10)), (HOUR, report(25, sequence=2)))
    key = write_snapshot(store, one.head(devices=1), [row(2, found, is_signed=True)], one.signer)
    snapshot = read_newest_snapshot(store, "shops", {"one": one.pem})
    assert snapshot is not None
    [found_row] = snapshot.rows
    assert found_row.report == report(2, sequence=2)
    assert found_row.is_signed
    assert [sums.frames for sums in found_row.periods] == [10, 15]
    assert snapshot == read_snapshots(store, [key], "shops", {"one": one.pem})
    assert read_newest_heads(store, "shops", {"one": one.pem}) == {key: snapshot.head}
    assert read_newest_snapshot(store, "shops", {}) is None


def test_of_several_collectors_the_newest_report_of_each_device_counts(store):
    one, two = collector("one"), collector("two")
    trusted = {"one": one.pem, "two": two.pem}
    write_snapshot(store, one.head(NOW - 600, devices=1), [row(9)], one.signer)
    write_snapshot(store, one.head(devices=1, listening_since=5.0), [row(2, online=True)], one.signer)
    write_snapshot(store, two.head(NOW - 30, devices=1, listening_since=7.0), [row(3)], two.signer)
    merged = read_newest_snapshot(store, "shops", trusted)
    assert merged is not None
    assert [one.report and one.report.sequence for one in merged.rows] == [3]
    assert (merged.head.taken_at, merged.head.listening_since, merged.head.collector) == (NOW, 7.0, "one,two")
    assert len(merged.sources) == 2
    assert merged == read_snapshots(store, merged.sources, "shops", trusted)


def test_what_was_not_signed_by_the_collector_that_it_names_is_refused(store):
    one, stranger = collector("one"), collector("one")
    key = write_snapshot(store, one.head(devices=1), [row(2)], one.signer)
    with pytest.raises(TrustError, match="not signed by a trusted key"):
        read_newest_snapshot(store, "shops", {"one": stranger.pem})
    with pytest.raises(TrustError, match="fleet 'shops'"):
        read_newest_snapshot(store, "offices", {"one": one.pem})
    older, newer = store.get(seal_key(key)), snapshot_key(one.head(NOW + 60))
    store.put(seal_key(newer), older.data)
    with pytest.raises(TrustError, match="signed for another place"):
        read_newest_snapshot(store, "shops", {"one": one.pem})
    store.delete(seal_key(newer))
    store.put(key, b"other rows")
    with pytest.raises(TrustError, match="not what its collector signed"):
        read_newest_snapshot(store, "shops", {"one": one.pem})
    store.put(key, b"x" * 100_000)
    with pytest.raises(TrustError, match="larger than what its collector signed"):
        read_newest_snapshot(store, "shops", {"one": one.pem})
    store.delete(key)
    with pytest.raises(InputError, match="restore it"):
        read_newest_snapshot(store, "shops", {"one": one.pem})


def test_a_collector_that_signs_more_rows_than_it_promises_fills_no_memory(store):
    one, made = collector("one"), []

    def rows():
        for number in range(3000):
            made.append(number)
            yield row(1)

    write_snapshot(store, one.head(devices=1), rows(), one.signer)
    with pytest.raises(InputError, match="2 or more rows, 1 were promised"):
        read_newest_snapshot(store, "shops", {"one": one.pem})
    assert len(made) == 3000
    unread = msgspec.structs.replace(row(1), report=msgspec.Raw(b'{"fleet":7}'))
    write_snapshot(store, one.head(NOW + 60, devices=1), [unread], one.signer)
    with pytest.raises(InputError, match="no report"):
        read_newest_snapshot(store, "shops", {"one": one.pem})


def test_totals_of_one_device_make_no_snapshot_unreadable(store):
    one, labels = collector("one"), {f"{number:064}": number for number in range(64)}
    found = [
        Mark(HOUR * hour, "r1", "A", 1, hour, frames=10 * hour, seconds=10.0 * hour, labels=labels)
        for hour in range(400)
    ]
    write_snapshot(store, one.head(devices=1), [row(1, found)], one.signer)
    snapshot = read_newest_snapshot(store, "shops", {"one": one.pem})
    assert snapshot is not None
    hours = [sums.start // HOUR for sums in snapshot.rows[0].periods]
    assert hours == list(range(hours[0], 400)), "the newest ones"
    assert len(hours) > 100


def test_old_snapshots_are_thinned_and_those_of_verdicts_stay(store):
    one = collector("one")
    ages = [0.01, 0.5, 3, 3.1, 3.2, 50, 50.1, 60, 60.5, 1000]
    keys = {age: write_snapshot(store, one.head(NOW - age * HOUR), [], one.signer) for age in ages}
    other = collector("other")
    foreign = write_snapshot(store, other.head(NOW - 1000 * HOUR), [], other.signer)
    keep_snapshot(store, keys[50])
    removed = thin_snapshots(store, "one", SnapshotPolicy(all_h=2, hourly_days=1, daily_days=30), NOW)
    left = {one.key for one in store.list_folder(FOLDER)}
    gone = {age for age, key in keys.items() if key not in left}
    assert {seal_key(key) in left for age, key in keys.items() if age not in gone} == {True}
    assert 1000 in gone
    assert not gone & {0.01, 0.5, 50}
    assert len(gone & {3, 3.1, 3.2}) == 2
    assert removed == len(gone)
    assert foreign in left
