"""What Deploy does with a release that passed the gate: it moves the channel at once, or by stages.

With `[rollout] stages` the release is signed and its rollout started. While another rollout runs it waits:
depth one, the newest wins. When that one has ended, the next Deploy finds the release not taken up, and has
its gate decide again, against the champion of then: the gate's result lies under an address that the champion
is part of. So nothing that waits is ever started without a verdict against what is deployed, and nothing here
needs the gate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.fleet.plans import plan_of
from luigi_tasks.fleet.registry import load_registry
from luigi_tasks.release.signing import open_rollout_signer

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.fleet.actions import Fleet

WHO = "Deploy"


def check_stages(fleet: Fleet) -> None:
    """Check that a rollout can begin: there is a rollouts key on this machine, and a registry.

    Raises: SettingsError; NoRegistryError; InputError, TrustError, TransportError.
    """
    open_rollout_signer(fleet.repository.load(), fleet.settings.trust)
    load_registry(fleet.documents)


def deploy(fleet: Fleet, release: str, publish: Callable[[], None]) -> str:
    """Publish a release, and move the channel to it or start its rollout; return in words what was done.

    Args:
        fleet: The fleet.
        release: The release.
        publish: Signs it, and moves the channel where there are no stages.
    Raises: As `publish`, and `Fleet.start`: NoRegistryError, InputError, TrustError, TransportError.
    """
    channel, stages = fleet.settings.release.channel, fleet.settings.rollout.stages
    if _is_staged(fleet) and fleet.queue(channel, release, WHO):
        return f"release {release} waits for the end of the rollout on channel {channel}"
    if stages:
        load_registry(fleet.documents)  # before anything is signed
    publish()
    if not stages:
        # What the last rollout left for a part of the fleet, or waiting, ends with it.
        fleet.leave(channel, WHO, "the channel moves at once")
        return f"channel {channel} points to {release}"
    fleet.start(channel, release, plan_of(fleet.settings.rollout), WHO)
    return fleet.advance(channel).words


def is_taken_up(fleet: Fleet, release: str) -> bool:
    """Whether Deploy has nothing to do with a release that the channel does not point to."""
    return _is_staged(fleet) and fleet.is_taken_up(fleet.settings.release.channel, release)


def _is_staged(fleet: Fleet) -> bool:
    """Whether the channel moves by stages, or is in a rollout that a person started."""
    if fleet.settings.rollout.stages:
        return True
    standing = fleet.stand(fleet.settings.release.channel)  # also of one that is planned, and not signed yet
    return standing.running is not None or bool(standing.signed.rollout and standing.signed.rollout.id)
