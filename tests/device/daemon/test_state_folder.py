"""Who holds a state folder, and who is told something."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge_client import state_folder as process
from edge_client.contract.errors import DeviceError
from edge_client.machine import boot_id
from edge_client.settings.file import load_settings
from edge_client.state_folder import (
    LOCK_FILE,
    daemon_runs,
    hold_state,
    refresh_status,
    running_process,
    signal_daemon,
    sweep_channels,
)
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Callable

REPOSITORY = Path(__file__).resolve().parents[3]
LIMIT_S = 60.0
HOLDER = """
import pathlib, signal, sys
from edge_client.state_folder import hold_state
for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, lambda number, _frame: print(signal.Signals(number).name, flush=True))
with hold_state(pathlib.Path(sys.argv[1])) as lock:
    if sys.argv[2] == "daemon":
        with lock.accepting_signals():
            print("holds", flush=True)
            sys.stdin.read()
    else:
        if sys.argv[2] == "import":
            lock.refuse_signals()
        print("holds", flush=True)
        sys.stdin.read()
"""


class Holder:
    """Another process that holds a state folder.

    Args:
        folder: The state folder.
        kind: `daemon`, `import`, or `starting`: a daemon that takes no signals yet.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(folder), kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        assert self.next_line() == "holds"

    def next_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch):
    monkeypatch.setattr(process, "_ASKING_S", 0.1)


@pytest.fixture
def hold(tmp_path):
    holders: list[Holder] = []

    def open_(kind: str) -> Holder:
        holders.append(Holder(tmp_path, kind))
        return holders[-1]

    yield open_
    for holder in holders:
        if holder.process.poll() is None:
            holder.end()


def test_a_daemon_gets_only_signals_it_handles(tmp_path, hold):
    daemon = hold("daemon")
    assert daemon_runs(tmp_path)
    assert running_process(tmp_path) == daemon.process.pid
    signal_daemon(tmp_path)
    assert daemon.next_line() == "SIGHUP"
    signal_daemon(tmp_path, process.BUNDLE_SIGNAL)
    assert daemon.next_line() == "SIGUSR2"
    refresh_status(tmp_path, [])
    assert daemon.next_line() == "SIGUSR1"
    assert daemon.end() == 0
    assert not daemon_runs(tmp_path)
    assert (tmp_path / LOCK_FILE).read_bytes() == b""


@pytest.mark.parametrize("kind", ["import", "starting"])
def test_a_holder_that_handles_no_signals_gets_none(tmp_path, hold, kind):
    holder = hold(kind)
    assert daemon_runs(tmp_path) == (kind == "starting")
    assert running_process(tmp_path) is None
    assert not refresh_status(tmp_path, [])
    with pytest.raises(DeviceError):
        signal_daemon(tmp_path)
    assert holder.process.poll() is None
    with pytest.raises(DeviceError, match="another edge-client"), hold_state(tmp_path):
        pass
    assert holder.end() == 0


def other_process(**changes: str) -> str:
    """A note as a daemon left it that was this very process, but for some changes."""
    note = {"process": str(os.getpid()), "boot": boot_id(), "started": process._started_at(os.getpid())}
    return "{process} {boot} {started} daemon\n".format(**note | changes)


NOTES = {
    "of the last boot": other_process(boot="00000000-0000-0000-0000-000000000000"),
    "of a process whose number another has now": other_process(started="1"),
    "of an older version": f"{os.getpid()}",
    "of a process that is gone": other_process(process="4194304"),
    "damaged": "\0\xff",
}


@pytest.mark.parametrize("name", NOTES)
def test_an_old_note_names_no_process(tmp_path, hold, name):
    """A read-only disk keeps the note of whoever ran before; the holder may not be able to write its own."""
    holder = hold("starting")
    (tmp_path / LOCK_FILE).write_text(NOTES[name], encoding="latin-1")
    assert running_process(tmp_path) is None
    assert daemon_runs(tmp_path)
    holder.end()


def test_two_readers_do_not_mistake_each_other_for_the_daemon(tmp_path):
    (tmp_path / LOCK_FILE).write_text(other_process())
    with shared_lock(tmp_path), shared_lock(tmp_path / LOCK_FILE):  # as another `status` does
        assert running_process(tmp_path) is None
        assert not daemon_runs(tmp_path)


def test_a_reader_keeps_no_daemon_from_its_start(tmp_path):
    (tmp_path / LOCK_FILE).touch()
    with contextlib.ExitStack() as reading:
        reading.enter_context(shared_lock(tmp_path))
        reading.enter_context(shared_lock(tmp_path / LOCK_FILE))
        with hold_state(tmp_path, sleep=lambda _s: reading.close()):
            pass


@contextlib.contextmanager
def shared_lock(path):
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    yield
    os.close(descriptor)


def test_a_daemon_of_the_released_version_which_locks_the_file_alone_keeps_others_out(tmp_path):
    (tmp_path / LOCK_FILE).write_text(other_process())
    descriptor = os.open(tmp_path / LOCK_FILE, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert running_process(tmp_path) == os.getpid()
    with pytest.raises(DeviceError, match="another edge-client"), hold_state(tmp_path):
        pass
    os.close(descriptor)
    with hold_state(tmp_path):
        pass


def in_place_of_the_lock_file(folder: Path, victim: Path) -> dict[str, Callable[[], object]]:
    """What others may put in the place of a lock file."""
    lock = folder / LOCK_FILE
    return {
        "a link": lambda: lock.symlink_to(victim),
        "a link to nothing": lambda: lock.symlink_to(folder / "nothing"),
        "a second name": lambda: lock.hardlink_to(victim),
        "a folder": lock.mkdir,
        "a pipe": lambda: os.mkfifo(lock),
    }


@pytest.mark.parametrize("what", in_place_of_the_lock_file(Path(), Path()))
def test_what_is_in_the_place_of_the_lock_file_is_neither_followed_nor_emptied(tmp_path, what, faults):
    folder, victim = tmp_path / "state", tmp_path / "shadow"
    folder.mkdir()
    victim.write_text("root:*:")
    in_place_of_the_lock_file(folder, victim)[what]()
    with faults.injected(Kind.STATE, "something else in the place of the lock file", what):
        with hold_state(folder) as lock, lock.accepting_signals():
            assert daemon_runs(folder)
            assert (running_process(folder) == os.getpid()) == (what != "a folder")
            with pytest.raises(DeviceError, match="another edge-client"), hold_state(folder):
                pass
        assert victim.read_text() == "root:*:"
        assert not (folder / "nothing").exists()


def remove_folder(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.mark.parametrize(
    "remove",
    [
        lambda folder: (folder / LOCK_FILE).unlink(),
        lambda folder: (folder / LOCK_FILE).write_text(""),
        lambda folder: (folder / LOCK_FILE).rename(folder / "lock.old"),
    ],
    ids=["removed", "emptied", "renamed"],
)
def test_a_lock_file_that_is_removed_lets_no_second_process_in_and_comes_back(tmp_path, remove, faults):
    with (
        faults.injected(Kind.STATE, "lock file of a running daemon", "removed"),
        hold_state(tmp_path) as lock,
        lock.accepting_signals(),
    ):
        remove(tmp_path)
        with pytest.raises(DeviceError, match="another edge-client"), hold_state(tmp_path):
            pass
        lock.renew()
        assert running_process(tmp_path) == os.getpid()


def test_a_state_folder_that_is_made_anew_is_locked_anew(tmp_path):
    folder = tmp_path / "state"
    with hold_state(folder) as lock, lock.accepting_signals():
        remove_folder(folder)
        lock.renew()
        assert running_process(folder) == os.getpid()
        with pytest.raises(DeviceError, match="another edge-client"), hold_state(folder):
            pass
    assert not daemon_runs(folder)


@pytest.mark.parametrize("unsupported", ["folders", "all"])
def test_a_file_system_without_locks_keeps_no_daemon_from_its_start(tmp_path, monkeypatch, unsupported):
    real = fcntl.flock

    def flock(descriptor: int, kind: int) -> None:
        if unsupported == "all" or stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))  # as NFS does
        real(descriptor, kind)

    monkeypatch.setattr(process.fcntl, "flock", flock)  # type: ignore[attr-defined]
    with hold_state(tmp_path) as lock, lock.accepting_signals():
        assert daemon_runs(tmp_path) == (unsupported == "folders")
        if unsupported == "folders":
            with pytest.raises(DeviceError, match="another edge-client"), hold_state(tmp_path):
                pass


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_the_folder_is_locked_on_a_disk_that_cannot_be_written(tmp_path, monkeypatch, error, there, caplog):
    if there:
        (tmp_path / LOCK_FILE).write_text("1")
    real = os.open

    def refuse(path, flags, *arguments, **options):
        if flags & os.O_RDWR:
            raise OSError(error, os.strerror(error))
        return real(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(process.os, "open", refuse)  # type: ignore[attr-defined]
        with hold_state(tmp_path) as lock, lock.accepting_signals():
            assert daemon_runs(tmp_path)
            assert running_process(tmp_path) is None
            with pytest.raises(DeviceError, match="read-only"):
                signal_daemon(tmp_path)
            with pytest.raises(DeviceError, match="another edge-client"), hold_state(tmp_path):
                pass
            patch.undo()  # the disk is well again
            with pytest.raises(DeviceError, match="another edge-client"), hold_state(tmp_path):
                pass
    assert "full or read-only" in caplog.text
    assert not daemon_runs(tmp_path)


def test_all_channels_are_waited_for(tmp_path, hold):
    hold("daemon")
    written, late = tmp_path / "status.json", tmp_path / "late.json"
    pauses = []

    def write(_s: float) -> None:
        pauses.append(1)
        (written if len(pauses) == 1 else late).write_text("{}")

    assert refresh_status(tmp_path, [written, late], sleep=write)
    assert late.exists()


def test_a_status_that_is_not_written_is_not_waited_for_for_ever(tmp_path, hold, monkeypatch):
    hold("daemon")
    monkeypatch.setattr(process, "_REFRESH_S", 0.05)
    assert not refresh_status(tmp_path, [tmp_path / "status.json"])


def test_a_daemon_of_another_user_is_named_with_the_way_out(tmp_path, hold, monkeypatch):
    hold("daemon")

    def refuse(_process: int, _number: int) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(process.os, "kill", refuse)  # type: ignore[attr-defined]
    with pytest.raises(DeviceError, match="as its user or as root"):
        signal_daemon(tmp_path)


def test_the_state_of_dropped_channels_is_removed(tmp_path):
    file = tmp_path / "device.toml"
    file.write_text(
        '[device]\nid = "c"\nmore_channels = "doors"\nstate_dir = "state"\n'
        '[store]\nbase_url = "http://s/b"\n[source]\npath = "x"\n'
    )
    settings = load_settings(file)
    sweep_channels(settings)  # nothing there yet
    channels, elsewhere = settings.device.state_dir / "channels", tmp_path / "elsewhere"
    for folder in (channels / "doors/slots", channels / "windows/slots/r1", elsewhere):
        folder.mkdir(parents=True)
    (channels / "linked").symlink_to(elsewhere)
    sweep_channels(settings)
    assert {path.name for path in channels.iterdir()} == {"doors", "linked"}
    assert (channels / "doors/slots").is_dir()
    assert elsewhere.is_dir()
    alone = dataclasses.replace(settings, device=dataclasses.replace(settings.device, more_channels=()))
    sweep_channels(alone)
    assert {path.name for path in channels.iterdir()} == {"linked"}
