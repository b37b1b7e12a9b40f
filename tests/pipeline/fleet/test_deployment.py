"""What Deploy does with a release when the settings change while a rollout runs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest

from luigi_tasks.fleet.deployment import deploy, is_taken_up
from luigi_tasks.settings.values import StoreSettings
from tests.fakes.rollout_fleet import QUICK, RolloutFleet
from tests.fakes.trust import settings_with_keys

if TYPE_CHECKING:
    from luigi_tasks.settings.rollout import RolloutSettings


@pytest.fixture
def fleet(tmp_path):
    return RolloutFleet(tmp_path)


def deploy_now(fleet: RolloutFleet, bias: int) -> tuple[str, str]:
    """Deploy a release that passed the gate; return it, and what was done."""
    fleet.now += 1
    release = fleet.publish(bias, move=False).release

    def publish() -> None:
        fleet.publish(bias, move=not fleet.settings.rollout.stages)

    return release, deploy(fleet.machine(), release, publish)


def with_stages(fleet: RolloutFleet, settings: RolloutSettings) -> None:
    fleet.settings = dataclasses.replace(fleet.settings, rollout=settings)


def test_stages_that_are_switched_off_let_a_planned_rollout_end_before_a_newer_release(fleet):
    """Else the planned one, older by then, would take the newer release from the devices."""
    planned, _ = deploy_now(fleet, 1)
    assert fleet.machine().stand("stable").running.document.state == "planned", "there is no snapshot yet"
    with_stages(fleet, dataclasses.replace(QUICK, stages=""))
    assert is_taken_up(fleet.machine(), planned), "an hour later there is nothing to do"
    newer, said = deploy_now(fleet, 2)
    assert "waits for the end of the rollout" in said
    fleet.report(0)
    while fleet.look():
        pass
    assert fleet.has(planned) == 4
    assert not is_taken_up(fleet.machine(), newer)
    assert deploy_now(fleet, 2) == (newer, f"channel stable points to {newer}")
    standing = fleet.machine().stand("stable")
    assert (fleet.has(newer), standing.running, standing.queued) == (4, None, "")
    with_stages(fleet, QUICK)
    last, said = deploy_now(fleet, 3)
    assert "is open, stage 1 of 3" in said
    assert fleet.has(last) == 1


def test_the_first_release_of_a_channel_goes_by_stages_too(tmp_path):
    """Whoever is outside of the stage has none until it is done, and the next candidate waits."""
    store = StoreSettings((tmp_path / "bucket").as_uri(), "", "", "when_required", conditional_writes=True)
    settings = settings_with_keys(store, tmp_path / "keys")
    broker = dataclasses.replace(settings.broker, host="")
    fleet = RolloutFleet(tmp_path, settings=dataclasses.replace(settings, broker=broker, rollout=QUICK))
    fleet.report(0)
    first, said = deploy_now(fleet, 1)
    assert "is open, stage 1 of 3 (1 device)" in said
    assert sorted(fleet.follow().values()) == ["", "", "", first]
    waiting, said = deploy_now(fleet, 2)
    assert "waits for the end" in said
    fleet.machine().empty_queue("stable")
    assert fleet.machine().stand("stable").queued == waiting, "while a rollout runs, it waits"
    assert [fleet.look() for _ in range(3)] == ["open", "open", "done"]
    assert fleet.has(first) == 4
    pointer = fleet.machine().stand("stable").signed.channel
    assert pointer is not None
    assert pointer.release == first
    fleet.machine().empty_queue("stable")  # the gate, asked again, refused it
    assert fleet.machine().stand("stable").queued == ""
