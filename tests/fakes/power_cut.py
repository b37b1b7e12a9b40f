"""Power cuts at every file-system call: what a device finds on its disk afterwards.

An action runs in a forked process that ends before its n-th change of a folder. What is on the disk
then depends on the cut: a killed process loses nothing, a power cut loses what was never synced. POSIX
promises a file's bytes after fsync of the file and its name after fsync of the folder, and no more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import shutil
import stat
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType
    from typing import NoReturn

_CUT, _FAILED = 137, 1
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir"}


class Cut(enum.Enum):
    """What the end of the process does to the disk."""

    KILL = "killed"
    LOST_BYTES = "power cut, bytes not synced are lost"
    LOST_ALL = "power cut, names and bytes not synced are lost"


@dataclasses.dataclass(frozen=True)
class Ending:
    """How an action ended.

    Attributes:
        calls: File-system calls that it made, the one that it did not survive among them.
        place: Which call that was, and where; empty if it ended by itself.
    """

    calls: int
    place: str

    @property
    def ended(self) -> bool:
        """Whether the action went through."""
        return not self.place


def run_until(action: Callable[[], None], folder: Path, at: int | None, cut: Cut = Cut.KILL) -> Ending:
    """Run an action in a process of its own, and end it before its `at`-th change of `folder`.

    Args:
        action: What is done; an exception from it is raised here as an AssertionError.
        folder: State to watch, and to damage according to `cut`.
        at: 1 is the first call; None or more than there are lets the action end, and then cuts.
        cut: What happens to the disk.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_in_child(action, folder, at, cut, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in {0, _CUT}, f"the action failed ({code}): {said.decode(errors='replace')}"
    return Ending(**json.loads(said))


def _run_in_child(
    action: Callable[[], None], folder: Path, at: int | None, cut: Cut, writer: int
) -> NoReturn:
    code = _FAILED
    try:
        disk = _Disk(folder, at, cut, lambda ending: _report(writer, ending))
        with disk.watched():
            action()
        disk.cut("", 0)
    except BaseException:  # noqa: BLE001 - raised in the parent
        _write_all(writer, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _report(writer: int, ending: Ending) -> None:
    _write_all(writer, json.dumps(dataclasses.asdict(ending)).encode())


def _write_all(descriptor: int, data: bytes) -> None:
    with os.fdopen(descriptor, "wb") as pipe:
        pipe.write(data)


class _Disk:
    """Knows of a folder what would survive."""

    def __init__(self, folder: Path, at: int | None, cut: Cut, report: Callable[[Ending], None]) -> None:
        self._folder, self._at, self._cut, self._report = folder, at, cut, report
        self._names: dict[int, dict[str, int]] = {}
        self._bytes: dict[int, bytes] = {}
        self._kept_open: list[int] = []
        self._calls = 0
        self._watching = False
        for path in (folder, *folder.rglob("*")):
            self._synced(path)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        fsync = os.fsync

        def counted_fsync(descriptor: int) -> None:
            path = _path_of(descriptor)
            mine = self._is_mine(path)
            if mine:
                self._count("fsync")
            fsync(descriptor)
            if mine:
                with self._unwatched():
                    self._synced(path)

        sys.addaudithook(self._on_audit_event)
        os.fsync = counted_fsync  # type: ignore[assignment]
        self._watching = True
        yield
        self._watching = False

    def cut(self, place: str, code: int) -> NoReturn:
        """Leave on the disk what survives, and end."""
        self._watching = False
        if self._cut is Cut.LOST_BYTES:
            self._lose_bytes()
        elif self._cut is Cut.LOST_ALL:
            self._lose_all()
        self._report(Ending(self._calls, place))
        os._exit(code)

    @contextlib.contextmanager
    def _unwatched(self) -> Iterator[None]:
        before, self._watching = self._watching, False
        try:
            yield
        finally:
            self._watching = before

    def _is_mine(self, path: Path) -> bool:
        return path == self._folder or self._folder in path.parents

    def _on_audit_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Called by the interpreter before each audited call (PEP 578)."""
        if not self._watching:
            return
        with self._unwatched():
            paths = list(_changed_paths(event, arguments))
            if not any(self._is_mine(path) for path in paths):
                return
            # A removed file's number must not be given to another one: names that point to it may survive.
            for path in paths:
                with contextlib.suppress(OSError):
                    self._kept_open.append(os.open(path, os.O_RDONLY | os.O_NOFOLLOW))
            self._count(event)

    def _count(self, call: str) -> None:
        self._calls += 1
        if self._calls == self._at:
            self.cut(f"{call} in {_caller()}", _CUT)

    def _synced(self, path: Path) -> None:
        """Remember what is now sure to survive of a file or folder."""
        status = path.lstat()
        if stat.S_ISDIR(status.st_mode):
            entries = list(os.scandir(path))
            self._names[status.st_ino] = {entry.name: entry.inode() for entry in entries}
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._names.setdefault(entry.inode(), {})
        elif stat.S_ISREG(status.st_mode):
            self._bytes[status.st_ino] = path.read_bytes()

    def _lose_bytes(self) -> None:
        """Half of each file that was not synced as it is: ext4 keeps names before bytes."""
        for path in self._folder.rglob("*"):
            if path.is_file() and (data := path.read_bytes()) != self._bytes.get(path.stat().st_ino):
                path.write_bytes(data[: len(data) // 2])

    def _lose_all(self) -> None:
        survivors = self._folder.with_name(self._folder.name + ".survivors")
        self._restore(self._folder.stat().st_ino, survivors)
        shutil.rmtree(self._folder)
        survivors.rename(self._folder)

    def _restore(self, number: int, path: Path) -> None:
        path.mkdir()
        for name, entry in self._names.get(number, {}).items():
            if entry in self._names:
                self._restore(entry, path / name)
            else:
                (path / name).write_bytes(self._bytes.get(entry, b""))


def _changed_paths(event: str, arguments: tuple[Any, ...]) -> Iterator[Path]:
    """Paths that a call is going to change; see the standard library's table of audit events."""
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, (str, bytes, os.PathLike)) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            yield Path.cwd() / os.fsdecode(path)
    elif event in _CHANGES:
        paths = [one for one in arguments if isinstance(one, (str, bytes, os.PathLike))]
        folders = [one for one in arguments if isinstance(one, int)][-len(paths) :]
        if event == "os.mkdir":
            folders = folders[-1:]
        for path, descriptor in zip(paths, folders or [-1] * len(paths), strict=False):
            yield (_path_of(descriptor) if descriptor >= 0 else Path.cwd()) / os.fsdecode(path)


def _path_of(descriptor: int) -> Path:
    return Path(f"/proc/self/fd/{descriptor}").readlink()


def _caller() -> str:
    """Name the function of the device that is at work."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("edge_client."):
            return f"{name.removeprefix('edge_client.')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
