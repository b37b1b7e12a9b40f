"""Lock of a state folder, and signals to the daemon that holds it.

A process that changes a state folder locks the folder itself, and its lock file: version 0.1 locks the file
only, and some file systems (NFS) lock no folder. A lock file that is removed therefore lets nobody else in.
The lock file names the daemon that holds the folder, once the daemon handles signals; an import, which
holds it too, is never sent one. The daemon writes a lock file that was removed again. On a file system that
locks neither folders nor files, nothing keeps a second process out.

Nothing here follows a link or trusts what is in the place of the lock file: others may have put it there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import fcntl
import logging
import os
import secrets
import shutil
import signal
import stat
import threading
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
# Asks the daemon to forget all refusals at the next request; an older daemon, which does not know it, is not
# harmed as it would be by another signal.
RETRY_FILE = "retry"
# Tells the daemon that a bundle was left, and nothing else; SIGHUP requests the release of every channel.
BUNDLE_SIGNAL = signal.SIGUSR2
# The note has a fixed length: it overwrites the last one, which a full disk still allows.
_NOTE_BYTES = 96
_DAEMON, _IMPORT = "daemon", "import"
_REFRESH_S = 1.0
# Reading the note locks the folder for an instant; a start waits so long.
_ASKING_S = 1.0
_PAUSE_S = 0.01
# Interval of looks at whether the lock file is still there.
_RENEW_S = 10.0


class _Locking(enum.Enum):
    """Result of a try to lock a file or folder."""

    DONE = enum.auto()
    HELD = enum.auto()  # another process holds it
    UNSUPPORTED = enum.auto()  # by the file system


@dataclasses.dataclass
class _Held:
    """Descriptors that hold a state folder; without a lock file where none can be opened.

    Attributes:
        folder: Descriptor of the folder.
        file: Descriptor of the lock file.
    """

    folder: int
    file: int | None

    def close(self) -> None:
        os.close(self.folder)
        if self.file is not None:
            os.close(self.file)


class StateLock:
    """Lock on a state folder that this process holds."""

    def __init__(self, state_dir: Path, held: _Held) -> None:
        self._state_dir = state_dir
        self._held = held
        self._text = ""
        self._written = True
        self._changing = threading.Lock()

    @contextlib.contextmanager
    def accepting_signals(self) -> Iterator[None]:
        """Name this process in the lock file, for the block, as a daemon that handles all signals.

        Never fails: on a read-only or full disk the daemon serves, but cannot be sent signals.
        """
        self._note(f"{os.getpid()} {boot_id() or '-'} {_started_at(os.getpid())} {_DAEMON}")
        ended = threading.Event()
        renewing = threading.Thread(target=self._renew_until, args=(ended,), name="lock", daemon=True)
        renewing.start()
        try:
            yield
        finally:
            ended.set()
            renewing.join()
            self.clear()

    def refuse_signals(self) -> None:
        """Note in the lock file that an import holds the folder, which ends by itself."""
        self._note(_IMPORT)

    def clear(self) -> None:
        """Remove the note; never fails."""
        with self._changing, contextlib.suppress(OSError):
            self._text = ""
            if self._held.file is not None:
                os.ftruncate(self._held.file, 0)

    def renew(self) -> None:
        """Lock anew where somebody removed or replaced the lock file, or the folder; never fails."""
        with self._changing, contextlib.suppress(OSError):
            if not _is(self._held.folder, self._state_dir.resolve()):
                if (held := _try_hold(self._state_dir)) is None:
                    logger.error("%s: was replaced, and another edge-client uses it now", self._state_dir)
                    return
                self._held.close()
                self._held = held
            elif self._is_noted():
                return
            else:
                file = _open_lock_file(self._state_dir)
                if self._held.file is not None:
                    os.close(self._held.file)
                self._held.file = file
                if file is not None:
                    _lock(file, fcntl.LOCK_EX)
            self._write()

    def close(self) -> None:
        """Let the folder go."""
        self.clear()
        self._held.close()

    def _renew_until(self, ended: threading.Event) -> None:
        while not ended.wait(_RENEW_S):
            self.renew()

    def _note(self, text: str) -> None:
        with self._changing:
            self._text = text
            self._write()

    def _is_noted(self) -> bool:
        """Whether the lock file is in its place and has the note."""
        file = self._held.file
        if file is None or not _is(file, self._state_dir / LOCK_FILE):
            return False
        return os.pread(file, _NOTE_BYTES, 0) == self._content()

    def _content(self) -> bytes:
        return f"{self._text:<{_NOTE_BYTES - 1}}\n".encode()

    def _write(self) -> None:
        written = False
        if self._held.file is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._held.file, self._content(), 0)
                os.ftruncate(self._held.file, _NOTE_BYTES)
                written = True
        if self._written and not written:
            logger.warning(
                "%s: cannot be written, the disk is full or read-only, or another user owns the folder: "
                "`edge-client update` and `import` cannot reach this process",
                self._state_dir / LOCK_FILE,
            )
        self._written = written


@contextlib.contextmanager
def hold_state(state_dir: Path, sleep: Callable[[float], None] = time.sleep) -> Iterator[StateLock]:
    """Hold the state folder for this process alone; also on a disk that is full or read-only.

    Raises: DeviceError if another process holds it, or the folder cannot be made.
    """
    with disk_errors(state_dir):
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = StateLock(state_dir, _hold_within(state_dir, _ASKING_S, sleep))
    try:
        yield lock
    finally:
        lock.close()


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


def user_of_daemon(state_dir: Path) -> int | None:
    """Return the user of the daemon that holds the state folder; None if it does not name itself."""
    process = running_process(state_dir)
    try:
        # Not the owner of the folder in /proc: that of a process without core dumps is root.
        status = Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace")
        users = next(line.split() for line in status.splitlines() if line.startswith("Uid:"))
        return int(users[2])  # proc(5): real, effective, saved, file system
    except (OSError, StopIteration):
        return None


def signal_daemon(state_dir: Path, number: signal.Signals = signal.SIGHUP) -> None:
    """Tell the daemon to install the channels' releases now.

    Args:
        state_dir: State folder of the daemon.
        number: `BUNDLE_SIGNAL` makes it import a waiting bundle, and only that.
    Raises: DeviceError if no daemon runs, or this user may not send it signals.
    """
    _tell(state_dir, number)


def ask_to_forget_refusals(state_dir: Path) -> None:
    """Let the daemon forget all refusals at the next `signal_daemon`.

    Raises: DeviceError if the file cannot be written.
    """
    file = state_dir / RETRY_FILE
    with disk_errors(file):
        file.touch()


def was_asked_to_forget_refusals(state_dir: Path) -> bool:
    """Return whether somebody asked, once."""
    try:
        (state_dir / RETRY_FILE).unlink()
    except OSError:
        return False
    return True


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
    folder, followed = settings.device.state_dir / CHANNELS_FOLDER, settings.device.more_channels
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


def _hold_within(state_dir: Path, limit_s: float, sleep: Callable[[float], None]) -> _Held:
    """Lock the folder and its lock file.

    Raises: DeviceError if another process holds them for longer than `limit_s`; OSError.
    """
    deadline = time.monotonic() + limit_s
    while (held := _try_hold(state_dir)) is None:
        if time.monotonic() > deadline:
            msg = f"{state_dir}: another edge-client uses it; stop that, or give each a [device] state_dir"
            raise DeviceError(msg)
        sleep(_PAUSE_S)
    return held


def _try_hold(state_dir: Path) -> _Held | None:
    """Lock the folder and its lock file; None if another process holds one of them.

    Raises: OSError.
    """
    held = _Held(_open_folder(state_dir), None)
    try:
        if _lock(held.folder, fcntl.LOCK_EX) is not _Locking.HELD and not _is_file_held(state_dir):
            held.file = _open_lock_file(state_dir)
            if held.file is None or _lock(held.file, fcntl.LOCK_EX) is not _Locking.HELD:
                return held
    except BaseException:
        held.close()
        raise
    held.close()
    return None


def _open_folder(state_dir: Path) -> int:
    return os.open(state_dir, os.O_RDONLY | os.O_DIRECTORY)


def _open_lock_file(state_dir: Path) -> int | None:
    """Open the lock file, in place of anything else of its name; None where that is impossible.

    A file of another user (root, once) is replaced too: the owner of the folder may do that. The folder is
    locked, and no process of an older version holds the file.
    """
    place = state_dir / LOCK_FILE
    try:
        if (descriptor := _open_regular(place, os.O_RDWR)) is not None:
            return descriptor
        for leftover in state_dir.glob(f".{LOCK_FILE}.*"):
            leftover.unlink()
        fresh = state_dir / f".{LOCK_FILE}.{secrets.token_hex(4)}"
        descriptor = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            fresh.rename(place)
        except OSError:
            os.close(descriptor)
            fresh.unlink()
            raise
    except OSError as e:
        # Full, read-only, or somebody else's folder.
        logger.debug("%s: %s", place, e)
        return _open_regular(place, os.O_RDONLY)
    return descriptor


def _open_regular(place: Path, flags: int) -> int | None:
    """Open a regular file of one name; None if there is none, or it may not be opened so."""
    try:
        descriptor = os.open(place, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    found = os.fstat(descriptor)
    # With a second name, anywhere, it may be a file that is not ours to write.
    if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
        return descriptor
    os.close(descriptor)
    return None


def _read_note(state_dir: Path) -> str | None:
    """Return the note of the process that holds a state folder; None if none does, or it cannot be read."""
    try:
        folder = _open_folder(state_dir)
    except OSError:
        return None
    try:
        # A shared lock: two readers must not mistake each other for the holder.
        if _lock(folder, fcntl.LOCK_SH) is not _Locking.HELD and not _is_file_held(state_dir):
            return None
    finally:
        os.close(folder)
    if (file := _open_regular(state_dir / LOCK_FILE, os.O_RDONLY)) is None:
        return ""
    try:
        return os.pread(file, _NOTE_BYTES, 0).decode("ascii", "replace")
    except OSError:
        return ""
    finally:
        os.close(file)


def _is_file_held(state_dir: Path) -> bool:
    """Whether a process holds the lock file, as version 0.1 does without holding the folder."""
    if (file := _open_regular(state_dir / LOCK_FILE, os.O_RDONLY)) is None:
        return False
    try:
        return _lock(file, fcntl.LOCK_SH) is _Locking.HELD
    finally:
        os.close(file)


def _lock(descriptor: int, kind: int) -> _Locking:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return _Locking.HELD
    except OSError:
        return _Locking.UNSUPPORTED
    return _Locking.DONE


def _is(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to what is open."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


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
