"""Publishing into the signed repository (The Update Framework).

The bucket is not trusted on this side either: metadata read from it is verified against our own root before
it is signed again. Otherwise an attacker with access to the bucket could have forged content signed by our
keys.

Order of writes: files of the release, then `N.targets.json`, `N.snapshot.json`, and last `timestamp.json`,
the one object that activates all others (written only if it has not changed since it was read). After a crash
before that, the earlier release stays current; the next run writes the same files again and finishes. Source:
TUF specification 1.0.34, sections 3 and 5.

New keys come with a new root, which `edge-keys rotate` put next to `[trust] root`. Roots are written first,
in order, because a device needs each root to trust the next; then everything is signed again. That includes
content signed only by keys of an earlier root, unless the newer root disowns it because those keys were
stolen.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
from typing import TYPE_CHECKING, TypeVar

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import TransportError, TrustError
from edge_client.contract.names import (
    METADATA_FOLDER,
    RELEASE_FILE,
    SIGNED_AT_FIELD,
    channel_target,
    is_patch,
)
from edge_client.contract.release import CHANNEL_LIMIT_BYTES, ChannelDocument
from edge_client.contract.times import current_time
from luigi_tasks.release.published import (
    TIMESTAMP_KEY,
    Published,
    RepositoryState,
    object_key,
    releases_in_order,
    root_key,
)
from luigi_tasks.release.signing import check_successor, load_roots, open_signers, trusted_roots
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tuf.api.metadata import Metadata, Root, Snapshot, TargetFile, Targets, Timestamp

    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store, StoredObject

logger = logging.getLogger(__name__)

METADATA_LIMIT_BYTES = 32 << 20
MAX_ROOT_ROTATIONS = 256
PUBLISH_ATTEMPTS = 5
# Renewing the root needs a person and the root keys from a safe: time to plan that.
ROOT_NOTICE = datetime.timedelta(days=180)


class ReleaseRepository:
    """The repository below the store's prefix: read, changed and signed."""

    def __init__(
        self,
        store: Store,
        settings: TrustSettings,
        now: Callable[[], datetime.datetime] = current_time,
    ) -> None:
        self.store = store
        self.settings = settings
        self.now = now
        self._latest: RepositoryState | None = None
        self._roots: list[Metadata[Root]] = []

    @property
    def roots(self) -> list[Metadata[Root]]:
        """The chain of roots, oldest first, as it was read last.

        Raises: As `load`.
        """
        return self._roots or self._read_roots()

    def _read_roots(self) -> list[Metadata[Root]]:
        self._roots = self._walk_roots(load_roots(self.settings.root))
        return self._roots

    def load(self) -> RepositoryState:
        """Read and verify the published metadata.

        Raises: TrustError if the bucket's metadata is not signed by our keys; TransportError.
        """
        roots = self._read_roots()
        stamp = self.store.get(TIMESTAMP_KEY, limit_bytes=METADATA_LIMIT_BYTES)
        if stamp is None:
            return RepositoryState(self.store, roots, Published())
        if self._latest is not None and self._latest.is_of(roots[-1], stamp):
            return self._latest  # the signed timestamp names all the rest
        self._latest = RepositoryState(self.store, roots, self._read_published(roots, stamp))
        return self._latest

    def _read_published(self, roots: Sequence[Metadata[Root]], stamp: StoredObject) -> Published:
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
        self._check_roots(roots)
        raise faults[0]

    def _signed_timestamp(self, root: Metadata[Root], stamp: StoredObject) -> bool:
        from tuf.api.metadata import Timestamp  # noqa: PLC0415

        try:
            self._verified(root, Timestamp, stamp.data, TIMESTAMP_KEY)
        except TrustError:
            return False
        return True

    def _read_signed_by(self, root: Metadata[Root], stamp: StoredObject) -> Published:
        """Read the published metadata; all of it must be signed by the keys of one root."""
        from tuf.api.metadata import Snapshot, Targets, Timestamp  # noqa: PLC0415

        timestamp = self._verified(root, Timestamp, stamp.data, TIMESTAMP_KEY)
        snapshot_version = timestamp.signed.snapshot_meta.version
        snapshot = self._read(root, Snapshot, snapshot_version)
        targets = self._read(root, Targets, snapshot.signed.meta["targets.json"].version)
        return Published(timestamp, snapshot, targets, stamp, root.signed.version)

    def publish(
        self,
        files: Mapping[str, bytes],
        move: Callable[[ChannelDocument | None], ChannelDocument] | None = None,
        channel: str = "",
    ) -> None:
        """Add signed files and, in the same step, move a channel.

        Args:
            files: Target path to content; writing the same twice changes nothing.
            move: Called with the channel's pointer; returns the new pointer.
            channel: The channel that `move` moves.
        Raises: TransportError (the earlier state stays current), TrustError, SettingsError.
        """
        self._upload(files)
        for _ in range(PUBLISH_ATTEMPTS):
            state = self.load()
            changed = dict(files)
            if move is not None:
                pointer = encode_document(move(state.channel(channel)))
                changed[channel_target(channel)] = pointer
                self._upload({channel_target(channel): pointer})
            self._latest = None  # writing changes the state, whether it succeeds or not
            try:
                self._write(state, changed)
            except StoreConflictError:
                continue  # another publisher was faster: start again from its state
            return
        msg = (
            f"{self.store.url(TIMESTAMP_KEY)}: other publishers were faster {PUBLISH_ATTEMPTS} times; "
            "run again"
        )
        raise TransportError(msg)

    def needs_renewal(self) -> bool:
        """Whether a new root waits, or any signature has less than half of its lifetime left."""
        return self.load().needs_renewal(self.settings, self.now())

    def renew(self) -> None:
        """Sign the published metadata again, with new expiry."""
        self.publish({})

    def _write(self, state: RepositoryState, files: Mapping[str, bytes]) -> None:
        """Sign and upload metadata that adds `files` to what `state` has.

        Raises: StoreConflictError if another publisher wrote since `state` was read.
        """
        from tuf.api.metadata import MetaFile, Snapshot, TargetFile, Targets, Timestamp  # noqa: PLC0415

        settings, published = self.settings, state.published
        # Above all earlier versions; devices forget those together with the keys that signed them.
        start = int(self.now().timestamp()) if published.restarts_history else 0
        targets = published.targets or _empty_metadata(Targets(), start)
        snapshot = published.snapshot or _empty_metadata(Snapshot(), start)
        timestamp = published.timestamp or _empty_metadata(Timestamp(), start)
        self.publish_roots(state.roots)
        for path, data in files.items():
            signed = TargetFile.from_data(path, data)
            if path.endswith(f"/{RELEASE_FILE}"):
                signed.unrecognized_fields["custom"] = {"added": self.now().isoformat()}
            targets.signed.targets[path] = signed
        self._drop_old(targets.signed.targets, state, files)
        self._extend(targets.signed, settings.targets_days)
        self._write_version(state.root, targets)
        snapshot.signed.meta["targets.json"] = MetaFile(targets.signed.version)
        self._extend(snapshot.signed, settings.snapshot_days)
        self._write_version(state.root, snapshot)
        timestamp.signed.version += 1
        timestamp.signed.snapshot_meta = MetaFile(snapshot.signed.version)
        timestamp.signed.unrecognized_fields[SIGNED_AT_FIELD] = self.now().isoformat(timespec="seconds")
        self._extend(timestamp.signed, settings.timestamp_days)
        data = self.sign(state.root, timestamp)
        self.store.put_if_unchanged(
            TIMESTAMP_KEY, data, published.stamp.etag if published.stamp is not None else None
        )

    def _write_version(self, root: Metadata[Root], metadata: Metadata[Targets] | Metadata[Snapshot]) -> None:
        """Upload under the next free version; a crashed run may have left unreferenced ones."""
        for _ in range(100):
            metadata.signed.version += 1
            key = f"{METADATA_FOLDER}/{metadata.signed.version}.{metadata.signed.type}.json"
            try:
                self.store.put_if_unchanged(key, self.sign(root, metadata), None)
            except StoreConflictError:
                continue
            return
        msg = f"{self.store.url(METADATA_FOLDER)}: 100 versions in a row that are not referenced; remove them"
        raise TransportError(msg)

    def _extend(self, signed: Targets | Snapshot | Timestamp, days: int) -> None:
        moment = self.now() + datetime.timedelta(days=days)
        signed.expires = moment.replace(microsecond=0)

    def _drop_old(
        self, targets: dict[str, TargetFile], state: RepositoryState, changed: Mapping[str, bytes]
    ) -> None:
        """Drop releases beyond `keep_releases` and patches that no channel points to.

        Every device reads all of this metadata at every release.
        """
        channels = [path for path in targets if path.startswith("channels/")]
        named = {
            decode_document(
                ChannelDocument,
                changed[path] if path in changed else state.read(path),
                source=path,
                limit_bytes=CHANNEL_LIMIT_BYTES,
            ).release
            for path in channels
        }
        order = releases_in_order(targets)
        surplus = max(len(order) - self.settings.keep_releases, 0)
        old = set(order[:surplus]) - named
        for path in list(targets):
            folder, _, rest = path.partition("/")
            release, _, name = rest.partition("/")
            if folder == "releases" and (release in old or (is_patch(name) and release not in named)):
                del targets[path]

    def sign(
        self, root: Metadata[Root], metadata: Metadata[Timestamp] | Metadata[Snapshot] | Metadata[Targets]
    ) -> bytes:
        """Return the metadata with all the signatures that its role needs."""
        from tuf.api.serialization.json import JSONSerializer  # noqa: PLC0415

        metadata.signatures.clear()
        for signer in open_signers(root.signed, self.settings, metadata.signed.type):
            metadata.sign(signer, append=True)
        return metadata.to_bytes(JSONSerializer(compact=True))

    def _upload(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            self.store.put(object_key(path, hashlib.sha256(data).hexdigest()), data)

    def _walk_roots(self, roots: list[Metadata[Root]]) -> list[Metadata[Root]]:
        """Follow the roots in the bucket, each signed by the one before it."""
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

        for _ in range(MAX_ROOT_ROTATIONS):
            key = root_key(roots[-1].signed.version + 1)
            found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
            if found is None:
                return roots
            try:
                newer = Metadata[Root].from_bytes(found.data)
                check_successor(roots[-1], newer, self.store.url(key))
            except (RepositoryError, TrustError) as e:
                raise self._distrust(key, e) from e
            roots = [*roots, newer]
        msg = f"{self.store.url(METADATA_FOLDER)}: over {MAX_ROOT_ROTATIONS} root rotations; refused"
        raise TrustError(msg)

    def publish_roots(self, roots: Sequence[Metadata[Root]]) -> None:
        """Write the roots that are missing in the bucket, the oldest first: devices follow them one by one.

        Raises: TrustError if the bucket has another root signed by our keys, which some devices may follow.
        """
        for root in self._check_roots(roots):
            key = root_key(root.signed.version)
            self.store.put(key, root.to_bytes(), content_type="application/json")
        left = roots[-1].signed.expires - self.now()
        if left < ROOT_NOTICE:
            logger.warning(
                "%s: the root expires in %d days, and then no device installs a release any more: "
                "run `edge-keys renew` with the root keys, then Deploy",
                self.settings.root,
                left.days,
            )

    def _check_roots(self, roots: Sequence[Metadata[Root]]) -> list[Metadata[Root]]:
        """Return the roots that are missing or damaged in the bucket; raises as `publish_roots`."""
        lacking = []
        for before, root in zip([None, *roots], roots, strict=False):
            key = root_key(root.signed.version)
            found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
            if found is None or not self._is_root(found.data, before, root, key):
                lacking.append(root)
        return lacking

    def _is_root(self, data: bytes, before: Metadata[Root] | None, root: Metadata[Root], key: str) -> bool:
        """Whether `data` is this root; False if no device would follow it."""
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Metadata, Root  # noqa: PLC0415

        try:
            found = Metadata[Root].from_bytes(data)
            if found.signed == root.signed:
                return True
            (before or root).verify_delegate(Root.type, found)
        except RepositoryError:
            return False
        msg = (
            f"{self.store.url(key)}: another root of this version, signed by the same keys: two people "
            f"rotated keys. Decide which one counts, and put it next to [trust] root ({self.settings.root})"
        )
        raise TrustError(msg)

    def _read(self, root: Metadata[Root], kind: type, version: int) -> Metadata:  # type: ignore[type-arg]
        key = f"{METADATA_FOLDER}/{version}.{kind.type}.json"  # type: ignore[attr-defined]
        found = self.store.get(key, limit_bytes=METADATA_LIMIT_BYTES)
        if found is None:
            raise self._distrust(key, ValueError("missing, though newer metadata names it"))
        metadata = self._verified(root, kind, found.data, key)
        if metadata.signed.version != version:
            raise self._distrust(key, ValueError(f"holds version {metadata.signed.version}"))
        return metadata

    def _verified(self, root: Metadata[Root], kind: type, data: bytes, key: str) -> Metadata:  # type: ignore[type-arg]
        from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
        from tuf.api.metadata import Metadata  # noqa: PLC0415

        try:
            metadata = Metadata[kind].from_bytes(data)  # type: ignore[valid-type]
            root.verify_delegate(kind.type, metadata)  # type: ignore[attr-defined]
        except RepositoryError as e:
            raise self._distrust(key, e) from e
        return metadata

    def _distrust(self, key: str, reason: Exception) -> TrustError:
        return TrustError(
            f"{self.store.url(key)}: not signed by our keys ({reason}). It was changed in the bucket, or "
            f"[trust] root ({self.settings.root}) belongs to another repository, or the other roots of its "
            "folder are not next to it. Nothing was published"
        )


SignedT = TypeVar("SignedT", "Targets", "Snapshot", "Timestamp")


def _empty_metadata(signed: SignedT, version: int) -> Metadata[SignedT]:
    """Return metadata without content; raising `version` gives the first version."""
    from tuf.api.metadata import Metadata  # noqa: PLC0415

    signed.version = version
    return Metadata(signed)
