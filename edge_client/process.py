"""One daemon for each state folder: who holds it, and how that one is told something."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.files import disk_errors

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOCK_FILE = "lock"
_REFRESH_S = 1.0


@contextlib.contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process alone.

    Raises: DeviceError if another daemon holds it, or the folder cannot be made.
    """
    path = state_dir / LOCK_FILE
    with disk_errors(path):
        state_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a")  # not emptied: another daemon's number may stand there
    with file:
        if not _try_lock(file.fileno()):
            msg = f"{state_dir}: another edge-client uses it; stop that, or give each a [device] state_dir"
            raise DeviceError(msg)
        with disk_errors(path):
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
        yield


def running_process(state_dir: Path) -> int | None:
    """Process id of the daemon that holds the state folder; None if there is none."""
    try:
        with (state_dir / LOCK_FILE).open() as file:
            return None if _try_lock(file.fileno()) else int(file.read() or 0) or None
    except (OSError, ValueError):
        return None


def nudge(state_dir: Path) -> None:
    """Make the daemon look now, and take what it finds.

    Raises: DeviceError if there is none, or it may not be told.
    """
    _tell(state_dir, signal.SIGHUP)


def refresh_status(state_dir: Path, status: Path) -> None:
    """Have the daemon write its status as it is now; does nothing if it does not, or may not be told.

    Args:
        state_dir: The daemon's.
        status: The file, of any of its channels.
    """
    before = _written(status)
    with contextlib.suppress(DeviceError):
        _tell(state_dir, signal.SIGUSR1)
        deadline = time.monotonic() + _REFRESH_S
        while _written(status) == before and time.monotonic() < deadline:
            time.sleep(_REFRESH_S / 100)


def _tell(state_dir: Path, number: signal.Signals) -> None:
    process = running_process(state_dir)
    if process is None:
        msg = f"{state_dir}: no daemon runs; start `edge-client run`"
        raise DeviceError(msg)
    try:
        os.kill(process, number)
    except OSError as e:
        msg = f"the daemon (process {process}) cannot be told: {e.strerror}; run this as its user, or as root"
        raise DeviceError(msg) from e


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
