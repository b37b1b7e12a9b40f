"""A bucket that went back in time: put back from a backup or by a thief, emptied, moved, damaged.

The pipeline's own repository publishes into a folder; a device's real TUF client follows it.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from typing import TYPE_CHECKING

import msgspec
import pytest

from edge_client.contract.errors import SettingsError, TransportError, TrustError
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.keys import Rotation, rotate_keys
from luigi_tasks.release.memory import PublisherMemory, Remembered
from luigi_tasks.release.published import TIMESTAMP_KEY
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.release.signing import ONLINE_ROLES, PIPELINE_ROLES
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from luigi_tasks.targets import ChannelTarget, FreshSignaturesTarget
from tests.fakes.folder_fleet import WHEN, FolderFleet
from tests.fakes.trust import trust_settings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def fleet(tmp_path, keys):
    return FolderFleet(tmp_path, keys)


@pytest.fixture
def old_bucket(fleet):
    """Published 2, backed up, published 7 more; the device is at the last."""
    for number in range(9):
        fleet.publish(f"r{number}")
        if number == 1:
            fleet.back_up()
    assert fleet.device() == "r8"
    return fleet


def test_a_device_follows_a_restored_bucket_after_one_publication(old_bucket, caplog):
    """Also the release that was published before it, though its files are gone from the bucket."""
    fleet = old_bucket
    fleet.restore()
    with pytest.raises(TrustError, match="older than what this device has seen"):
        fleet.device()
    fleet.publish("r9")
    assert fleet.device() == "r9"
    assert "the bucket is older than what this machine published: timestamp 1" in caplog.text
    assert fleet.machine().load().releases() == ["r0", "r1", "r9"]
    assert "r2" in next(one.message for one in caplog.records if "dropped" in one.message)


def test_a_device_follows_a_restored_bucket_without_any_memory_too(old_bucket, caplog):
    """The machine that remembered is lost with the bucket: the time alone lifts the versions."""
    old_bucket.restore()
    shutil.rmtree(old_bucket.keys / "device/memory")
    old_bucket.publish("r9")
    assert old_bucket.device() == "r9"
    assert "this machine has no memory of this store" in caplog.text


def test_versions_grow_though_nobody_remembers_and_no_second_passes(old_bucket):
    versions = []
    for number in range(3):
        shutil.rmtree(old_bucket.keys / "device/memory")
        old_bucket.publish(f"s{number}", seconds=0)
        versions.append(old_bucket.machine().load().published.versions)
        assert old_bucket.device() == f"s{number}"
    for role in versions[0]:
        assert versions[0][role] < versions[1][role] < versions[2][role]


def test_metadata_that_a_thief_puts_back_again_and_again_changes_nothing(old_bucket, caplog):
    """Each run notices, and writes again what this machine remembers: nothing to publish is needed."""
    for _ in range(3):
        caplog.clear()
        old_bucket.restore("metadata")
        assert old_bucket.machine().load().channel("stable").release == "r8"
        assert not FreshSignaturesTarget(old_bucket.machine()).exists()
        assert "Somebody put back an older copy" in caplog.text
        old_bucket.machine().renew()
        assert old_bucket.device() == "r8"
        assert FreshSignaturesTarget(old_bucket.machine()).exists()
    assert len(old_bucket.machine().load().releases()) == 9


def test_an_old_bucket_points_to_no_withdrawn_release(fleet):
    """The backup is of when the bad release was current."""
    fleet.publish("good")
    fleet.publish("bad")
    fleet.back_up()
    fleet.roll_back("good")
    assert fleet.device() == "good"
    for restored in ("metadata", ""):
        fleet.restore(restored)
        state = fleet.machine().load()
        assert (state.channel("stable").release, state.channel("stable").withdrawn) == ("good", ("bad",))
        assert ChannelTarget(fleet.machine().load, "stable", "bad", 100.0).exists()
        fleet.machine().renew()
        assert fleet.device() == "good"


def test_where_files_are_gone_nothing_is_signed_until_a_person_says_so(old_bucket):
    """Signing again would point new devices to nothing; going back to an older release is a person's word."""
    old_bucket.restore()
    state = old_bucket.machine().load()
    with pytest.raises(TrustError, match="edge-keys publish --force"):
        state.release("r8")
    with pytest.raises(TrustError, match=r"stable \(r8\).*edge-keys publish --force"):
        old_bucket.machine().renew()
    assert old_bucket.machine().force() == [
        "channel stable: the files of release r8 are gone; it points to r1 again, as the bucket shows"
    ]
    assert old_bucket.device() == "r1"
    assert FreshSignaturesTarget(old_bucket.machine()).exists()


def test_no_force_points_to_a_withdrawn_release(fleet):
    """All that the old bucket offers was withdrawn since: the channel is empty, and the word is kept."""
    fleet.publish("bad")
    fleet.back_up()
    fleet.publish("good")
    fleet.publish("better")
    fleet.machine().publish({}, lambda one: msgspec.structs.replace(one, withdrawn=("bad",)), "stable")
    fleet.restore()
    assert fleet.machine().force() == [
        "channel stable: the files of release better are gone; it points to nothing until the next Deploy"
    ]
    assert fleet.machine().load().channel("stable") is None
    assert ChannelTarget(fleet.machine().load, "stable", "bad", 100.0).exists()
    fleet.publish("next")
    assert fleet.device() == "next"
    assert fleet.machine().load().channel("stable").withdrawn == ("bad",)


@pytest.mark.parametrize("damage", [None, b"{}", b"x" * 10**6])
def test_a_pointer_that_was_removed_or_altered_is_written_again(fleet, damage, caplog):
    """A thief of the bucket would stop the fleet and each publication with it."""
    fleet.publish("r1")
    fleet.publish("c1", channel="canary")
    for path in (fleet.bucket / "targets/channels").iterdir():
        path.write_bytes(damage) if damage is not None else path.unlink()
    with pytest.raises((TrustError, TransportError)):
        fleet.device()
    assert fleet.machine().load().channel("stable").release == "r1"
    state = fleet.machine().load()
    assert state.channel("canary").release == "c1"
    assert "written again from this machine's memory" in caplog.text
    fleet.publish("r2")
    assert (fleet.device(), fleet.device("canary")) == ("r2", "c1")


def test_an_emptied_bucket_is_no_first_run(old_bucket, caplog):
    shutil.rmtree(old_bucket.bucket / "metadata")
    assert old_bucket.machine().load().channel("stable").release == "r8"
    assert "timestamp missing" in caplog.text
    old_bucket.machine().renew()
    assert old_bucket.device() == "r8"


@pytest.mark.parametrize("damage", [b"{}", b"", b"\xff"])
def test_force_writes_again_what_was_damaged(old_bucket, damage):
    (old_bucket.bucket / TIMESTAMP_KEY).write_bytes(damage)
    with pytest.raises(TrustError, match="edge-keys publish --force"):
        old_bucket.machine().renew()
    assert old_bucket.machine().force() == []
    assert old_bucket.device() == "r8"
    (old_bucket.bucket / TIMESTAMP_KEY).write_bytes(damage)
    shutil.rmtree(old_bucket.keys / "device/memory")
    with pytest.raises(TrustError, match="not signed by our keys"):
        old_bucket.machine().force()


def test_a_bucket_that_moves_is_followed(old_bucket, tmp_path, caplog):
    """To another account: first an empty bucket, then a copy of the old one is put over it."""
    fleet, old = old_bucket, old_bucket.bucket
    fleet.bucket = tmp_path / "elsewhere"
    fleet.publish("r9")
    assert (
        f"this machine published in {old.as_uri()}/. If the fleet moves, copy that bucket first"
        in caplog.text
    )
    assert fleet.device() == "r9"
    shutil.copytree(old, fleet.bucket, dirs_exist_ok=True)
    assert fleet.machine().load().channel("stable").release == "r9"
    fleet.machine().renew()
    assert fleet.device() == "r9"


def test_a_copy_of_the_bucket_elsewhere_goes_on(old_bucket, tmp_path):
    fleet = old_bucket
    shutil.copytree(fleet.bucket, tmp_path / "elsewhere")
    fleet.bucket = tmp_path / "elsewhere"
    assert fleet.device() == "r8"
    fleet.publish("r9")
    assert fleet.device() == "r9"
    assert len(fleet.machine().load().releases()) == 10


def test_machines_remember_what_the_others_published(fleet):
    """Each merges what it finds in the bucket."""
    fleet.publish("r1", machine="a")
    fleet.publish("c1", channel="canary", machine="b")
    fleet.publish("r2", machine="a")
    fleet.back_up()
    fleet.publish("r3", machine="b")
    assert fleet.machine("a").load().channel("stable").release == "r3"
    fleet.restore("metadata")
    state = fleet.machine("a").load()
    assert (state.channel("stable").release, state.channel("canary").release) == ("r3", "c1")
    fleet.machine("a").renew()
    assert (fleet.device(), fleet.device("canary")) == ("r3", "c1")


def test_a_machine_that_was_away_cannot_take_a_channel_back_in_silence(fleet, caplog):
    """What a thief puts back is newer than all that it remembers, so it signs that; the other notices."""
    fleet.publish("bad", machine="a")
    fleet.publish("c1", channel="canary", machine="b")
    fleet.back_up()
    fleet.publish("good", machine="a")
    assert fleet.device() == "good"
    fleet.restore("metadata")
    fleet.publish("c2", channel="canary", machine="b")
    assert fleet.device() == "bad"
    assert not FreshSignaturesTarget(fleet.machine("a")).exists()
    assert "over an older copy, of channels/stable.json" in caplog.text
    fleet.machine("a").renew()
    assert (fleet.device(), fleet.device("canary")) == ("good", "c2")
    assert FreshSignaturesTarget(fleet.machine("a")).exists()
    assert FreshSignaturesTarget(fleet.machine("b")).exists()


def test_a_move_is_later_than_the_one_before_also_where_a_clock_is_behind(fleet):
    """Or one machine would take back what another with a slower clock moved."""
    fleet.at = WHEN
    fleet.publish("r1", machine="a")
    fleet.at = "2026-11-27T08:00:00.000+00:00"
    fleet.publish("r2", machine="b")
    fleet.machine("b").publish({}, lambda one: msgspec.structs.replace(one, share_percent=5.0), "stable")
    pointer = fleet.machine("a").load().channel("stable")
    assert (pointer.release, pointer.share_percent) == ("r2", 5.0)
    assert pointer.moved_at == "2026-11-27T09:00:00.002+00:00"
    assert FreshSignaturesTarget(fleet.machine("a")).exists()


@pytest.mark.parametrize("ahead", [10**12, 10**40])
def test_an_old_targets_under_a_newer_timestamp_is_noticed(fleet, caplog, ahead):
    """A thief of the timestamp key: a version far ahead over an old snapshot."""
    fleet.publish("r1")
    before = fleet.machine().load().published
    fleet.publish("r2")
    stamp = before.timestamp
    stamp.signed.version += ahead
    (fleet.bucket / TIMESTAMP_KEY).write_bytes(
        fleet.machine().writer.sign(fleet.machine().load().root, stamp)
    )
    assert fleet.machine().load().channel("stable").release == "r2"
    assert "snapshot" in caplog.text
    fleet.publish("r3")
    assert fleet.device() == "r3"


def test_who_only_looks_leaves_no_trace(fleet, caplog):
    """`edge-keys verify`, by anybody who has the root."""
    fleet.publish("r1", machine="a")
    assert fleet.machine().look().channel("stable").release == "r1"
    assert not (fleet.keys / "device/memory").exists()
    assert not caplog.records


def test_a_memory_that_was_damaged_is_named_and_made_anew(fleet, caplog):
    fleet.publish("r1")
    [path] = (fleet.keys / "device/memory").glob("published-*.json")
    path.write_text('{"versions": {"timestamp": 5}}')
    assert fleet.machine().load().channel("stable").release == "r1"
    assert f"{path}: not a valid Remembered" in caplog.text
    assert PublisherMemory(path.parent, fleet.machine().store.url("")).load().version("timestamp") > 1


def test_a_forged_memory_is_not_believed(fleet, caplog):
    """Only metadata that the roots' keys signed counts."""
    fleet.publish("r1")
    memory = fleet.machine().memory
    versions = dict.fromkeys(("timestamp", "snapshot", "targets"), str(2**60))
    signed = memory.load().metadata
    forged = {role: text.replace('"version":', '"version":9') for role, text in signed.items()}
    memory.change(lambda known: Remembered(**{**as_dict(known), "versions": versions, "metadata": forged}))
    assert fleet.machine().load().channel("stable").release == "r1"
    assert f"{memory.path}: damaged" in caplog.text
    fleet.publish("r2")
    assert fleet.device() == "r2"


def as_dict(known):
    """Its fields."""
    return {name: getattr(known, name) for name in known.__struct_fields__}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_root_leaves_a_memory_that_the_pipelines_user_can_write(fleet):
    """Who runs `edge-keys publish` with sudo once must not blind the pipeline for ever."""
    os.chown(fleet.keys / "device", 1234, 1234)
    fleet.publish("r1")
    [path] = (fleet.keys / "device/memory").iterdir()
    assert (path.parent.stat().st_uid, stat.S_IMODE(path.stat().st_mode)) == (1234, 0o644)


def test_a_disk_that_takes_no_memory_is_said_once_and_publishes(fleet, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    settings = dataclasses.replace(trust_settings(fleet.keys), memory_dir=str(tmp_path / "file/below"))
    store = FolderStore(StoreSettings(fleet.bucket.as_uri(), "", "", "when_required", True))
    repository = ReleaseRepository(store, settings)
    for release in ("r1", "r2"):
        repository.publish({f"releases/{release}/release.json": b"{}"}, pointing_to(release), "stable")
    assert fleet.device() == "r2"
    assert caplog.text.count("[trust] memory_dir") == 1


def pointing_to(release: str):
    """Move stable to a release."""
    return lambda pointer: point_channel(pointer, "stable", release, share_percent=100.0, at=WHEN)


# After a theft of the keys


def thief_publishes(fleet: FolderFleet, tmp_path: Path) -> None:
    """With all keys, from a machine of his own: an evil release, and a good one withdrawn."""
    honest, fleet.keys = fleet.keys, tmp_path / "thief/keys"
    shutil.copytree(honest, fleet.keys)
    shutil.rmtree(fleet.keys / "device/memory", ignore_errors=True)
    fleet.publish("evil")
    fleet.publish("evil2", channel="canary")
    fleet.keys = honest


def test_after_a_theft_this_machines_own_channels_and_withdrawn_releases_come_back(fleet, tmp_path, caplog):
    fleet.publish("c1", channel="canary")
    fleet.publish("good")
    fleet.publish("bad")
    fleet.roll_back("good")
    thief_publishes(fleet, tmp_path)
    assert fleet.device() == "evil"
    fleet.publish("good2", channel="other")  # before anybody noticed: what the thief signed is signed again
    rotate_keys(fleet.keys, Rotation(PIPELINE_ROLES, stolen=True))
    fleet.machine().renew()
    state = fleet.machine().load()
    assert (fleet.device(), fleet.device("canary"), fleet.device("other")) == ("good", "c1", "good2")
    assert state.channel("stable").withdrawn == ("bad",)
    assert set(state.releases()) == {"c1", "good", "bad", "good2"}
    assert "channels that this machine moved: canary, other, stable" in caplog.text
    assert FreshSignaturesTarget(fleet.machine()).exists()


def test_after_a_theft_each_machine_brings_back_its_own(fleet):
    """The second finds a bucket without its channel, signed by the new keys."""
    fleet.publish("r1", machine="a")
    fleet.publish("c1", channel="canary", machine="b")
    rotate_keys(fleet.keys, Rotation(PIPELINE_ROLES, stolen=True))
    fleet.machine("a").renew()
    assert fleet.machine("a").load().channel("canary") is None
    assert not FreshSignaturesTarget(fleet.machine("b")).exists()
    fleet.machine("b").renew()
    assert (fleet.device(), fleet.device("canary")) == ("r1", "c1")


def test_after_a_theft_files_that_the_thief_removed_are_not_signed(fleet, tmp_path, caplog):
    fleet.publish("r1")
    fleet.publish("r2")
    thief_publishes(fleet, tmp_path)
    shutil.rmtree(fleet.bucket / "targets/releases/r2")
    rotate_keys(fleet.keys, Rotation(PIPELINE_ROLES, stolen=True))
    fleet.machine().renew()
    assert fleet.machine().load().channel("stable") is None
    assert "files are gone of the releases that this machine published on stable" in caplog.text
    caplog.clear()
    assert FreshSignaturesTarget(fleet.machine()).exists()
    assert not caplog.records


def test_a_routine_rotation_keeps_the_memory(old_bucket):
    rotate_keys(old_bucket.keys, Rotation(ONLINE_ROLES))
    old_bucket.restore("metadata")
    old_bucket.machine().renew()
    assert old_bucket.device() == "r8"


def test_what_retired_keys_sign_later_is_not_signed_again(fleet, tmp_path, caplog):
    """Replaced in routine, stolen afterwards: in a version far ahead, so that nothing looks older."""
    fleet.publish("r1")
    shutil.copytree(fleet.keys, tmp_path / "thief/keys")
    rotate_keys(fleet.keys, Rotation(ONLINE_ROLES))
    fleet.publish("r2")
    honest, fleet.keys = fleet.keys, tmp_path / "thief/keys"
    (fleet.bucket / "metadata/2.root.json").unlink()
    (fleet.bucket / TIMESTAMP_KEY).unlink()
    shutil.rmtree(fleet.keys / "device/memory")
    fleet.publish("evil", seconds=3600)
    fleet.keys = honest
    assert fleet.machine().load().channel("stable").release == "r2"
    assert "signed by the keys of root version 1, which were replaced" in caplog.text
    fleet.publish("r3")
    assert fleet.device() == "r3"
    assert "evil" not in fleet.machine().load().releases()


# Conditional writes


class Unconditional(FolderStore):
    """An endpoint that takes no notice of If-Match, of If-None-Match, or of both."""

    ignores = (True, True)

    def put_if_unchanged(self, key, data, etag):
        if self.ignores[etag is not None]:
            self.put(key, data)
        else:
            super().put_if_unchanged(key, data, etag)


@pytest.mark.parametrize(
    ("ignores", "named"),
    [((True, True), "If-None-Match"), ((False, True), "If-Match"), ((True, False), "If-None-Match")],
)
def test_a_store_that_ignores_conditions_is_refused(fleet, ignores, named):
    store = Unconditional(StoreSettings(fleet.bucket.as_uri(), "", "", "when_required", True))
    store.ignores = ignores
    repository = ReleaseRepository(store, trust_settings(fleet.keys))
    with pytest.raises(SettingsError, match=rf"ignores {named}:.*conditional_writes = false"):
        repository.publish({}, pointing_to("r1"), "stable")
    assert not store.exists(TIMESTAMP_KEY)


def test_conditions_are_tried_again_where_another_endpoint_holds_the_address(fleet, monkeypatch):
    """A bucket of the same name at another store, which ignores them."""
    fleet.publish("r1")
    store = Unconditional(StoreSettings(fleet.bucket.as_uri(), "", "", "when_required", True))
    repository = ReleaseRepository(store, trust_settings(fleet.keys))
    repository.publish({}, pointing_to("r1"), "stable")  # not tried again: it is the same endpoint
    monkeypatch.setattr(Unconditional, "endpoint", "http://another:9000")
    with pytest.raises(SettingsError, match=r"ignores If-None-Match:.*conditional_writes = false"):
        repository.publish({}, pointing_to("r1"), "stable")


def test_conditions_are_tried_once(fleet, monkeypatch):
    asked = []
    real = FolderStore.put_if_unchanged

    def put(self, key, data, etag):
        asked.append(key)
        return real(self, key, data, etag)

    monkeypatch.setattr(FolderStore, "put_if_unchanged", put)
    fleet.publish("r1")
    first = len(asked)
    fleet.publish("r2")
    assert (first, len(asked) - first) == (10, 4)
