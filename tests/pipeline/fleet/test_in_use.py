"""What a publication drops: nothing that a registered device has, or may have."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

import pytest

from edge_client.contract.names import release_target
from luigi_tasks.fleet.in_use import find_in_use
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.rollout_fleet import RolloutFleet
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from edge_client.contract.release import ChannelDocument


@pytest.fixture
def fleet(tmp_path):
    fleet = RolloutFleet(tmp_path)
    trust = dataclasses.replace(fleet.settings.trust, keep_releases=2)
    fleet.settings = dataclasses.replace(fleet.settings, trust=trust)
    return fleet


def publisher(fleet: RolloutFleet) -> ReleaseRepository:
    settings = fleet.settings
    return ReleaseRepository(
        FolderStore(settings.store), settings.trust, in_use=lambda state: find_in_use(settings, state)
    )


def sign(fleet: RolloutFleet, number: int, channel: str = "") -> str:
    """Sign a release, and move a channel to it, if one is given."""
    document, files = tiny_release(number)

    def move(now: ChannelDocument | None) -> ChannelDocument:
        return point_channel(now, channel, document.release, share_percent=100.0, at="")

    signed = {release_target(document.release, name): data for name, data in files.items()}
    publisher(fleet).publish(signed, move if channel else None, channel)
    return document.release


def nights(fleet: RolloutFleet, *numbers: int) -> list[str]:
    """Publish a release each night, and move the channel to it; return what is signed after the last."""
    for number in numbers:
        sign(fleet, number, "stable")
    return publisher(fleet).load().releases()


def test_what_a_registered_device_serves_or_keeps_stays_and_the_rest_is_dropped(fleet):
    names = [tiny_release(number)[0].release for number in range(6)]
    nights(fleet, 1, 2)
    fleet.serving.update({"camera-0": names[0], "camera-1": names[1], "camera-2": names[2]})
    fleet.serving["camera-3"] = names[2]
    fleet.report(0)
    assert nights(fleet, 3, 4, 5) == [*names[:3], *names[4:]]
    fleet.serving.update(dict.fromkeys(fleet.serving, names[5]))
    fleet.report(1)
    publisher(fleet).publish({"releases/x/labels.txt": b""})
    assert publisher(fleet).load().releases() == names[4:]


def test_unknown_is_not_none(fleet, caplog):
    """No snapshot, an old one, one that lacks a device, a registry that is gone: nothing is dropped."""
    assert len(nights(fleet, 1, 2)) == 3
    assert "no snapshot of the fleet in the bucket" in caplog.text
    fleet.report(-7200)
    assert len(nights(fleet, 3)) == 4
    assert re.search(r"is 2(\.\d+)? h old", caplog.text)
    fleet.silent = {"camera-3"}
    fleet.report(7200)
    assert len(nights(fleet, 4)) == 5
    assert "1 registered devices never reported on a channel of theirs (such as camera-3)" in caplog.text
    for path in (fleet.folder / "bucket/fleet").rglob("index.json"):
        path.rename(path.with_suffix(".lost"))
    assert len(nights(fleet, 5)) == 6
    assert "the fleet had a registry" in caplog.text
    for path in (fleet.folder / "bucket/fleet").rglob("index.lost"):
        path.rename(path.with_suffix(".json"))
    fleet.silent = set()
    fleet.report(0)
    assert len(nights(fleet, 6)) == 3, "the first, which all have, and two"


def test_what_is_planned_or_waits_stays_though_nothing_signed_names_it(fleet):
    names = [tiny_release(number)[0].release for number in range(6)]
    fleet.report(0)
    nights(fleet, 1)
    fleet.serving.update(dict.fromkeys(fleet.serving, names[1]))
    fleet.report(1)
    nights(fleet, 2)
    planned = sign(fleet, 3)
    fleet.machine().start("stable", planned, fleet.plan(), "ann")
    assert fleet.machine().queue("stable", names[1], "Deploy")
    fleet.serving.update(dict.fromkeys(fleet.serving, names[2]))
    fleet.report(1)
    for number in (4, 5):
        sign(fleet, number, "canary")
    assert publisher(fleet).load().releases() == names[1:]
    fleet.machine().abort("stable", "ann")
    sign(fleet, 6, "canary")
    assert publisher(fleet).load().releases() == [names[1], names[2], names[5], tiny_release(6)[0].release]
