"""The disk: every write of state is whole or absent, also after a power cut; every error names its path."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import DeviceError
from edge_client.contract.names import RELEASE_FILE
from edge_client.contract.release import RELEASE_LIMIT_BYTES, ReleaseDocument

if TYPE_CHECKING:
    from collections.abc import Iterator


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str:
    """Return what is the same until the machine starts anew; empty where that is not known."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def write_durably(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: temp file in the same folder, fsync, rename, fsync of the folder.

    Raises: DeviceError if the disk refuses; `path` then still has its old content.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
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
    """Make renames within `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into a DeviceError that names `path`."""
    try:
        yield
    except OSError as e:
        msg = f"{path}: {e.strerror or e}; check free space (df) and that the disk is writable"
        raise DeviceError(msg) from e


def read_release(folder: Path) -> ReleaseDocument:
    """Read `release.json` of a release on disk.

    Raises: DeviceError if it cannot be read; InputError if it is malformed.
    """
    path = folder / RELEASE_FILE
    with disk_errors(path):
        data = path.read_bytes()
    return decode_document(ReleaseDocument, data, source=str(path), limit_bytes=RELEASE_LIMIT_BYTES)
