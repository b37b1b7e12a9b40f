"""The Update Framework's named attacks on a device that serves: it goes on serving what it served.

`docs/trust.md` is the list in words.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING

import msgspec
import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient._internal import trusted_metadata_set

from edge_client.contract import times
from edge_client.contract.documents import encode_document
from edge_client.contract.errors import EdgeError, InputError, TransportError, TrustError
from edge_client.contract.names import channel_target, release_target
from edge_client.contract.release import ChannelDocument
from edge_client.repository import http_fetcher as fetcher_module
from edge_client.repository.clock import ClockError
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import TrustedRepository
from edge_client.settings.update import StoreCredentials
from edge_client.update import check as updater
from edge_client.update.decision import Decision
from tests.device.conftest import DeviceUnderTest, PassedSelfTest
from tests.fakes.device_daemon import assert_answers
from tests.fakes.raw_server import RawServer
from tests.fakes.tiny_release import tiny_release
from tests.fakes.tuf_repository import TufRepository, object_path

if TYPE_CHECKING:
    from collections.abc import Callable

ONLINE = ("targets", "snapshot", "timestamp")
HUGE = 2**53


def serve_first(device: DeviceUnderTest, repository: TufRepository) -> str:
    """Let the device serve release 0; returns its id."""
    release = repository.publish_tiny(0).release
    assert device.check().decision is Decision.INSTALL
    device.assert_serves(release)
    return release


@pytest.fixture(autouse=True)
def _quick_self_test(monkeypatch):
    monkeypatch.setattr(updater, "SelfTest", PassedSelfTest)  # seconds saved; it has tests of its own


@pytest.fixture
def serving(device, repository):
    return serve_first(device, repository)


def on_disk(device: DeviceUnderTest) -> dict[str, bytes]:
    """Everything but what the device remembers of metadata."""
    return {
        str(path.relative_to(device.state_dir)): path.read_bytes()
        for path in device.state_dir.rglob("*")
        if path.is_file() and "metadata" not in path.parts
    }


def remembered(device: DeviceUnderTest, name: str) -> dict[str, object]:
    document = json.loads((device.state_dir / "metadata" / name).read_bytes())
    signed: dict[str, object] = document["signed"]
    return signed


def assert_refused(
    device: DeviceUnderTest,
    serving: str,
    error: type[EdgeError] | tuple[type[EdgeError], ...],
    message: str = ".",
) -> None:
    """A check fails; the serving release, the disk and the refusals stay as they are."""
    before = on_disk(device)
    with pytest.raises(error, match=message):
        device.check()
    device.assert_serves(serving)
    assert on_disk(device) == before
    assert device.slots.refused == {}


def assert_takes(device: DeviceUnderTest, release: str) -> None:
    assert device.check().decision is Decision.INSTALL
    device.assert_serves(release)


# One check of a store that lies


@dataclasses.dataclass(frozen=True)
class Attack:
    """A lie about a release that was published after the last check of the device.

    Attributes:
        lie: Gets the repository, and its objects as they were before the release was published.
        error: How the check ends.
        message: Part of the error's message.
    """

    lie: Callable[[TufRepository, dict[str, bytes]], object]
    error: type[EdgeError]
    message: str = "."


def serve_a_foreign_repository(repository: TufRepository, _before: dict[str, bytes]) -> None:
    foreign = TufRepository()
    foreign._timestamp_version = 90
    foreign.publish_tiny(2)
    repository.objects = foreign.objects


def name_an_old_snapshot(repository: TufRepository, _before: dict[str, bytes]) -> None:
    """Whoever has the timestamp key alone can do this."""
    repository._snapshot_version = 1
    repository._timestamp_version = 50
    repository.stamp()
    repository._snapshot_version = 2


def name_old_targets(repository: TufRepository, _before: dict[str, bytes]) -> None:
    """Whoever has the snapshot and timestamp keys can do this."""
    repository._targets.version = 0
    repository.sign()
    assert repository._targets.version == 1


def name_foreign_targets(repository: TufRepository, _before: dict[str, bytes]) -> None:
    """Snapshot and timestamp keys are stolen; the key that signs files is not."""
    repository.steal("targets")
    repository.publish_tiny(2)


def stamp_far_ahead(repository: TufRepository, _before: dict[str, bytes]) -> None:
    repository.steal("timestamp")
    repository._timestamp_version = HUGE
    repository.stamp()


def swap_versions(repository: TufRepository, before: dict[str, bytes]) -> None:
    repository.objects["metadata/2.targets.json"] = before["metadata/1.targets.json"]


def mix_snapshot(repository: TufRepository, before: dict[str, bytes]) -> None:
    repository.objects["metadata/2.snapshot.json"] = before["metadata/1.snapshot.json"]


def expire(role: str) -> Callable[[TufRepository, dict[str, bytes]], None]:
    def lie(repository: TufRepository, _before: dict[str, bytes]) -> None:
        repository.expire(role)
        if role == "root":
            repository.publish_root()
        else:
            repository.sign()

    return lie


def put(path: str, data: bytes) -> Callable[[TufRepository, dict[str, bytes]], None]:
    def lie(repository: TufRepository, _before: dict[str, bytes]) -> None:
        repository.objects[f"metadata/{path}"] = data

    return lie


def point(release: str, channel: str = "stable") -> Callable[[TufRepository, dict[str, bytes]], None]:
    """Sign a pointer with the real keys: the pipeline is broken, or the targets key was misused."""

    def lie(repository: TufRepository, _before: dict[str, bytes]) -> None:
        document = ChannelDocument(channel=channel, release=release)
        repository.add({channel_target("stable"): encode_document(document)})
        repository.sign()

    return lie


def sign_channel(data: bytes) -> Callable[[TufRepository, dict[str, bytes]], None]:
    def lie(repository: TufRepository, _before: dict[str, bytes]) -> None:
        repository.add({channel_target("stable"): data})
        repository.sign()

    return lie


def lose(part: str) -> Callable[[TufRepository, dict[str, bytes]], None]:
    def lie(repository: TufRepository, before: dict[str, bytes]) -> None:
        [path] = [one for one in repository.objects if one not in before and part in one]
        del repository.objects[path]

    return lie


def root_of_version(version: int) -> Callable[[TufRepository, dict[str, bytes]], None]:
    """Serve a root that is rightly signed, but not of the version in its name."""

    def lie(repository: TufRepository, _before: dict[str, bytes]) -> None:
        repository._root.version = version - 1
        repository.publish_root()
        repository.objects["metadata/2.root.json"] = repository.objects[f"metadata/{version}.root.json"]

    return lie


DEEP = b"[" * 15_000
MILLION = b" " * 1_000_000

ATTACKS = {
    "arbitrary software: a foreign repository": Attack(
        serve_a_foreign_repository, TrustError, "not signed by the keys"
    ),
    "arbitrary software: foreign targets under stolen snapshot and timestamp keys": Attack(
        name_foreign_targets, TrustError, "not signed by the keys"
    ),
    "freeze: an expired timestamp": Attack(expire("timestamp"), TrustError, "clock says"),
    "freeze: an expired snapshot": Attack(expire("snapshot"), TrustError, "clock says"),
    "freeze: expired targets": Attack(expire("targets"), TrustError, "clock says"),
    "freeze: an expired root": Attack(expire("root"), TrustError, "clock says"),
    "fast-forward: a timestamp far ahead, by an unknown key": Attack(
        stamp_far_ahead, TrustError, "not signed by the keys"
    ),
    "mix-and-match: targets of another version": Attack(swap_versions, TrustError),
    "mix-and-match: a snapshot of another version": Attack(mix_snapshot, TrustError),
    "endless data: the timestamp": Attack(put("timestamp.json", MILLION), TrustError, "longer than"),
    "endless data: the snapshot": Attack(put("2.snapshot.json", 3 * MILLION), TrustError, "longer than"),
    "endless data: targets": Attack(put("2.targets.json", 6 * MILLION), TrustError, "longer than"),
    "endless data: a root": Attack(put("2.root.json", MILLION), TrustError, "longer than"),
    "malformed: a timestamp nested deeply": Attack(put("timestamp.json", DEEP), TrustError),
    "malformed: a root nested deeply": Attack(put("2.root.json", DEEP), TrustError),
    "malformed: an empty root": Attack(put("2.root.json", b"{}"), TrustError),
    "malformed: a signed channel": Attack(sign_channel(b"{"), InputError, "not a valid ChannelDocument"),
    "malformed: a huge signed channel": Attack(sign_channel(MILLION), TrustError, "signed length 1000000"),
    "root chain: version 3 under the name of 2": Attack(root_of_version(3), TrustError, "older than|version"),
    "root chain: version 1 under the name of 2": Attack(root_of_version(1), TrustError, "older than|version"),
    "path traversal: a release id": Attack(point("../../../etc"), InputError, "release id '../../../etc'"),
    "path traversal: a release id that is a folder": Attack(point(".."), InputError, "release id"),
    "path traversal: an absolute release id": Attack(point("/etc/passwd"), InputError, "release id"),
    "path traversal: a release id with a zero": Attack(point("a\0b"), InputError, "release id"),
    "wrong channel: the pointer of another": Attack(
        point(tiny_release(1)[0].release, "canary"), TrustError, "pointer of channel"
    ),
    "wrong release: an unsigned one": Attack(
        point("0123456789abcdef0123"), TrustError, "not among the signed files"
    ),
    "drop-request: no timestamp": Attack(
        lambda repository, _: repository.objects.pop("metadata/timestamp.json"), TransportError, "missing"
    ),
    "drop-request: no snapshot": Attack(lose("snapshot.json"), TransportError, "missing in the store"),
    "drop-request: no channel": Attack(lose("stable.json"), TransportError, "missing in the store"),
    "partial bundle: no document": Attack(lose("release.json"), TransportError, "missing in the store"),
    "partial bundle: no model": Attack(lose("model.tflite"), TransportError, "missing in the store"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_changes_nothing_and_is_over_once_it_ends(device, repository, serving, name):
    attack = ATTACKS[name]
    before = dict(repository.objects)
    release = repository.publish_tiny(1).release
    honest = dict(repository.objects)
    attack.lie(repository, before)
    with pytest.raises(attack.error, match=attack.message):
        device.check()
    device.assert_serves(serving)
    assert (device.slots.previous, device.slots.refused) == (None, {})
    assert {path.name for path in (device.state_dir / "slots").iterdir()} == {serving}
    assert not list(device.state_dir.parent.rglob("passwd"))
    if name.startswith(("drop-request", "partial bundle", "endless", "malformed: a timestamp", "mix")):
        repository.objects = honest
        assert_takes(device, release)


@pytest.mark.parametrize("lie", [name_an_old_snapshot, name_old_targets])
def test_older_versions_under_stolen_keys_are_refused(device, repository, serving, lie):
    """Rollback by whoever has the keys of timestamp and snapshot, but not that of targets."""
    newer = repository.publish_tiny(1).release
    assert_takes(device, newer)
    lie(repository, {})
    assert_refused(device, newer, TrustError, "older than what this device has seen")


@pytest.mark.parametrize(
    "file", ["../../slots.json", "/etc/passwd", "..", "", "a/b", "a\\b", ".hidden", "a\0.png", "a" * 65]
)
def test_a_file_name_cannot_leave_its_folder(device, repository, serving, file):
    document, files = tiny_release(1)
    case = msgspec.structs.replace(document.self_test[0], file=file)
    evil = msgspec.structs.replace(document, self_test=(case,))
    repository.publish(document.release, {**files, "release.json": encode_document(evil)})
    slots = on_disk(device).keys()
    with pytest.raises(EdgeError, match="self-test file"):
        device.check()
    device.assert_serves(serving)
    assert on_disk(device).keys() == slots
    assert document.release in device.slots.refused


@pytest.mark.parametrize("channel", ["../stable", "a/b", "", "+", "#", "a" * 65])
def test_a_channel_name_cannot_leave_its_folder(device, repository, serving, channel):
    with device.open() as trusted:
        trusted.refresh()
        with pytest.raises(InputError, match="channel"):
            trusted.channel(channel)


def test_extraneous_files_are_not_read(device, repository, serving):
    """Signed with a release, but named by no document."""
    release = repository.publish_tiny(1).release
    repository.add({release_target(release, name): bytes(100_000) for name in ("more.so", "setup.py")})
    repository.sign()
    asked = len(repository.requests)
    assert_takes(device, release)
    assert not [path for path in repository.requests[asked:] if "more" in path or "setup" in path]
    assert {path.name for path in device.slots.folder(release).iterdir()} == set(tiny_release(1)[1])


# Freeze


def test_a_store_that_withholds_what_is_new_is_believed_until_its_signatures_expire(
    device, repository, serving, monkeypatch
):
    """What a freeze can do at most: days of the timestamp, 14 as the pipeline signs it."""
    frozen = dict(repository.objects)
    repository.publish_tiny(1)
    repository.objects = frozen
    assert device.check().decision is Decision.SERVES
    set_clock(monkeypatch, days=31)
    assert_refused(device, serving, TrustError, "none was signed since")


def test_a_frozen_device_updates_once_the_store_is_honest_again(device, repository, serving, monkeypatch):
    set_clock(monkeypatch, days=31)
    assert_refused(device, serving, TrustError, "expired")
    repository.expiry = {
        role: moment + datetime.timedelta(days=60) for role, moment in repository.expiry.items()
    }
    repository.publish_root()
    assert_takes(device, repository.publish_tiny(1).release)


# Slow retrieval and endless data, of the model itself


def test_a_model_that_trickles_is_given_up(device, repository, serving, monkeypatch):
    monkeypatch.setattr(fetcher_module, "SPEED_GRACE_S", 0.3)
    release, files = tiny_release(1)
    repository.publish(release.release, files)
    model = object_path(release_target(release.release, "model.tflite"), files["model.tflite"])
    repository.trickle.add(model)
    with pytest.raises(TransportError, match="less than 500 bytes/s"):
        device.check()
    device.assert_serves(serving)
    repository.trickle.clear()
    assert_takes(device, release.release)


def test_a_model_without_an_end_is_cut_off(device, repository, serving):
    release, files = tiny_release(1)
    repository.publish(release.release, files)
    model = object_path(release_target(release.release, "model.tflite"), files["model.tflite"])
    repository.objects[model] = files["model.tflite"] * 10_000
    assert_pulls_little(device)
    device.assert_serves(serving)
    repository.objects[model] = files["model.tflite"]
    assert_takes(device, release.release)


def assert_pulls_little(device: DeviceUnderTest) -> None:
    repositories: list[TrustedRepository] = []
    real = device.open

    def opened() -> TrustedRepository:
        repositories.append(real())
        return repositories[-1]

    updating = device.updater()
    updating._open_repository = opened
    with pytest.raises(TrustError, match="longer than signed"):
        updating.check()
    assert repositories[0].bytes_pulled < 300_000


def test_an_update_check_a_slow_server_drags_out_is_killed(daemon, watcher, repository):
    """Headers that come byte by byte, so that no socket times out: the child process is killed."""
    release = repository.publish_tiny(0).release
    daemon.settings["update"] |= {"check_timeout_s": 4.0}
    daemon.start()
    watcher.wait_release(release)
    repository.trickle_headers = True
    repository.publish_tiny(1)
    watcher.announce(tiny_release(1)[0].release)
    status = watcher.wait_status(lambda s: "check_timeout_s" in (s.last_error or ""), "the end of the check")
    assert (status.release, status.state) == (release, "serving")
    repository.trickle_headers = False
    watcher.wait_release(tiny_release(1)[0].release)


# The clock


def test_a_daemon_whose_clock_is_behind_serves_reports_it_and_recovers(daemon, watcher, repository):
    """As after a boot without a network: the store's metadata was signed days after the time of the clock."""
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(release)
    soon = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    repository.signed_at = soon.isoformat()
    newer = repository.publish_tiny(1).release
    watcher.announce(newer)
    status = watcher.wait_status(lambda s: "it is behind" in (s.last_error or ""), "the clock's error")
    assert (status.release, status.state) == (release, "serving")
    assert_answers(daemon, watcher, release)
    repository.signed_at = None
    repository.stamp()
    assert watcher.wait_release(newer).last_error is None


def set_clock(monkeypatch, **ahead: float) -> None:
    """Move this device's clock, from the truth."""
    ahead_by = datetime.timedelta(**ahead)

    class Moved(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.datetime.now(tz) + ahead_by

    # python-tuf takes no clock; waiting for a real expiry would be a sleep.
    fake = SimpleNamespace(datetime=Moved, timezone=datetime.timezone)
    monkeypatch.setattr(trusted_metadata_set, "datetime", fake)
    monkeypatch.setattr(times, "current_time", lambda: Moved.now(datetime.timezone.utc))


def open_at(device: DeviceUnderTest) -> Callable[[], TrustedRepository]:
    """Open the repository with the clock that `set_clock` moved."""
    memory, fetcher = device.state_dir / "metadata", StoreFetcher(device.store)
    return lambda: TrustedRepository(
        device.root, device.store.base_url, memory, fetcher, clock=times.current_time
    )


def since(moment: str) -> float:
    """Days from a moment to now, negative."""
    then = datetime.datetime.fromisoformat(moment).replace(tzinfo=datetime.timezone.utc)
    return (then - datetime.datetime.now(datetime.timezone.utc)).total_seconds() / 86400


def test_a_clock_that_was_never_set_waits_and_reads_nothing(device, repository, serving, monkeypatch):
    release = repository.publish_tiny(1).release
    asked = len(repository.requests)
    with monkeypatch.context() as boot:
        set_clock(boot, days=since("1970-01-01"))
        boot.setattr(device, "open", open_at(device))
        assert_refused(device, serving, ClockError, r"1970-01-01 .* never set.*timedatectl")
        assert len(repository.requests) == asked
    assert_takes(device, release)


def test_a_clock_behind_what_was_signed_waits_until_it_is_set(device, repository, serving, monkeypatch):
    """With such a clock, metadata that expired since would look fresh."""
    release = repository.publish_tiny(1).release
    with monkeypatch.context() as boot:
        set_clock(boot, days=-20)
        boot.setattr(device, "open", open_at(device))
        assert_refused(device, serving, ClockError, "it is behind")
    assert_takes(device, release)


def test_a_clock_behind_does_not_make_expired_metadata_fresh(device, repository, serving, monkeypatch):
    """A frozen store and a device whose clock was turned back to when its metadata was new."""
    repository.signed_at = datetime.datetime.now(datetime.timezone.utc).isoformat()
    repository.expire("timestamp")
    repository.publish_tiny(1)
    set_clock(monkeypatch, days=-20)
    monkeypatch.setattr(device, "open", open_at(device))
    assert_refused(device, serving, ClockError, "it is behind")


def test_a_clock_that_is_an_hour_behind_is_no_reason_to_wait(device, repository, serving, monkeypatch):
    release = repository.publish_tiny(1).release
    set_clock(monkeypatch, hours=-1)
    monkeypatch.setattr(device, "open", open_at(device))
    assert_takes(device, release)


def test_a_clock_that_is_ahead_is_named_and_heals(device, repository, serving, monkeypatch):
    release = repository.publish_tiny(1).release
    with monkeypatch.context() as boot:
        set_clock(boot, days=4000)
        boot.setattr(device, "open", open_at(device))
        assert_refused(device, serving, TrustError, "clock says.*timedatectl")
    assert_takes(device, release)


@pytest.mark.parametrize("said", ["", "yesterday", "2026-01-01", "9999-99-99T00:00:00+00:00"])
def test_a_malformed_signing_time_proves_nothing(device, repository, serving, said):
    repository.signed_at = said or None
    assert_takes(device, repository.publish_tiny(1).release)


def test_a_time_of_signing_that_a_stolen_key_signed_goes_with_the_key(device, repository, serving):
    """It must not lock the device out for ever."""
    repository.signed_at = "9999-01-01T00:00:00+00:00"
    repository.stamp()
    assert_refused(device, serving, ClockError, "9999")
    repository.signed_at = None
    repository.rotate("timestamp")
    assert_takes(device, repository.publish_tiny(1).release)


# Keys


@pytest.mark.parametrize("roles", [("targets",), ("timestamp",), ("snapshot",), ONLINE, (*ONLINE, "root")])
def test_replaced_keys_are_followed_and_the_old_ones_refused(device, repository, serving, roles):
    old = dict(repository.signers)
    for role in roles:
        repository.rotate(role)
    assert_takes(device, release := repository.publish_tiny(1).release)
    if roles[0] == "root":
        return
    repository.signers[roles[0]] = old[roles[0]]
    repository.publish_tiny(2)
    with pytest.raises(TrustError, match="not signed by the keys"):
        device.check()
    device.assert_serves(release)


def test_a_long_chain_of_roots_is_followed_in_one_check(device, repository, serving):
    for _ in range(40):
        repository.rotate("root")
    repository.rotate("targets")
    release = repository.publish_tiny(1).release
    assert_takes(device, release)
    history = device.state_dir / "metadata/root_history"
    assert {path.name for path in history.iterdir()} == {f"{n}.root.json" for n in range(1, 43)}
    asked = len(repository.requests)
    device.check()
    roots = [path for path in repository.requests[asked:] if "root" in path]
    assert roots == ["metadata/43.root.json"]


def test_a_chain_without_end_is_given_up(device, repository, serving):
    """New roots are followed in pieces: each check remembers how far it came."""
    for _ in range(300):
        repository.publish_root()
    release = repository.publish_tiny(1).release
    asked = len(repository.requests)
    device.check()
    assert len([path for path in repository.requests[asked:] if "root" in path]) == 256
    device.assert_serves(release)


def test_a_chain_with_a_gap_is_followed_up_to_the_gap(device, repository, serving):
    for _ in range(4):
        repository.rotate("targets")
    release = repository.publish_tiny(1).release
    gap = repository.objects.pop("metadata/4.root.json")
    assert_refused(device, serving, TrustError, "not signed by the keys")
    repository.objects["metadata/4.root.json"] = gap
    assert_takes(device, release)


@pytest.mark.parametrize("who", ["old", "new"])
def test_a_root_that_only_the_new_or_only_the_old_keys_signed_is_refused(device, repository, serving, who):
    repository.rotate("root", old_root_signs=who == "old", new_root_signs=who == "new")
    repository.publish_tiny(1)
    assert_refused(device, serving, TrustError, "not signed by the keys")
    assert not (device.state_dir / "metadata/root_history/2.root.json").exists()


def test_a_key_of_a_root_that_was_replaced_cannot_sign_a_root(device, repository, serving):
    old = repository.signers["root"]
    repository.rotate("root")
    release = repository.publish_tiny(1).release
    assert_takes(device, release)
    repository.publish_root([old])
    with pytest.raises(TrustError, match="not signed by the keys"):
        device.check()
    device.assert_serves(release)


def test_a_device_recovers_from_a_version_far_ahead_once_the_keys_are_replaced(device, repository, serving):
    """Fast-forward: stolen online keys signed the highest versions, and an unknown release."""
    repository._timestamp_version = repository._snapshot_version = repository._targets.version = HUGE
    repository.publish_tiny(1)
    device.check()
    repository._timestamp_version = repository._snapshot_version = repository._targets.version = 10
    honest = repository.publish_tiny(2).release
    with pytest.raises(TrustError, match="older than"):
        device.check()
    for role in ONLINE:
        repository.rotate(role)
    repository.publish_tiny(2)
    assert_takes(device, honest)
    assert remembered(device, "timestamp.json")["version"] == 12


# Thresholds


@pytest.fixture
def shared_device(tmp_path, repository) -> DeviceUnderTest:
    """A device whose root asks for two of three keys, for root and targets."""
    for role in ("root", "targets"):
        repository.share(role, keys=3, threshold=2)
    return DeviceUnderTest(tmp_path / "state", repository)


def test_two_of_three_keys_are_enough(shared_device, repository):
    serve_first(shared_device, repository)
    repository.co_signers["targets"].pop()
    assert_takes(shared_device, repository.publish_tiny(1).release)


def test_one_of_three_keys_is_not_enough_for_targets(shared_device, repository):
    serving = serve_first(shared_device, repository)
    repository.co_signers["targets"].clear()
    repository.publish_tiny(1)
    assert_refused(shared_device, serving, TrustError, "1/2 keys")


def test_one_of_three_keys_is_not_enough_for_a_root(shared_device, repository):
    serving = serve_first(shared_device, repository)
    repository.publish_root([repository.signers["root"]])
    assert_refused(shared_device, serving, TrustError, "1/2 keys")
    repository._root.version -= 1
    repository.publish_root([repository.signers["root"], repository.co_signers["root"][0]])
    assert_takes(shared_device, repository.publish_tiny(1).release)


@pytest.mark.parametrize("trick", ["same signature twice", "under another key id", "another key's signature"])
def test_a_key_counts_once(shared_device, repository, trick):
    serving = serve_first(shared_device, repository)
    others = [signer.public_key.keyid for signer in repository.co_signers["targets"]]
    repository.co_signers["targets"].clear()
    repository.publish_tiny(1)
    document = json.loads(repository.objects["metadata/2.targets.json"])
    [signature] = document["signatures"]
    keyid = {
        "same signature twice": signature["keyid"],
        "under another key id": "0" * 64,
        "another key's signature": others[0],
    }[trick]
    document["signatures"].append({**signature, "keyid": keyid})
    repository.objects["metadata/2.targets.json"] = json.dumps(document).encode()
    assert_refused(shared_device, serving, TrustError)


# The answers of a malicious web server


ANSWERS = {
    "nothing": b"",
    "no status line": b"hello\r\n\r\n",
    "a status that is no number": b"HTTP/1.1 OK fine\r\n\r\n",
    "a length that is no number": b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nx",
    "a negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nx",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 9\r\n\r\nxxxxx",
    "a broken chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n",
    "endless headers": b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 50_000,
    "an endless header": b"HTTP/1.1 200 OK\r\nA: " + b"b" * 3_000_000,
    "a redirect to a file": b"HTTP/1.1 302 F\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n",
    "a redirect to nowhere": b"HTTP/1.1 302 F\r\nLocation: http://[::1\r\nContent-Length: 0\r\n\r\n",
    "a redirect without an end": b"HTTP/1.1 302 F\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n",
    "a bomb": b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 20\r\n\r\n" + b"\x1f\x8b" * 10,
    "not UTF-8": b"HTTP/1.1 200 \xff\xfe\r\n\xff: \xff\r\nContent-Length: 2\r\n\r\n\xff\xfe",
    "an error that never ends": b"HTTP/1.1 500 no\r\n\r\n" + b"x" * 1_000_000,
    "a malformed range": b"HTTP/1.1 206 P\r\nContent-Range: bytes x-y/z\r\nContent-Length: 2\r\n\r\nab",
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_a_malicious_server_answers_ends_in_a_declared_error(device, repository, serving, name):
    with RawServer(ANSWERS[name]) as server:
        device.store = dataclasses.replace(device.store, base_url=server.url, timeout_s=0.5)
        assert_refused(device, serving, (TransportError, TrustError))


def test_a_session_token_does_not_follow_a_redirect_to_another_host(device, repository):
    """urllib3 drops `Authorization` by itself, but does not know Amazon's header."""
    credentials = StoreCredentials("KEY", "secret", "session-token")
    with RawServer(b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n") as other:
        location = f"Location: http://localhost:{other.port}/x".encode()
        with RawServer(b"HTTP/1.1 302 F\r\n" + location + b"\r\nContent-Length: 0\r\n\r\n") as store:
            settings = dataclasses.replace(
                device.store, base_url=store.url, redirect_hosts=(f"localhost:{other.port}",)
            )
            fetcher = StoreFetcher(settings, credentials)
            with pytest.raises(DownloadHTTPError):
                fetcher.download_bytes(f"{store.url}/timestamp.json", 100)
        assert b"session-token" in store.requests[0]
        assert other.requests
        assert b"session-token" not in other.requests[0]
        assert b"Authorization" not in other.requests[0]
