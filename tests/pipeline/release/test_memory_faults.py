"""Thieves and backups in any order, between the runs of two machines."""

from __future__ import annotations

import contextlib
import dataclasses
import random

from edge_client.contract.errors import EdgeError, InputError, TrustError
from edge_client.contract.rollout import RolloutDocument
from tests.fakes.folder_fleet import FolderFleet
from tests.fault_table import Kind

EVENTS = 8
CHANNELS = ("stable", "canary")
ATTACKS = ("put back", "put back one", "remove")


def test_a_device_follows_whatever_was_put_back_or_removed(tmp_path, keys, faults):
    for seed in faults.sample(range(500), by_default=3):
        with faults.injected(Kind.BUCKETS, "two machines publish", "put back, removed"):
            (tmp_path / str(seed)).mkdir()
            run(FolderFleet(tmp_path / str(seed), keys), random.Random(seed))


def run(fleet: FolderFleet, chance: random.Random) -> None:
    """Publish and attack by chance; then each machine runs, and the device has what was published last."""
    published, thresholds = {}, dict.fromkeys(CHANNELS, 0)
    for channel in CHANNELS:
        published[channel] = f"{channel}-0"
        fleet.publish(published[channel], channel, chance.choice("ab"))
    for machine in "ab":
        run_with_nothing_new(fleet, machine)
    backups = [fleet.metadata()]
    for number in range(1, EVENTS):
        event = chance.choice(("publish", "publish", "roll", "roll", *ATTACKS, "look"))
        if event == "publish":
            channel, machine = chance.choice(CHANNELS), chance.choice("ab")
            published[channel] = f"{channel}-{number}"
            run_with_nothing_new(fleet, machine)
            fleet.publish(published[channel], channel, machine)
            backups.append(fleet.metadata())
        elif event == "roll":
            channel, machine = chance.choice(CHANNELS), chance.choice("ab")
            run_with_nothing_new(fleet, machine)
            with contextlib.suppress(InputError):  # this machine was away when the release was signed
                roll(fleet, machine, channel, published[channel], number)
                thresholds[channel] = number
                backups.append(fleet.metadata())
        elif event == "put back":
            fleet.put_back(chance.choice(backups))
        elif event == "put back one":
            older = chance.choice(backups)
            name = chance.choice(sorted(older))
            fleet.put_back({**fleet.metadata(), name: older[name]})
        elif event == "remove":
            fleet.put_back(dict(list(fleet.metadata().items())[: chance.randrange(3)]))
        else:
            with contextlib.suppress(EdgeError):
                fleet.device(chance.choice(CHANNELS))
    for machine in "aba":
        run_with_nothing_new(fleet, machine)
    assert {channel: fleet.device(channel) for channel in CHANNELS} == published
    rollouts = {channel: fleet.machine("c").load().rollout(channel) for channel in CHANNELS}
    found = {channel: 0 if one is None else one.threshold for channel, one in rollouts.items()}
    assert found == thresholds


def roll(fleet: FolderFleet, machine: str, channel: str, release: str, threshold: int) -> None:
    """Move a channel's rollout."""
    rollout = RolloutDocument(
        channel=channel, id="roll", release=release, threshold=threshold, moved_at=fleet.at_now
    )
    fleet.machine(machine).point(channel, lambda now: dataclasses.replace(now, rollout=rollout))


def run_with_nothing_new(fleet: FolderFleet, name: str) -> None:
    """What a Deploy does, and a person after its error."""
    fleet.pass_time()
    machine = fleet.machine(name)
    try:
        if machine.needs_renewal():
            machine.renew()
    except TrustError:
        machine.force()
