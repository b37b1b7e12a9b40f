"""What the device refuses to believe, against a real repository that lies."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import os
import resource
from types import SimpleNamespace

import pytest
from tuf.ngclient._internal import trusted_metadata_set

from edge_client.contract.errors import DeviceError, InputError, TransportError, TrustError
from edge_client.repository import http_fetcher as fetcher_module
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import NothingPublishedError, TrustedRepository
from edge_client.settings.update import StoreCredentials, StoreSettings
from tests.fakes.tiny_release import tiny_release
from tests.fakes.tuf_repository import TufRepository

MEMORY = ("timestamp.json", "snapshot.json", "targets.json")


def check(device):
    """Check once; return the release of the signed channel."""
    with device.open() as trusted:
        trusted.refresh()
        return trusted.channel("stable").release


def remembered(device) -> dict[str, bytes]:
    folder = device.state_dir / "metadata"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def leftovers(device) -> list[str]:
    return [path.name for path in device.state_dir.iterdir() if path.name.startswith(".")]


@pytest.fixture
def published(device, repository):
    """A device that has seen release 0; release 1 is published, not seen yet."""
    first = repository.publish_tiny(0)
    assert check(device) == first.release
    second, files = tiny_release(1)
    repository.publish(second.release, files)
    return second.release


def test_the_signed_channel_is_followed(device, published):
    assert check(device) == published


def test_a_check_without_news_writes_nothing(device, published):
    check(device)
    folder = device.state_dir / "metadata"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    inodes = {path: path.stat().st_ino for path in folder.rglob("*")}
    check(device)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert {path: path.stat().st_ino for path in folder.rglob("*")} == inodes


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_metadata_signed_by_a_wrong_key_is_refused(device, repository, published, role):
    repository.steal(role)
    repository.sign()
    before = remembered(device)
    with pytest.raises(TrustError, match="not signed by the keys"):
        check(device)
    after = remembered(device)
    assert after[f"{role}.json"] == before[f"{role}.json"]
    assert after["targets.json"] == before["targets.json"]
    assert leftovers(device) == []


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_expired_metadata_is_refused_with_the_clock(device, repository, published, role):
    repository.expire(role)
    repository.sign()
    before = remembered(device)["targets.json"]
    with pytest.raises(TrustError, match=r"expired.*clock says 2"):
        check(device)
    assert remembered(device)["targets.json"] == before


def test_metadata_that_expires_after_it_was_seen_is_refused(device, repository, monkeypatch):
    """A frozen store: the very same files, later."""
    repository.publish_tiny(0)
    check(device)

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + datetime.timedelta(days=31)

    # python-tuf takes no clock; waiting for a real expiry would be a sleep.
    monkeypatch.setattr(
        trusted_metadata_set, "datetime", SimpleNamespace(datetime=Later, timezone=datetime.timezone)
    )
    with pytest.raises(TrustError, match="expired"):
        check(device)


def test_older_metadata_is_refused(device, repository):
    repository.publish_tiny(0)
    before = dict(repository.objects)
    newer = repository.publish_tiny(1)
    assert check(device) == newer.release
    repository.go_back_to(before)
    memory = remembered(device)
    with pytest.raises(TrustError, match="older than what this device has seen"):
        check(device)
    assert remembered(device) == memory


def test_older_metadata_is_refused_after_power_cut_tore_the_memory_of_targets(device, repository):
    """What stands between the device and an old release is the timestamp; the rest is fetched again."""
    repository.publish_tiny(0)
    before = dict(repository.objects)
    repository.publish_tiny(1)
    check(device)
    for name in ("snapshot.json", "targets.json"):
        (device.state_dir / "metadata" / name).write_bytes(b"")
    repository.go_back_to(before)
    with pytest.raises(TrustError):
        check(device)


def test_mixed_metadata_is_refused(device, repository):
    """A new timestamp over the snapshot of before."""
    repository.publish_tiny(0)
    old = repository.objects["metadata/1.snapshot.json"]
    repository.publish_tiny(1)
    repository.objects["metadata/2.snapshot.json"] = old
    with pytest.raises(TrustError):
        check(device)


@pytest.mark.parametrize("part", ["timestamp.json", "2.snapshot.json", "2.targets.json", "stable.json"])
def test_a_changed_byte_is_refused(device, repository, part):
    repository.publish_tiny(0)
    check(device)
    before = set(repository.objects)
    repository.publish_tiny(1)
    fresh = [path for path in repository.objects if path not in before and path.endswith(part)]
    repository.change_byte(fresh[0] if fresh else repository.find(part))
    with pytest.raises(TrustError):
        check(device)
    assert leftovers(device) == []


def test_a_changed_byte_of_a_release_file_is_refused_and_nothing_is_kept(
    device, repository, published, tmp_path
):
    path = repository.find(f"{published}/{model_hash(1)}")
    repository.change_byte(path)
    destination = tmp_path / "staging"
    destination.mkdir()
    with device.open() as trusted:
        trusted.refresh()
        with pytest.raises(TrustError, match="not the content that was signed"):
            trusted.fetch(f"releases/{published}/model.tflite", destination)
    assert list(destination.iterdir()) == []


def model_hash(bias: int) -> str:
    return hashlib.sha256(tiny_release(bias)[1]["model.tflite"]).hexdigest()


def test_truncated_and_lengthened_files_are_refused(device, repository, published, tmp_path):
    path = repository.find(f"{published}/{model_hash(1)}")
    whole = repository.objects[path]
    with device.open() as trusted:
        trusted.refresh()
        for lie in (whole[:-1], whole + b"x", b"", whole * 1000):
            repository.objects[path] = lie
            with pytest.raises(TrustError):
                trusted.fetch(f"releases/{published}/model.tflite", tmp_path)
            assert [p.name for p in tmp_path.iterdir() if p.is_file()] == []


def test_endless_metadata_is_refused(device, repository, published):
    repository.objects["metadata/timestamp.json"] = b" " * 100_000
    with pytest.raises(TrustError, match="longer than"):
        check(device)


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[" * 10_000, b"\xff\xfe", b'{"signed": {}, "signatures": []}']
)
def test_garbage_is_refused(device, repository, published, data):
    repository.objects["metadata/timestamp.json"] = data
    with pytest.raises(TrustError):
        check(device)


def test_a_file_that_is_not_signed_is_not_fetched(device, repository, published, tmp_path):
    with device.open() as trusted:
        trusted.refresh()
        with pytest.raises(TrustError, match="not among the signed files"):
            trusted.fetch("releases/feedbeef/model.tflite", tmp_path)
    assert list(tmp_path.glob("*.tflite")) == []


def test_a_channel_that_is_the_pointer_of_another_is_refused(device, repository):
    repository.publish_tiny(0, "canary")
    repository.add({"channels/stable.json": repository.objects[repository.find("canary.json")]})
    repository.sign()
    with pytest.raises(TrustError, match="pointer of channel 'canary'"):
        check(device)


def test_a_malformed_channel_is_an_input_error(device, repository):
    repository.add({"channels/stable.json": b'{"schema": 99, "channel": "stable", "release": "x"}'})
    repository.sign()
    with pytest.raises(InputError, match="schema 99"):
        check(device)


def test_a_rotated_key_is_followed_and_the_old_one_refused(device, repository):
    repository.publish_tiny(0)
    check(device)
    old = repository.signers["timestamp"]
    repository.rotate("timestamp")
    release = repository.publish_tiny(1).release
    assert check(device) == release
    assert "root_history/2.root.json" in remembered(device)
    repository.signers["timestamp"] = old
    repository.stamp()
    with pytest.raises(TrustError, match="not signed by the keys"):
        check(device)


def test_a_new_root_that_the_old_one_did_not_sign_is_refused(device, repository, published):
    repository.rotate("root", old_root_signs=False)
    with pytest.raises(TrustError, match="not signed by the keys"):
        check(device)
    assert "root_history/2.root.json" not in remembered(device)


def test_a_root_that_was_put_on_the_disk_is_not_trusted(device, repository, published):
    """The provisioned root counts, not what lies in the memory folder."""
    with TufRepository() as foreign:
        foreign.publish_tiny(1)
        history = device.state_dir / "metadata/root_history"
        (history / "1.root.json").write_bytes(foreign.root)
        (device.state_dir / "metadata/root.json").write_bytes(foreign.root)
        for name in MEMORY:
            (device.state_dir / "metadata" / name).unlink()
        device.store = dataclasses.replace(device.store, base_url=foreign.url)
        with pytest.raises(TrustError, match="not signed by the keys"):
            check(device)


def test_a_malformed_root_is_named(device, published):
    device.root = b"{}"
    with pytest.raises(TrustError, match=r"\[trust\] root"):
        check(device)
    assert leftovers(device) == []


def test_an_empty_store_is_distinguished_from_one_that_lost_its_metadata(device, repository):
    with pytest.raises(NothingPublishedError, match="nothing is published there yet"):
        check(device)
    repository.publish_tiny(0)
    check(device)
    del repository.objects["metadata/timestamp.json"]
    with pytest.raises(TransportError, match="missing in the store") as caught:
        check(device)
    assert not isinstance(caught.value, NothingPublishedError)


def test_a_store_that_is_down_is_a_transport_error_that_names_it(device, repository, published):
    repository.stop()
    with pytest.raises(TransportError, match=r"http://127\.0\.0\.1.*refused"):
        check(device)
    repository.start()
    assert check(device) == published


@pytest.mark.parametrize(
    ("status", "message"),
    [(403, "access_key_file"), (401, "clock"), (503, "503 SlowDown"), (500, "tried again")],
)
def test_a_store_that_refuses_is_a_transport_error_with_a_way_out(
    device, repository, published, status, message
):
    repository.status = status
    with pytest.raises(TransportError, match=message):
        check(device)


def test_a_trickle_is_given_up(device, repository, published, monkeypatch):
    """Slow retrieval: bytes come, so no socket times out."""
    monkeypatch.setattr(fetcher_module, "SPEED_GRACE_S", 0.5)
    repository.trickle.add("metadata/timestamp.json")
    with pytest.raises(TransportError, match=r": \d\d bytes in 1 s, less than 500 bytes/s"):
        check(device)


def test_a_file_that_lies_there_already_is_not_fetched_twice(device, repository, published, tmp_path):
    with device.open() as trusted:
        trusted.refresh()
        first = trusted.fetch(f"releases/{published}/labels.txt", tmp_path)
        pulled, asked = trusted.bytes_pulled, len(repository.requests)
        assert trusted.fetch(f"releases/{published}/labels.txt", tmp_path) == first
        assert (trusted.bytes_pulled, len(repository.requests)) == (pulled, asked)


def test_bytes_pulled_counts_what_was_read(device, repository, published):
    before = len(repository.requests)
    with device.open() as trusted:
        trusted.refresh()
        trusted.channel("stable")
        read = [path for path in repository.requests[before:] if path in repository.objects]
        assert trusted.bytes_pulled == sum(len(repository.objects[path]) for path in read)


def test_a_full_disk_is_a_device_error(device, repository, published, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with device.open() as trusted:
        trusted.refresh()
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        try:
            with pytest.raises(DeviceError, match="free space"):
                trusted.fetch(f"releases/{published}/model.tflite", tmp_path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.glob("*model*")) == []


def test_the_scratch_folder_is_removed_after_each_check(device, published):
    check(device)
    assert leftovers(device) == []


def test_signed_requests_carry_no_secret(monkeypatch):
    credentials = StoreCredentials("KEY", "very-secret", "token")
    assert "very-secret" not in repr(credentials)
    store = StoreSettings(base_url="http://127.0.0.1:1/b")
    headers = StoreFetcher(store, credentials)._headers("http://127.0.0.1:1/b/x.json")
    assert headers["Authorization"].startswith("AWS4-HMAC-SHA256 Credential=KEY/")
    assert "very-secret" not in json.dumps(headers)
    assert headers["x-amz-security-token"] == "token"


def test_a_read_only_memory_is_a_device_error(tmp_path, repository, device):
    (tmp_path / "state").mkdir()
    if os.geteuid() == 0:
        (tmp_path / "state" / "metadata").write_text("a file where a folder belongs")
    else:
        (tmp_path / "state").chmod(0o500)
    with pytest.raises(DeviceError):
        TrustedRepository(
            repository.root, repository.url, tmp_path / "state/metadata", StoreFetcher(device.store)
        )
