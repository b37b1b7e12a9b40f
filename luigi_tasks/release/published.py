"""Published state of the repository: verified metadata, and the releases and channels in it."""

from __future__ import annotations

import dataclasses
import datetime
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import TrustError
from edge_client.contract.names import (
    METADATA_FOLDER,
    RELEASE_FILE,
    TARGETS_FOLDER,
    channel_target,
    release_target,
)
from edge_client.contract.release import (
    CHANNEL_LIMIT_BYTES,
    RELEASE_LIMIT_BYTES,
    ChannelDocument,
    ReleaseDocument,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store, StoredObject


TIMESTAMP_KEY = f"{METADATA_FOLDER}/timestamp.json"


@dataclasses.dataclass(frozen=True)
class Published:
    """Published metadata, verified; all None where nothing is published.

    Attributes:
        timestamp: Together with snapshot and targets, one consistent state.
        snapshot: See `timestamp`.
        targets: See `timestamp`.
        stamp: The timestamp object in the bucket.
        root_version: Version of the root whose keys signed all of it.
        restarts_history: There is metadata, but none of it is trusted.
    """

    timestamp: Metadata[Timestamp] | None = None
    snapshot: Metadata[Snapshot] | None = None
    targets: Metadata[Targets] | None = None
    stamp: StoredObject | None = None
    root_version: int = 0
    restarts_history: bool = False


class RepositoryState:
    """Verified state of the repository at one moment."""

    def __init__(self, store: Store, roots: Sequence[Metadata[Root]], published: Published) -> None:
        self.roots = roots
        self.published = published
        self._store = store
        self._contents: dict[str, bytes] = {}

    @property
    def root(self) -> Metadata[Root]:
        """The newest root."""
        return self.roots[-1]

    def is_of(self, root: Metadata[Root], stamp: StoredObject) -> bool:
        """Whether this state belongs to the root and the timestamp."""
        return self.published.stamp == stamp and self.root.signed.version == root.signed.version

    @property
    def files(self) -> Mapping[str, TargetFile]:
        """Signed target files by path."""
        return self.published.targets.signed.targets if self.published.targets is not None else {}

    def channel(self, name: str) -> ChannelDocument | None:
        """Return a channel's pointer; None if there is no such channel."""
        path = channel_target(name)
        if path not in self.files:
            return None
        return decode_document(ChannelDocument, self.read(path), source=path, limit_bytes=CHANNEL_LIMIT_BYTES)

    def release(self, release: str) -> ReleaseDocument | None:
        """Return the document of a release; None if it is not signed (any more)."""
        path = release_target(release, RELEASE_FILE)
        if path not in self.files:
            return None
        return decode_document(ReleaseDocument, self.read(path), source=path, limit_bytes=RELEASE_LIMIT_BYTES)

    def releases(self) -> list[str]:
        """Return the signed releases, oldest first."""
        return releases_in_order(self.files)

    def read(self, path: str) -> bytes:
        """Return a signed file's content.

        Raises: TrustError if the bucket has other content under its name.
        """
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415

        signed = self.files[path]
        key = object_key(path, signed.hashes["sha256"])
        if key in self._contents:
            return self._contents[key]
        data = self._store.read(key)
        try:
            signed.verify_length_and_hashes(data)
        except RepositoryError as e:
            msg = (
                f"{self._store.url(key)}: not the signed content ({e}); the object was changed in the bucket"
            )
            raise TrustError(msg) from e
        self._contents[key] = data
        return data

    def needs_renewal(self, days: TrustSettings, now: datetime.datetime) -> bool:
        """Whether a new root waits, or any signature has less than half of its lifetime left.

        Args:
            days: Lifetimes.
            now: Aware, UTC.
        """
        published = self.published
        if published.stamp is None:
            return False
        version = self.root.signed.version
        if published.root_version < version or not self._store.exists(root_key(version)):
            return True
        lifetimes = (
            (published.timestamp, days.timestamp_days),
            (published.snapshot, days.snapshot_days),
            (published.targets, days.targets_days),
        )
        return any(
            metadata is not None and metadata.signed.expires - now < datetime.timedelta(days=lifetime) / 2
            for metadata, lifetime in lifetimes
        )


def releases_in_order(targets: Mapping[str, TargetFile]) -> list[str]:
    """Return the releases among signed files, oldest first."""
    added = {
        path.split("/")[1]: str((file.custom or {}).get("added", ""))
        for path, file in targets.items()
        if path.startswith("releases/") and path.endswith(f"/{RELEASE_FILE}")
    }
    return sorted(added, key=lambda release: added[release])


def root_key(version: int) -> str:
    """Return the key of a version of the root."""
    return f"{METADATA_FOLDER}/{version}.root.json"


def object_key(target_path: str, sha256: str) -> str:
    """Return the key of a signed file: TUF's consistent snapshots put the hash before the file's name."""
    folder, _, name = target_path.rpartition("/")
    return f"{TARGETS_FOLDER}/{folder}/{sha256}.{name}"


def empty_state(store: Store) -> RepositoryState:
    """Return the state of a repository in which nothing was published yet."""
    return RepositoryState(store, (), Published())
