"""Durable writes: after a power cut a file has its old or its new content; errors name the path."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError

if TYPE_CHECKING:
    from collections.abc import Iterator

# Scratch folders of update checks, below the state folder; version 0.1 named them `.look-*`.
SCRATCH_PREFIX = ".check-"
SCRATCH_PATTERNS = (f"{SCRATCH_PREFIX}*", ".look-*")


def write_durably(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` by `data`: temp file in the same folder, fsync, rename, fsync of the folder.

    Raises: DeviceError if writing fails; `path` then still has its old content.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Fsync `folder`, which makes renames within it durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for the block, against all other processes that hold it so.

    Raises: DeviceError if it cannot be opened or locked.
    """
    with disk_errors(folder):
        descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with disk_errors(folder):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a DeviceError that names `path`."""
    try:
        yield
    except PermissionError as e:
        msg = (
            f"{path}: {e.strerror or e}; another user owns it or its folder: `sudo edge-client doctor` gives "
            "files of the state folder that root made back, else `chown` it, or set [device] state_dir to "
            "another folder"
        )
        raise DeviceError(msg) from e
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as e:
        msg = (
            f"{path}: {e.strerror or e}; something else is in the way, or a link leads to a disk that is "
            "away: remove it, mount the disk, or correct the setting that names this path"
        )
        raise DeviceError(msg) from e
    except OSError as e:
        msg = f"{path}: {e.strerror or e}; check free space (df) and that the disk is writable"
        raise DeviceError(msg) from e
