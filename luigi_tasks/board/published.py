"""The signed repository for the pages: read and verified, and asked again after a moment."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings


class PublishedReleases:
    """What is signed and published; may be used from any thread, which it blocks."""

    def __init__(self, settings: PipelineSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._repository: ReleaseRepository | None = None
        self._state: RepositoryState | None = None
        self._read_at = 0.0

    def state(self) -> RepositoryState:
        """Return what is published, at most `[board] look_s` old.

        Raises: TrustError if the bucket's metadata is not signed by our keys; TransportError; SettingsError
            if there is no bucket or no root.
        """
        with self._lock:
            if self._state is not None and time.monotonic() - self._read_at < self._settings.board.look_s:
                return self._state
            if self._repository is None:
                from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - python-tuf

                store = open_store(self._settings.store)
                self._repository = ReleaseRepository(store, self._settings.trust)
            self._state = self._repository.load()
            self._read_at = time.monotonic()
            return self._state
