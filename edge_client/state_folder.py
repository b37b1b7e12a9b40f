"""One process for each state folder: who holds it, and how a daemon that does is told something.

Whoever changes a state folder locks it: by its lock file, and by the folder itself where there is no such
file and a read-only disk lets nobody make one. The lock file names the daemon that holds it, from the moment
on at which that takes signals; anything else that holds it, an import, is never sent one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.disk import disk_errors
from edge_client.machine import boot_id
from edge_client.settings.file import CHANNELS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
# What tells the daemon that a bundle was left, and nothing else; SIGHUP asks for every channel's newest.
BUNDLE_SIGNAL = signal.SIGUSR2
# The note has one length: it is written over the last one, which a full disk still allows.
_NOTE_BYTES = 96
_DAEMON, _IMPORT = "daemon", "import"
_REFRESH_S = 1.0
# Somebody who asks who holds a folder keeps others out of it for an instant.
_ASKING_S = 1.0
_PAUSE_S = 0.01
_NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}


class StateLock:
    """A state folder that this process holds."""

    def __init__(self, place: Path, descriptor: int) -> None:
        self._place = place
        self._descriptor = descriptor

    @contextlib.contextmanager
    def taking_signals(self) -> Iterator[None]:
        """Name this process, for the block, as a daemon that may be sent signals: it handles them all.

        Never fails: where the disk is read-only or full the daemon serves, and cannot be told anything.
        """
        self._note(f"{os.getpid()} {boot_id() or '-'} {_started_at(os.getpid())} {_DAEMON}")
        try:
            yield
        finally:
            self.clear()

    def take_no_signals(self) -> None:
        """Say that no daemon holds the folder, but something that ends by itself."""
        self._note(_IMPORT)

    def clear(self) -> None:
        """Take the note back; never fails."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._descriptor, 0)

    def _note(self, text: str) -> None:
        try:
            os.pwrite(self._descriptor, f"{text:<{_NOTE_BYTES - 1}}\n".encode(), 0)
            os.ftruncate(self._descriptor, _NOTE_BYTES)
        except OSError:
            logger.warning(
                "%s: cannot be written, the disk is full or read-only: `edge-client update` and `import` "
                "cannot reach this process",
                self._place,
            )


@contextlib.contextmanager
def hold_state(state_dir: Path) -> Iterator[StateLock]:
    """Hold the state folder for this process alone; also on a disk that is full or read-only.

    Raises: DeviceError if another process holds it, or the folder cannot be made.
    """
    with disk_errors(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
        place, descriptor = _hold_within(state_dir, _ASKING_S)
    lock = StateLock(place, descriptor)
    try:
        yield lock
    finally:
        lock.clear()
        os.close(descriptor)


def daemon_runs(state_dir: Path) -> bool:
    """Whether a daemon holds the state folder."""
    note = _read_note(state_dir)
    return note is not None and note.strip() != _IMPORT


def running_process(state_dir: Path) -> int | None:
    """Process id of the daemon that holds the state folder, if it may be sent signals; None otherwise."""
    match (_read_note(state_dir) or "").split():
        case [process, boot, started, kind] if kind == _DAEMON and process.isdecimal():
            # A number outlives its process, on the disk also the machine's start; nobody else is to be hit.
            same = boot in {boot_id(), "-"} and started == _started_at(int(process))
            return int(process) if same else None
        case _:
            return None


def nudge(state_dir: Path, number: signal.Signals = signal.SIGHUP) -> None:
    """Tell the daemon: to look now, and take what it finds.

    Args:
        state_dir: The daemon's.
        number: `BUNDLE_SIGNAL` tells it to take a bundle that was left, and only that.
    Raises: DeviceError if there is none, or it may not be told.
    """
    _tell(state_dir, number)


def refresh_status(state_dir: Path, statuses: Iterable[Path]) -> bool:
    """Have the daemon write its status as it is now; whether it did.

    Args:
        state_dir: The daemon's.
        statuses: The files of all its channels.
    """
    before = {file: _written(file) for file in statuses}
    try:
        _tell(state_dir, signal.SIGUSR1)
    except DeviceError:
        return False
    deadline = time.monotonic() + _REFRESH_S
    while any(_written(file) == written for file, written in before.items()):
        if time.monotonic() > deadline:
            return False
        time.sleep(_PAUSE_S)
    return True


def sweep_channels(settings: Settings) -> None:
    """Remove what channels left on the disk that this device follows no more; never fails.

    Args:
        settings: The device's, whose state folder this process holds.
    """
    folder, followed = settings.device.state_dir / CHANNELS_FOLDER, settings.device.further_channels()
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name not in followed and path.is_dir() and not path.is_symlink():
                logger.info("%s: channel %s is not followed any more; removed", path, path.name)
                shutil.rmtree(path, ignore_errors=True)


def _tell(state_dir: Path, number: signal.Signals) -> None:
    process = running_process(state_dir)
    if process is None and daemon_runs(state_dir):
        msg = (
            f"{state_dir / LOCK_FILE}: does not say which process the daemon is, so it cannot be told; it "
            "just starts, or the disk is full or read-only: mend that, then `systemctl restart edge-client`"
        )
        raise DeviceError(msg)
    if process is None:
        msg = f"{state_dir}: no daemon runs; start `edge-client run`"
        raise DeviceError(msg)
    try:
        os.kill(process, number)
    except OSError as e:
        msg = f"the daemon (process {process}) cannot be told: {e.strerror}; run this as its user, or as root"
        raise DeviceError(msg) from e


def _hold_within(state_dir: Path, limit_s: float) -> tuple[Path, int]:
    """Lock what stands for the folder; return its path and descriptor.

    Raises: DeviceError if another process holds it all the time; OSError.
    """
    deadline = time.monotonic() + limit_s
    while True:
        # Before a lock file is made: without one, somebody may hold the folder itself.
        if _read_note(state_dir) is None:
            place, descriptor = _open_place(state_dir)
            if _lock(descriptor, fcntl.LOCK_EX):
                return place, descriptor
            os.close(descriptor)
        if time.monotonic() > deadline:
            msg = f"{state_dir}: another edge-client uses it; stop that, or give each a [device] state_dir"
            raise DeviceError(msg)
        time.sleep(_PAUSE_S)


def _open_place(state_dir: Path) -> tuple[Path, int]:
    """Open the lock file, made if need be, or else what stands for the folder without it.

    Raises: OSError.
    """
    place = state_dir / LOCK_FILE
    try:
        return place, os.open(place, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as e:
        if e.errno not in _NO_WRITING:
            raise
    return _open_to_read(state_dir)


def _open_to_read(state_dir: Path) -> tuple[Path, int]:
    """Open what stands for the folder, and change nothing.

    Raises: OSError.
    """
    place = state_dir / LOCK_FILE
    try:
        return place, os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return state_dir, os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)


def _read_note(state_dir: Path) -> str | None:
    """Return what the holder of a state folder wrote; None if nobody holds it, or it may not be read."""
    try:
        place, descriptor = _open_to_read(state_dir)
    except OSError:
        return None
    try:
        # A shared lock: two that ask at once must not take each other for the holder.
        if _lock(descriptor, fcntl.LOCK_SH):
            return None
        return "" if place == state_dir else os.pread(descriptor, _NOTE_BYTES, 0).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _started_at(process: int) -> str:
    """Return when a process started, in ticks since the machine's start; `-` where that is not told."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "-"
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5): the name before may hold anything


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
