"""Verification of a verdict: it is made again from the snapshots that it names, and has to be the same.

Whoever trusts neither the machine that judged nor the bucket needs the public keys only. Snapshots that a
decision stands on are kept; those of looks that decided nothing are thinned out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.times import parse_time
from luigi_tasks.fleet.registry import load_registry
from luigi_tasks.fleet.snapshots import read_snapshots

if TYPE_CHECKING:
    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.records import EnrolledDevice, RolloutRecord, VerdictRecord
    from luigi_tasks.fleet.registry import Registry


def verify_verdict(
    documents: SignedDocuments, fleet: str, record: RolloutRecord, verdict: VerdictRecord
) -> str:
    """Return in a sentence that a verdict is what its snapshots say.

    Args:
        documents: The bucket.
        fleet: Name of the fleet.
        record: The rollout.
        verdict: The verdict.
    Raises: InputError if it is not, or if what it stands on is gone; TrustError; TransportError.
    """
    from luigi_tasks.fleet.judge import rebuild  # noqa: PLC0415 - NumPy

    what = f"verdict {verdict.look} on stage {verdict.stage}"
    registry = load_registry(documents)
    if not verdict.snapshots:
        msg = f"{what} names no snapshot: nothing to make it from again"
        raise InputError(msg)
    old = [key for key in record.baseline if key in verdict.snapshots]
    new = [key for key in verdict.snapshots if key not in old]
    snapshot = read_snapshots(documents.store, new, fleet, registry.collectors)
    baseline = read_snapshots(documents.store, old, fleet, registry.collectors) if old else None
    sources = {**(baseline.sources if baseline is not None else {}), **snapshot.sources}
    if sources != verdict.snapshots:
        msg = (
            f"{what}: a snapshot that it names was replaced by another one of the same collector; find out "
            "who can write the bucket, and restore the object's version"
        )
        raise InputError(msg)
    rows = baseline.rows if baseline is not None else ()
    enrolled = devices_at(registry, verdict.at)
    data = rebuild(verdict, record, enrolled, snapshot.rows, snapshot.head, baseline=rows)
    return (
        f"made again from {len(verdict.snapshots)} snapshots, {len(snapshot.rows)} rows and "
        f"{len(enrolled)} registered devices: the same {len(data)} bytes"
    )


def devices_at(registry: Registry, at: float) -> dict[str, EnrolledDevice]:
    """Return the devices that were registered at a time, seconds since 1970.

    A device that left since is there without its key, which the registry forgets.
    """
    found = {
        name: device
        for name, device in registry.devices.items()
        if parse_time(device.enrolled_at).timestamp() <= at
    }
    for name, device in registry.retired.items():
        if parse_time(device.enrolled_at).timestamp() <= at < parse_time(device.retired_at).timestamp():
            found[name] = msgspec.structs.replace(device, retired_at="")
    return found
