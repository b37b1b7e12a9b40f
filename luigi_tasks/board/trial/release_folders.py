"""Releases on the board's disk, as a device has them in a slot: read through the signed repository, verified.

A folder is named after the SHA-256 of its `release.json`, which the repository signs; the document has that
of the model. Both are compared at each use, and again by what loads the model: who writes there changes no
answer.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.names import LABELS_FILE, MODEL_FILE, RELEASE_FILE, check_name, release_target
from edge_client.disk import disk_errors, write_durably
from luigi_tasks.board.pictures.orders import ReleaseFolder
from luigi_tasks.board.releases.reader import apart

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.release.published import RepositoryState

# Kept: those used last. A MobileNet in int8 has 3 MB, a ResNet50 in float 100.
KEPT_RELEASES, KEPT_BYTES = 20, 1 << 30
_PART_BYTES = 1 << 20
_FILES = (LABELS_FILE, MODEL_FILE, RELEASE_FILE)


class ReleaseFolders:
    """Releases on disk; may be used from any thread.

    Args:
        folder: Where they are kept; made when needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._used: collections.Counter[str] = collections.Counter()

    @contextlib.contextmanager
    def holding(self, state: RepositoryState, release: str) -> Iterator[ReleaseFolder]:
        """Keep a release on disk for the block.

        Args:
            state: The signed repository.
            release: Id of the release.
        Raises: InputError if it is not signed; TrustError if the bucket has something else; TransportError;
            DeviceError.
        """
        digest = self._digest(state, release)
        with self._lock:  # also: one download at once
            folder = self._fetch(state, release, digest)
            self._used[digest] += 1
        try:
            yield ReleaseFolder(release=release, folder=str(folder), digest=digest)
        finally:
            with self._lock:
                self._used[digest] -= 1

    @staticmethod
    def _digest(state: RepositoryState, release: str) -> str:
        path = release_target(check_name(release, "release"), RELEASE_FILE)
        if path not in state.files:
            msg = f"release {release!r} is not signed here; `edge-fleet releases` lists those that are"
            raise InputError(msg)
        return _signed_digest(state, release, RELEASE_FILE)

    def _fetch(self, state: RepositoryState, release: str, digest: str) -> Path:
        folder = self._folder / check_name(digest, "digest")
        if all(_is_signed(folder / name, _signed_digest(state, release, name)) for name in _FILES):
            with contextlib.suppress(OSError):
                os.utime(folder)
            return folder
        shutil.rmtree(folder, ignore_errors=True)
        self._make_room()
        reader = apart(state)  # a state keeps what it read: a model would stay in this process
        with disk_errors(folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(dir=self._folder, prefix="."))
        try:
            for name in _FILES:
                write_durably(temporary / name, reader.read(release_target(release, name)))
            with disk_errors(folder):
                temporary.replace(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return folder

    def _make_room(self) -> None:
        """Remove those used longest ago, and what a crash left."""
        if not self._folder.is_dir():
            return
        with disk_errors(self._folder):
            found = [(one.stat().st_mtime, _size(one), one) for one in self._folder.iterdir() if one.is_dir()]
        kept = total = 0
        for _, size, one in sorted(found, reverse=True):
            kept, total = kept + 1, total + size
            is_over = kept >= KEPT_RELEASES or total > KEPT_BYTES or one.name.startswith(".")
            if is_over and not self._used[one.name]:
                shutil.rmtree(one, ignore_errors=True)


def _signed_digest(state: RepositoryState, release: str, name: str) -> str:
    return str(state.files[release_target(release, name)].hashes["sha256"])


def _is_signed(path: Path, digest: str) -> bool:
    """Whether a file has the signed content; read in parts, since a model may be large."""
    found = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                found.update(part)
    except OSError:
        return False
    return found.hexdigest() == digest


def _size(folder: Path) -> int:
    return sum(one.stat().st_size for one in folder.iterdir())
