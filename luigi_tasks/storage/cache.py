"""The local cache: whole folders, and files that can be made again. Entries appear atomically.

A folder or file is written under a temporary name and renamed into place. Processes may do so at the same
time: whichever is later finds the entry that it would have written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.storage.store import Store

STAGING_PREFIX = ".staging."
# Nothing that is still being filled is that old; only a killed process leaves one behind.
LEFTOVER_AGE_S = 2 * 24 * 3600.0

# Faults of the disk, as against those of a file's content or name.
DISK_FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
)

DIGEST_BYTES = 32

logger = logging.getLogger("luigi-interface")


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give the block an empty folder; what it puts into `content` below that becomes `folder`.

    If the block raises, `folder` does not appear and nothing stays on disk.
    Raises: SettingsError if the disk refuses.
    """
    with _disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        drop_leftovers(folder.parent)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=STAGING_PREFIX))
        try:
            content = staging / "content"
            content.mkdir()
            yield staging
            os.sync()  # one call for thousands of files: after a power cut no file is empty
            _move(content, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Give the block an empty folder in `parent`, which is gone after it.

    Raises: SettingsError if the disk refuses.
    """
    with _disk_errors(parent):
        parent.mkdir(parents=True, exist_ok=True)
        drop_leftovers(parent)
        staging = Path(tempfile.mkdtemp(dir=parent, prefix=STAGING_PREFIX))
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _move(content: Path, folder: Path) -> None:
    try:
        content.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another process was faster.


def drop_leftovers(parent: Path) -> None:
    """Remove stale staging files of killed processes."""
    for path in parent.glob(f"{STAGING_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()


@contextlib.contextmanager
def _disk_errors(parent: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        msg = (
            f"{e.filename or parent}: {e.strerror or e}; free some space, or let [dataset] cache_dir name a "
            "folder that can be written"
        )
        raise SettingsError(msg) from e


class ContentCache:
    """Files that can be made again: each carries its digest, so a damaged one is found and deleted.

    Any number of processes may write the same one at once. A disk that refuses costs speed, never a
    run: what cannot be kept is made again next time.

    Args:
        folder: The cache's own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._usable = True

    def get(self, name: str) -> bytes | None:
        """Return what was put under this name, or None if there is no intact entry."""
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError:
            return None
        content, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:
            return content
        logger.warning("%s: damaged cache entry; computing it again", path)
        path.unlink(missing_ok=True)
        return None

    def read(self, store: Store, key: str, sha256: str) -> bytes:
        """Return an object of the store, from this cache where it is there.

        Raises: TransportError if it is gone; InputError if the store's copy has another SHA-256.
        """
        data = self.get(sha256)
        if data is None:
            data = store.read(key)
            if hashlib.sha256(data).hexdigest() != sha256:
                msg = f"{store.url(key)}: damaged in the store; remove it and run again"
                raise InputError(msg)
            self.put(sha256, data)
        return data

    def put(self, name: str, content: bytes) -> None:
        """Keep a file."""
        if not self._usable:
            return
        path = self._path(name)
        staging = path.with_name(f"{STAGING_PREFIX}{os.getpid()}-{threading.get_ident()}-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with staging.open("wb") as file:
                file.write(content)
                file.write(hashlib.sha256(content).digest())
            staging.replace(path)
        except OSError as e:
            self._usable = False
            logger.warning(
                "%s: %s; continuing without this cache. Free some space, or let [dataset] "
                "cache_dir name a folder that can be written",
                self.folder,
                e.strerror or e,
            )
            with contextlib.suppress(OSError):
                staging.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        # 256 folders: a million files in one would be slow to list.
        return self.folder / name[:2] / name
