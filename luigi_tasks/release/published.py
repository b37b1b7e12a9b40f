"""Published state of the repository: verified metadata, and the releases and channels in it."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from typing import TYPE_CHECKING, Any

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import TransportError, TrustError
from edge_client.contract.names import (
    METADATA_FOLDER,
    RELEASE_FILE,
    TARGETS_FOLDER,
    channel_target,
    release_target,
    rollout_target,
)
from edge_client.contract.release import (
    CHANNEL_LIMIT_BYTES,
    RELEASE_LIMIT_BYTES,
    ChannelDocument,
    ReleaseDocument,
)
from edge_client.contract.rollout import ROLLOUT_LIMIT_BYTES, RolloutDocument
from luigi_tasks.release.memory import ROLES, Remembered
from luigi_tasks.release.rollouts_key import delegated_key, is_pointer, newest_key, pointers_of
from luigi_tasks.release.signing import disowning_version
from luigi_tasks.storage.store import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

    from luigi_tasks.release.rollouts_key import RolloutsKey
    from luigi_tasks.storage.store import Store, StoredObject


logger = logging.getLogger(__name__)

METADATA_LIMIT_BYTES = 32 << 20
TIMESTAMP_KEY = f"{METADATA_FOLDER}/timestamp.json"
# Files that earlier versions published; they show pictures and file names of the hold-out.
NOT_FOR_DEVICES = ("report.html", "evaluation.json")
# Field of a signed release document: when it was signed first.
ADDED = "added"


@dataclasses.dataclass(frozen=True)
class Published:
    """Published metadata, verified; all None where nothing is published.

    Attributes:
        timestamp: Together with snapshot and targets, one consistent state.
        snapshot: See `timestamp`.
        targets: See `timestamp`.
        rollouts: Metadata of the delegated role; None where the targets name no key for it.
        stamp: The timestamp object in the bucket.
        root_version: Version of the root whose keys signed all of it.
        restarts_history: There is metadata, but none of it is trusted.
        is_recovered: It is not, or not only, what the bucket shows: the bucket is older than this machine's
            memory, or lost what this machine published. The next publication writes it.
        floors: Versions of the roles that the next ones must be above, besides those of the metadata.
    """

    timestamp: Metadata[Timestamp] | None = None
    snapshot: Metadata[Snapshot] | None = None
    targets: Metadata[Targets] | None = None
    rollouts: Metadata[Targets] | None = None
    stamp: StoredObject | None = None
    root_version: int = 0
    restarts_history: bool = False
    is_recovered: bool = False
    floors: Mapping[str, int] = dataclasses.field(default_factory=dict)

    def version(self, role: str) -> int:
        """Return the version of a role's metadata; 0: there is none."""
        metadata: Metadata[Any] | None = getattr(self, role)
        return 0 if metadata is None else int(metadata.signed.version)

    @property
    def versions(self) -> dict[str, int]:
        """Version of each role's metadata."""
        return {role: self.version(role) for role in ROLES}

    @property
    def files(self) -> dict[str, TargetFile]:
        """Signed files by path; as clients see it, what the targets sign themselves goes first."""
        delegated = {} if self.rollouts is None else pointers_of(self.rollouts.signed)
        return {**delegated, **({} if self.targets is None else self.targets.signed.targets)}

    @property
    def rollouts_key(self) -> RolloutsKey | None:
        """The key that the targets name for the delegated role."""
        return delegated_key(None if self.targets is None else self.targets.signed)


class RepositoryState:
    """Verified state of the repository at one moment."""

    def __init__(
        self,
        store: Store,
        roots: Sequence[Metadata[Root]],
        published: Published,
        known: Remembered | None = None,
        contents: Mapping[str, bytes] | None = None,
        local_key: RolloutsKey | None = None,
    ) -> None:
        """Start from verified metadata.

        Args:
            store: The store.
            roots: The chain of roots, oldest first.
            published: The metadata.
            known: This machine's memory when they were read.
            contents: Signed files, by target path, that need not be read from the store.
            local_key: The rollouts key that is next to `[trust] root`, if any.
        """
        self.roots = roots
        self.published = published
        self.known = known or Remembered()
        self.contents = dict(contents or {})
        self.store = store
        self.local_key = local_key
        self.files: Mapping[str, TargetFile] = published.files
        self._read = {
            object_key(path, hashlib.sha256(data).hexdigest()): data for path, data in self.contents.items()
        }

    @property
    def root(self) -> Metadata[Root]:
        """The newest root."""
        return self.roots[-1]

    def is_of(
        self,
        root: Metadata[Root],
        stamp: StoredObject | None,
        known: Remembered,
        local_key: RolloutsKey | None,
    ) -> bool:
        """Whether this state belongs to the root, the timestamp, the memory and the key."""
        same = self.published.stamp == stamp and self.known.versions == known.versions
        return same and self.root.signed.version == root.signed.version and self.local_key == local_key

    @property
    def rollouts_key(self) -> RolloutsKey | None:
        """The rollouts key that the next targets name; None: there is none, and targets sign all."""
        return newest_key(self.published.rollouts_key, self.local_key, disowning_version(self.roots))

    @property
    def awaits_key(self) -> bool:
        """Whether the targets are to name a newer rollouts key."""
        return self.rollouts_key != self.published.rollouts_key

    def channel(self, name: str) -> ChannelDocument | None:
        """Return a channel's pointer; None if there is no such channel."""
        path = channel_target(name)
        if path not in self.files:
            return None
        return decode_document(ChannelDocument, self.read(path), source=path, limit_bytes=CHANNEL_LIMIT_BYTES)

    def rollout(self, name: str) -> RolloutDocument | None:
        """Return a channel's rollout document; None if there never was one."""
        path = rollout_target(name)
        if path not in self.files:
            return None
        return decode_document(RolloutDocument, self.read(path), source=path, limit_bytes=ROLLOUT_LIMIT_BYTES)

    def withdrawn(self, channel: str) -> tuple[str, ...]:
        """Return the releases withdrawn from a channel; if its pointer is gone, those that are remembered."""
        pointer = self.channel(channel)
        return self.known.withdrawn_from(channel) if pointer is None else pointer.withdrawn

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

        Where a channel or a rollout points, and that is gone from the bucket or altered there, is read from
        the memory.
        Raises: TransportError if it is missing; TrustError if the bucket has other content under its name.
        """
        signed = self.files[path]
        key = object_key(path, signed.hashes["sha256"])
        if key in self._read:
            return self._read[key]
        data, fault = self._read_object(key, signed)
        if fault is not None:
            data = self.known.channels.get(path, "").encode()
            if _fault_of(signed, data):
                raise fault
            logger.error("%s. It is written again from this machine's memory by the next publication", fault)
            self.contents[path] = data
            self.published = dataclasses.replace(self.published, is_recovered=True)
        self._read[key] = data
        return data

    def _read_object(self, key: str, signed: TargetFile) -> tuple[bytes, TransportError | TrustError | None]:
        """Return an object's content, and what is wrong with it."""
        url = self.store.url(key)
        try:
            found = self.store.get(key, limit_bytes=signed.length)
        except TooLargeError as e:
            return b"", TrustError(
                f"{url}: not the signed content ({e}); the object was changed in the bucket"
            )
        if found is None and not self.published.is_recovered:
            return b"", TransportError(
                f"{url}: signed, and missing; was it deleted from the store? Restore it"
            )
        if found is None:
            msg = (
                f"{url}: missing. The bucket is older than what this machine published: restore this object, "
                "or run `edge-keys publish --force`, which points channels to what is there"
            )
            return b"", TrustError(msg)
        if reason := _fault_of(signed, found.data):
            msg = f"{url}: not the signed content ({reason}); the object was changed in the bucket"
            return b"", TrustError(msg)
        return found.data, None

    def awaits_signing(self) -> bool:
        """Whether a new root or key waits to be used, or the bucket is older than it was."""
        published = self.published
        if published.is_recovered:
            return True
        if published.stamp is None:
            return False
        version = self.root.signed.version
        return published.root_version < version or not self.store.exists(root_key(version)) or self.awaits_key


def _fault_of(signed: TargetFile, data: bytes) -> str:
    """Return in words why `data` is not the signed content; empty: it is."""
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415

    try:
        signed.verify_length_and_hashes(data)
    except RepositoryError as e:
        return str(e)
    return ""


def split_files(files: Mapping[str, TargetFile]) -> tuple[dict[str, TargetFile], dict[str, TargetFile]]:
    """Return the files that targets sign, and those of the delegated role."""
    own = {path: file for path, file in files.items() if not is_pointer(path)}
    return own, {path: file for path, file in files.items() if is_pointer(path)}


def releases_in_order(targets: Mapping[str, TargetFile]) -> list[str]:
    """Return the releases among signed files, oldest first."""
    added = {
        path.split("/")[1]: str((file.custom or {}).get(ADDED, ""))
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
