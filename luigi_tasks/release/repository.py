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

import contextlib
import functools
import hashlib
import logging
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import TransportError, TrustError
from edge_client.contract.names import (
    METADATA_FOLDER,
    RELEASE_FILE,
    TARGETS_FOLDER,
    channel_target,
    is_patch,
)
from edge_client.contract.release import CHANNEL_LIMIT_BYTES, ChannelDocument
from edge_client.contract.times import current_time
from luigi_tasks.release.channel import move_pointer
from luigi_tasks.release.memory import ROLES, PublisherMemory, forget_channels, remember, remember_own
from luigi_tasks.release.published import (
    ADDED,
    NOT_FOR_DEVICES,
    TIMESTAMP_KEY,
    Published,
    RepositoryState,
    object_key,
    releases_in_order,
)
from luigi_tasks.release.recovery import (
    bring_forward,
    describe_versions,
    drop_gone,
    fall_back,
    is_behind,
    is_channel,
    lost_pointers,
    own_file,
    recall,
    recover,
    restore_own,
    went_back,
)
from luigi_tasks.release.root_chain import METADATA_LIMIT_BYTES, RootChain, distrust
from luigi_tasks.release.signing import trusted_roots
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Mapping, Sequence

    from tuf.api.metadata import Metadata, Root, TargetFile

    from luigi_tasks.release.memory import Remembered
    from luigi_tasks.release.writer import MetadataWriter
    from luigi_tasks.settings.values import TrustSettings
    from luigi_tasks.storage.store import Store, StoredObject

logger = logging.getLogger(__name__)

PUBLISH_ATTEMPTS = 5


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
        self.memory = PublisherMemory(settings.memory_folder, store.url(""))
        self.chain = RootChain(store, settings, now)
        self._latest: RepositoryState | None = None
        self._roots: list[Metadata[Root]] = []

    @functools.cached_property
    def writer(self) -> MetadataWriter:
        """What signs and uploads metadata."""
        from luigi_tasks.release.writer import MetadataWriter  # noqa: PLC0415 - a run with nothing to do

        return MetadataWriter(self.store, self.settings, self.now)

    @property
    def roots(self) -> list[Metadata[Root]]:
        """The chain of roots, oldest first, as it was read last.

        Raises: As `load`.
        """
        return self._roots or self._read_roots()

    def _read_roots(self) -> list[Metadata[Root]]:
        self._roots = self.chain.read()
        return self._roots

    def load(self) -> RepositoryState:
        """Read and verify what is published.

        Where the bucket is older than this machine remembers, it is what is remembered, with an error in the
        log; the next publication writes it again.
        Raises: TrustError if the bucket's metadata is not signed by our keys; TransportError.
        """
        roots, known, stamp = self._read_bucket()
        if self._latest is not None and self._latest.is_of(roots[-1], stamp, known):
            return self._latest  # the signed timestamp names all the rest
        try:
            published = Published() if stamp is None else self._read_published(roots, stamp)
        except TrustError as e:
            if not known.metadata:
                raise
            msg = f"{e}; `edge-keys publish --force` writes again what this machine remembers"
            raise TrustError(msg) from e
        self._latest = self._compare(RepositoryState(self.store, roots, published, known))
        return self._latest

    def look(self) -> RepositoryState:
        """Read and verify what the bucket shows, as anybody with the root can: nothing is remembered.

        Raises: As `load`.
        """
        roots, stamp = self._read_roots(), self.store.get(TIMESTAMP_KEY, limit_bytes=METADATA_LIMIT_BYTES)
        published = Published() if stamp is None else self._read_published(roots, stamp)
        return RepositoryState(self.store, roots, published)

    def _read_bucket(self) -> tuple[list[Metadata[Root]], Remembered, StoredObject | None]:
        """Return the roots, this machine's memory and the newest timestamp; the memory is read first."""
        roots, known = self._read_roots(), self.memory.load()
        return roots, known, self.store.get(TIMESTAMP_KEY, limit_bytes=METADATA_LIMIT_BYTES)

    def _compare(self, shown: RepositoryState) -> RepositoryState:
        """Return the state, or what is remembered where the bucket is older or lost a channel."""
        known, published = shown.known, shown.published
        state, fault = shown, self._find_fault(shown)
        if fault and (remembered := self._recall(shown.roots, known)) is not None:
            state = recover(shown, remembered)
            self._report(fault)
        elif published.targets is not None and any(
            published.version(role) != known.version(role) for role in ROLES
        ):
            state = self._bring_forward(shown)
            if state is shown:
                self._merge(shown)
        elif published.stamp is None and not known.versions:
            self._warn_of_move()
        if any(channel_target(name) not in state.files for name in known.own_channels):
            state = self._restore_own(state)
        return state

    def _find_fault(self, shown: RepositoryState) -> str:
        """Return in words why what the bucket shows does not count, if anything is wrong with it.

        Nobody signs with keys that were replaced, once their successors signed: a thief of retired keys does.
        """
        known, published = shown.known, shown.published
        if is_behind(published, known):
            return f"older than what this machine published: {describe_versions(published, known)}"
        if 0 < published.root_version < shown.root.signed.version:
            remembered = recall(trusted_roots(shown.roots), known)
            if remembered is not None and remembered.root_version > published.root_version:
                return f"signed by the keys of root version {published.root_version}, which were replaced"
        return ""

    def _bring_forward(self, shown: RepositoryState) -> RepositoryState:
        """Return the state without pointers that are older than remembered, under newer metadata.

        A machine that was away signs so what a thief put back: its own memory is older still.
        """
        back = went_back(shown)
        remembered = self._recall(shown.roots, shown.known) if back else None
        if remembered is None:
            return shown
        self._report(f"signed by another machine over an older copy, of {', '.join(sorted(back))}")
        return bring_forward(shown, remembered, back)

    def _recall(self, roots: Sequence[Metadata[Root]], known: Remembered) -> Published | None:
        """Return the remembered metadata; None if it does not count after a theft, or is damaged."""
        remembered = recall(trusted_roots(roots), known)
        if remembered is None and recall(roots, known) is None:
            logger.error(
                "%s: damaged: no key of ours signed the metadata in it. It counts as lost: the bucket's word "
                "counts, also where it is older",
                self.memory.path,
            )
        return remembered

    def _restore_own(self, state: RepositoryState) -> RepositoryState:
        """Return the state with the channels that this machine moved and that are gone."""
        known = state.known
        lacking = {name for name in known.own_channels if channel_target(name) not in state.files}
        restored = restore_own(state, self._stored())
        found = {name for name in lacking if channel_target(name) in restored.files}
        if found:
            self._report(f"without channels that this machine moved: {', '.join(sorted(found))}")
        if empty := dict.fromkeys(lacking - found, ()):
            logger.error(
                "%s: files are gone of the releases that this machine published on %s; nothing is published "
                "there until the next Deploy",
                self.store.url(TARGETS_FOLDER),
                ", ".join(sorted(empty)),
            )
            self.memory.change(lambda known: forget_channels(known, empty))
        return restored

    def _report(self, what: str) -> None:
        logger.error(
            "%s: the bucket is %s. Somebody put back an older copy or removed something: find out who can "
            "write there. What this machine remembers counts instead, and the next publication writes it "
            "again (this run, or `edge-keys publish`)",
            self.store.url(TIMESTAMP_KEY),
            what,
        )

    def _warn_of_move(self) -> None:
        if others := [one.store for one in self.memory.others()]:
            logger.warning(
                "%s: nothing is published here, but this machine published in %s. If the fleet moves, copy "
                "that bucket first: its releases, channels and withdrawn releases are not here",
                self.store.url(""),
                ", ".join(others),
            )

    def _merge(self, state: RepositoryState) -> None:
        """Remember what another machine published."""
        from luigi_tasks.release.writer import compact  # noqa: PLC0415 - a run with nothing to do

        published = state.published
        if state.known.versions == {}:
            logger.warning(
                "%s: this machine has no memory of this store (%s), as at the first run on it; what the "
                "bucket shows counts, also if it is older than it was",
                self.store.url(""),
                self.memory.path,
            )
        metadata = {
            "timestamp": published.timestamp,
            "snapshot": published.snapshot,
            "targets": published.targets,
        }
        texts = {role: compact(one).decode() for role, one in metadata.items() if one is not None}
        channels = _read_channels(state)
        self.memory.change(lambda known: remember(known, texts, published.versions, channels))

    def _stored(self) -> set[str]:
        """Return the keys of all objects in the folder of signed files."""
        return {one.key for one in self.store.list_folder(f"{TARGETS_FOLDER}/")}

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
        self.chain.check(roots)
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
            pointer = None if move is None else move_pointer(state, move, channel)
            self._latest = None  # writing changes the state, whether it succeeds or not
            try:
                self._write(state, files, pointer)
            except StoreConflictError:
                continue  # another publisher was faster: start again from its state
            return
        msg = (
            f"{self.store.url(TIMESTAMP_KEY)}: other publishers were faster {PUBLISH_ATTEMPTS} times; run "
            "again"
        )
        raise TransportError(msg)

    def needs_renewal(self) -> bool:
        """Whether a new root waits, the bucket is older than it was, or signatures are half expired."""
        return self.load().needs_renewal(self.settings, self.now())

    def renew(self) -> None:
        """Sign what is published again, with new expiry."""
        self.publish({})

    def force(self) -> list[str]:
        """Sign everything again, above all versions known, also where the bucket's metadata is damaged.

        A channel whose release's files are gone goes back to what the bucket shows, but never to a release
        that was withdrawn; without such a release it points to nothing.
        Returns: What changed for the channels, in words.
        Raises: TrustError if neither the bucket nor this machine's memory has trusted metadata; as `publish`.
        """
        shown = self._read_shown()
        state = self._compare(shown)
        self._latest = None
        found = fall_back(state, shown, self._stored())
        self._write(found.state, {}, None)
        self.memory.change(lambda known: forget_channels(known, found.emptied))
        return found.words

    def _read_shown(self) -> RepositoryState:
        """Return what the bucket shows; nothing, if that is damaged and this machine has a memory."""
        roots, known, stamp = self._read_bucket()
        try:
            published = Published() if stamp is None else self._read_published(roots, stamp)
        except TrustError:
            self.chain.check(roots)
            if recall(trusted_roots(roots), known) is None and not known.own_channels:
                raise
            published = Published(stamp=stamp)
        return RepositoryState(self.store, roots, published, known)

    def _write(
        self, state: RepositoryState, files: Mapping[str, bytes], pointer: ChannelDocument | None
    ) -> None:
        """Publish `files` and a channel's pointer with what `state` has.

        Raises: StoreConflictError if another publisher wrote since `state` was read; as `publish`.
        """
        pointers = {} if pointer is None else {channel_target(pointer.channel): encode_document(pointer)}
        contents = _read_channels(state)  # before the upload: what is altered in the bucket is found here
        self._upload({**state.contents, **pointers})
        self.chain.publish(state.roots)
        signed = {**state.files, **self._sign_files({**files, **pointers})}
        if state.published.is_recovered:
            self._drop_gone(state, signed, pointers)
        self._drop_old(signed, state, pointers)
        written = self.writer.write(state, signed)
        contents |= {path: data.decode() for path, data in pointers.items()}
        own = {path: own_file(path, signed[path]) for path in files if path in signed}
        before = None if pointer is None else state.channel(pointer.channel)

        def change(known: Remembered) -> Remembered:
            known = remember(known, written.metadata, written.versions, contents)
            return remember_own(known, own, pointer, before, signed, self.store.endpoint)

        self.memory.change(change)

    def _sign_files(self, files: Mapping[str, bytes]) -> dict[str, TargetFile]:
        from tuf.api.metadata import TargetFile  # noqa: PLC0415

        signed = {path: TargetFile.from_data(path, data) for path, data in files.items()}
        for path, file in signed.items():
            if path.endswith(f"/{RELEASE_FILE}"):
                file.unrecognized_fields["custom"] = {ADDED: self.now().isoformat()}
        return signed

    def _drop_gone(
        self, state: RepositoryState, signed: dict[str, TargetFile], pointers: Mapping[str, bytes]
    ) -> None:
        """Drop the releases whose files are gone from the bucket, unless a channel points to one.

        Raises: TrustError.
        """
        gone = drop_gone(signed, self._stored())
        if lost := lost_pointers(signed, state, pointers):
            msg = (
                f"{self.store.url(TARGETS_FOLDER)}: files are gone of what channels point to: "
                f"{', '.join(lost)}. Nothing was published. Restore them, or run "
                "`edge-keys publish --force`, which points channels to what is there"
            )
            raise TrustError(msg)
        if gone:
            logger.error("%s: files are gone of releases %s; dropped", self.store.url(""), sorted(gone))

    def _drop_old(
        self, targets: dict[str, TargetFile], state: RepositoryState, changed: Mapping[str, bytes]
    ) -> None:
        """Drop releases beyond `keep_releases` and patches that no channel points to.

        Every device reads all of this metadata at every release.
        """
        channels = [path for path in targets if is_channel(path)]
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
            unnamed = is_patch(name) and release not in named
            if folder == "releases" and (release in old or unnamed or name in NOT_FOR_DEVICES):
                del targets[path]

    def _upload(self, files: Mapping[str, bytes]) -> None:
        for path, data in files.items():
            self.store.put(object_key(path, hashlib.sha256(data).hexdigest()), data)

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
        return distrust(self.store, self.settings, key, reason)


def _read_channels(state: RepositoryState) -> dict[str, str]:
    """Return the content of the channels' pointers, as far as it can be read."""
    found = {}
    for path in filter(is_channel, state.files):
        with contextlib.suppress(TrustError, TransportError):
            found[path] = state.read(path).decode()
    return found
