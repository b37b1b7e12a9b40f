"""Whether a rollout may start: which of its devices can run the release, and what becomes of the others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.rollout import ROLLOUT_LIMIT_BYTES
from luigi_tasks.fleet.compatibility import find_incompatible
from luigi_tasks.fleet.registry import NoRegistryError, load_registry
from luigi_tasks.fleet.snapshots import read_newest_snapshot

if TYPE_CHECKING:
    from collections.abc import Mapping

    from luigi_tasks.fleet.compatibility import Compatibility
    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.records import EnrolledDevice, RolloutPlan
    from luigi_tasks.release.published import RepositoryState

# Devices that are left out are named in the signed document; so much of it is left to the rest.
_NAMED_BYTES = ROLLOUT_LIMIT_BYTES // 2


@dataclasses.dataclass(frozen=True)
class Admission:
    """A rollout that may start.

    Attributes:
        plan: Its plan, without the devices that cannot run the release.
        skipped: Those devices, with the reason.
        words: How many devices can run it, in a sentence.
        enrolled: The registered devices.
    """

    plan: RolloutPlan
    skipped: dict[str, str]
    words: str
    enrolled: tuple[EnrolledDevice, ...] = ()


def admit(
    documents: SignedDocuments,
    state: RepositoryState,
    fleet: str,
    channel: str,
    release: str,
    variants: Mapping[str, str],
    plan: RolloutPlan,
    *,
    skip_incompatible: bool,
) -> Admission:
    """Return the rollout as it may start, by what the devices reported.

    Devices of which it is unknown go along: a device refuses by itself what it cannot run.

    Args:
        documents: The fleet's documents.
        state: The signed repository.
        fleet: Name of the fleet.
        channel: The channel.
        release: The release, which is signed.
        variants: Release by device class; they are signed too.
        plan: The plan.
        skip_incompatible: Whether devices that cannot run it are left out; else they stop the rollout.
    Raises: InputError with the list of devices that cannot run it; TrustError; TransportError.
    """
    try:
        registry = load_registry(documents)
    except NoRegistryError:
        return Admission(plan, {}, "whether devices can run it is unknown: there is no registry")
    enrolled = tuple(registry.devices.values())
    snapshot = read_newest_snapshot(documents.store, fleet, registry.collectors)
    wanted = {name: state.release(one) for name, one in variants.items()}
    document = state.release(release)
    if document is None:
        msg = f"release {release}: not signed; give one that is"
        raise InputError(msg)
    found = find_incompatible(
        document,
        enrolled,
        snapshot.rows if snapshot is not None else (),
        channel=channel,
        variants={name: one for name, one in wanted.items() if one is not None},
        only=plan.only,
        excluded=plan.excluded,
    )
    if not found.incompatible:
        return Admission(plan, {}, found.in_words(), enrolled)
    named = tuple(f"device={one}" for one in sorted(found.incompatible))
    too_many = sum(len(one) + 3 for one in named) > _NAMED_BYTES
    if too_many or not skip_incompatible:
        raise InputError(_refuse(release, found, too_many=too_many))
    plan = msgspec.structs.replace(plan, excluded=(*plan.excluded, *named))
    words = f"{found.in_words()}; those that cannot are left out"
    return Admission(plan, found.incompatible, words, enrolled)


def _refuse(release: str, found: Compatibility, *, too_many: bool) -> str:
    ways = "a release for their class (--variants)"
    ways += (
        ", or without their class, site or tag (--not)"
        if too_many
        else (", without their class, site or tag (--not), or without them (--skip-incompatible)")
    )
    return (
        f"release {release} is signed, and not rolled out: {found.in_words()}. Start it with "
        f"`luigi --module luigi_tasks Rollout --release {release}` and {ways}"
    )
