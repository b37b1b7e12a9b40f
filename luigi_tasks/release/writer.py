"""Signed metadata, written in the order that keeps the earlier state current until the last object.

Versions only grow, whatever the bucket shows: each is above that of the metadata that it replaces, and at
least the time in seconds since 1970. So the metadata of a bucket that went back in time, and of whose newer
versions nobody knows, is accepted by devices again after one publication. python-tuf and JSON take any
integer; the time fits into 31 bits until 2038, and nothing here depends on that.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.names import METADATA_FOLDER, SIGNED_AT_FIELD
from luigi_tasks.release.published import TIMESTAMP_KEY
from luigi_tasks.release.signing import open_signers
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store

SignedT = TypeVar("SignedT", "Targets", "Snapshot", "Timestamp")

# No object has it: a write on the condition of this version must fail.
FOREIGN_ETAG = '"00000000000000000000000000000000"'
VERSION_ATTEMPTS = 100


@dataclasses.dataclass(frozen=True)
class Written:
    """Metadata that was written.

    Attributes:
        metadata: Signed JSON by role.
        versions: Version by role.
    """

    metadata: dict[str, str]
    versions: dict[str, int]


class MetadataWriter:
    """Signs metadata and writes it into the store."""

    def __init__(self, store: Store, settings: TrustSettings, now: Callable[[], datetime.datetime]) -> None:
        self.store = store
        self.settings = settings
        self.now = now

    def write(self, state: RepositoryState, files: Mapping[str, TargetFile]) -> Written:
        """Sign `files` as all that is published, in place of what `state` has.

        Raises: StoreConflictError if another publisher wrote since `state` was read; SettingsError without
            keys, or if the store ignores conditions; TransportError (the earlier state stays current).
        """
        from tuf.api.metadata import MetaFile, Snapshot, Targets, Timestamp  # noqa: PLC0415

        settings, published = self.settings, state.published
        targets = _next(published.targets, Targets(), settings.targets_days, self.now())
        targets.signed.targets = dict(files)
        self._write_version(state, targets)
        snapshot = _next(published.snapshot, Snapshot(), settings.snapshot_days, self.now())
        snapshot.signed.meta["targets.json"] = MetaFile(targets.signed.version)
        self._write_version(state, snapshot)
        timestamp = _next(published.timestamp, Timestamp(), settings.timestamp_days, self.now())
        timestamp.signed.version = self._version_above(state, timestamp.signed)
        timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        timestamp.signed.unrecognized_fields[SIGNED_AT_FIELD] = self.now().isoformat(timespec="seconds")
        data = self.sign(state.root, timestamp)
        self.store.put_if_unchanged(
            TIMESTAMP_KEY, data, published.stamp.etag if published.stamp is not None else None
        )
        return Written(
            {
                "timestamp": data.decode(),
                "snapshot": compact(snapshot).decode(),
                "targets": compact(targets).decode(),
            },
            {
                "timestamp": timestamp.signed.version,
                "snapshot": snapshot.signed.version,
                "targets": targets.signed.version,
            },
        )

    def sign(
        self, root: Metadata[Root], metadata: Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets]
    ) -> bytes:
        """Return the metadata with all the signatures that its role needs."""
        metadata.signatures.clear()
        for signer in open_signers(root.signed, self.settings, metadata.signed.type):
            metadata.sign(signer, append=True)
        return compact(metadata)

    def _version_above(self, state: RepositoryState, signed: Targets | Snapshot | Timestamp) -> int:
        """Return the next version of a role; `signed` has the one before."""
        floor = max(signed.version, state.published.floors.get(signed.type, 0))
        return max(floor + 1, int(self.now().timestamp()))

    def _write_version(
        self, state: RepositoryState, metadata: Metadata[Targets] | Metadata[Snapshot]
    ) -> None:
        """Upload under the next free version; a crashed run may have left unreferenced ones."""
        metadata.signed.version = self._version_above(state, metadata.signed)
        for _ in range(VERSION_ATTEMPTS):
            key = f"{METADATA_FOLDER}/{metadata.signed.version}.{metadata.signed.type}.json"
            data = self.sign(state.root, metadata)
            try:
                self.store.put_if_unchanged(key, data, None)
            except StoreConflictError:
                metadata.signed.version += 1
                continue
            if state.known.checked_endpoint != self.store.endpoint:
                self._check_conditions(key, data)
            return
        msg = (
            f"{self.store.url(METADATA_FOLDER)}: {VERSION_ATTEMPTS} versions in a row that are not "
            "referenced; remove them"
        )
        raise TransportError(msg)

    def _check_conditions(self, key: str, data: bytes) -> None:
        """Refuse a store that ignores the conditions of writes, with an object that nothing refers to yet.

        Raises: SettingsError: two publishers could undo each other without a word.
        """
        if not self.store.is_conditional:
            return
        for header, etag in (("If-None-Match", None), ("If-Match", FOREIGN_ETAG)):
            try:
                self.store.put_if_unchanged(key, data, etag)
            except StoreConflictError:
                continue
            msg = (
                f"{self.store.url(key)}: the store ignores {header}: two publishers at once would undo each "
                "other's work without a word. Nothing was published. Use a store with conditional writes; or "
                "let one machine alone publish, and set [store] conditional_writes = false"
            )
            raise SettingsError(msg)


def compact(metadata: Metadata) -> bytes:  # type: ignore[type-arg]
    """Return metadata with its signatures as JSON without indentation."""
    from tuf.api.serialization.json import JSONSerializer  # noqa: PLC0415

    return metadata.to_bytes(JSONSerializer(compact=True))


def _next(
    before: Metadata[SignedT] | None, empty: SignedT, days: int, now: datetime.datetime
) -> Metadata[SignedT]:
    """Return the metadata to change, with a new expiry; without one before it, empty and of version 0."""
    from tuf.api.metadata import Metadata  # noqa: PLC0415

    if before is None:
        empty.version = 0
    metadata = Metadata(empty) if before is None else copy.deepcopy(before)
    metadata.signed.expires = (now + datetime.timedelta(days=days)).replace(microsecond=0)
    return metadata
