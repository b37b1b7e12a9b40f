"""Opening of the fleet's signed documents, with the settings of the pipeline."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from luigi_tasks.fleet.documents import FleetKeys, SignedDocuments
from luigi_tasks.fleet.seen import SeenVersions
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from securesystemslib.signer import Key, Signer

    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings

# A process that runs for months finds the keys of a rotation by then.
KEYS_KEEP_S = 60.0


def open_documents(settings: PipelineSettings) -> SignedDocuments:
    """Return the fleet's documents of `[store]`, signed with the rollouts key of `[trust]`.

    Nothing is read before it is asked for. Who only reads needs the root alone.
    """
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - imports python-tuf

    repository = ReleaseRepository(open_store(settings.store), settings.trust)
    return documents_of(repository)


def documents_of(repository: ReleaseRepository) -> SignedDocuments:
    """Return the fleet's documents of a signed repository's store."""
    keys = _Keys(repository)
    seen = SeenVersions(repository.settings.memory_folder, repository.store.url(""))
    return SignedDocuments(repository.store, FleetKeys(keys.trusted, keys.signer), seen)


class _Keys:
    """The rollouts key, as the repository names it."""

    def __init__(self, repository: ReleaseRepository) -> None:
        self._repository = repository
        self._found: Mapping[str, Key] = {}
        self._read_at = 0.0

    def trusted(self) -> Mapping[str, Key]:
        from luigi_tasks.release.signing import rollout_keys  # noqa: PLC0415 - imports python-tuf

        if not self._found or time.monotonic() - self._read_at > KEYS_KEEP_S:
            self._found = rollout_keys(self._repository.load())
            self._read_at = time.monotonic()
        return self._found

    def signer(self) -> Signer:
        from luigi_tasks.release.signing import open_rollout_signer  # noqa: PLC0415 - as above

        return open_rollout_signer(self._repository.load(), self._repository.settings)
