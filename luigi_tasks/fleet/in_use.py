"""Releases that the fleet may still need when a publication drops old ones.

What channels and signed rollout documents name stays anyway. Here is the rest: what rollouts in their records
name before anything of them is signed, what is queued, and what any registered device serves or keeps as its
previous release. A fleet of which not all is known needs everything: unknown never means none.
"""

from __future__ import annotations

import functools
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, InputError, SettingsError
from luigi_tasks.fleet.documents import FleetKeys, SignedDocuments
from luigi_tasks.fleet.observed import observe
from luigi_tasks.fleet.reading import find_channels
from luigi_tasks.fleet.records import ENDED
from luigi_tasks.fleet.registry import INDEX_KEY, REGISTRY_FOLDER
from luigi_tasks.fleet.rollouts import Rollouts
from luigi_tasks.fleet.seen import SeenVersions
from luigi_tasks.logs import LUIGI_LOGGER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from securesystemslib.signer import Key, Signer

    from luigi_tasks.fleet.observed import Observed
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.settings.values import PipelineSettings

logger = logging.getLogger(LUIGI_LOGGER)

_NAMED = 3


class UnknownFleetError(InputError):
    """Not of all devices is known what they have."""


def find_in_use(settings: PipelineSettings, state: RepositoryState) -> frozenset[str] | None:
    """Return what `releases_in_use` does; None where that is unknown, with the reason in the log."""
    try:
        return releases_in_use(settings, state, time.time())
    except EdgeError as e:
        logger.warning("No old release is dropped: what the devices have is not known. %s", e)
        return None


def releases_in_use(settings: PipelineSettings, state: RepositoryState, now: float) -> frozenset[str]:
    """Return the releases that the fleet needs; none where nobody was ever enrolled.

    Args:
        settings: Settings of all sections.
        state: What is published.
        now: Seconds since 1970.
    Raises: UnknownFleetError if the newest snapshot is missing, old, or lacks a registered device; as
        `observe`, and as `Rollouts.find`.
    """
    seen = SeenVersions(settings.trust.memory_folder, state.store.url(""))
    if seen.newest(INDEX_KEY) is None and not state.store.list_folder(REGISTRY_FOLDER):
        return frozenset()
    documents = SignedDocuments(state.store, FleetKeys(functools.partial(_keys, state), _no_signer), seen)
    observed = observe(settings, documents, now)
    if not observed.enrolled:
        return frozenset(_named_by_rollouts(documents))
    if observed.stale:
        raise UnknownFleetError(observed.stale)
    return frozenset((*_named_by_rollouts(documents), *_reported(observed)))


def _reported(observed: Observed) -> Iterator[str]:
    """Yield what registered devices serve, keep, or are about to take."""
    rows = observed.snapshot.rows if observed.snapshot is not None else ()
    reports = {(row.device, row.channel): row.report for row in rows if row.report is not None}
    lacking = sorted(
        one.device
        for one in observed.enrolled.values()
        if any((one.device, channel) not in reports for channel in one.channels)
    )
    if lacking:
        some = ", ".join(lacking[:_NAMED])
        msg = (
            f"{len(lacking)} registered devices never reported on a channel of theirs (such as {some}): "
            "start them, or take them out of the fleet with `edge-fleet retire`"
        )
        raise UnknownFleetError(msg)
    for (device, _), report in reports.items():
        if device in observed.enrolled:
            yield from (report.release, report.previous, report.offered)


def _named_by_rollouts(documents: SignedDocuments) -> Iterator[str]:
    """Yield what rollouts that run, and the queues, name."""
    rollouts = Rollouts(documents)
    for channel in find_channels(documents.store):
        current = rollouts.current(channel)
        if current is None:
            continue
        yield current.document.queued
        if not current.document.rollout:
            continue
        record = rollouts.load(channel, current.document.rollout).document
        if record.state not in ENDED:
            yield from (record.release, record.from_release, *record.variants.values())


def _keys(state: RepositoryState) -> dict[str, Key]:
    from luigi_tasks.release.signing import rollout_keys  # noqa: PLC0415 - imports python-tuf

    return dict(rollout_keys(state))


def _no_signer() -> Signer:
    raise SettingsError("nothing is signed here")
