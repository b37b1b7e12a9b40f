"""Signatures are renewed before devices refuse them, by each machine as far as it has the keys."""

from __future__ import annotations

import pytest

from edge_client.contract.errors import SettingsError
from luigi_tasks.release.renewal import measure_freshness, refresh
from tests.fakes.folder_fleet import FolderFleet

DAY_S = 86400


@pytest.fixture
def fleet(tmp_path, keys):
    return FolderFleet(tmp_path, keys)


def versions(fleet: FolderFleet) -> dict[str, int]:
    return fleet.machine().load().published.versions


def without(fleet: FolderFleet, *roles: str) -> None:
    """From now on, machines lack the keys of these roles."""
    for role in roles:
        (fleet.keys / "pipeline" / f"{role}.pem").unlink()


def test_only_what_is_due_is_signed_again_and_devices_need_not_read_targets_anew(fleet):
    assert refresh(fleet.machine()) == "nothing is published yet"
    fleet.publish("r1")
    before = versions(fleet)
    assert refresh(fleet.machine()).startswith("nothing is due; left: timestamp 14 days, snapshot 90 days")
    assert versions(fleet) == before
    fleet.pass_time(8 * DAY_S)
    assert refresh(fleet.machine()).startswith("signed timestamp, snapshot; left: timestamp 14 days")
    after = versions(fleet)
    assert (after["targets"], after["rollouts"]) == (before["targets"], before["rollouts"])
    fleet.pass_time(200 * DAY_S)
    assert fleet.machine().needs_renewal()
    refresh(fleet.machine())
    assert versions(fleet)["targets"] > before["targets"]
    assert fleet.machine().load().channel("stable").release == "r1"


def test_a_machine_that_only_moves_channels_keeps_them_alive_and_tells_what_ends(fleet, caplog):
    fleet.publish("r1")
    without(fleet, "targets", "work")
    fleet.pass_time(190 * DAY_S)
    before = versions(fleet)
    assert refresh(fleet.machine()).startswith("signed timestamp, snapshot, rollouts; left: timestamp")
    assert "targets 175 days. The key is not used on this machine" in caplog.text
    assert versions(fleet)["targets"] == before["targets"]
    assert not fleet.machine().needs_renewal(), "what is due elsewhere is not signed around for ever"
    fleet.pass_time(100 * DAY_S)
    with pytest.raises(SettingsError, match=r"targets 75 days.*RefreshMetadata.*where \[trust\] keys has it"):
        refresh(fleet.machine())
    left = measure_freshness(fleet.machine().load().published, fleet.machine().settings, fleet.now)
    assert (left[0].role, round(left[0].days_left)) == ("timestamp", 14), "what could be signed was"


def test_a_machine_without_the_key_of_the_timestamp_says_so_before_devices_are_locked_out(fleet):
    fleet.publish("r1")
    without(fleet, "timestamp")
    fleet.pass_time(11 * DAY_S)
    before = versions(fleet)
    with pytest.raises(SettingsError, match=r"timestamp 3\.0 days"):
        refresh(fleet.machine())
    assert versions(fleet) == before
