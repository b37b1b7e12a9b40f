"""The small files of the board's folder: read whole, written durably, by its service and by a person.

Root, which runs `edge-fleet board-token` beside a service, works as the owner of the folder: files stay
readable for the service, and no link in its folder leads root elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.disk import locked_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECRET_BYTES = 32


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make the folder if need be, and let nobody else change its files meanwhile.

    Raises: DeviceError.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _as_owner(folder), locked_folder(folder):
            yield
    except (OSError, DeviceError) as e:
        cause = e if isinstance(e, OSError) else e.__cause__
        said = cause.strerror if isinstance(cause, OSError) else str(e)
        msg = (
            f"[board] state_dir {folder}: {said}; it needs a folder on a local disk with free space that the "
            "board's user may write"
        )
        raise DeviceError(msg) from e


def read_secret(folder: Path) -> bytes:
    """Return the board's secret, which is made at its first start; it outlives restarts.

    Raises: DeviceError.
    """
    path = folder / "secret"
    with locked(folder):
        if path.exists():
            found = path.read_bytes()
            if len(found) == _SECRET_BYTES:
                return found
        made = secrets.token_bytes(_SECRET_BYTES)
        write_durably(path, made)
        return made


@contextlib.contextmanager
def _as_owner(folder: Path) -> Iterator[None]:
    owner = folder.stat()
    if os.geteuid() != 0 or owner.st_uid == 0:
        yield
        return
    group = os.getegid()
    try:
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    except OSError as e:
        msg = f"belongs to user {owner.st_uid}, whom root cannot become here: run it as that user"
        raise DeviceError(msg) from e
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(group)
