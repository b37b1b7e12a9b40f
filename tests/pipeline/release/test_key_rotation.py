"""Keys replaced by `edge-keys`, published by the pipeline on a real S3 server, followed by a real device."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
import shutil
import subprocess
import sys
import types
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pipeline_under_test import REPOSITORY, PipelineUnderTest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Root

from edge_client.contract.errors import DeviceError, SettingsError, TransportError, TrustError
from edge_client.contract.names import ROLLOUTS_ROLE
from edge_client.contract.release import ChannelDocument
from edge_client.disk import write_durably
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import TrustedRepository
from edge_client.settings.update import StoreCredentials, StoreSettings
from luigi_tasks.edge_keys import main
from luigi_tasks.release import key_files, rollouts_key
from luigi_tasks.release import keys as keys_module
from luigi_tasks.release.keys import Rotation, finish_rotation, make_keys, rotate_keys
from luigi_tasks.release.published import TIMESTAMP_KEY
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.release.rollouts_key import load_rollouts_key
from luigi_tasks.release.signing import (
    ONLINE_ROLES,
    PIPELINE_ROLES,
    load_root,
    load_roots,
    open_rollout_signer,
    open_signers,
    open_work_signer,
    work_keyids,
    work_keys,
)
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.targets import FreshSignaturesTarget
from tests.fakes.trust import trust_settings

if TYPE_CHECKING:
    from pathlib import Path

KEYS = (*PIPELINE_ROLES, ROLLOUTS_ROLE)
ALL = Rotation((*KEYS, "root"))


@pytest.fixture
def store(store_settings):
    return S3Store(store_settings)


@pytest.fixture
def open_pipeline(store, keys):
    """Give a pipeline as a process of its own would have it."""
    return lambda folder=keys: ReleaseRepository(store, trust_settings(folder))


class Device:
    """Provisioned with the root of today; reads the store with the device's own rights."""

    def __init__(self, folder: Path, root: bytes, store, object_store) -> None:
        self._folder, self._root = folder, root
        self._store = StoreSettings(
            base_url=f"{object_store.endpoint_url}/{store.bucket}/{store.prefix}".rstrip("/")
        )
        self._credentials = StoreCredentials(object_store.device_access_key, object_store.device_secret_key)

    def release(self) -> str:
        """What the channel points to."""
        fetcher = StoreFetcher(self._store, self._credentials)
        with TrustedRepository(self._root, self._store.base_url, self._folder, fetcher) as trusted:
            trusted.refresh()
            return trusted.channel("stable").release


@pytest.fixture
def provision(tmp_path, keys, store, object_store):
    """Give a device with the root that new devices get now."""
    count = iter(range(99))
    return lambda: Device(
        tmp_path / f"device-{next(count)}" / "metadata",
        (keys / "device/root.json").read_bytes(),
        store,
        object_store,
    )


def publish(pipeline, release: str) -> None:
    files = {f"releases/{release}/release.json": b"{}", f"releases/{release}/model.tflite": b"model"}
    pipeline.publish(files, lambda _: ChannelDocument(channel="stable", release=release), "stable")


def newest(store, role: str) -> str:
    """Key of the newest metadata of a role."""
    return max(str(one.key) for one in store.list_folder("metadata/") if one.key.endswith(f".{role}.json"))


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_signs(keys: Path) -> None:
    """The newest root has its keys: all roles can sign, and the root can be replaced."""
    root = load_roots(keys / "device/root.json")[-1]
    for role in ONLINE_ROLES:
        assert open_signers(root.signed, trust_settings(keys), role)
    assert open_work_signer(root.signed, trust_settings(keys))
    published = types.SimpleNamespace(rollouts_key=load_rollouts_key(keys / "device/root.json"))
    assert open_rollout_signer(published, trust_settings(keys))


# On the operator's side


def test_a_rotation_leaves_new_keys_in_place_and_old_ones_retired(keys):
    before = everything(keys)
    assert main(["rotate", str(keys)]) == 0
    after = everything(keys)
    old, new = (Metadata[Root].from_bytes(files["device/root.json"]).signed for files in (before, after))
    assert not {*work_keyids(old)} & {*work_keyids(new)}
    for role in ONLINE_ROLES:
        assert not {*old.roles[role].keyids} & {*new.roles[role].keyids}
    assert old.roles["root"].keyids == new.roles["root"].keyids
    assert after["device/2.root.json"] == after["device/root.json"]
    assert after["device/1.root.json"] == before["device/root.json"]
    retired = {path.rpartition("/")[2]: data for path, data in after.items() if path.startswith("retired/")}
    assert retired == {f"{role}.pem": before[f"pipeline/{role}.pem"] for role in KEYS}
    assert {path for path in after if path.startswith("pipeline/")} == {
        f"pipeline/{role}-v2.pem" for role in KEYS
    }
    assert_signs(keys)


def test_private_keys_stay_readable_by_their_owner_alone(keys):
    rotate_keys(keys, ALL)
    for path in keys.rglob("*.pem"):
        assert path.stat().st_mode & 0o077 == 0
        assert path.parent.stat().st_mode & 0o077 == 0


def test_one_role_can_be_replaced_alone(keys):
    old = load_root(keys / "device/root.json").signed
    assert main(["rotate", str(keys), "--role", "targets"]) == 0
    new = load_root(keys / "device/root.json").signed
    assert old.roles["targets"].keyids != new.roles["targets"].keyids
    assert old.roles["timestamp"].keyids == new.roles["timestamp"].keyids
    assert_signs(keys)


def test_work_signed_by_a_replaced_key_counts_until_the_key_is_stolen(keys):
    """Evidence outlives a routine rotation; after a theft no work of before counts."""
    path = keys / "device/root.json"
    first = {*work_keys(load_roots(path))}
    assert open_work_signer(load_root(path).signed, trust_settings(keys)).public_key.keyid in first
    assert main(["rotate", str(keys), "--role", "work"]) == 0
    second = {*work_keys(load_roots(path))}
    assert first < second
    assert main(["rotate", str(keys), "--stolen"]) == 0
    stolen = {*work_keys(load_roots(path))}
    assert not second & stolen
    assert open_work_signer(load_root(path).signed, trust_settings(keys)).public_key.keyid in stolen


def without_work_key(keys: Path) -> None:
    """Make the set one of before there were work keys."""
    path = keys / "device/root.json"
    root = load_root(path)
    del root.signed.keys[root.signed.unrecognized_fields.pop("work")["keyids"][0]]
    root.sign(CryptoSigner(load_pem_private_key((keys / "root/root-1.pem").read_bytes(), None)))
    path.write_bytes(root.to_bytes())
    (keys / "pipeline/work.pem").unlink()


def test_a_set_of_before_gets_a_work_key_and_its_devices_follow(keys, open_pipeline, provision):
    without_work_key(keys)
    device = provision()
    publish(open_pipeline(), "r1")
    roots = load_roots(keys / "device/root.json")
    for attempt in (
        lambda: work_keys(roots),
        lambda: open_work_signer(roots[-1].signed, trust_settings(keys)),
    ):
        with pytest.raises(SettingsError, match="edge-keys rotate FOLDER --role work"):
            attempt()
    assert main(["rotate", str(keys), "--role", "work"]) == 0
    assert [path.name for path in (keys / "pipeline").glob("work*")] == ["work-v2.pem"]
    open_pipeline().renew()
    assert device.release() == "r1"
    assert_signs(keys)


def test_root_keys_are_replaced_by_what_both_thresholds_signed(tmp_path):
    keys = tmp_path / "keys"
    make_keys(keys, root_keys=3, threshold=2)
    (keys / "root/root-3.pem").unlink()  # the third is elsewhere, and is not needed
    assert main(["rotate", str(keys), "--root", "--root-keys", "5", "--threshold", "3"]) == 0
    old, new = load_roots(keys / "device/root.json")
    assert len(old.signed.get_verification_result("root", new.signed_bytes, new.signatures).signed) == 2
    assert len(new.signed.get_verification_result("root", new.signed_bytes, new.signatures).signed) == 5
    assert (new.signed.roles["root"].threshold, len(new.signed.roles["root"].keyids)) == (3, 5)
    assert rotate_keys(keys, ALL) == 3


def test_missing_root_keys_are_named_and_nothing_changes(tmp_path, capsys):
    keys = tmp_path / "keys"
    make_keys(keys, root_keys=3, threshold=2)
    for number in (1, 2):
        (keys / f"root/root-{number}.pem").unlink()
    before = everything(keys)
    assert main(["rotate", str(keys)]) == 1
    assert "1 of the 2 root keys" in capsys.readouterr().err
    assert everything(keys) == before


def test_a_key_of_another_set_is_not_a_root_key(keys, tmp_path, capsys):
    make_keys(tmp_path / "other")
    shutil.copy(tmp_path / "other/root/root-1.pem", keys / "root/root-1.pem")
    assert main(["rotate", str(keys)]) == 1
    assert "0 of the 1 root keys" in capsys.readouterr().err


def test_a_root_key_that_cannot_be_read_is_named(keys, capsys):
    (keys / "root/root-1.pem").write_text("torn")
    assert main(["rotate", str(keys)]) == 1
    said = capsys.readouterr().err
    assert "root-1.pem is left as it is" in said
    assert "offline" in said


def test_a_folder_without_keys_is_named(tmp_path, capsys):
    assert main(["rotate", str(tmp_path)]) == 1
    assert "edge-keys make" in capsys.readouterr().err


def test_thresholds_without_new_root_keys_are_refused(keys, capsys):
    assert main(["rotate", str(keys), "--threshold", "2"]) == 1
    assert "need --root" in capsys.readouterr().err
    assert main(["rotate", str(keys), "--root", "--threshold", "2"]) == 1
    assert "threshold 2 of 1" in capsys.readouterr().err
    assert load_root(keys / "device/root.json").signed.version == 1


def test_renewing_keeps_the_keys_and_gives_years(keys):
    old = load_root(keys / "device/root.json").signed
    assert main(["renew", str(keys), "--years", "9"]) == 0
    new = load_root(keys / "device/root.json").signed
    assert new.keys.keys() == old.keys.keys()
    assert new.expires - old.expires > datetime.timedelta(days=3 * 365)
    assert not (keys / "retired").exists()
    assert_signs(keys)


class PowerCut(BaseException):
    """Ends a rotation."""


def test_a_rotation_that_is_interrupted_anywhere_leaves_a_set_that_signs(tmp_path, monkeypatch):
    """At each write and each move; then the same command again finishes."""
    versions = []
    for cut_at in range(1, 99):
        keys = tmp_path / str(cut_at)
        make_keys(keys)
        done = cut_after(monkeypatch, cut_at, keys)
        versions.append(load_roots(keys / "device/root.json")[-1].signed.version)
        assert_signs(keys)
        if done:
            break
        rotate_keys(keys, ALL)
        assert_signs(keys)
        assert len(list((keys / "pipeline").glob("*.pem"))) == 5
        assert len(list((keys / "root").glob("*.pem"))) == 1
    assert cut_at > 10
    assert sorted(set(versions)) == [1, 2]


def cut_after(monkeypatch, cut_at: int, keys: Path) -> bool:
    """Rotate; the power goes at the `cut_at`-th change of the disk. Returns whether it was done before."""
    changes = 0

    def counted(real):
        def change(*arguments, **options):
            nonlocal changes
            changes += 1
            if changes == cut_at:
                raise PowerCut
            return real(*arguments, **options)

        return change

    with monkeypatch.context() as patch:
        patch.setattr(keys_module, "write_durably", counted(write_durably))
        patch.setattr(key_files, "write_durably", counted(write_durably))
        patch.setattr(rollouts_key, "write_durably", counted(write_durably))
        patch.setattr(keys_module, "_move", counted(keys_module._move))
        try:
            rotate_keys(keys, ALL)
        except PowerCut:
            return False
    return True


def test_a_full_disk_leaves_the_old_set(keys, monkeypatch):
    def full(path, _data, **_options):
        raise DeviceError(str(path))

    before = everything(keys)
    with monkeypatch.context() as patch:
        patch.setattr(key_files, "write_durably", full)
        with pytest.raises(DeviceError):
            rotate_keys(keys, ALL)
    assert everything(keys) == before


def test_finishing_what_is_finished_changes_nothing(keys):
    rotate_keys(keys, ALL)
    before = everything(keys)
    finish_rotation(keys)
    assert everything(keys) == before


def test_a_newer_root_that_does_not_follow_is_named(keys, tmp_path, open_pipeline):
    make_keys(tmp_path / "other")
    rotate_keys(tmp_path / "other", ALL)
    shutil.copy(tmp_path / "other/device/2.root.json", keys / "device/2.root.json")
    with pytest.raises(TrustError, match=r"2\.root\.json: does not follow root version 1"):
        open_pipeline().load()


# Published by the pipeline


def test_a_device_follows_from_the_first_root_to_the_last(keys, open_pipeline, provision):
    first = provision()
    publish(open_pipeline(), "r1")
    assert first.release() == "r1"
    for rotation in (Rotation(("targets",)), Rotation(("root",)), Rotation(), ALL):
        rotate_keys(keys, rotation)
    publish(open_pipeline(), "r2")
    assert first.release() == "r2"
    assert provision().release() == "r2"


@pytest.mark.parametrize("rotation", [Rotation(PIPELINE_ROLES), Rotation(("root",)), Rotation(), ALL])
def test_the_next_run_publishes_the_root_and_signs_again(keys, open_pipeline, provision, store, rotation):
    device = provision()
    publish(open_pipeline(), "r1")
    assert not open_pipeline().needs_renewal()
    rotate_keys(keys, rotation)
    assert open_pipeline().needs_renewal()
    open_pipeline().renew()
    assert not open_pipeline().needs_renewal()
    assert store.exists("metadata/2.root.json")
    assert device.release() == "r1"
    assert open_pipeline().load().channel("stable").release == "r1"


def test_a_pipeline_that_gets_only_the_new_root_next_to_the_old_one_uses_it(
    keys, open_pipeline, provision, tmp_path
):
    """`N.root.json` and the new keys arrived on its machine, root.json did not."""
    device = provision()
    publish(open_pipeline(), "r1")
    shutil.copytree(keys, tmp_path / "pipeline-machine")
    rotate_keys(keys, Rotation(PIPELINE_ROLES))
    shutil.copy(keys / "device/2.root.json", tmp_path / "pipeline-machine/device")
    for path in (keys / "pipeline").iterdir():
        shutil.copy(path, tmp_path / "pipeline-machine/pipeline")
    publish(open_pipeline(tmp_path / "pipeline-machine"), "r2")
    assert device.release() == "r2"


def test_roots_are_published_before_anything_that_their_keys_signed(keys, open_pipeline, store, monkeypatch):
    publish(open_pipeline(), "r1")
    rotate_keys(keys, ALL)
    rotate_keys(keys, ALL)
    written: list[str] = []
    for name in ("put", "put_if_unchanged"):
        real = getattr(store, name)

        def record(key, *rest, real=real, **options):
            written.append(key)
            return real(key, *rest, **options)

        monkeypatch.setattr(store, name, record)
    open_pipeline().renew()
    metadata = [re.sub(r"^metadata/(\d{9,}\.)?", "", key) for key in written]
    roots, signed = ["2.root.json", "3.root.json"], ["targets.json", "rollouts.json", "snapshot.json"]
    assert metadata == [*roots, *signed, "timestamp.json"]


@pytest.mark.parametrize("dies_at", ["2.root.json", "3.root.json", "targets.json", "timestamp.json"])
def test_a_store_down_while_publishing_a_root_stops_no_device_for_good(
    keys, open_pipeline, provision, store, monkeypatch, dies_at
):
    device = provision()
    publish(open_pipeline(), "r1")
    rotate_keys(keys, ALL)
    rotate_keys(keys, ALL)
    with monkeypatch.context() as patch:
        for name in ("put", "put_if_unchanged"):
            real = getattr(store, name)

            def put(key, *rest, real=real, **options):
                if key.endswith(dies_at):
                    raise TransportError(key)
                return real(key, *rest, **options)

            patch.setattr(store, name, put)
        with pytest.raises(TransportError):
            open_pipeline().renew()
    if dies_at == "2.root.json":
        assert device.release() == "r1"
    else:
        # It has a newer root and no metadata for it yet: it reports this, and goes on serving.
        with pytest.raises(TrustError, match="not signed by the keys"):
            device.release()
    open_pipeline().renew()
    assert device.release() == "r1"


def test_what_a_replaced_key_signs_is_refused_by_devices(keys, open_pipeline, provision, store):
    device = provision()
    publish(open_pipeline(), "r1")
    publish(open_pipeline(), "r2")
    stale = store.read(TIMESTAMP_KEY)
    rotate_keys(keys, Rotation(PIPELINE_ROLES))
    publish(open_pipeline(), "r3")
    assert device.release() == "r3"
    store.put(TIMESTAMP_KEY, stale)
    with pytest.raises(TrustError, match="not signed by the keys"):
        device.release()


def steal_and_publish(keys: Path, tmp_path: Path, store) -> None:
    """A thief of the bucket and of all online keys publishes a release of his own, far ahead."""
    shutil.copytree(keys, tmp_path / "thief")
    thief = ReleaseRepository(store, trust_settings(tmp_path / "thief"))
    publish(thief, "evil")


def test_what_stolen_keys_signed_is_not_signed_again(keys, open_pipeline, provision, store, tmp_path):
    device = provision()
    publish(open_pipeline(), "r1")
    steal_and_publish(keys, tmp_path, store)
    assert device.release() == "evil"
    assert main(["rotate", str(keys), "--stolen"]) == 0
    shutil.rmtree(keys / "device/memory")  # on another machine; see test_memory.py for this one
    state = open_pipeline().load()
    assert state.channel("stable") is None
    assert open_pipeline().needs_renewal()
    open_pipeline().renew()
    with pytest.raises(TrustError, match="not among the signed files"):
        device.release()
    assert not open_pipeline().needs_renewal()
    publish(open_pipeline(), "r2")
    assert device.release() == "r2"
    assert open_pipeline().load().releases() == ["r2"]


def test_what_is_signed_with_stolen_keys_later_is_not_believed(
    keys, open_pipeline, provision, store, tmp_path
):
    device = provision()
    publish(open_pipeline(), "r1")
    rotate_keys(keys, Rotation(PIPELINE_ROLES, stolen=True))
    publish(open_pipeline(), "r2")
    assert device.release() == "r2"
    shutil.copytree(keys, tmp_path / "thief")
    for path in (tmp_path / "thief/retired").rglob("*.pem"):
        shutil.copy(path, tmp_path / "thief/pipeline")
    old = tmp_path / "thief/device/1.root.json"
    shutil.copy(old, tmp_path / "thief/device/root.json")
    for name in ("1.root.json", "2.root.json"):
        (tmp_path / "thief/device" / name).unlink()
    store.client.delete_object(Bucket=store.bucket, Key=f"{store.prefix}metadata/2.root.json")
    store.client.delete_object(Bucket=store.bucket, Key=f"{store.prefix}{TIMESTAMP_KEY}")
    shutil.rmtree(tmp_path / "thief/device/memory")
    publish(ReleaseRepository(store, trust_settings(tmp_path / "thief")), "evil")
    with pytest.raises(TrustError, match="not signed by the keys"):
        device.release()
    assert open_pipeline().load().channel("stable").release == "r2"
    shutil.rmtree(keys / "device/memory")
    assert open_pipeline().load().channel("stable") is None
    # Nothing remembers the version of r2 now: it takes a second until the time is above it.
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=10)
    publish(ReleaseRepository(store, trust_settings(keys), lambda: later), "r3")
    assert device.release() == "r3"


def test_unsigned_metadata_does_not_restart_the_history(keys, open_pipeline, store):
    """Or a thief of the bucket alone could make the pipeline forget the champion."""
    publish(open_pipeline(), "r1")
    rotate_keys(keys, Rotation(PIPELINE_ROLES, stolen=True))
    document = json.loads(store.read(TIMESTAMP_KEY))
    document["signed"]["version"] = 99
    store.put(TIMESTAMP_KEY, json.dumps(document).encode())
    with pytest.raises(TrustError, match="not signed by our keys"):
        open_pipeline().load()


def test_a_later_rotation_adopts_again_what_honest_keys_signed(keys, open_pipeline, provision):
    device = provision()
    publish(open_pipeline(), "r1")
    rotate_keys(keys, Rotation(PIPELINE_ROLES, stolen=True))
    publish(open_pipeline(), "r2")
    rotate_keys(keys, Rotation(PIPELINE_ROLES))
    open_pipeline().renew()
    assert open_pipeline().load().channel("stable").release == "r2"
    assert device.release() == "r2"


def test_parts_signed_by_the_keys_of_different_roots_are_not_combined(keys, open_pipeline, store):
    """A replaced key of targets under a timestamp of today."""
    publish(open_pipeline(), "r1")
    old = store.read(newest(store, "targets"))
    rotate_keys(keys, Rotation(("targets",)))
    publish(open_pipeline(), "r2")
    store.put(newest(store, "targets"), old)
    with pytest.raises(TrustError, match="not signed by our keys"):
        open_pipeline().load()


def test_a_damaged_root_in_the_bucket_is_written_again(keys, open_pipeline, provision, store):
    device = provision()
    publish(open_pipeline(), "r1")
    rotate_keys(keys, ALL)
    publish(open_pipeline(), "r2")
    store.put("metadata/2.root.json", b"{}")
    with pytest.raises(TrustError):
        device.release()
    publish(open_pipeline(), "r3")
    assert device.release() == "r3"


def test_two_rotations_from_the_same_root_are_found(keys, open_pipeline, tmp_path):
    publish(open_pipeline(), "r1")
    shutil.copytree(keys, tmp_path / "colleague")
    rotate_keys(keys, ALL)
    rotate_keys(tmp_path / "colleague", ALL)
    publish(open_pipeline(), "r2")
    with pytest.raises(TrustError, match="two people"):
        publish(open_pipeline(tmp_path / "colleague"), "r3")


def test_a_root_that_ends_soon_is_warned_of(tmp_path, store, caplog):
    make_keys(tmp_path / "keys", years=0)
    pipeline = ReleaseRepository(store, trust_settings(tmp_path / "keys"))
    publish(pipeline, "r1")
    assert "edge-keys renew" in caplog.text


def test_deploy_is_not_done_while_a_new_root_waits(keys, open_pipeline):
    publish(open_pipeline(), "r1")
    assert FreshSignaturesTarget(open_pipeline()).exists()
    rotate_keys(keys, Rotation())
    assert not FreshSignaturesTarget(open_pipeline()).exists()
    open_pipeline().renew()
    assert FreshSignaturesTarget(open_pipeline()).exists()


def test_the_command_publishes_at_once(tmp_path, store_settings, object_store, mqtt_broker, scheduler):
    """After a theft, publishing must not wait for a training."""
    pipeline = PipelineUnderTest(tmp_path, store=object_store, broker=mqtt_broker, scheduler=scheduler)
    with pipeline:
        assert "nothing to do" in ask(pipeline)
        store = S3Store(
            dataclasses.replace(store_settings, url=f"s3://{object_store.bucket}/{pipeline.name}")
        )
        publish(ReleaseRepository(store, trust_settings(pipeline.keys)), "r1")
        rotate_keys(pipeline.keys, Rotation(PIPELINE_ROLES))
        assert "signed by its keys" in ask(pipeline)
        assert store.exists("metadata/2.root.json")
        assert "nothing to do" in ask(pipeline)
        before = store.read(TIMESTAMP_KEY)
        publish(ReleaseRepository(store, trust_settings(pipeline.keys)), "r2")
        store.put(TIMESTAMP_KEY, before)
        said = ask(pipeline, "--force", "--retry", "r2")
        assert "above all versions known" in said
        assert "devices that refused release r2 try it again" in said
        pointer = ReleaseRepository(store, trust_settings(pipeline.keys)).load().channel("stable")
        assert pointer is not None
        assert pointer.retry_since
        assert "points to r2" in ask(pipeline, "--retry", "r1")
        (pipeline.keys / "device/root.json").unlink()
        assert "edge-keys make" in ask(pipeline)


def ask(pipeline: PipelineUnderTest, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "luigi_tasks.edge_keys", "publish", *options],
        env=pipeline.environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr
