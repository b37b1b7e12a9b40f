"""Looks at a watched folder again and again: which pictures are complete, and were not read yet.

A file is complete once it has not changed for `settle_s`; one that was moved in is old already. One that is
replaced faster than that (`latest.jpg` of a camera) is never at rest: after two replacements each of its
contents counts as complete. A file that only grows is an upload, and waits.

There is no notification of changes on network file systems (NFS, SMB), so folders are listed. Those that have
been quiet for a minute, such as the folders of past days, are listed every half a minute; their modification
time, which a new file changes, is looked at each time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from typing import TYPE_CHECKING

from edge_client.sources.files import is_picture_name
from edge_client.sources.passed_over import PassedOver, Reason

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

DONE_FOLDER = "done"
BROKEN_FOLDER = "broken"

# A file that cannot be decoded may be incomplete, because its writer pauses; after so long it is given up.
BROKEN_AFTER_S = 5.0
# Memory may be short for as long as an update check takes; rights may be mended.
STARVED_AFTER_S = 60.0
_REPLACEMENTS = 2
# Of a file that was read, more than its name is remembered for so long.
_REMEMBERED_S = 2.0
# FAT counts in steps of 2 s.
_COARSEST_S = 3.0
_QUIET_AFTER_S = 60.0
_QUIET_SCAN_S = 30.0
_DEEPEST = 32
_PARTIAL = (".part", ".tmp", ".temp", ".filepart", ".partial", ".crdownload", ".download", ".upload", ".!ut")
# Folders of NAS systems and file systems, with thumbnails and what was deleted.
_FOREIGN_FOLDERS = frozenset(
    {"@eaDir", "#recycle", "@Recycle", "$RECYCLE.BIN", "lost+found", "System Volume Information"}
)

Signature = tuple[int, int, int]


@dataclasses.dataclass(slots=True)
class Known:
    """State of a file in the folder.

    Attributes:
        signature: Inode, size and mtime_ns: another signature is another picture.
        since: Monotonic time at which this signature was first seen.
        old: Whether the file was moved in: its content was `settle_s` old when it came.
        replacements: How often the file was replaced in a row, each time before it was at rest.
        failed: Whether the file could not be decoded once.
        starved: Whether that was for lack of memory, or of the right to read it.
        unreadable: Whether it was for lack of the right to read it.
        done: Whether the file was read, or given up.
    """

    signature: Signature
    since: float
    old: bool
    replacements: int = 0
    failed: bool = False
    starved: bool = False
    unreadable: bool = False
    done: bool = False

    def is_ready(self, now: float, settle_s: float) -> bool:
        """Return whether the file is to be read now."""
        if self.done:
            return False
        stable_s = now - self.since
        if self.failed:
            return stable_s >= max(STARVED_AFTER_S if self.starved else BROKEN_AFTER_S, settle_s)
        return self.old or self.replacements >= _REPLACEMENTS or stable_s >= settle_s


class _Folder:
    """One folder: its files that are not done, and a number for each that is: very many may be kept."""

    __slots__ = ("changed_ns", "changed_since", "done", "files", "folders", "passed", "scanned_at")

    def __init__(self) -> None:
        self.files: dict[str, Known] = {}
        self.done: dict[str, int] = {}
        self.folders: list[str] = []
        self.passed: dict[Reason, tuple[int, str]] = {}
        self.changed_ns, self.changed_since, self.scanned_at = -1, 0.0, 0.0

    def is_quiet(self, changed_ns: int, now: float) -> bool:
        """Return whether the folder need not be listed now; notes when it was modified."""
        if changed_ns != self.changed_ns:
            self.changed_ns, self.changed_since = changed_ns, now
        return (
            not self.files
            and now - self.changed_since > _QUIET_AFTER_S
            and now - self.scanned_at < _QUIET_SCAN_S
        )

    def pass_over(self, reason: Reason, example: str) -> None:
        count, first = self.passed.get(reason, (0, example))
        self.passed[reason] = (count + 1, first)


class FolderScan:
    """Files of a folder, or of it and its subfolders, or one file of it; named relative to the folder."""

    def __init__(
        self,
        folder: Path,
        *,
        settle_s: float,
        recursive: bool = False,
        only: str = "",
        passed_over: PassedOver | None = None,
        on_found: Callable[[str, os.stat_result, Known], None] = lambda _name, _found, _file: None,
    ) -> None:
        """Prepare.

        Args:
            folder: The folder.
            settle_s: Seconds without a change after which a file is complete.
            recursive: Also its subfolders, but for `done/` and `broken/`.
            only: Name of the one file to look at; it may be a link. Empty: all.
            passed_over: Counts what is left alone.
            on_found: Told of each file with new content.
        """
        self._path = folder
        self._settle_s = settle_s
        self._recursive = recursive
        self._only = only
        self._passed_over = passed_over or PassedOver()
        self._on_found = on_found
        self._folders: dict[str, _Folder] = {}
        # A mount point shows another folder while its disk is away: what was read there is remembered.
        self._device: int | None = None
        self._away: dict[int, dict[str, _Folder]] = {}

    def look(self, now: float) -> list[str]:
        """Return the files that are complete and were not read yet, oldest first.

        Args:
            now: Monotonic seconds.
        Raises: OSError if the folder cannot be read.
        """
        self._follow_mounts(os.stat(self._path).st_dev)  # noqa: PTH116 - as os.scandir below
        self._passed_over.begin()
        self._folders = dict(self._look_at_one(now) if self._only else self._walk(now))
        ready: list[tuple[int, str]] = []
        for folder, state in self._folders.items():
            for reason, (count, example) in state.passed.items():
                self._passed_over.add(reason, _join(folder, example), count)
            for name, file in state.files.items():
                if file.is_ready(now, self._settle_s):
                    ready.append((file.signature[2], _join(folder, name)))
        self._passed_over.end(self._path)
        return [name for _, name in sorted(ready)]

    def file(self, name: str) -> Known:
        """Return what is known of a file that the last look found ready."""
        folder, _, last = name.rpartition("/")
        return self._folders[folder].files[last]

    def count(self) -> int:
        """Return the number of pictures at the last look."""
        return sum(len(one.files) + len(one.done) for one in self._folders.values())

    def _follow_mounts(self, device: int) -> None:
        if self._device is not None and self._device != device:
            self._away[self._device] = self._folders
            self._folders = self._away.pop(device, {})
        self._device = device

    def _look_at_one(self, now: float) -> Iterator[tuple[str, _Folder]]:
        before = self._folders.get("") or _Folder()
        after = _Folder()
        found = os.stat(self._path / self._only)  # noqa: PTH116 - the owner names it: a link is followed
        self._note(after, before, "", self._only, found, now)
        yield "", after

    def _walk(self, now: float) -> Iterator[tuple[str, _Folder]]:
        """Yield each folder with its state. Raises: OSError for the topmost one alone."""
        left = [""]
        while left:
            name = left.pop()
            before = self._folders.get(name) or _Folder()
            try:
                after = self._list(name, before, now)
            except OSError as e:
                if not name:
                    raise
                if isinstance(e, (FileNotFoundError, NotADirectoryError)):
                    continue  # removed since its parent was listed
                after = before  # what was read there is remembered until it can be read again
                after.passed = {Reason.CLOSED_FOLDER: (1, ".")}
            yield name, after
            left += [_join(name, one) for one in after.folders if name.count("/") < _DEEPEST]

    def _list(self, name: str, before: _Folder, now: float) -> _Folder:
        """Return the new state of a folder. Raises: OSError."""
        path = self._path / name if name else self._path
        if name:
            found = os.stat(path, follow_symlinks=False)  # noqa: PTH116 - as os.scandir below
            if before.is_quiet(found.st_mtime_ns, now):
                return before
        after = _Folder()
        after.changed_ns, after.changed_since, after.scanned_at = before.changed_ns, before.changed_since, now
        with os.scandir(path) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    self._take(after, before, name, entry, now)
        return after

    def _take(
        self, after: _Folder, before: _Folder, folder: str, entry: os.DirEntry[str], now: float
    ) -> None:
        name = entry.name
        if is_picture_name(name) and entry.is_file(follow_symlinks=False):
            self._note(after, before, folder, name, entry.stat(follow_symlinks=False), now)
        elif entry.is_dir(follow_symlinks=False):
            if not _is_foreign(folder, name):
                after.folders.append(name) if self._recursive else after.pass_over(Reason.FOLDER, name)
        else:
            after.pass_over(_reason(entry), name)

    def _note(
        self,
        after: _Folder,
        before: _Folder,
        folder: str,
        name: str,
        found: os.stat_result,
        now: float,
    ) -> None:
        """Note one file in the new state of its folder."""
        if found.st_size == 0:  # an upload that begins, or a full disk
            after.pass_over(Reason.EMPTY, name)
            if (emptied := before.files.get(name)) is not None and now - emptied.since <= _REMEMBERED_S:
                emptied.done = True  # what it had is gone, but that it is replaced all the time counts
                after.files[name] = emptied
            return
        signature, wall = signature_of(found), time.time()
        known, done = before.files.get(name), before.done.get(name)
        if done == hash(signature[1:]):
            after.done[name] = done
            return
        if known is None or not is_same(known.signature, signature, wall):
            # A file that changed since the last look is being written, whatever its mtime.
            is_new = known is None and done is None
            # Both times are of one clock, which may be a server's; being moved in changes ctime alone.
            old = is_new and found.st_ctime - found.st_mtime >= self._settle_s
            known = Known(signature, now, old, _replacements(known, signature, now, self._settle_s))
            self._on_found(_join(folder, name), found, known)
        if known.done and now - known.since > _REMEMBERED_S and _is_past(signature, wall):
            after.done[name] = hash(signature[1:])
            return
        if known.unreadable:
            after.pass_over(Reason.UNREADABLE, name)
        after.files[name] = known


def signature_of(found: os.stat_result) -> Signature:
    """Return what tells one content of a file from the next."""
    return found.st_ino, found.st_size, found.st_mtime_ns


def is_same(one: Signature, other: Signature, wall: float) -> bool:
    """Return whether two signatures are of the same content.

    Network and FUSE file systems (sshfs, rclone) give a file another inode from time to time. Where size and
    time of change are the same and past, that says nothing; before, it may be another picture within the two
    seconds that FAT counts in.

    Args:
        one: Signature of a file.
        other: Its signature at another look.
        wall: Seconds since the epoch, at one of the looks.
    """
    return one[1:] == other[1:] and (one[0] == other[0] or _is_past(one, wall))


def _is_past(signature: Signature, wall: float) -> bool:
    return wall - signature[2] / 1e9 > _COARSEST_S


def _replacements(before: Known | None, signature: Signature, now: float, settle_s: float) -> int:
    """Return how often a file with a new signature was replaced without a rest; 0 if it only grew."""
    if before is None or now - before.since >= settle_s:
        return 0
    is_replaced = before.signature[0] != signature[0] or signature[1] <= before.signature[1]
    return before.replacements + is_replaced


def _reason(entry: os.DirEntry[str]) -> Reason:
    name = entry.name
    if name.startswith("."):
        return Reason.HIDDEN
    if name.lower().endswith(_PARTIAL):
        return Reason.PARTIAL
    if not is_picture_name(name):
        return Reason.NAME
    return Reason.LINK if entry.is_symlink() else Reason.SPECIAL


def _is_foreign(folder: str, name: str) -> bool:
    is_own = not folder and name in {DONE_FOLDER, BROKEN_FOLDER}
    return is_own or name.startswith(".") or name in _FOREIGN_FOLDERS


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
