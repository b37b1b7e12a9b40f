"""This machine's memory of what was published: the bucket cannot be asked whether it is older than it was.

One file for each store, `published-<digest of its address>.json`, in `[trust] memory_dir`. It has the newest
metadata that this machine signed, or found in the bucket signed by its keys, and where channels and rollouts
point. That content is verified against the roots again before it is used. What this machine published itself
is kept apart: it counts even after a theft of the keys, since no signature vouches for it but this machine's
disk.

The memory is read before the bucket and written after it, so that the bucket is never older than the memory
unless somebody put it back.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.release import ChannelDocument  # noqa: TC001 - msgspec reads the annotations
from edge_client.disk import disk_errors, locked_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

MEMORY_LIMIT_BYTES = 128 << 20
ROLES = ("timestamp", "snapshot", "targets", "rollouts")
VERSION_DIGITS = 4300  # more are no integer for Python, nor in JSON


class OwnFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that this machine signed.

    Attributes:
        length: Size in bytes.
        sha256: Hex digest of the content.
        added: Time of the signature, UTC, ISO 8601; of release documents.
    """

    length: int
    sha256: str
    added: str = ""


class Remembered(Document, frozen=True, kw_only=True):
    """Content of the memory.

    Attributes:
        store: Address of the store.
        versions: Newest version of each of `ROLES`, as decimal text: a thief of a key chooses any number.
        metadata: The signed metadata of these versions, as JSON.
        channels: Content of the channels' pointers and rollout documents, as `metadata` signs it, by target
            path.
        own_files: Files among them that this machine published, by target path.
        own_channels: Where this machine moved channels; `withdrawn` has only what it withdrew itself.
        withdrawn: Withdrawn releases of channels that have no pointer any more.
        checked_endpoint: Endpoint that was seen to respect the conditions of conditional writes.
    """

    store: str = ""
    versions: dict[str, str] = {}
    metadata: dict[str, str] = {}
    channels: dict[str, str] = {}
    own_files: dict[str, OwnFile] = {}
    own_channels: dict[str, ChannelDocument] = {}
    withdrawn: dict[str, tuple[str, ...]] = {}
    checked_endpoint: str = ""

    def version(self, role: str) -> int:
        """Return the newest version of a role's metadata; 0: none is known."""
        version = self.versions.get(role, "0")
        return int(version) if version.isdecimal() and len(version) <= VERSION_DIGITS else 0

    def withdrawn_from(self, channel: str) -> tuple[str, ...]:
        """Return the releases withdrawn from a channel, as far as they are known without its pointer."""
        own = self.own_channels.get(channel)
        return tuple(
            dict.fromkeys((*self.withdrawn.get(channel, ()), *(own.withdrawn if own is not None else ())))
        )


class PublisherMemory:
    """The memory of one store.

    Args:
        folder: `[trust] memory_dir`.
        store: Address of the store.
    """

    def __init__(self, folder: Path, store: str) -> None:
        self.folder = folder
        self.store = store
        self.path = folder / f"published-{hashlib.sha256(store.encode()).hexdigest()[:16]}.json"
        self._is_reported = False

    def load(self) -> Remembered:
        """Return what is remembered; nothing, where there is no memory or it cannot be used."""
        return self._read(self.path) or Remembered(store=self.store)

    def others(self) -> list[Remembered]:
        """Return what is remembered of other stores."""
        paths = sorted(path for path in self.folder.glob("published-*.json") if path != self.path)
        return [found for path in paths if (found := self._read(path)) is not None]

    def change(self, change: Callable[[Remembered], Remembered]) -> None:
        """Apply a change durably, one process after the other.

        A disk that takes no memory is reported once, as a warning: the publication is out already.
        """
        try:
            with self._lock():
                known = self.load()
                changed = change(known)
                if changed != known:
                    # Nothing in it is secret, and another user of this machine may be the next to publish.
                    write_durably(self.path, encode_document(changed), mode=0o644)
        except DeviceError as e:
            if not self._is_reported:
                self._is_reported = True
                logger.warning(
                    "This machine cannot remember what it published (%s): it will not notice when the bucket "
                    "is older. Set [trust] memory_dir to a folder that stays",
                    e,
                )

    def _read(self, path: Path) -> Remembered | None:
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            _count_as_lost(f"{path}: the memory of what was published cannot be read ({e})")
            return None
        try:
            return decode_document(Remembered, data, source=str(path), limit_bytes=MEMORY_LIMIT_BYTES)
        except InputError as e:
            _count_as_lost(str(e))
            return None

    def _make_folder(self) -> None:
        """Make the folder; root makes it for the owner of the folder that it lies in."""
        if self.folder.is_dir():
            return
        self.folder.mkdir(mode=0o755, parents=True)
        if os.geteuid() == 0:
            owner = self.folder.parent.stat()
            os.chown(self.folder, owner.st_uid, owner.st_gid)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with disk_errors(self.folder):
            self._make_folder()
        with locked_folder(self.folder):
            yield


def _count_as_lost(reason: str) -> None:
    logger.error(
        "%s. It counts as lost: what the bucket shows counts, also if it is older than it was", reason
    )


def remember(
    known: Remembered, metadata: dict[str, str], versions: dict[str, int], channels: dict[str, str]
) -> Remembered:
    """Return the memory with newer metadata.

    Args:
        known: The memory.
        metadata: Signed JSON by role.
        versions: Its versions.
        channels: Content of the channels' pointers by target path.
    """
    texts = {role: str(version) for role, version in versions.items()}
    return msgspec.structs.replace(known, metadata=metadata, versions=texts, channels=channels)


def remember_own(
    known: Remembered,
    files: Mapping[str, OwnFile],
    pointer: ChannelDocument | None,
    before: ChannelDocument | None,
    signed: Collection[str],
    endpoint: str,
) -> Remembered:
    """Return the memory with what this machine published.

    Args:
        known: The memory.
        files: Signed files that it added.
        pointer: The pointer of the channel that it moved, if any.
        before: The pointer that the channel had.
        signed: Paths of all that is signed now.
        endpoint: The store's, which respected the conditions of writes.
    """
    own_files = {path: one for path, one in {**known.own_files, **files}.items() if path in signed}
    own_channels, withdrawn = dict(known.own_channels), dict(known.withdrawn)
    if pointer is not None:
        older = () if before is None else before.withdrawn
        known_own = known.withdrawn_from(pointer.channel)
        own = tuple(one for one in pointer.withdrawn if one not in older or one in known_own)
        own_channels[pointer.channel] = msgspec.structs.replace(pointer, withdrawn=own)
        withdrawn.pop(pointer.channel, None)
    return msgspec.structs.replace(
        known, own_files=own_files, own_channels=own_channels, withdrawn=withdrawn, checked_endpoint=endpoint
    )


def forget_channels(known: Remembered, gone: Mapping[str, Collection[str]]) -> Remembered:
    """Return the memory without the pointers of channels; what was withdrawn from them stays.

    Args:
        known: The memory.
        gone: Releases that were withdrawn, by the channel's name.
    """
    own = {name: one for name, one in known.own_channels.items() if name not in gone}
    kept = {
        name: tuple(dict.fromkeys((*known.withdrawn_from(name), *releases)))
        for name, releases in gone.items()
    }
    return msgspec.structs.replace(known, own_channels=own, withdrawn={**known.withdrawn, **kept})
