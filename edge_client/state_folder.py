"""Lock of a state folder, and signals to the daemon that holds it.

A process that changes a state folder locks it: by its lock file, or by the folder itself where a read-only
disk allows no such file. The lock file names the daemon that holds it, once the daemon handles signals; an
import, which holds it too, is never sent one.
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
    from collections.abc import Callable, Iterable, Iterator

    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
# Tells the daemon that a bundle was left, and nothing else; SIGHUP requests the release of every channel.
BUNDLE_SIGNAL = signal.SIGUSR2
# The note has a fixed length: it overwrites the last one, which a full disk still allows.
_NOTE_BYTES = 96
_DAEMON, _IMPORT = "daemon", "import"
_REFRESH_S = 1.0
# Reading the note locks the folder for an instant; a start waits so long.
_ASKING_S = 1.0
_PAUSE_S = 0.01
_NO_WRITING = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT}


class StateLock:
    """Lock on a state folder that this process holds."""

    def __init__(self, place: Path, descriptor: int) -> None:
        self._place = place
        self._descriptor = descriptor

    @contextlib.contextmanager
    def accepting_signals(self) -> Iterator[None]:
        """Name this process in the lock file, for the block, as a daemon that handles all signals.

        Never fails: on a read-only or full disk the daemon serves, but cannot be sent signals.
        """
        self._note(f"{os.getpid()} {boot_id() or '-'} {_started_at(os.getpid())} {_DAEMON}")
        try:
            yield
        finally:
            self.clear()

    def refuse_signals(self) -> None:
        """Note in the lock file that an import holds the folder, which ends by itself."""
        self._note(_IMPORT)

    def clear(self) -> None:
        """Remove the note; never fails."""
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
def hold_state(state_dir: Path, sleep: Callable[[float], None] = time.sleep) -> Iterator[StateLock]:
    """Hold the state folder for this process alone; also on a disk that is full or read-only.

    Raises: DeviceError if another process holds it, or the folder cannot be made.
    """
    with disk_errors(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
        place, descriptor = _hold_within(state_dir, _ASKING_S, sleep)
    lock = StateLock(place, descriptor)
    try:
        yield lock
    finally:
        lock.clear()
        os.close(descriptor)


def daemon_runs(state_dir: Path) -> bool:
    """Return whether a daemon holds the state folder."""
    note = _read_note(state_dir)
    return note is not None and note.strip() != _IMPORT


def running_process(state_dir: Path) -> int | None:
    """Return the process id of the daemon that holds the state folder; None if it cannot be signalled."""
    match (_read_note(state_dir) or "").split():
        case [process, boot, started, kind] if kind == _DAEMON and process.isdecimal():
            # The note may outlive the process, and the boot: a signal must not hit another process of that
            # number.
            same = boot in {boot_id(), "-"} and started == _started_at(int(process))
            return int(process) if same else None
        case _:
            return None


def signal_daemon(state_dir: Path, number: signal.Signals = signal.SIGHUP) -> None:
    """Tell the daemon to install the channels' releases now.

    Args:
        state_dir: State folder of the daemon.
        number: `BUNDLE_SIGNAL` makes it import a waiting bundle, and only that.
    Raises: DeviceError if no daemon runs, or this user may not send it signals.
    """
    _tell(state_dir, number)


def refresh_status(
    state_dir: Path, statuses: Iterable[Path], sleep: Callable[[float], None] = time.sleep
) -> bool:
    """Let the daemon write its current status; return whether it did.

    Args:
        state_dir: State folder of the daemon.
        statuses: Status files of all its channels.
        sleep: Waits that many seconds.
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
        sleep(_PAUSE_S)
    return True


def sweep_channels(settings: Settings) -> None:
    """Remove the state of channels that this device does not follow any more; never fails.

    Args:
        settings: Settings of the device, whose state folder this process holds.
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
            f"{state_dir / LOCK_FILE}: does not name the daemon's process, so it cannot be signalled; it is "
            "starting, or the disk is full or read-only: mend that, then `systemctl restart edge-client`"
        )
        raise DeviceError(msg)
    if process is None:
        msg = f"{state_dir}: no daemon runs; start `edge-client run`"
        raise DeviceError(msg)
    try:
        os.kill(process, number)
    except OSError as e:
        msg = f"the daemon (process {process}) cannot be signalled: {e.strerror}; run as its user or as root"
        raise DeviceError(msg) from e


def _hold_within(state_dir: Path, limit_s: float, sleep: Callable[[float], None]) -> tuple[Path, int]:
    """Lock the lock file, or the folder without one; return its path and descriptor.

    Raises: DeviceError if another process holds it for longer than `limit_s`; OSError.
    """
    deadline = time.monotonic() + limit_s
    while True:
        # Before a lock file is made: without one, another process may hold the folder itself.
        if _read_note(state_dir) is None:
            place, descriptor = _open_place(state_dir)
            if _lock(descriptor, fcntl.LOCK_EX):
                return place, descriptor
            os.close(descriptor)
        if time.monotonic() > deadline:
            msg = f"{state_dir}: another edge-client uses it; stop that, or give each a [device] state_dir"
            raise DeviceError(msg)
        sleep(_PAUSE_S)


def _open_place(state_dir: Path) -> tuple[Path, int]:
    """Open the lock file, created if need be, or the folder where that is impossible.

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
    """Open the lock file, or the folder without one; change nothing.

    Raises: OSError.
    """
    place = state_dir / LOCK_FILE
    try:
        return place, os.open(place, os.O_RDONLY)
    except FileNotFoundError:
        return state_dir, os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)


def _read_note(state_dir: Path) -> str | None:
    """Return the note of the process that holds a state folder; None if none does, or it cannot be read."""
    try:
        place, descriptor = _open_to_read(state_dir)
    except OSError:
        return None
    try:
        # A shared lock: two readers must not mistake each other for the holder.
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
    """Return when a process started, in ticks since the boot; `-` where that is unknown."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return "-"
    return stat.rpartition(")")[2].split()[19]  # field 22 of proc(5); the name before it may contain anything


def _written(path: Path) -> int | None:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return None
