"""The signing side of the repository, on a real S3 server."""

from __future__ import annotations

import dataclasses
import datetime
import json
import random

import pytest

from edge_client.contract.errors import DeviceError, SettingsError, TransportError, TrustError
from edge_client.contract.names import is_patch
from edge_client.contract.release import ChannelDocument
from edge_client.contract.rollout import RolloutDocument
from edge_client.update.patches import unpack
from luigi_tasks.release import patches as patches_module
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.patches import make_patches
from luigi_tasks.release.published import TIMESTAMP_KEY
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.storage.s3_store import S3Store
from tests.fakes.trust import trust_settings


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now = datetime.datetime.now(datetime.timezone.utc)

    def __call__(self) -> datetime.datetime:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def repository(store_settings, keys, clock):
    return ReleaseRepository(S3Store(store_settings), trust_settings(keys), clock)


def files_of(release: str) -> dict[str, bytes]:
    return {
        f"releases/{release}/release.json": b"{}",
        f"releases/{release}/model.tflite": f"model {release}".encode(),
    }


def publish(repository, release: str, channel: str = "stable") -> None:
    repository.publish(
        files_of(release), lambda _: ChannelDocument(channel=channel, release=release), channel
    )


def test_nothing_published_is_no_channel_and_nothing_to_renew(repository):
    state = repository.load()
    assert state.channel("stable") is None
    assert not repository.needs_renewal()


def test_published_release_is_signed_and_current(repository):
    publish(repository, "r1")
    state = repository.load()
    assert state.channel("stable").release == "r1"
    assert state.read("releases/r1/model.tflite") == b"model r1"


def test_channels_move_apart(repository):
    publish(repository, "r1")
    publish(repository, "r2", "canary")
    assert repository.load().channel("stable").release == "r1"
    assert repository.load().channel("canary").release == "r2"


def test_store_down_mid_upload_leaves_the_previous_release_and_the_next_run_finishes(repository, monkeypatch):
    publish(repository, "r1")
    real_put = repository.store.put_if_unchanged
    for dies_at in ("targets.json", "rollouts.json", "snapshot.json", "timestamp.json"):

        def put(key, data, etag, dies_at=dies_at):
            if key.endswith(dies_at):
                raise TransportError(key)
            real_put(key, data, etag)

        monkeypatch.setattr(repository.store, "put_if_unchanged", put)
        with pytest.raises(TransportError):
            publish(repository, "r2")
        assert repository.load().channel("stable").release == "r1"
    monkeypatch.setattr(repository.store, "put_if_unchanged", real_put)
    publish(repository, "r2")
    assert repository.load().channel("stable").release == "r2"


def test_a_faster_publisher_is_not_undone(repository, monkeypatch):
    publish(repository, "r1")
    real_put = repository.store.put_if_unchanged
    raced: list[str] = []

    def put(key, data, etag):
        if key == TIMESTAMP_KEY and not raced:
            raced.append(key)
            publish(repository, "r9", "canary")
        real_put(key, data, etag)

    monkeypatch.setattr(repository.store, "put_if_unchanged", put)
    publish(repository, "r2")
    state = repository.load()
    assert raced
    assert (state.channel("stable").release, state.channel("canary").release) == ("r2", "r9")


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json", "rollouts.json"])
def test_metadata_that_our_keys_did_not_sign_is_not_signed_again(repository, name):
    publish(repository, "r1")
    [key] = [one.key for one in repository.store.list_folder("metadata/") if one.key.endswith(name)]
    document = json.loads(repository.store.read(key))
    document["signed"]["expires"] = "2099-01-01T00:00:00Z"
    repository.store.put(key, json.dumps(document).encode())
    with pytest.raises(TrustError, match=rf"{name}: not signed by our keys"):
        publish(repository, "r2")


def test_changed_content_of_a_signed_file_is_refused(repository):
    publish(repository, "r1")
    [path] = [path for path in repository.load().files if path.endswith("model.tflite")]
    digest = repository.load().files[path].hashes["sha256"]
    repository.store.put(f"targets/releases/r1/{digest}.model.tflite", b"model r2")
    with pytest.raises(TrustError, match="not the signed content"):
        repository.load().read(path)


def test_signatures_are_renewed_at_half_of_their_lifetime(repository, clock):
    publish(repository, "r1")
    assert not repository.needs_renewal()
    clock.now += datetime.timedelta(days=8)
    assert repository.needs_renewal()
    repository.renew()
    assert not repository.needs_renewal()
    assert repository.load().channel("stable").release == "r1"


def test_old_releases_are_dropped_but_never_one_that_a_channel_names(store_settings, keys, clock):
    repository = ReleaseRepository(S3Store(store_settings), trust_settings(keys, keep_releases=3), clock)
    publish(repository, "r0", "canary")
    for number in range(1, 6):
        clock.now += datetime.timedelta(minutes=1)
        publish(repository, f"r{number}")
    releases = {path.split("/")[1] for path in repository.load().files if path.startswith("releases/")}
    assert releases == {"r0", "r3", "r4", "r5"}


def names_of(repository, release: str) -> set[str]:
    prefix = f"releases/{release}/"
    return {path.removeprefix(prefix) for path in repository.load().files if path.startswith(prefix)}


def model_of(release: int) -> bytes:
    """Models of successive releases, alike but for a few bytes."""
    model = bytearray(random.Random(0).randbytes(50_000))
    model[release * 100 : release * 100 + 20] = bytes(20)
    return bytes(model)


def publish_with_patches(repository, release: int, channel: str = "stable", count: int = 2) -> None:
    name, model = f"r{release}", model_of(release)
    files = {f"releases/{name}/release.json": b"{}", f"releases/{name}/model.tflite": model}
    patches = make_patches(repository.load(), name, model, channel, count)
    repository.publish(files | patches, lambda _: ChannelDocument(channel=channel, release=name), channel)


def test_a_release_is_signed_with_patches_on_those_before(repository, clock):
    for release in range(3):
        publish_with_patches(repository, release)
        clock.now += datetime.timedelta(minutes=1)
    names = {"model.tflite.from-r0.zst", "model.tflite.from-r1.zst"}
    assert names < names_of(repository, "r2")
    state = repository.load()
    for base in (0, 1):
        patch = state.read(f"releases/r2/model.tflite.from-r{base}.zst")
        assert unpack(patch, model_of(base), 50_000) == model_of(2)
        assert len(patch) < 500


def test_a_patch_leads_from_what_the_channel_points_to_first(repository, clock):
    for release, channel in enumerate(("stable", "canary", "canary", "stable")):
        publish_with_patches(repository, release, channel, count=1)
        clock.now += datetime.timedelta(minutes=1)
    assert "model.tflite.from-r0.zst" in names_of(repository, "r3")
    assert "model.tflite.from-r1.zst" in names_of(repository, "r2")


def test_a_patch_leads_from_what_is_rolled_out_too(repository, clock):
    """A device is at the steady release, or at that of the rollout."""
    for release, channel in enumerate(("stable", "canary", "canary")):
        publish_with_patches(repository, release, channel)
        clock.now += datetime.timedelta(minutes=1)
    rollout = RolloutDocument(channel="stable", id="1", release="r1", from_release="r0")
    repository.point("stable", lambda now: dataclasses.replace(now, rollout=rollout))
    publish_with_patches(repository, 3, "stable")
    names = {name for name in names_of(repository, "r3") if is_patch(name)}
    assert names == {"model.tflite.from-r0.zst", "model.tflite.from-r1.zst"}


def test_what_is_signed_already_is_not_made_again(repository):
    publish_with_patches(repository, 0)
    publish_with_patches(repository, 1)
    assert make_patches(repository.load(), "r1", model_of(1), "stable", 2) == {}


def test_a_compressible_model_is_signed_compressed(repository):
    files = make_patches(repository.load(), "r0", bytes(50_000), "stable", 2)
    assert list(files) == ["releases/r0/model.tflite.zst"]
    assert unpack(files["releases/r0/model.tflite.zst"], b"", 50_000) == bytes(50_000)
    assert make_patches(repository.load(), "r0", model_of(0), "stable", 2) == {}


def test_a_patch_that_does_not_unpack_to_the_model_is_not_signed(repository, monkeypatch):
    """Also under `python -O`, which removes assertions."""
    monkeypatch.setattr(patches_module, "unpack", lambda *_: b"another model")
    with pytest.raises(DeviceError, match="nothing was signed"):
        make_patches(repository.load(), "r0", bytes(50_000), "stable", 2)


def test_patches_are_forgotten_with_the_channel_that_needed_them(repository, clock):
    """Every device reads the metadata at every release."""
    for release in range(4):
        publish_with_patches(repository, release)
        clock.now += datetime.timedelta(minutes=1)
    assert any(map(is_patch, names_of(repository, "r3")))
    assert not any(is_patch(name) for release in "012" for name in names_of(repository, f"r{release}"))


def test_missing_key_file_is_named_and_nothing_changes(repository, keys):
    publish(repository, "r1")
    (keys / "pipeline" / "targets.pem").unlink()
    with pytest.raises(SettingsError, match=r"targets\.pem"):
        publish(repository, "r2")
    assert repository.load().channel("stable").release == "r1"


def test_key_of_another_set_is_named_and_nothing_changes(repository, keys, tmp_path):
    publish(repository, "r1")
    make_keys(tmp_path / "other")
    (tmp_path / "other/pipeline/targets.pem").replace(keys / "pipeline/targets.pem")
    with pytest.raises(SettingsError, match=r"targets\.pem: .*does not match"):
        publish(repository, "r2")
    assert repository.load().channel("stable").release == "r1"


def test_key_file_that_is_no_key_is_named(repository, keys):
    (keys / "pipeline" / "timestamp.pem").write_text("not a key")
    with pytest.raises(SettingsError, match=r"timestamp\.pem"):
        publish(repository, "r1")
    assert repository.load().channel("stable") is None


def test_missing_root_is_an_error_with_the_way_out(store_settings, tmp_path):
    repository = ReleaseRepository(S3Store(store_settings), trust_settings(tmp_path))
    with pytest.raises(SettingsError, match="edge-keys make"):
        repository.load()
