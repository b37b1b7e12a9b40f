"""Reading of all that a view of the fleet is made of. What cannot be trusted is named, and the rest shown."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.errors import InputError, TrustError
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.fleet.registry import NoRegistryError, Registry, load_index, load_registry
from luigi_tasks.fleet.rollouts import FOLDER, Rollouts
from luigi_tasks.fleet.snapshots import Snapshot, merge_heads, read_newest_heads, read_newest_snapshot
from luigi_tasks.fleet.view import FleetView
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_client.contract.documents import DocumentT
    from luigi_tasks.fleet.documents import Signed, SignedDocuments
    from luigi_tasks.fleet.records import RolloutRecord
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.storage.store import Store

T = TypeVar("T")


def read_view(settings: PipelineSettings) -> FleetView:
    """Return the fleet as it is now; documents that cannot be trusted or read are left out, and named.

    Raises: TrustError if the signed repository cannot be trusted; TransportError, SettingsError.
    """
    return _read(settings, _open_repository(settings), load_registry, read_newest_snapshot)


def read_view_without_rows(settings: PipelineSettings) -> FleetView:
    """Return the fleet as `read_view` does, and of its snapshot the head alone; raises as that."""
    return _read(settings, _open_repository(settings), load_registry, _read_heads)


def read_outline(settings: PipelineSettings, repository: ReleaseRepository) -> FleetView:
    """Return the fleet without its devices: its registry and its snapshot are empty but for their heads.

    Args:
        settings: All settings.
        repository: The signed repository, which reads again only what changed since it was asked before.
    Raises: As `read_view`.
    """
    return _read(settings, repository, _load_nobody, _read_heads)


def _open_repository(settings: PipelineSettings) -> ReleaseRepository:
    return ReleaseRepository(open_store(settings.store), settings.trust)


def _load_nobody(documents: SignedDocuments) -> Registry:
    index = load_index(documents)
    return Registry(version=index.version, devices={}, collectors=index.collectors)


def _read_heads(store: Store, fleet: str, trusted: Mapping[str, str]) -> Snapshot | None:
    """Return the newest snapshot without rows; its sources are named, and not hashed."""
    heads = read_newest_heads(store, fleet, trusted)
    return Snapshot(merge_heads(list(heads.values())), (), dict.fromkeys(heads, "")) if heads else None


def _read(
    settings: PipelineSettings,
    repository: ReleaseRepository,
    load: Callable[[SignedDocuments], Registry],
    read_snapshot: Callable[[Store, str, Mapping[str, str]], Snapshot | None],
) -> FleetView:
    documents = documents_of(repository)
    state = repository.load()
    faults: list[str] = []
    notes: list[str] = []
    registry = _try(faults, lambda: _find_registry(documents, load, notes))
    snapshot = None
    if registry is not None and registry.collectors:
        trusted = registry.collectors
        snapshot = _try(faults, lambda: read_snapshot(documents.store, settings.broker.fleet, trusted))
    rollouts = Rollouts(documents)
    channels = sorted({*find_channels(documents.store), *_signed_channels(state)})
    records = _each(faults, channels, lambda one: _find_rollout(rollouts, one))
    return FleetView(
        fleet=settings.broker.fleet,
        now=time.time(),
        registry=registry,
        snapshot=snapshot,
        pointers=_each(faults, channels, state.channel),
        documents=_each(faults, channels, state.rollout),
        current=_each(faults, channels, lambda one: _document(rollouts.current(one))),
        records=records,
        faults=tuple(dict.fromkeys(faults)),
        notes=tuple(notes),
        snapshot_s=settings.fleet.snapshot_s,
    )


def find_channels(store: Store) -> list[str]:
    """Return the channels that rollouts were started on."""
    keys = (one.key.removeprefix(FOLDER) for one in store.list_unread(FOLDER))
    return sorted({key.partition("/")[0] for key in keys if "/" in key})


def _signed_channels(state: RepositoryState) -> set[str]:
    """Return the channels that the signed repository names."""
    paths = (path.partition("/") for path in state.files)
    return {name.removesuffix(".json") for folder, _, name in paths if folder in {"channels", "rollouts"}}


def _find_registry(
    documents: SignedDocuments, load: Callable[[SignedDocuments], Registry], notes: list[str]
) -> Registry | None:
    try:
        return load(documents)
    except NoRegistryError as e:
        notes.append(str(e))
        return None


def _find_rollout(rollouts: Rollouts, channel: str) -> RolloutRecord | None:
    """Return the rollout that runs on a channel, or ran last."""
    current = _document(rollouts.current(channel))
    name = "" if current is None else current.rollout or current.last
    return _document(rollouts.find(channel, name)) if name else None


def _document(signed: Signed[DocumentT] | None) -> DocumentT | None:
    return None if signed is None else signed.document


def _each(faults: list[str], channels: Sequence[str], read: Callable[[str], T | None]) -> dict[str, T]:
    """Return what is read of each channel, where there is any."""
    found = {}
    for channel in channels:
        one = _try(faults, functools.partial(read, channel))
        if one is not None:
            found[channel] = one
    return found


def _try(faults: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except (TrustError, InputError) as e:
        faults.append(str(e))
        return None
