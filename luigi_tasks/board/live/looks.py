"""Looks at the bucket, cheap enough for one a second: versions of what the pages show.

A version is made of names and ETags, so that a board that was started again gives the same ones. What a look
costs, in requests: one for each thousand objects listed; a listing of n thousand is asked n times less often.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from typing import TYPE_CHECKING

from edge_client.contract.names import INBOX_FOLDER
from luigi_tasks.board.live.streams import INBOX, RELEASES, ROLLOUTS, SNAPSHOT
from luigi_tasks.fleet import rollouts, snapshots
from luigi_tasks.fleet.registry import INDEX_KEY
from luigi_tasks.release.published import TIMESTAMP_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from luigi_tasks.storage.store import ListedObject, Store

_PAGE_OBJECTS = 1000
# The registry's index is read whole, 100 kB at 100,000 devices: so many bytes at a look.
_REGISTRY_BYTES = 8192
_INDEX_LIMIT_BYTES = 16 << 20
_STAMP_LIMIT_BYTES = 1 << 20
# Beside the rollouts: which receiver was told what.
_TOLD = "/told.json"


@dataclasses.dataclass
class Look:
    """One thing that is looked at.

    Attributes:
        topic: Topic of the pages that show it.
        name: What it is.
        read: Returns its version, and the number of looks until it is due again; raises EdgeError.
        due: Looks until it is due.
        version: As it was read last; empty: not yet.
    """

    topic: str
    name: str
    read: Callable[[], tuple[str, int]]
    due: int = 0
    version: str = ""

    def look(self) -> None:
        """Read the version, if it is due."""
        self.due -= 1
        if self.due <= 0 or not self.version:
            self.version, self.due = self.read()


def looks_at(store: Store) -> list[Look]:
    """Return all that is looked at in a bucket."""
    seen = SnapshotsLook(store)
    return [
        Look(SNAPSHOT, "snapshots", seen.read),
        Look(SNAPSHOT, "registry", lambda: _registry(store)),
        Look(ROLLOUTS, "rollouts", lambda: _rollouts(store)),
        Look(RELEASES, "repository", lambda: _repository(store)),
        Look(INBOX, "inbox", lambda: _inbox(store)),
    ]


class SnapshotsLook:
    """The newest seal of each collector: all are listed once, and then those of the last hour."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._newest: dict[str, str] = {}
        self._after = ""

    def read(self) -> tuple[str, int]:
        """Return the version, and the looks until the next."""
        listed = self._store.list_unread(snapshots.FOLDER, self._after)
        # What was removed meanwhile is no newest any more; what is older than those listed may be.
        newest = {collector: key for collector, key in self._newest.items() if key <= self._after}
        for one in listed:
            found = snapshots.parse_key(one.key)
            if found is not None and one.key == snapshots.seal_key(snapshots.rows_key(one.key)):
                collector = found[1]
                newest[collector] = max(newest.get(collector, ""), one.key)
        self._newest = newest
        taken = max(((snapshots.parse_key(key) or (0.0, ""))[0] for key in newest.values()), default=0.0)
        # A name of the future hides nothing that comes before it: of a wrong clock, or of who writes there.
        self._after = snapshots.first_key(min(taken, time.time()) - snapshots.HOUR_S) if taken else ""
        return digest_of(sorted(self._newest.values())), _looks_for(listed)


def _registry(store: Store) -> tuple[str, int]:
    found = store.get(INDEX_KEY, limit_bytes=_INDEX_LIMIT_BYTES)
    return ("none", 1) if found is None else (found.etag, 1 + len(found.data) // _REGISTRY_BYTES)


def _rollouts(store: Store) -> tuple[str, int]:
    listed = [one for one in store.list_unread(rollouts.FOLDER) if not one.key.endswith(_TOLD)]
    return _version(listed), _looks_for(listed)


def _repository(store: Store) -> tuple[str, int]:
    found = store.get(TIMESTAMP_KEY, limit_bytes=_STAMP_LIMIT_BYTES)
    return found.etag if found is not None else "none", 1


def _inbox(store: Store) -> tuple[str, int]:
    listed = store.list_unread(f"{INBOX_FOLDER}/")
    return _version(listed), _looks_for(listed)


def _version(listed: Iterable[ListedObject]) -> str:
    return digest_of(f"{one.key} {one.etag}" for one in listed)


def _looks_for(listed: list[ListedObject] | tuple[ListedObject, ...]) -> int:
    return max(1, math.ceil(len(listed) / _PAGE_OBJECTS))


def digest_of(parts: Iterable[str]) -> str:
    """Return 20 hex digits over texts in their order."""
    digest = hashlib.sha256()
    for one in parts:
        digest.update(one.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()[:20]
