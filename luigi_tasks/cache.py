"""Folders of the local cache: each is there whole or not at all.

A folder is filled beside its place and renamed into it. Processes may do so at once: each fills a
folder of its own, the first rename wins, and the others find what they would have written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator

STAGING_PREFIX = ".staging."
# Nothing that is still being filled is that old; only a killed process leaves one behind.
LEFTOVER_AGE_S = 2 * 24 * 3600.0

# Faults of the disk, as against those of a file's content or name.
DISK_FAULTS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
)


@contextlib.contextmanager
def staged_folder(folder: Path) -> Iterator[Path]:
    """Give the block an empty folder; what it puts into `content` below that becomes `folder`.

    If the block raises, `folder` does not appear and nothing stays on disk.
    Raises: SettingsError if the disk refuses.
    """
    with _disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        _drop_leftovers(folder.parent)
        staging = Path(tempfile.mkdtemp(dir=folder.parent, prefix=STAGING_PREFIX))
        try:
            content = staging / "content"
            content.mkdir()
            yield staging
            os.sync()  # one call for thousands of files: after a power cut no file is empty
            _move(content, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _move(content: Path, folder: Path) -> None:
    try:
        content.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        # Another process was faster.


def _drop_leftovers(parent: Path) -> None:
    for path in parent.glob(f"{STAGING_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(path, ignore_errors=True)


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
