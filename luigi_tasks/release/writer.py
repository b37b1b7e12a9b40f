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
import hashlib
import logging
from typing import TYPE_CHECKING, Any, TypeVar

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.names import METADATA_FOLDER, ROLLOUTS_ROLE, SIGNED_AT_FIELD
from luigi_tasks.release.published import METADATA_LIMIT_BYTES, TIMESTAMP_KEY, split_files
from luigi_tasks.release.rollouts_key import delegate
from luigi_tasks.release.signing import open_rollout_signer, open_signers
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from securesystemslib.signer import Signer
    from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store

logger = logging.getLogger(__name__)

SignedT = TypeVar("SignedT", "Targets", "Snapshot", "Timestamp")

# No object has it: a write on the condition of this version must fail.
FOREIGN_ETAG = '"00000000000000000000000000000000"'
VERSION_ATTEMPTS = 100
TARGETS_ROLE = "targets"


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

    def write(
        self, state: RepositoryState, files: Mapping[str, TargetFile], kept: Collection[str] = ()
    ) -> Written:
        """Sign `files` as all that is published, in place of what `state` has.

        Metadata of targets or rollouts in which nothing changes stays as it is where its key is not here.

        Args:
            state: What was read.
            files: All signed files.
            kept: Roles that stay so also where their keys are here.
        Raises: StoreConflictError if another publisher wrote since `state` was read; SettingsError without
            keys, or if the store ignores conditions; TransportError (the earlier state stays current).
        """
        targets, rollouts = self._divide(state, files)
        written: dict[str, Metadata[Any]] = {
            TARGETS_ROLE: self._write_targets(state, TARGETS_ROLE, targets, kept)
        }
        if rollouts is not None:
            written[ROLLOUTS_ROLE] = self._write_targets(state, ROLLOUTS_ROLE, rollouts, kept)
        written["snapshot"] = self._write_snapshot(state, written)
        written["timestamp"] = self._write_timestamp(state, written["snapshot"].signed.version)
        return Written(
            {role: compact(one).decode() for role, one in written.items()},
            {role: one.signed.version for role, one in written.items()},
        )

    def _write_snapshot(
        self, state: RepositoryState, written: Mapping[str, Metadata[Targets]]
    ) -> Metadata[Snapshot]:
        """Sign and upload the snapshot of targets and rollouts."""
        from tuf.api.metadata import MetaFile, Snapshot  # noqa: PLC0415

        published = state.published
        snapshot = _next(published.snapshot, Snapshot(), self.settings.snapshot_days, self.now())
        snapshot.signed.meta["targets.json"] = MetaFile(written[TARGETS_ROLE].signed.version)
        rollouts = written.get(ROLLOUTS_ROLE)
        if rollouts is not None and rollouts is not published.rollouts:
            snapshot.signed.meta[f"{ROLLOUTS_ROLE}.json"] = _exactly(rollouts)
        self._write_version(state, "snapshot", snapshot)
        return snapshot

    def _write_timestamp(self, state: RepositoryState, snapshot_version: int) -> Metadata[Timestamp]:
        """Sign the timestamp and write it in the place of the one that was read: now all the rest counts."""
        from tuf.api.metadata import MetaFile, Timestamp  # noqa: PLC0415

        published = state.published
        timestamp = _next(published.timestamp, Timestamp(), self.settings.timestamp_days, self.now())
        timestamp.signed.version = self._version_above(state, "timestamp", timestamp.signed)
        timestamp.signed.snapshot_meta = MetaFile(snapshot_version)
        timestamp.signed.unrecognized_fields[SIGNED_AT_FIELD] = self.now().isoformat(timespec="seconds")
        data = self.sign(state.root, timestamp)
        self.store.put_if_unchanged(
            TIMESTAMP_KEY, data, published.stamp.etag if published.stamp is not None else None
        )
        return timestamp

    def _divide(
        self, state: RepositoryState, files: Mapping[str, TargetFile]
    ) -> tuple[Metadata[Targets], Metadata[Targets] | None]:
        """Return the next targets and those of the delegated role, if there is a key for it."""
        from tuf.api.metadata import Targets  # noqa: PLC0415

        days, key = self.settings.targets_days, state.rollouts_key
        targets = _next(state.published.targets, Targets(), days, self.now())
        if key is None:
            targets.signed.targets = dict(files)
            return targets, None
        rollouts = _next(state.published.rollouts, Targets(), days, self.now())
        targets.signed.targets, rollouts.signed.targets = split_files(files)
        targets.signed.delegations = delegate(key)
        return targets, rollouts

    def _write_targets(
        self, state: RepositoryState, role: str, metadata: Metadata[Targets], kept: Collection[str]
    ) -> Metadata[Targets]:
        """Sign and upload metadata of targets; or leave what is published, where that says the same."""
        before = state.published.rollouts if role == ROLLOUTS_ROLE else state.published.targets
        if (
            before is not None
            and _is_same(state, role, before, metadata)
            and (role in kept or not self.can_sign(state, role))
        ):
            self._put_back(state, role, before)
            self._warn_of_expiry(role, before)
            return before
        self._write_version(state, role, metadata)
        return metadata

    def _warn_of_expiry(self, role: str, metadata: Metadata[Targets]) -> None:
        left = metadata.signed.expires - self.now()
        if left < datetime.timedelta(days=self.settings.targets_days) / 2:
            logger.warning(
                "%s: expires in %d days, and its key is not used here: run `edge-keys publish` where it is",
                self.store.url(f"{METADATA_FOLDER}/{metadata.signed.version}.{role}.json"),
                left.days,
            )

    def can_sign(self, state: RepositoryState, role: str) -> bool:
        """Whether this machine has the keys of a role."""
        try:
            self._open_signers(state, role)
        except SettingsError:
            return False
        return True

    def _open_signers(self, state: RepositoryState, role: str) -> list[Signer]:
        if role == ROLLOUTS_ROLE:
            return [open_rollout_signer(state, self.settings)]
        return open_signers(state.root.signed, self.settings, role)

    def _put_back(self, state: RepositoryState, role: str, metadata: Metadata[Targets]) -> None:
        """Write metadata again that the memory has, and the bucket may have lost."""
        if not state.published.is_recovered:
            return
        key, data = f"{METADATA_FOLDER}/{metadata.signed.version}.{role}.json", compact(metadata)
        found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
        if found is None or found.data != data:
            self.store.put(key, data)

    def sign(
        self, root: Metadata[Root], metadata: Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets]
    ) -> bytes:
        """Return the metadata of a role that the root names, with all the signatures that it needs."""
        return _sign(metadata, open_signers(root.signed, self.settings, metadata.signed.type))

    def _version_above(
        self, state: RepositoryState, role: str, signed: Targets | Snapshot | Timestamp
    ) -> int:
        """Return the next version of a role; `signed` has the one before."""
        floor = max(signed.version, state.published.floors.get(role, 0))
        return max(floor + 1, int(self.now().timestamp()))

    def _write_version(
        self, state: RepositoryState, role: str, metadata: Metadata[Targets] | Metadata[Snapshot]
    ) -> None:
        """Upload under the next free version; a crashed run may have left unreferenced ones."""
        metadata.signed.version = self._version_above(state, role, metadata.signed)
        signers = self._open_signers(state, role)
        for _ in range(VERSION_ATTEMPTS):
            key = f"{METADATA_FOLDER}/{metadata.signed.version}.{role}.json"
            data = _sign(metadata, signers)
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


def _is_same(state: RepositoryState, role: str, before: Metadata[Targets], after: Metadata[Targets]) -> bool:
    """Whether published metadata may stand for the next: its keys are the newest, and nothing changes."""
    published = state.published
    is_newest = not state.awaits_key if role == ROLLOUTS_ROLE else _is_signed_by(state.root, role, before)
    return (
        is_newest
        and before.signed.version >= published.floors.get(role, 0)
        and before.signed.targets == after.signed.targets
        and before.signed.delegations == after.signed.delegations
    )


def _is_signed_by(root: Metadata[Root], role: str, metadata: Metadata[Targets]) -> bool:
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415

    try:
        root.verify_delegate(role, metadata)
    except RepositoryError:
        return False
    return True


def _exactly(metadata: Metadata[Targets]) -> MetaFile:
    """Name these bytes in the snapshot: whoever has the role's key alone cannot put others in their place."""
    from tuf.api.metadata import MetaFile  # noqa: PLC0415

    data = compact(metadata)
    return MetaFile(metadata.signed.version, len(data), {"sha256": hashlib.sha256(data).hexdigest()})


def _sign(
    metadata: Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets], signers: Sequence[Signer]
) -> bytes:
    metadata.signatures.clear()
    for signer in signers:
        metadata.sign(signer, append=True)
    return compact(metadata)


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
