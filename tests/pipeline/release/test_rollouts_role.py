"""The delegated role `rollouts`: a key of its own moves channels and rollouts, and signs no release.

The pipeline's own repository publishes into a folder; a device's real TUF client follows it.
"""

from __future__ import annotations

import dataclasses

import pytest

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.release import ChannelDocument
from edge_client.contract.rollout import EVERYBODY, RolloutDocument
from luigi_tasks.release.channel import Pointers
from luigi_tasks.release.keys import add_rollouts_key
from luigi_tasks.release.rollouts_key import KEY_FILE
from tests.fakes.folder_fleet import FolderFleet


@pytest.fixture
def fleet(tmp_path, keys):
    return FolderFleet(tmp_path, keys)


def rolling(release: str, steady: str = "", **fields) -> RolloutDocument:
    """A rollout for everybody."""
    fields = {"id": f"roll-{release}", "threshold": EVERYBODY, **fields}
    return RolloutDocument(channel="stable", release=release, from_release=steady, **fields)


def to_release(release: str):
    """Move the steady pointer, and nothing else."""

    def change(pointers: Pointers) -> Pointers:
        return dataclasses.replace(pointers, channel=ChannelDocument(channel="stable", release=release))

    return change


def start(rollout: RolloutDocument):
    """Move the rollout, and nothing else."""
    return lambda pointers: dataclasses.replace(pointers, rollout=rollout)


def sign(fleet: FolderFleet, release: str) -> None:
    """Sign a release without moving anything."""
    fleet.pass_time()
    files = {
        f"releases/{release}/{name}": f"{{}} {release}".encode() for name in ("release.json", "model.tflite")
    }
    fleet.machine().publish(files)


def without_targets_key(fleet: FolderFleet) -> None:
    """From now on, machines hold the keys that move channels only."""
    for name in ("targets.pem", "work.pem"):
        (fleet.keys / "pipeline" / name).unlink()


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


def test_keys_of_an_earlier_version_go_on_and_move_at_the_next_publication(fleet):
    (fleet.keys / "pipeline/rollouts.pem").unlink()
    (fleet.keys / "device" / KEY_FILE).unlink()
    fleet.publish("r1")
    fleet.machine().point("stable", to_release("r1"))
    with pytest.raises(SettingsError, match="edge-keys add-rollouts-key"):
        fleet.machine().point("stable", start(rolling("r1")))
    assert fleet.device() == "r1"
    assert not any("rollouts" in name for name in fleet.metadata())
    assert add_rollouts_key(fleet.keys)
    assert fleet.machine().needs_renewal()
    fleet.machine().renew()
    assert not fleet.machine().needs_renewal()
    assert fleet.device() == "r1"
    published = fleet.machine().load().published
    assert list(published.rollouts.signed.targets) == ["channels/stable.json"]
    assert "channels/stable.json" not in published.targets.signed.targets
