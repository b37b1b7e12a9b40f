"""The delegated role `rollouts`: a key of its own moves channels and rollouts, and signs no release.

The pipeline's own repository publishes into a folder; a device's real TUF client follows it.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import shutil

import msgspec
import pytest
from tuf.api.metadata import TargetFile

from edge_client.contract.errors import InputError, SettingsError, TrustError
from edge_client.contract.names import ROLLOUTS_ROLE
from edge_client.contract.release import ChannelDocument
from edge_client.contract.rollout import EVERYBODY, RolloutDocument
from edge_client.repository.folder_fetcher import FolderFetcher
from edge_client.repository.trusted import TrustedRepository
from luigi_tasks.edge_keys import main
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.release import writer as writer_module
from luigi_tasks.release.channel import Pointers
from luigi_tasks.release.keys import Rotation, rotate_keys
from luigi_tasks.release.published import object_key
from luigi_tasks.release.rollouts_key import KEY_FILE
from luigi_tasks.release.signing import PIPELINE_ROLES, open_rollout_signer, rollout_keys
from tests.fakes.folder_fleet import FolderFleet


@pytest.fixture
def fleet(tmp_path, keys):
    return FolderFleet(tmp_path, keys)


def rolling(release: str, steady: str = "", **fields) -> RolloutDocument:
    """A rollout for everybody."""
    fields = {"id": f"roll-{release}", "threshold": EVERYBODY, **fields}
    return RolloutDocument(channel="stable", release=release, from_release=steady, **fields)


def to_release(release: str, at: str = ""):
    """Move the steady pointer, and nothing else."""

    def change(pointers: Pointers) -> Pointers:
        pointer = ChannelDocument(channel="stable", release=release, moved_at=at)
        return dataclasses.replace(pointers, channel=pointer)

    return change


def start(rollout: RolloutDocument):
    """Move the rollout, and nothing else."""
    return lambda pointers: dataclasses.replace(pointers, rollout=rollout)


def sign(fleet: FolderFleet, release: str, machine: str = "") -> None:
    """Sign a release without moving anything."""
    fleet.pass_time()
    files = {
        f"releases/{release}/{name}": f"{{}} {release}".encode() for name in ("release.json", "model.tflite")
    }
    fleet.machine(machine).publish(files)


def without_targets_key(fleet: FolderFleet) -> None:
    """From now on, machines hold the keys that move channels only."""
    for role in ("targets", "work"):
        for path in (fleet.keys / "pipeline").glob(f"{role}*.pem"):
            path.unlink()


def test_a_machine_without_the_targets_key_moves_pointer_and_rollout_in_one_step(fleet):
    fleet.publish("r1")
    sign(fleet, "r2")
    assert fleet.device() == "r1"
    before = fleet.metadata()
    without_targets_key(fleet)
    fleet.machine().point("stable", start(rolling("r2", "r1")))
    state = fleet.machine().load()
    assert (state.channel("stable").release, state.rollout("stable").release) == ("r1", "r2")
    assert fleet.device() == "r1"
    fleet.machine().point(
        "stable",
        lambda now: Pointers(
            dataclasses.replace(to_release("r2")(now)).channel,
            RolloutDocument(channel="stable", heartbeat_s=30.0),
        ),
    )
    assert fleet.device() == "r2"
    new = {name.partition(".")[2] for name in fleet.metadata().keys() - before.keys()}
    assert new == {"rollouts.json", "snapshot.json"}


def test_a_machine_without_the_rollouts_key_signs_releases_and_moves_nothing(fleet):
    fleet.publish("r1")
    before = fleet.machine().load().published.versions
    key = fleet.keys / "pipeline/rollouts.pem"
    key.rename(fleet.keys / "elsewhere")
    sign(fleet, "r2")
    after = fleet.machine().load().published.versions
    assert (after["rollouts"], after["targets"] > before["targets"]) == (before["rollouts"], True)
    for move in (lambda: fleet.publish("r3"), lambda: fleet.machine().point("stable", to_release("r2"))):
        with pytest.raises(SettingsError, match=r"rollouts\.pem"):
            move()
    assert fleet.device() == "r1"
    (fleet.keys / "elsewhere").rename(key)
    without_targets_key(fleet)
    fleet.machine().point("stable", to_release("r2"))
    assert fleet.device() == "r2"
    fleet.roll_back("r1")
    assert fleet.device() == "r1"


def test_nothing_is_written_where_nothing_moves(fleet):
    fleet.publish("r1")
    before = fleet.metadata()
    fleet.machine().point("stable", lambda pointers: pointers)
    assert fleet.metadata() == before


def test_a_release_that_is_not_signed_is_pointed_to_by_nothing(fleet):
    fleet.publish("r1")
    before = fleet.metadata()
    for change in (to_release("r2"), start(rolling("r2")), start(rolling("r1", variants={"zero": "r2"}))):
        with pytest.raises(InputError, match="release r2 is not signed"):
            fleet.machine().point("stable", change)
    assert fleet.metadata() == before


def test_keys_of_an_earlier_version_go_on_and_move_at_the_next_publication(fleet, capsys):
    (fleet.keys / "pipeline/rollouts.pem").unlink()
    (fleet.keys / "device" / KEY_FILE).unlink()
    fleet.publish("r1")
    fleet.machine().point("stable", to_release("r1"))
    with pytest.raises(SettingsError, match="edge-keys add-rollouts-key"):
        fleet.machine().point("stable", start(rolling("r1")))
    assert fleet.device() == "r1"
    assert not any("rollouts" in name for name in fleet.metadata())
    assert main(["add-rollouts-key", str(fleet.keys)]) == 0
    assert main(["add-rollouts-key", str(fleet.keys)]) == 0
    said = capsys.readouterr().out
    assert "run `edge-keys publish` now" in said
    assert "has a rollouts key already; nothing was changed" in said
    assert fleet.machine().needs_renewal()
    fleet.machine().renew()
    assert not fleet.machine().needs_renewal()
    assert fleet.device() == "r1"
    published = fleet.machine().load().published
    assert list(published.rollouts.signed.targets) == ["channels/stable.json"]
    assert "channels/stable.json" not in published.targets.signed.targets


# A bucket that goes back


def test_an_older_rollout_that_a_thief_puts_back_is_noticed_and_written_again_without_the_targets_key(
    fleet, caplog
):
    fleet.publish("r1")
    sign(fleet, "r2")
    without_targets_key(fleet)
    fleet.machine().point("stable", start(rolling("r2", threshold=1)))
    fleet.back_up()
    fleet.pass_time()
    fleet.machine().point("stable", start(rolling("r2", threshold=9)))
    assert fleet.device() == "r1"
    for mend in (fleet_renews, lambda one: one.machine().point("stable", lambda now: now)):
        caplog.clear()
        fleet.restore("metadata")
        assert fleet.machine().load().rollout("stable").threshold == 9
        assert "rollouts" in caplog.text
        assert "Somebody put back an older copy" in caplog.text
        mend(fleet)
        fleet_renews(fleet)
        assert fleet.machine("other").load().rollout("stable").threshold == 9
        assert fleet.device() == "r1"


def fleet_renews(fleet: FolderFleet) -> None:
    """What a run with nothing else to do does."""
    fleet.pass_time()
    if fleet.machine().needs_renewal():
        fleet.machine().renew()


def test_a_machine_that_was_away_cannot_take_a_rollout_back_in_silence(fleet, caplog):
    fleet.publish("r1", machine="a")
    sign(fleet, "r2")
    fleet.publish("c1", channel="canary", machine="b")
    fleet.machine("a").point("stable", start(rolling("r2", threshold=1, moved_at=fleet.at_now)))
    fleet.machine("b").load()
    fleet.back_up()
    fleet.pass_time()
    fleet.machine("a").point("stable", start(rolling("r2", threshold=0, moved_at=fleet.at_now)))
    fleet.restore("metadata")
    fleet.publish("c2", channel="canary", machine="b")
    assert fleet.machine("c").load().rollout("stable").threshold == 1
    assert fleet.machine("a").load().rollout("stable").threshold == 0
    assert "over an older copy, of rollouts/stable.json" in caplog.text
    fleet.machine("a").renew()
    assert fleet.machine("c").load().rollout("stable").threshold == 0
    assert fleet.device("canary") == "c2"


def test_a_rollout_whose_files_are_gone_is_over_once_a_person_says_so(fleet):
    fleet.publish("r1")
    sign(fleet, "r2")
    fleet.machine().point("stable", start(rolling("r2", heartbeat_s=60.0)))
    shutil.rmtree(fleet.bucket / "targets/releases/r2")
    shutil.rmtree(fleet.bucket / "metadata")
    with pytest.raises(TrustError, match=r"stable \(r2\).*edge-keys publish --force"):
        fleet.machine().renew()
    assert fleet.machine().force() == [
        "channel stable: files are gone of what rollout roll-r2 names; it is over"
    ]
    rollout = fleet.machine().load().rollout("stable")
    assert (rollout.id, rollout.heartbeat_s) == ("", 60.0)
    assert fleet.device() == "r1"


@pytest.mark.parametrize("before", ["9999-12-31T23:59:59.999+00:00", "never", "zzz", ""])
def test_no_time_that_a_thief_wrote_keeps_a_channel_from_moving(fleet, before):
    fleet.publish("r1")
    fleet.publish("r2")
    fleet.machine().point("stable", to_release("r1", before))
    fleet.machine("a").load()
    fleet.machine().point("stable", to_release("r2", fleet.at_now))
    assert fleet.machine("a").load().channel("stable").release == "r2"
    assert fleet.device() == "r2"


# Stolen keys


def test_who_has_the_rollouts_key_and_the_bucket_alone_changes_nothing(fleet):
    """The snapshot names the very bytes."""
    fleet.publish("r1")
    fleet.publish("r2")
    assert fleet.device() == "r2"
    state = fleet.machine("thief").load()
    published, version = state.published.rollouts, state.published.version(ROLLOUTS_ROLE)
    assert published is not None
    evil = ChannelDocument(channel="stable", release="r1")
    data = msgspec.json.encode(evil)
    fleet.machine().store.put(pointer_key(data), data)
    published.signed.targets["channels/stable.json"] = TargetFile.from_data("channels/stable.json", data)
    forged = writer_module._sign(published, fleet.machine().writer._open_signers(state, ROLLOUTS_ROLE))
    (fleet.bucket / f"metadata/{version}.rollouts.json").write_bytes(forged)
    assert fleet.device() == "r2"
    with pytest.raises(TrustError, match="not the content that was signed"):
        looks_up(fleet, "channels/stable.json")
    with pytest.raises(TrustError, match="edge-keys publish --force"):
        fleet.machine().load()
    assert fleet.machine().force() == []
    assert fleet.device() == "r2"


def test_a_thief_of_what_moves_channels_points_to_signed_releases_only_until_the_key_is_replaced(
    fleet, monkeypatch, tmp_path
):
    """With the keys of rollouts, snapshot and timestamp."""
    fleet.publish("r1")
    fleet.publish("r2")
    stolen = tmp_path / "stolen"
    shutil.copytree(fleet.keys, stolen)
    thief = FolderFleet(tmp_path, stolen)
    thief.now = fleet.now + datetime.timedelta(hours=1)
    without_targets_key(thief)
    with pytest.raises(SettingsError, match=r"targets\.pem"):
        thief.publish("evil")
    state = thief.machine("thief").load()
    own, old = state.published.targets, open_rollout_signer(state, thief.machine().settings)
    assert own is not None
    evil = {"releases/evil/release.json": TargetFile.from_data("releases/evil/release.json", b"{}")}
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "split_files", lambda files: (own.signed.targets, {**files, **evil}))
        thief.machine("thief").point("stable", to_release("r1"))
    assert fleet.device() == "r1"
    with pytest.raises(TrustError, match=r"releases/evil/release\.json is not among the signed files"):
        looks_up(fleet, "releases/evil/release.json")
    assert "evil" not in fleet.machine("other").load().releases()
    fleet.now = thief.now
    shutil.rmtree(fleet.keys / "root")
    assert main(["rotate", str(fleet.keys), "--role", ROLLOUTS_ROLE]) == 0
    fleet.publish("r3")
    assert fleet.device() == "r3"
    with pytest.raises(SettingsError, match=r"rollouts\.pem: .*does not match"):
        thief.machine("thief").point("stable", to_release("r1"))
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "open_rollout_signer", lambda *_: old)
        thief.machine("thief").point("stable", to_release("r1"))
    with pytest.raises(TrustError, match="not signed by the keys that this device trusts"):
        fleet.device()
    fleet.pass_time()
    fleet.machine().force()
    assert fleet.device() == "r3"


def pointer_key(data: bytes) -> str:
    """Key of the object that a pointer's content lies in."""
    return object_key("channels/stable.json", hashlib.sha256(data).hexdigest())


def looks_up(fleet: FolderFleet, path: str) -> None:
    """A new device asks for a signed file."""
    url = fleet.bucket.as_uri()
    root = (fleet.keys / "device/root.json").read_bytes()
    with TrustedRepository(root, url, fleet.bucket.parent / "another", FolderFetcher(url)) as trusted:
        trusted.refresh()
        trusted.look_up(path)


def test_documents_signed_before_a_rotation_in_routine_count_and_those_before_a_theft_do_not(fleet):
    fleet.publish("r1")
    documents = documents_of(fleet.machine())
    documents.save("fleet/a.json", ChannelDocument(channel="stable", release="r1"), None)
    rotate_keys(fleet.keys, Rotation((ROLLOUTS_ROLE,)))
    fleet.machine().renew()

    def load():
        return documents_of(fleet.machine()).load(ChannelDocument, "fleet/a.json", limit_bytes=9999)

    assert load().document.release == "r1"
    assert len(rollout_keys(fleet.machine("reader").load())) == 2
    rotate_keys(fleet.keys, Rotation((*PIPELINE_ROLES, ROLLOUTS_ROLE), stolen=True))
    fleet.machine().renew()
    assert len(rollout_keys(fleet.machine("reader").load())) == 1
    with pytest.raises(TrustError, match="not signed by a trusted key of this fleet"):
        load()


def test_a_machine_with_the_public_key_of_before_names_no_older_key_again(fleet, tmp_path):
    fleet.publish("r1")
    before = (fleet.keys / "device" / KEY_FILE).read_bytes()
    rotate_keys(fleet.keys, Rotation((ROLLOUTS_ROLE,)))
    fleet.machine().renew()
    key = fleet.machine().load().published.rollouts_key
    assert key.version == 2
    (fleet.keys / "device" / KEY_FILE).write_bytes(before)
    fleet.publish("r2")
    assert fleet.machine().load().published.rollouts_key == key
    assert fleet.device() == "r2"


def test_after_a_theft_the_channel_comes_back_and_the_rollout_does_not(fleet):
    """What the rollout stood on, its record in the bucket, is not believed either."""
    fleet.publish("r1")
    sign(fleet, "r2")
    fleet.machine().point("stable", start(rolling("r2")))
    rotate_keys(fleet.keys, Rotation((*PIPELINE_ROLES, ROLLOUTS_ROLE), stolen=True))
    fleet.machine().renew()
    state = fleet.machine().load()
    assert (state.channel("stable").release, state.rollout("stable")) == ("r1", None)
    assert state.releases() == ["r1", "r2"]
    assert fleet.device() == "r1"


@pytest.mark.parametrize("moved_by_both", [True, False])
def test_after_a_theft_a_machine_that_only_moves_channels_brings_back_its_moves(fleet, moved_by_both, caplog):
    """The machine that signs releases brings back those, and a channel as it had moved it."""
    if moved_by_both:
        fleet.publish("r1", machine="signs")
    sign(fleet, "r2", "signs")
    fleet.pass_time()
    fleet.machine("moves").point("stable", to_release("r2", fleet.at_now))
    rotate_keys(fleet.keys, Rotation((*PIPELINE_ROLES, ROLLOUTS_ROLE), stolen=True))
    assert not fleet.machine("moves").load().releases()  # before the other: it does not forget
    fleet.machine("signs").renew()
    without_targets_key(fleet)
    if moved_by_both:
        assert fleet.device() == "r1"
    assert fleet.machine("moves").needs_renewal()
    fleet.machine("moves").renew()
    assert fleet.device() == "r2"
    for machine in ("moves", "signs", "moves"):
        assert not fleet.machine(machine).needs_renewal()
    assert "this machine moved" in caplog.text


# What stays, and what it costs


def test_what_a_rollout_names_and_its_patches_stay_until_it_is_over(fleet):
    def patch(release: str, base: str) -> str:
        return f"releases/{release}/model.tflite.from-{base}.zst"

    def publish(number: int, **files: bytes) -> None:
        fleet.pass_time()
        named = {f"releases/r{number}/release.json": b"{}", **{patch(*one.split("_")): b"" for one in files}}
        keeper = fleet.machine()
        keeper.settings = dataclasses.replace(keeper.settings, keep_releases=2)
        keeper.publish(named)

    publish(0)
    fleet.machine().point("stable", to_release("r0"))
    publish(1, r1_r0=b"")
    assert patch("r1", "r0") in fleet.machine().load().files  # it waits for its rollout
    fleet.machine().point("stable", start(rolling("r1", "r0", variants={"zero": "r1"})))
    for number in range(2, 6):
        publish(number)
    fleet.machine().point("stable", to_release("r5"))
    publish(6)
    state = fleet.machine().load()
    assert state.releases() == ["r0", "r1", "r5", "r6"]
    assert patch("r1", "r0") in state.files
    fleet.machine().point("stable", start(RolloutDocument(channel="stable")))
    publish(7)
    assert fleet.machine().load().releases() == ["r5", "r6", "r7"]


def test_who_lacks_the_targets_key_renews_the_rest(fleet, caplog):
    fleet.publish("r1")
    before = fleet.machine().load().published
    without_targets_key(fleet)
    fleet.pass_time(8 * 86400)
    assert fleet.machine().needs_renewal()
    fleet.machine().renew()
    assert not fleet.machine().needs_renewal()
    published = fleet.machine().load().published
    assert published.versions["targets"] == before.versions["targets"]
    assert not caplog.records
    fleet.pass_time(180 * 86400)
    fleet.machine().renew()
    assert "targets.json: expires in 176 days, and its key is not used here" in caplog.text
    assert fleet.machine().load().published.versions["timestamp"] > published.versions["timestamp"]


def test_moving_a_channel_costs_a_device_two_kilobytes_and_not_the_targets(fleet):
    names = [f"selftest-{number}.png" for number in range(5)]
    names += ["model.tflite", "model.tflite.zst", "labels.txt", "release.json", "calibration.json"]
    fleet.machine().publish({f"releases/r{n}/{name}": b"{}" for n in range(20) for name in names})
    fleet.machine().point("stable", to_release("r0"))
    whole = bytes_of_a_look(fleet)
    fleet.pass_time()
    fleet.machine().point("stable", to_release("r1"))
    moved = bytes_of_a_look(fleet)
    published = fleet.machine().load().published
    always = sum(
        (fleet.bucket / "metadata" / name).stat().st_size
        for name in ("timestamp.json", f"{published.version('snapshot')}.snapshot.json")
    )
    assert moved - always < 2_000 < whole - always - 20_000


def bytes_of_a_look(fleet: FolderFleet) -> int:
    url = fleet.bucket.as_uri()
    root = (fleet.keys / "device/root.json").read_bytes()
    with TrustedRepository(root, url, fleet.bucket.parent / "state", FolderFetcher(url)) as trusted:
        trusted.refresh()
        trusted.channel("stable")
        return trusted.bytes_pulled
