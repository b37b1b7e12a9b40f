"""The rollouts that were, for the board: each signed record is read once for each of its versions."""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, SettingsError
from luigi_tasks.fleet.records import ENDED, PLANNED, CurrentRollout, RolloutRecord
from luigi_tasks.fleet.rollouts import FOLDER, RECORD_LIMIT_BYTES
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Mapping

    from securesystemslib.signer import Signer

    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.records import RolloutEvent
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.storage.store import ListedObject

_CURRENT = "current.json"
# Which receiver was told what, of an earlier version.
_TOLD = "told.json"


@dataclasses.dataclass(frozen=True)
class PastRollout:
    """A rollout, as far as the pages of releases tell of it.

    Attributes:
        id: Its id.
        channel: Its channel.
        release: Release that it rolls out.
        from_release: Steady release that it follows; empty: none.
        variants: Release by device class.
        state: Its state.
        is_over: Whether it ended.
        created_at: UTC, ISO 8601.
        created_by: Who started it.
        stages: Its stages.
        stage: Stage that is open, from 1; 0: none.
        events: What happened, oldest first.
    """

    id: str
    channel: str
    release: str
    from_release: str
    variants: Mapping[str, str]
    state: str
    is_over: bool
    created_at: str
    created_by: str
    stages: tuple[str, ...]
    stage: int
    events: tuple[RolloutEvent, ...]

    @classmethod
    def of(cls, record: RolloutRecord) -> PastRollout:
        """Describe a record."""
        return cls(
            id=record.id,
            channel=record.channel,
            release=record.release,
            from_release=record.from_release,
            variants=record.variants,
            state=record.state,
            is_over=record.state in ENDED,
            created_at=record.created_at,
            created_by=record.created_by,
            stages=record.plan.stages,
            stage=record.stages[-1].number if record.stages else 0,
            events=record.events,
        )

    def names(self, release: str) -> bool:
        """Whether it brings a release to devices."""
        return release == self.release or release in self.variants.values()


@dataclasses.dataclass(frozen=True)
class KnownRollouts:
    """The rollouts of all channels.

    Attributes:
        rollouts: Oldest first; without those that never started.
        current: Which rollout each channel is in, and what is queued.
        faults: What could not be trusted or read, and is not shown.
    """

    rollouts: tuple[PastRollout, ...] = ()
    current: Mapping[str, CurrentRollout] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()

    def of(self, release: str) -> tuple[PastRollout, ...]:
        """Return the rollouts that brought a release to devices, newest first."""
        return tuple(one for one in reversed(self.rollouts) if one.names(release))


class RolloutLog:
    """Reads the records of rollouts.

    Args:
        settings: Settings of all sections.
        pool: Reads many at a time.
    """

    def __init__(self, settings: PipelineSettings, pool: concurrent.futures.ThreadPoolExecutor) -> None:
        self._settings = settings
        self._pool = pool
        self._lock = threading.Lock()
        self._records: dict[tuple[str, str], PastRollout | CurrentRollout] = {}

    @functools.cached_property
    def repository(self) -> ReleaseRepository:
        """The signed repository."""
        from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - imports python-tuf

        return ReleaseRepository(open_store(self._settings.store), self._settings.trust)

    def nothing(self) -> KnownRollouts:
        """Return what there is before anything is signed."""
        return KnownRollouts()

    def read(self, state: RepositoryState) -> KnownRollouts:
        """Return the rollouts, as the store has them now.

        What cannot be read is a fault: releases are shown without rollouts, too.
        """
        try:
            listed = [one for one in state.store.list_folder(FOLDER) if one.key.endswith(".json")]
        except EdgeError as e:
            return KnownRollouts(faults=(str(e),))
        listed = [one for one in listed if not one.key.endswith(f"/{_TOLD}")]
        listed = [one for one in listed if one.key.count("/") == FOLDER.count("/") + 1]
        if not listed:
            return KnownRollouts()
        faults: list[str] = []
        try:
            documents = self._open(state)
        except EdgeError as e:
            return KnownRollouts(faults=(str(e),))
        found = dict(self._pool.map(lambda one: (one.key, self._load(documents, one, faults)), listed))
        with self._lock:
            kept = {(one.key, one.etag) for one in listed}
            self._records = {name: one for name, one in self._records.items() if name in kept}
        current = {
            one.channel: one for one in found.values() if isinstance(one, CurrentRollout) and one.channel
        }
        running = {one.rollout for one in current.values()}
        past = [one for one in found.values() if isinstance(one, PastRollout)]
        past = [one for one in past if one.state != PLANNED or one.id in running]
        past.sort(key=lambda one: (one.created_at, one.id))
        return KnownRollouts(tuple(past), current, tuple(dict.fromkeys(faults)))

    def _open(self, state: RepositoryState) -> SignedDocuments:
        from luigi_tasks.fleet.documents import FleetKeys, SignedDocuments  # noqa: PLC0415 - imports python-tuf
        from luigi_tasks.release.signing import rollout_keys  # noqa: PLC0415 - as above

        keys = dict(rollout_keys(state))
        return SignedDocuments(state.store, FleetKeys(lambda: keys, _no_signer))

    def _load(
        self, documents: SignedDocuments, listed: ListedObject, faults: list[str]
    ) -> PastRollout | CurrentRollout | None:
        name = (listed.key, listed.etag)
        with self._lock:
            known = self._records.get(name)
        if known is not None:
            return known
        try:
            found = self._decode(documents, listed.key)
        except EdgeError as e:
            faults.append(str(e))
            return None
        if found is not None:
            with self._lock:
                self._records[name] = found
        return found

    @staticmethod
    def _decode(documents: SignedDocuments, key: str) -> PastRollout | CurrentRollout | None:
        if key.endswith(f"/{_CURRENT}"):
            current = documents.load(CurrentRollout, key, limit_bytes=RECORD_LIMIT_BYTES)
            return None if current is None else current.document
        record = documents.load(RolloutRecord, key, limit_bytes=RECORD_LIMIT_BYTES)
        return None if record is None else PastRollout.of(record.document)


def _no_signer() -> Signer:
    raise SettingsError("nothing is signed here")
