"""Store in a local folder: one machine, or a notebook, that needs no S3.

An object is a file; its key is the path below the folder. Writes are made in `.staging`, synced and renamed
into place, so that readers (also a web server or a device on the same folder) find whole files only, and a
power cut leaves the old or the new content. Names with a dot in front belong to the store itself and to
file browsers: they are neither keys nor listed. A link is no object, and is not followed but directly below
the store's folder, where its owner may put a folder elsewhere: devices write further down, and a link of
theirs would have the whole disk read.

`flock` on `.staging/lock` orders the writers of all processes: shared around a rename; exclusive around
compare-and-rename, and around a removal, which also removes emptied folders. Network file systems may not
pass such locks on to other machines.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import itertools
import os
import secrets
import stat
import time
from typing import TYPE_CHECKING, BinaryIO

from edge_client.contract.errors import EdgeError, InputError, SettingsError, TransportError
from edge_client.contract.file_urls import folder_of_url
from edge_client.disk import sync_folder
from luigi_tasks.storage.limits import limit_of, too_large
from luigi_tasks.storage.store import (
    ListedObject,
    StoreConflictError,
    StoredObject,
    TooLargeError,
    read_existing,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from luigi_tasks.settings.values import StoreSettings

STAGING_FOLDER = ".staging"
_LOCK = "lock"
# No write takes so long; only a killed process leaves a file behind.
LEFTOVER_AGE_S = 24 * 3600.0
_CHUNK_BYTES = 1 << 20

_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
# A part of the path is not there, or is an object: there is no object of that key.
_ABSENT = (FileNotFoundError, NotADirectoryError)


class FolderStore:
    """Objects below one folder; see `Store`.

    The folder itself is made by the first write; what it lies in must be there, since it may be a disk
    that is not mounted.
    """

    def __init__(self, settings: StoreSettings) -> None:
        """Touch nothing yet.

        Raises: SettingsError if `url` is not file:///folder.
        """
        self.folder = folder_of_url(settings.url)
        self._swept = False

    @property
    def is_conditional(self) -> bool:
        """True: a lock orders conditional writes."""
        return True

    @property
    def endpoint(self) -> str:
        """The file system of this machine."""
        return "file"

    def url(self, key: str) -> str:
        """file:// address of a key, for messages."""
        return f"{self.folder.as_uri()}/{key}"

    def exists(self, key: str) -> bool:
        """Whether the object exists."""
        path = self._path(key)
        with _disk_errors(path):
            try:
                return stat.S_ISREG(path.lstat().st_mode)
            except _ABSENT:
                self._check_folder()
                return False

    def get(self, key: str, *, limit_bytes: int | None = None) -> StoredObject | None:
        """Return the object, or None if there is none.

        Raises: as `Store.get`.
        """
        path = self._path(key)
        with _disk_errors(path):
            file = self._open(path)
            if file is None:
                self._check_folder()
                return None
            with file:
                limit = limit_of(key) if limit_bytes is None else limit_bytes
                size_bytes = os.fstat(file.fileno()).st_size
                if size_bytes <= limit:
                    data = file.read(limit + 1)  # it may grow meanwhile
                    size_bytes = len(data)
                if size_bytes > limit:
                    raise TooLargeError(too_large(self.url(key), size_bytes, limit))
        return StoredObject(data, hashlib.sha256(data).hexdigest())

    def list_folder(self, folder: str) -> tuple[ListedObject, ...]:
        """Return all objects whose keys start with `folder` ("" or ending in /), by key.

        Their ETags are hashes of their contents, so all of them are read that `get` would read.
        """
        return self._list(folder, self._listed)

    def list_unread(self, folder: str, after: str = "") -> tuple[ListedObject, ...]:
        """Return the objects of `list_folder` whose keys come after `after`, without opening any."""
        return tuple(one for one in self._list(folder, _listed_unread) if one.key > after)

    def _list(
        self, folder: str, listed: Callable[[Path, str], ListedObject | None]
    ) -> tuple[ListedObject, ...]:
        key = folder.removesuffix("/")
        start = self._path(key) if key else self.folder
        with _disk_errors(start):
            walked = self._walk(start, f"{key}/" if key else "")
            found = [one for one in itertools.starmap(listed, walked) if one is not None]
            if not found:
                self._check_folder()
        return tuple(sorted(found, key=lambda one: one.key))

    def read(self, key: str) -> bytes:
        """Return the object's content.

        Raises: TransportError if it does not exist.
        """
        return read_existing(self, key)

    def put(self, key: str, data: bytes, *, content_type: str = "application/octet-stream") -> None:
        """Write the object; it appears atomically. A folder keeps no `content_type`."""
        del content_type
        path = self._path(key)
        with _disk_errors(path), self._staged(data) as staged, self._lock(fcntl.LOCK_SH):
            self._rename(staged, path)

    def delete(self, key: str) -> None:
        """Remove the object, and the folders that this empties; a missing one is not an error.

        Folders directly below the store's stay: a device uploads only where `inbox/` exists.
        """
        path = self._path(key)
        with _disk_errors(path):
            if not self.exists(key):
                return
            with self._lock(fcntl.LOCK_EX), contextlib.suppress(*_ABSENT):
                path.unlink()
                sync_folder(path.parent)
                self._remove_empty(path.parent)

    def put_if_unchanged(self, key: str, data: bytes, etag: str | None) -> None:
        """Write the object only if it still is the version `etag` (None: only if there is none).

        Raises: StoreConflictError if it is not.
        """
        path = self._path(key)
        with _disk_errors(path), self._staged(data) as staged, self._lock(fcntl.LOCK_EX):
            if self._etag(path) != etag:
                msg = f"{self.url(key)}: changed by another process meanwhile"
                raise StoreConflictError(msg)
            self._rename(staged, path)

    def presign_url(self, key: str, valid_s: int) -> str:
        """Return the file's own address: a folder neither signs nor expires."""
        del valid_s
        return self._path(key).as_uri()

    def _path(self, key: str) -> Path:
        """Place of a key.

        Raises: InputError for one that leaves the folder, or that belongs to the store itself.
        """
        if any(not part or part.startswith(".") for part in key.split("/")) or "\0" in key:
            msg = (
                f"{key[:200]!r}: cannot be a key of a folder store: no part of it may be empty or begin "
                "with a dot, and it does not begin or end in /"
            )
            raise InputError(msg)
        return self.folder / key

    def _check_folder(self) -> None:
        """Tell a missing object from a missing store.

        Raises: SettingsError.
        """
        try:
            fault = "" if stat.S_ISDIR(self.folder.stat().st_mode) else "is not a folder"
        except _ABSENT:
            parent = self.folder.parent
            fault = "" if parent.is_dir() else f"{parent} does not exist"
        if fault:
            msg = f"{self.folder}: {fault}; create or mount it, or correct [store] url"
            raise SettingsError(msg)

    @staticmethod
    def _open(path: Path) -> BinaryIO | None:
        """Open an object; None if there is none. FIFOs and links are ignored, without blocking."""
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        except _ABSENT:
            return None
        except OSError as e:
            if e.errno == errno.ELOOP:
                return None
            raise
        file = os.fdopen(descriptor, "rb") if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
        if file is None:
            os.close(descriptor)
        return file

    def _etag(self, path: Path) -> str | None:
        """Hash of an object; None if there is none. Equal content is the same version, as in S3."""
        file = self._open(path)
        if file is None:
            return None
        digest = hashlib.sha256()
        with file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[Path, str]]:
        try:
            found = os.scandir(folder)
        except _ABSENT:
            return
        with found:
            entries = [one for one in found if not one.name.startswith(".")]
        for one in entries:
            if one.is_dir(follow_symlinks=not prefix):
                yield from self._walk(folder / one.name, f"{prefix}{one.name}/")
            else:
                yield folder / one.name, prefix + one.name

    def _listed(self, path: Path, key: str) -> ListedObject | None:
        """Return an object of a listing; None if it was deleted since."""
        with _disk_errors(path), contextlib.suppress(*_ABSENT):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_size > limit_of(
                key
            ):  # a hole of a terabyte is quick
                unread = f"{status.st_size}-{status.st_mtime_ns}"
                return ListedObject(key, status.st_size, unread, written_at=status.st_mtime)
            if (etag := self._etag(path)) is not None:
                return ListedObject(key, status.st_size, etag, written_at=status.st_mtime)
        return None

    @contextlib.contextmanager
    def _staged(self, data: bytes) -> Iterator[Path]:
        """Give the block a synced file that it renames; it is as readable to others as the umask allows."""
        staging = self._open_staging()
        path = staging / f"{os.getpid()}-{secrets.token_hex(8)}"
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield path
        finally:
            with contextlib.suppress(OSError):
                path.unlink()  # not there any more where the block renamed it

    def _open_staging(self) -> Path:
        staging = self.folder / STAGING_FOLDER
        if not staging.is_dir():
            self._check_folder()
            self._make_folder(staging)
        if not self._swept:
            self._swept = True
            _remove_leftovers(staging)
        return staging

    @contextlib.contextmanager
    def _lock(self, kind: int) -> Iterator[None]:
        """Hold the store's lock; it is released when the process exits."""
        # Opened for reading: the lock file may be another user's.
        lock = self.folder / STAGING_FOLDER / _LOCK
        descriptor = os.open(lock, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _rename(self, staged: Path, path: Path) -> None:
        """Put a staged file into place, durably."""
        self._make_folder(path.parent)
        staged.replace(path)
        sync_folder(path.parent)

    def _make_folder(self, folder: Path) -> None:
        """Create a folder and those that it lies in, up to the store's own, durably."""
        if folder.is_dir():
            return
        if folder != self.folder:
            self._make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            sync_folder(folder.parent)
        if not folder.is_dir() and folder.exists():
            msg = f"{folder}: is an object; a folder store cannot have others below its key, as S3 can"
            raise InputError(msg)

    def _remove_empty(self, folder: Path) -> None:
        while self.folder not in {folder, folder.parent}:
            try:
                folder.rmdir()  # refused while anything is in it
            except OSError:
                return
            folder = folder.parent


def _listed_unread(path: Path, key: str) -> ListedObject | None:
    """Return an object of a listing by what its folder tells; None if it is none, or was deleted since."""
    with _disk_errors(path), contextlib.suppress(*_ABSENT):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            version = f"{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
            return ListedObject(key, status.st_size, version, written_at=status.st_mtime)
    return None


def _remove_leftovers(staging: Path) -> None:
    """Remove what killed writers left."""
    for path in staging.iterdir():
        with contextlib.suppress(OSError):
            if path.name != _LOCK and time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an error that names `path` and the way out."""
    try:
        yield
    except OSError as e:
        raise _explained(e, path) from e


def _explained(error: OSError, path: Path) -> EdgeError:
    reason = f"{path}: {error.strerror or error}"
    if error.errno in _DENIED:
        return SettingsError(
            f"{reason}; let this user read and write there (ls -l, mount), or correct [store] url"
        )
    if error.errno in _FULL:
        return TransportError(f"{reason}; free some space there (df), then run again")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(f"{reason}; a file name has at most 255 bytes here")
    if error.errno in {errno.EISDIR, errno.ENOTEMPTY}:
        return InputError(
            f"{reason}; a folder store cannot have an object and others below its key: remove the folder"
        )
    if error.errno == errno.EXDEV:
        return SettingsError(f"{reason}; all of the store has to be on one disk")
    return TransportError(f"{reason}; run again")
