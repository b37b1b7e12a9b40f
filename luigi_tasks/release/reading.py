"""Reading of published metadata: all of it must be signed by the keys of one trusted root."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import TrustError
from edge_client.contract.names import METADATA_FOLDER, ROLLOUTS_ROLE
from luigi_tasks.release.published import METADATA_LIMIT_BYTES, TIMESTAMP_KEY, Published
from luigi_tasks.release.rollouts_key import delegated_key
from luigi_tasks.release.root_chain import distrust
from luigi_tasks.release.signing import trusted_roots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tuf.api.metadata import Metadata, Root, Snapshot, Targets

    from luigi_tasks.release.root_chain import RootChain
    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store, StoredObject

logger = logging.getLogger(__name__)


class MetadataReader:
    """Reads the metadata below a store's prefix, and verifies it with the roots."""

    def __init__(self, store: Store, settings: TrustSettings, chain: RootChain) -> None:
        self.store = store
        self.settings = settings
        self.chain = chain

    def read(self, roots: Sequence[Metadata[Root]], stamp: StoredObject) -> Published:
        """Verify the published metadata with the newest trusted root whose keys signed it."""
        faults: list[TrustError] = []
        trusted = list(trusted_roots(roots))
        for root in trusted:
            try:
                return self._read_signed_by(root, stamp)
            except TrustError as e:
                faults.append(e)
        if any(self._signed_timestamp(root, stamp) for root in roots[: -len(trusted)]):
            logger.warning(
                "%s: signed by keys that root version %d disowns; restarting its history",
                self.store.url(TIMESTAMP_KEY),
                trusted[-1].signed.version,
            )
            return Published(stamp=stamp, restarts_history=True)
        self.chain.check(roots)
        raise faults[0]

    def _signed_timestamp(self, root: Metadata[Root], stamp: StoredObject) -> bool:
        from tuf.api.metadata import Timestamp  # noqa: PLC0415

        try:
            self._verified(root, Timestamp, stamp.data, TIMESTAMP_KEY, "timestamp")
        except TrustError:
            return False
        return True

    def _read_signed_by(self, root: Metadata[Root], stamp: StoredObject) -> Published:
        """Read the published metadata; all of it must be signed by the keys of one root."""
        from tuf.api.metadata import Snapshot, Targets, Timestamp  # noqa: PLC0415

        timestamp = self._verified(root, Timestamp, stamp.data, TIMESTAMP_KEY, "timestamp")
        snapshot_version = timestamp.signed.snapshot_meta.version
        snapshot = self._read(root, Snapshot, snapshot_version)
        targets = self._read(root, Targets, snapshot.signed.meta["targets.json"].version)
        rollouts = self._read_rollouts(snapshot, targets)
        return Published(timestamp, snapshot, targets, rollouts, stamp, root.signed.version)

    def _read_rollouts(
        self, snapshot: Metadata[Snapshot], targets: Metadata[Targets]
    ) -> Metadata[Targets] | None:
        """Read the metadata of the delegated role; None if the targets name no key for it."""
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Targets  # noqa: PLC0415

        if delegated_key(targets.signed) is None:
            return None
        named = snapshot.signed.meta.get(f"{ROLLOUTS_ROLE}.json")
        if named is None:
            reason = ValueError(f"names no {ROLLOUTS_ROLE}.json, though the targets delegate to it")
            key = f"{METADATA_FOLDER}/{snapshot.signed.version}.snapshot.json"
            raise self._distrust(key, reason)
        key = f"{METADATA_FOLDER}/{named.version}.{ROLLOUTS_ROLE}.json"
        data = self._fetch(key)
        try:
            named.verify_length_and_hashes(data)
        except RepositoryError as e:
            raise self._distrust(key, e) from e
        return self._verified(targets, Targets, data, key, ROLLOUTS_ROLE, named.version)

    def _read(self, root: Metadata[Root], kind: type, version: int) -> Metadata[Any]:
        role = kind.type  # type: ignore[attr-defined]
        key = f"{METADATA_FOLDER}/{version}.{role}.json"
        return self._verified(root, kind, self._fetch(key), key, role, version)

    def _fetch(self, key: str) -> bytes:
        found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
        if found is None:
            raise self._distrust(key, ValueError("missing, though newer metadata names it"))
        return found.data

    def _verified(
        self,
        judge: Metadata[Root] | Metadata[Targets],
        kind: type,
        data: bytes,
        key: str,
        role: str,
        version: int | None = None,
    ) -> Metadata[Any]:
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Metadata  # noqa: PLC0415

        try:
            metadata = Metadata[kind].from_bytes(data)  # type: ignore[valid-type]
            judge.verify_delegate(role, metadata)
        except RepositoryError as e:
            raise self._distrust(key, e) from e
        if version is not None and metadata.signed.version != version:
            raise self._distrust(key, ValueError(f"holds version {metadata.signed.version}"))
        return metadata

    def _distrust(self, key: str, reason: Exception) -> TrustError:
        return distrust(self.store, self.settings, key, reason)
