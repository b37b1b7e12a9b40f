"""The key of the rollouts was stolen: what it signed alone counts no more, and a person's word goes on."""

from __future__ import annotations

import pytest

from edge_client.contract.errors import TrustError
from edge_client.contract.names import ROLLOUTS_ROLE
from luigi_tasks.fleet.registry import accept_registry
from luigi_tasks.fleet.rollouts import record_key
from luigi_tasks.release.keys import Rotation, rotate_keys
from luigi_tasks.release.signing import PIPELINE_ROLES
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.rollout_fleet import RolloutFleet


@pytest.fixture
def fleet(tmp_path):
    return RolloutFleet(tmp_path)


def roll_out(fleet: RolloutFleet, bias: int) -> str:
    """Start a rollout, open its first stage, and return the release."""
    release = fleet.publish(bias, move=False).release
    fleet.report(0)
    fleet.machine().start("stable", release, fleet.plan(), "ann")
    fleet.look()
    return release


def be_robbed(fleet: RolloutFleet) -> None:
    """Replace the keys as stolen, and take the registry for what it is."""
    rotate_keys(fleet.folder / "keys", Rotation((*PIPELINE_ROLES, ROLLOUTS_ROLE), stolen=True))
    fleet.machine().repository.renew()
    accept_registry(fleet.machine().documents, "ann")


def test_what_this_machine_saw_is_signed_again_ended_and_may_be_started_again(fleet):
    first = roll_out(fleet, 1)
    while fleet.look() != "done":
        pass
    second = roll_out(fleet, 2)
    ran = fleet.machine().stand("stable").running.document.id
    be_robbed(fleet)
    for act in ("advance", "pause", "abort"):
        with pytest.raises(TrustError, match=r"stolen: `edge-fleet rollouts --accept`"):
            getattr(fleet.machine(), act)("stable", *[] if act == "advance" else ["ann"])
    assert fleet.has(first) == 4, "the rollout is not signed any more"

    said = fleet.machine().accept("stable", "ann")
    assert f"rollout {ran} is ended, and may be started again" in said
    assert "nothing to do" in fleet.machine().accept("stable", "ann")
    faults: list[str] = []
    history = fleet.machine().rollouts.find_all("stable", faults)
    assert [(one.release, one.state) for one in history] == [(first, "done"), (second, "aborted")]
    assert (history[-1].events[-1].who, faults) == ("ann", [])
    assert fleet.machine().advance("stable").record is None
    assert not fleet.machine().is_taken_up("stable", second), "the next Deploy starts it"
    fleet.report()
    fleet.machine().start("stable", second, fleet.plan(), "Deploy")
    assert (fleet.look(), fleet.has(second)) == ("open", 1)


def test_what_a_thief_signed_and_what_another_machine_saw_is_not_signed_again(fleet):
    release = roll_out(fleet, 1)
    running = fleet.machine().stand("stable").running
    key, store = record_key("stable", running.document.id), FolderStore(fleet.settings.store)
    genuine = store.read(key)
    machine = fleet.machine()
    machine.documents.seen = None  # the thief's has no memory, and the key
    machine.rollouts.save(running.document, running.etag)
    be_robbed(fleet)
    assert "did not see it like this" in fleet.machine().accept("stable", "ann")
    faults: list[str] = []
    assert fleet.machine().rollouts.find_all("stable", faults) == []
    assert len(faults) == 1
    assert fleet.machine().advance("stable").record is None, "ended all the same"
    store.put(key, genuine)
    stranger = fleet.machine()
    stranger.documents.seen = None
    assert "stays unsigned" in stranger.accept("stable", "ann")
    assert "signed again" in fleet.machine().accept("stable", "ann")
    assert fleet.has(release) == 0
