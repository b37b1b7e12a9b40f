"""What nothing published names any more can be removed; what a device may be reading stays."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.errors import InputError, TransportError, TrustError
from edge_client.contract.release import ChannelDocument
from luigi_tasks.release.garbage import count_kinds, find_garbage, remove_garbage
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.folder_fleet import FolderFleet
from tests.fakes.trust import trust_settings

if TYPE_CHECKING:
    from pathlib import Path

DAY_S = 86400


class SmallFleet(FolderFleet):
    """A fleet that keeps two releases."""

    def machine(self, name: str = "", bucket: Path | None = None) -> ReleaseRepository:
        made = super().machine(name, bucket)
        made.settings = dataclasses.replace(made.settings, keep_releases=2)
        return made


@pytest.fixture
def fleet(tmp_path, keys):
    return SmallFleet(tmp_path, keys)


def age(fleet: FolderFleet, days: float) -> None:
    """Let all that is in the bucket be older."""
    for path in fleet.bucket.rglob("*.*"):
        written = path.stat().st_mtime - days * DAY_S
        os.utime(path, (written, written))


def _to(pointer: ChannelDocument, _before: ChannelDocument | None) -> ChannelDocument:
    return pointer


def clean(fleet: FolderFleet, days: float = 30) -> set[str]:
    """Remove garbage; return the releases whose files are left."""
    found = find_garbage(fleet.machine(), time.time() - days * DAY_S)
    remove_garbage(fleet.machine().store, found)
    return {path.name for path in (fleet.bucket / "targets/releases").iterdir()}


def test_a_device_finds_all_that_metadata_of_the_last_days_names_and_the_rest_goes(fleet):
    for number in range(4):
        fleet.publish(f"r{number}")
    age(fleet, 40)
    for number in range(4, 6):
        fleet.publish(f"r{number}")
    assert fleet.machine().load().releases() == ["r4", "r5"]
    # The snapshots that were current until r4 came are metadata of the last days: r2 and r3, and two before.
    assert clean(fleet) == {"r0", "r1", "r2", "r3", "r4", "r5"}
    for number in range(6, 10):
        age(fleet, 40)
        fleet.publish(f"r{number}")
    left = clean(fleet)
    assert {"r8", "r9"} < left < {f"r{number}" for number in range(4, 10)}
    versions = [one.key for one in fleet.machine().store.list_folder("metadata/")]
    assert len(versions) == 2 + 3 * 4, "root, timestamp; of each role the current version and three before"
    assert fleet.device() == "r9"
    fleet.publish("r10")
    assert fleet.device() == "r10"


def test_what_is_young_foreign_or_a_root_stays_and_a_dry_look_changes_nothing(fleet):
    for number in range(8):
        fleet.publish(f"r{number}")
    age(fleet, 40)
    foreign = (
        "targets/notes.txt",
        "metadata/readme.txt",
        "fleet/x.json",
        "work/y.json",
        "targets/a/b.tflite",
    )
    store = fleet.machine().store
    for key in foreign:
        store.put(key, b"x")
    age(fleet, 40)
    young = f"targets/releases/r8/{'0' * 64}.model.tflite"  # a publication that has just begun
    store.put(young, b"x")
    before = {one.key for one in store.list_folder("")}
    garbage = find_garbage(fleet.machine(), time.time() - 30 * DAY_S)
    assert {one.key for one in store.list_folder("")} == before
    assert garbage.objects
    remove_garbage(store, garbage)
    left = {one.key for one in store.list_folder("")}
    assert left > {*foreign, young, "metadata/1.root.json", "metadata/timestamp.json"}
    assert before - left == {one.key for one in garbage.objects}
    assert not find_garbage(fleet.machine(), time.time() - 30 * DAY_S).objects


def test_what_is_left_of_a_bucket_is_whole(store_settings, keys):
    repository = ReleaseRepository(S3Store(store_settings), trust_settings(keys, keep_releases=2))
    for number in range(6):
        files = {f"releases/r{number}/{name}": name.encode() for name in ("release.json", "model.tflite")}
        pointer = ChannelDocument(channel="stable", release=f"r{number}")
        repository.publish(files, functools.partial(_to, pointer), "stable")
    garbage = find_garbage(repository, time.time() + DAY_S)
    assert count_kinds(garbage.objects)["metadata"] > 0
    remove_garbage(repository.store, garbage)
    state = ReleaseRepository(S3Store(store_settings), repository.settings).load()
    assert state.releases() == ["r4", "r5"]
    assert all(state.read(path) for path in state.files)
    left = {one.key for one in repository.store.list_folder("")}
    assert not left & {one.key for one in garbage.objects}
    assert len(left) == garbage.kept


def test_nothing_is_removed_where_the_bucket_cannot_be_believed_or_somebody_publishes(fleet):
    with pytest.raises(InputError, match="nothing is published"):
        clean(fleet)
    for number in range(7):
        fleet.publish(f"r{number}")
        if number == 5:
            fleet.back_up()
    age(fleet, 40)
    found = find_garbage(fleet.machine(), time.time() - 30 * DAY_S)
    fleet.publish("r7")
    with pytest.raises(TransportError, match="somebody published meanwhile"):
        remove_garbage(fleet.machine().store, found)
    damaged = fleet.machine().load().published.versions["snapshot"]
    (fleet.bucket / f"metadata/{damaged - 60}.snapshot.json").write_bytes(b"{")
    with pytest.raises(TrustError, match="what it names is unknown"):
        clean(fleet)
    fleet.restore()
    with pytest.raises(TrustError, match="not what this machine remembers"):
        clean(fleet)
