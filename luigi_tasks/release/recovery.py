"""What this machine remembers, in place of a bucket that is older or that lost it.

Content from the memory is verified as content from the bucket is, by the roots; only what this machine
published itself counts without: after a theft of the keys nothing else says what was there before. Files are
read from the bucket by their remembered hashes; a release whose files are gone is not signed again.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import EdgeError
from edge_client.contract.names import RELEASE_FILE, ROLLOUTS_ROLE, channel_target, is_patch, release_target
from edge_client.contract.release import CHANNEL_LIMIT_BYTES, ChannelDocument
from edge_client.contract.rollout import RolloutDocument
from luigi_tasks.release.memory import ROLES, OwnFile, Remembered
from luigi_tasks.release.pointers import (
    decode_pointer,
    is_before,
    just_after,
    named_by,
    needed_by,
    read_pointer,
)
from luigi_tasks.release.published import ADDED, Published, RepositoryState, object_key, split_files
from luigi_tasks.release.rollouts_key import delegated_key, is_pointer

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    from tuf.api.metadata import Metadata, Root, TargetFile, Targets


def is_behind(found: Published, known: Remembered) -> bool:
    """Whether any of the bucket's metadata is older than what is remembered."""
    return any(found.version(role) < known.version(role) for role in ROLES)


def describe_versions(found: Published, known: Remembered) -> str:
    """Return the versions that the bucket shows against those that are remembered."""
    older = [role for role in ROLES if found.version(role) < known.version(role)]
    return ", ".join(f"{one} {found.version(one) or 'missing'} < {known.version(one)}" for one in older)


def recall(roots: Iterable[Metadata[Root]], known: Remembered) -> Published | None:
    """Return the remembered metadata, verified; None if there is none that the keys of these roots signed."""
    from tuf.api.exceptions import RepositoryError  # noqa: PLC0415
    from tuf.api.metadata import Metadata, Snapshot, Targets, Timestamp  # noqa: PLC0415

    for root in roots if known.metadata.keys() >= {"timestamp", "snapshot", "targets"} else ():
        try:
            timestamp = Metadata[Timestamp].from_bytes(known.metadata["timestamp"].encode())
            snapshot = Metadata[Snapshot].from_bytes(known.metadata["snapshot"].encode())
            targets = Metadata[Targets].from_bytes(known.metadata["targets"].encode())
            for role, metadata in (("timestamp", timestamp), ("snapshot", snapshot), ("targets", targets)):
                root.verify_delegate(role, metadata)
            rollouts = None
            if delegated_key(targets.signed) is not None:
                rollouts = Metadata[Targets].from_bytes(known.metadata.get(ROLLOUTS_ROLE, "").encode())
                targets.verify_delegate(ROLLOUTS_ROLE, rollouts)
        except RepositoryError:
            continue
        return Published(timestamp, snapshot, targets, rollouts, root_version=root.signed.version)
    return None


def recover(state: RepositoryState, remembered: Published) -> RepositoryState:
    """Return what is remembered in place of what the bucket shows."""
    shown = state.published
    floors = {role: max(shown.version(role), remembered.version(role)) for role in ROLES}
    published = dataclasses.replace(remembered, stamp=shown.stamp, is_recovered=True, floors=floors)
    return _with(state, published, {path: text.encode() for path, text in state.known.channels.items()})


def went_back(shown: RepositoryState) -> dict[str, bytes]:
    """Return the remembered pointers, by path, that are newer than those that the bucket shows."""
    newer = {}
    for path, text in shown.known.channels.items():
        known = decode_pointer(path, text.encode())
        with contextlib.suppress(EdgeError):  # one that cannot be read is an error where it is needed
            if path in shown.files:
                is_older = is_before(read_pointer(shown, path).moved_at, known.moved_at)
            else:  # nothing removes a rollout document: without a rollout, it says so
                is_older = isinstance(known, RolloutDocument)
            if is_older:
                newer[path] = text.encode()
    return newer


def bring_forward(
    shown: RepositoryState, remembered: Published, pointers: Mapping[str, bytes]
) -> RepositoryState:
    """Return what the bucket shows, with remembered pointers and the files of their releases."""
    files = remembered.files
    releases = {one for path, data in pointers.items() for one in named_by(decode_pointer(path, data))}
    signed = {path: file for path, file in files.items() if path in pointers or _release_of(path) in releases}
    return _with(shown, _of_files(shown.published, {**shown.files, **signed}), pointers)


def restore_own(state: RepositoryState, stored: Collection[str]) -> RepositoryState:
    """Return the state with the channels that this machine moved and that are gone, where their files exist.

    Where the history begins anew, also with the files that it signed: another machine may have moved channels
    to them.

    Args:
        state: What is published, without these channels.
        stored: Keys of all objects in the folder of signed files.
    """
    known = state.known
    signed = {path: _signed_file(path, one) for path, one in known.own_files.items()}
    gone = drop_gone(signed, stored)
    releases = {_release_of(path) for path in {**signed, **state.files} if path.endswith(f"/{RELEASE_FILE}")}
    releases -= gone
    pointers = {
        channel_target(name): encode_document(own)
        for name, own in known.own_channels.items()
        if channel_target(name) not in state.files and own.release in releases
    }
    if not pointers and not (state.published.restarts_history and signed):
        return state
    made = {path: _target_file(path, data) for path, data in pointers.items()}
    published = _of_files(state.published, {**signed, **state.files, **made})
    return _with(state, published, {**state.contents, **pointers})


def restore_moved(shown: RepositoryState) -> RepositoryState:
    """Return the state with the channels that this machine moved later than what is shown.

    So after a theft, where another machine brought back what it had moved before.
    """
    pointers = {}
    for name, own in shown.known.own_channels.items():
        path = channel_target(name)
        is_signed = release_target(own.release, RELEASE_FILE) in shown.files
        if path in shown.files and is_signed and is_before(_channel(shown, path).moved_at, own.moved_at):
            pointers[path] = encode_document(own)
    if not pointers:
        return shown
    made = {path: _target_file(path, data) for path, data in pointers.items()}
    return _with(shown, _of_files(shown.published, {**shown.files, **made}), {**shown.contents, **pointers})


@dataclasses.dataclass(frozen=True)
class FallBack:
    """A state that can be published where files are gone.

    Attributes:
        state: The state.
        words: Each change of a channel.
        emptied: Releases withdrawn from each channel that points to nothing any more.
    """

    state: RepositoryState
    words: list[str]
    emptied: dict[str, tuple[str, ...]]


def fall_back(state: RepositoryState, shown: RepositoryState, stored: Collection[str]) -> FallBack:
    """Point channels whose release's files are gone to what the bucket shows, or to nothing.

    Never to a release that was withdrawn.

    Args:
        state: What is remembered.
        shown: What the bucket shows.
        stored: Keys of all objects in the folder of signed files.
    """
    signed, older, contents = dict(state.files), dict(shown.files), dict(state.contents)
    found = FallBack(state, [], {})
    gone, gone_there = drop_gone(signed, stored), drop_gone(older, stored)
    for path in filter(is_pointer, list(signed)):
        pointer = read_pointer(state, path)
        if not gone.intersection(needed_by(pointer)):
            continue
        if isinstance(pointer, RolloutDocument):
            contents[path] = encode_document(_ended(pointer))
            signed[path] = _target_file(path, contents[path])
            found.words.append(
                f"channel {pointer.channel}: files are gone of what rollout {pointer.id} names; it is over"
            )
            continue
        before = _channel(shown, path) if path in older else None
        lost = f"channel {pointer.channel}: the files of release {pointer.release} are gone"
        if before is None or before.release in {*pointer.withdrawn, *gone_there}:
            del signed[path]
            contents.pop(path, None)
            found.words.append(f"{lost}; it points to nothing until the next Deploy")
            found.emptied[pointer.channel] = pointer.withdrawn
            continue
        moved = msgspec.structs.replace(pointer, release=before.release, share_percent=before.share_percent)
        contents[path] = encode_document(moved)
        signed |= {one: file for one, file in older.items() if _release_of(one) == before.release}
        signed[path] = _target_file(path, contents[path])
        found.words.append(f"{lost}; it points to {before.release} again, as the bucket shows")
    return dataclasses.replace(found, state=_with(state, _of_files(state.published, signed), contents))


def _ended(rollout: RolloutDocument) -> RolloutDocument:
    """Return the document of a channel whose rollout is over."""
    return RolloutDocument(
        channel=rollout.channel, heartbeat_s=rollout.heartbeat_s, moved_at=just_after(rollout.moved_at)
    )


def drop_gone(signed: dict[str, TargetFile], stored: Collection[str]) -> set[str]:
    """Drop the releases of which a file is gone, and patches that are; return those releases."""
    missing = {path for path, file in signed.items() if object_key(path, file.hashes["sha256"]) not in stored}
    gone = {
        _release_of(path) for path in missing if _release_of(path) and not is_patch(path.rpartition("/")[2])
    }
    for path in list(signed):
        if _release_of(path) and (_release_of(path) in gone or path in missing):
            del signed[path]
    return gone


def lost_pointers(
    signed: Mapping[str, TargetFile], state: RepositoryState, files: Mapping[str, bytes]
) -> list[str]:
    """Return the channels that point to a release which is not among signed files, with its id."""
    lost = []
    for path in filter(is_pointer, signed):
        pointer = decode_pointer(path, files[path]) if path in files else read_pointer(state, path)
        lost += [
            f"{pointer.channel} ({one})"
            for one in needed_by(pointer)
            if release_target(one, RELEASE_FILE) not in signed
        ]
    return list(dict.fromkeys(lost))


def own_file(path: str, file: TargetFile) -> OwnFile:
    """Return the memory of a file that this machine signs."""
    added = str((file.custom or {}).get(ADDED, "")) if path.endswith(f"/{RELEASE_FILE}") else ""
    return OwnFile(length=file.length, sha256=file.hashes["sha256"], added=added)


def _of_files(published: Published, files: Mapping[str, TargetFile]) -> Published:
    """Return what is published with other files."""
    if published.rollouts is None:
        targets = _holding(published.targets, files)
        return dataclasses.replace(published, targets=targets, is_recovered=True)
    own, delegated = split_files(files)
    targets, rollouts = _holding(published.targets, own), _holding(published.rollouts, delegated)
    return dataclasses.replace(published, targets=targets, rollouts=rollouts, is_recovered=True)


def _holding(metadata: Metadata[Targets] | None, files: Mapping[str, TargetFile]) -> Metadata[Targets]:
    from tuf.api.metadata import Metadata, Targets  # noqa: PLC0415

    changed = copy.deepcopy(metadata)
    if changed is None:
        changed = Metadata(Targets())
        changed.signed.version = 0
    changed.signed.targets = dict(files)
    return changed


def _target_file(path: str, data: bytes) -> TargetFile:
    from tuf.api.metadata import TargetFile  # noqa: PLC0415

    return TargetFile.from_data(path, data)


def _signed_file(path: str, one: OwnFile) -> TargetFile:
    from tuf.api.metadata import TargetFile  # noqa: PLC0415

    fields = {"custom": {ADDED: one.added}} if one.added else {}
    return TargetFile(one.length, {"sha256": one.sha256}, path, fields)


def _with(state: RepositoryState, published: Published, contents: Mapping[str, bytes]) -> RepositoryState:
    return RepositoryState(state.store, state.roots, published, state.known, contents, state.local_key)


def _release_of(path: str) -> str:
    """Return the release that a signed file belongs to; empty for a channel's pointer."""
    folder, _, rest = path.partition("/")
    return rest.partition("/")[0] if folder == "releases" else ""


def _channel(state: RepositoryState, path: str) -> ChannelDocument:
    return decode_document(ChannelDocument, state.read(path), source=path, limit_bytes=CHANNEL_LIMIT_BYTES)
