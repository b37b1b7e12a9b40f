"""What a look at a rollout stands on: the registry, and the newest snapshot, if that is young enough."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, TrustError
from luigi_tasks.fleet.device_state import CLOCKS_APART_S
from luigi_tasks.fleet.registry import load_registry
from luigi_tasks.fleet.snapshots import Snapshot, read_newest_snapshot, read_snapshots
from luigi_tasks.fleet.stages import in_words
from luigi_tasks.logs import LUIGI_LOGGER

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.records import EnrolledDevice
    from luigi_tasks.settings.values import PipelineSettings

logger = logging.getLogger(LUIGI_LOGGER)

# A collector that is restarted or slow misses a snapshot or two.
SNAPSHOTS_MISSED = 3
SHORTEST_S = 900.0


@dataclasses.dataclass(frozen=True)
class Observed:
    """What is known of the fleet.

    Attributes:
        enrolled: Devices in the registry, by id.
        snapshot: The newest snapshot; None: there is none.
        stale: Why nothing may be judged by it, with the way out; empty: it may.
        collectors: Public keys of the collectors, PEM, by name.
    """

    enrolled: Mapping[str, EnrolledDevice]
    snapshot: Snapshot | None
    stale: str = ""
    collectors: Mapping[str, str] = dataclasses.field(default_factory=dict)


def observe(settings: PipelineSettings, documents: SignedDocuments, now: float) -> Observed:
    """Return what is known of the fleet at a time.

    Raises: NoRegistryError without a registry; TrustError; InputError; TransportError.
    """
    registry = load_registry(documents)
    snapshot = read_newest_snapshot(documents.store, settings.broker.fleet, registry.collectors)
    stale = _find_stale(snapshot, settings.fleet.snapshot_s, now)
    if not registry.collectors:
        stale = (
            "the registry names no collector, so nothing is known of the devices: `edge-fleet collector-key`"
        )
    return Observed(registry.devices, snapshot, stale, registry.collectors)


def read_baseline(
    settings: PipelineSettings, documents: SignedDocuments, keys: Sequence[str], seen: Observed
) -> Snapshot | None:
    """Return the snapshot from before the first stage; None where there is none that counts.

    Its collector may have left the registry since. Soft checks then have less to stand on, and say so.
    Raises: TransportError; SettingsError.
    """
    if not keys:
        return None
    try:
        return read_snapshots(documents.store, keys, settings.broker.fleet, seen.collectors)
    except (InputError, TrustError) as e:
        logger.warning("The snapshot from before the rollout does not count: %s", e)
        return None


def _find_stale(snapshot: Snapshot | None, snapshot_s: float, now: float) -> str:
    way_out = "see whether `edge-fleet collect` runs and reaches broker and bucket"
    if snapshot is None:
        return f"no snapshot of the fleet in the bucket: {way_out}"
    age_s = now - snapshot.head.taken_at
    if age_s > max(SNAPSHOTS_MISSED * snapshot_s, SHORTEST_S):
        return f"the newest snapshot of the fleet is {in_words(age_s)} old: {way_out}"
    if age_s < -CLOCKS_APART_S:
        return (
            f"the newest snapshot is {in_words(-age_s)} ahead of this machine's clock: set both clocks by NTP"
        )
    return ""
