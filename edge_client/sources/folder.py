"""Source of a watched folder, into which other programs drop pictures.

A file is read once it is complete: it has not changed for `settle_s`. A file that was moved in is old
already and is read at once; a file that is still being written is not. A file that cannot be decoded is tried
again a few seconds later, because some writers pause, and is then given up; one for which the machine lacks
memory, as during an update, after a minute. One that the disk does not give is never deleted: it may be
readable later. A file that the daemon died at is set aside.

Whoever may write into the folder may put anything there, at any moment: names are looked at without following
links, and what is opened is used only if it is a regular file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import threading
import time
from pathlib import PurePath
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.text import text_of
from edge_client.sources.decoding import PictureDecoder
from edge_client.sources.driver import SILENT_S
from edge_client.sources.files import is_picture_name
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

DONE_FOLDER = "done"
BROKEN_FOLDER = "broken"

_POLL_S = 0.1
# A scan takes 2 us a file: a folder with very many kept files must not cost a whole core.
_LARGEST_SHARE_OF_TIME = 0.1
# A file that cannot be decoded may be incomplete, because its writer pauses; after so long it is given up.
_BROKEN_AFTER_S = 5.0
# Memory may be short for as long as an update check takes.
_STARVED_AFTER_S = 60.0


@dataclasses.dataclass
class _Known:
    """State of a file in the folder.

    Attributes:
        signature: Inode, size and mtime_ns: another signature is another picture.
        since: Monotonic time at which this signature was first seen.
        old: Whether the mtime was `settle_s` ago at first sight: the file was moved in.
        failed: Whether the file could not be decoded once.
        starved: Whether that was for lack of memory.
        done: Whether the file was read, or given up.
    """

    signature: tuple[int, int, int]
    since: float
    old: bool
    failed: bool = False
    starved: bool = False
    done: bool = False


class WatchedFolder:
    """New pictures of one folder, oldest first, without its subfolders."""

    def __init__(
        self,
        folder: Path,
        *,
        after: str = "keep",
        settle_s: float = 0.5,
        pace: Pace | None = None,
        gone_s: float = SILENT_S,
        decoder: PictureDecoder | None = None,
    ) -> None:
        """Prepare to watch; see `SourceSettings` for `after` and `settle_s`.

        Args:
            folder: Folder to watch.
            after: Fate of a file once its result is written.
            settle_s: Seconds without a change after which a file is complete.
            pace: Limit on the frame rate.
            gone_s: Seconds for which the folder may be unreadable before `frames` raises.
            decoder: Reads and decodes the files.
        """
        self._folder = folder
        self._after = after
        self._settle_s = settle_s
        self._pace = pace or Pace()
        self._gone_s = gone_s
        self._decoder = decoder or PictureDecoder()
        self._warned_of_link = False
        self._known: dict[str, _Known] = {}
        self._moving = threading.Lock()  # a result may be safe in another thread than that of the frames

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; ends only with `stop`."""
        with self._decoder.watching(self._folder):
            self._check()
        gone_at: float | None = None
        while not stop.is_set():
            started = time.monotonic()
            try:
                with self._decoder.watching(self._folder):
                    ready = self._scan(started)
                gone_at = None
            except OSError as e:
                # A USB stick that was pulled out may come back: wait for it, with one warning.
                if gone_at is None:
                    gone_at = started
                    logger.warning("%s: %s; waiting for it to come back", self._folder, e.strerror or e)
                if started - gone_at >= self._gone_s:
                    msg = f"{self._folder}: gone for {self._gone_s:g} s ({e.strerror or e}); check the disk"
                    raise DeviceError(msg) from e
                ready = []
            yield from self._read(ready, stop)
            scan_s = time.monotonic() - started if not ready else 0.0
            stop.wait(max(_POLL_S, scan_s / _LARGEST_SHARE_OF_TIME))

    def _check(self) -> None:
        if not self._folder.is_dir():
            msg = f"{self._folder}: no such folder; create it, or change [source] path"
            raise DeviceError(msg)
        if self._after != "keep" and not os.access(self._folder, os.W_OK):
            msg = (
                f"{self._folder}: is not writable by this user, so pictures could not be removed after "
                'use; change its owner or set [source] after = "keep"'
            )
            raise DeviceError(msg)

    def _scan(self, now: float) -> list[str]:
        """Scan the folder; return the names of complete files that were not read yet, oldest first.

        Raises: OSError if the folder cannot be read.
        """
        seen: dict[str, _Known] = {}
        wall = time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not is_picture_name(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed during the scan
                    if entry.is_file(follow_symlinks=False):
                        found = entry.stat(follow_symlinks=False)
                        seen[entry.name] = self._remember(entry.name, found, now, wall)
                    elif entry.is_symlink():
                        self._warn_of_link(entry.name)
        self._known = seen  # without the files that are gone
        ready = [name for name, file in seen.items() if self._is_ready(file, now)]
        return sorted(ready, key=lambda name: (seen[name].signature[2], name))

    def _remember(self, name: str, stat: os.stat_result, now: float, wall: float) -> _Known:
        signature = _signature(stat)
        known = self._known.get(name)
        if known is not None and known.signature == signature:
            return known
        # A file that changed since the last scan is being written, whatever its mtime.
        file = _Known(signature, now, old=known is None and wall - stat.st_mtime >= self._settle_s)
        if self._decoder.is_given_up(self._folder / name, stat):
            self._set_aside(name, file)
        return file

    def _set_aside(self, name: str, file: _Known) -> None:
        """Move a file that an earlier run died at to `broken/`, or leave it there unread."""
        file.done = True
        path = self._folder / name
        if self._after == "keep":
            logger.warning("%s: an earlier run died while it decoded this picture; skipped", text_of(path))
        elif self._move(name, BROKEN_FOLDER):
            logger.warning(
                "%s: an earlier run died while it decoded this picture; moved to %s/",
                text_of(path),
                BROKEN_FOLDER,
            )
            self._decoder.forget(path)

    def _warn_of_link(self, name: str) -> None:
        if not self._warned_of_link:
            logger.warning(
                "%s: a link, which is not followed; move the file here", text_of(self._folder / name)
            )
        self._warned_of_link = True

    def _is_ready(self, file: _Known, now: float) -> bool:
        if file.done:
            return False
        stable_s = now - file.since
        if file.failed:
            return stable_s >= max(_STARVED_AFTER_S if file.starved else _BROKEN_AFTER_S, self._settle_s)
        return file.old or stable_s >= self._settle_s

    def _read(self, names: list[str], stop: threading.Event) -> Iterator[Frame]:
        for name in names:
            if not self._pace.wait(stop):
                return
            yield from self._read_one(name, self._known[name])

    def _read_one(self, name: str, file: _Known) -> Iterator[Frame]:
        """Yield the frame of one file; its pixels are not kept while the next file is decoded."""
        try:
            pixels = self._decoder.decode_file(self._folder / name)
        except InputError as e:
            self._on_undecodable(name, file, e)
            return
        file.done = True
        yield Frame(text_of(name), pixels, functools.partial(self._dispose, name, file, DONE_FOLDER))

    def _on_undecodable(self, name: str, file: _Known, error: InputError) -> None:
        if not os.path.lexists(self._folder / name):
            return  # removed by its owner
        if not file.failed:
            file.failed, file.since = True, time.monotonic()
            file.starved = isinstance(error.__cause__, MemoryError)
            if file.starved:
                logger.warning("%s; tried once more in %g s", error, _STARVED_AFTER_S)
            return
        file.done = True
        logger.warning("%s", error)  # and go on with the other files
        unread = isinstance(error.__cause__, OSError) and error.__cause__.errno is not None
        self._dispose(name, file, BROKEN_FOLDER, spared=unread)

    def _dispose(self, name: str, file: _Known, folder: str, *, spared: bool = False) -> None:
        """Keep, move or delete a file after use; one that was replaced meanwhile stays, and is read next.

        A file that is `spared` is moved in place of being deleted. A failure is only logged: the file stays
        marked as done, so it is not read again.
        """
        if self._after == "keep":
            return
        try:
            with self._decoder.watching(self._folder / name):
                self._dispose_of(name, file, folder, delete=self._after == "delete" and not spared)
        except FileNotFoundError:
            pass  # removed by its owner
        except OSError as e:
            logger.warning(
                "%s: cannot be removed after use: %s; it is classified again after a restart",
                text_of(self._folder / name),
                e.strerror or e,
            )

    def _dispose_of(self, name: str, file: _Known, folder: str, *, delete: bool) -> None:
        """Move or delete a file, unless it was replaced.

        Raises: OSError.
        """
        if _signature(os.lstat(self._folder / name)) != file.signature:
            return
        if delete:
            (self._folder / name).unlink()
        else:
            self._move_within(name, folder)

    def _move(self, name: str, folder: str) -> bool:
        """Move a file to a subfolder; return whether that was possible."""
        try:
            self._move_within(name, folder)
        except OSError as e:
            logger.warning(
                "%s: cannot be moved to %s/: %s", text_of(self._folder / name), folder, e.strerror or e
            )
            return False
        return True

    def _move_within(self, name: str, folder: str) -> None:
        """Move a file to a subfolder, which must be no link: it may lead anywhere.

        Raises: OSError.
        """
        (self._folder / folder).mkdir(exist_ok=True)
        target = os.open(self._folder / folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            with self._moving:
                os.rename(self._folder / name, _free_name(name, target), dst_dir_fd=target)
        finally:
            os.close(target)


def _signature(stat: os.stat_result) -> tuple[int, int, int]:
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def _free_name(name: str, folder: int) -> str:
    """Return `name`, or a numbered one if the folder has it: cameras restart their numbers.

    Doubles the number until one is free, then searches between it and the last taken one: a folder that has
    10,000 of a name is asked 27 times.
    """
    path = PurePath(name)

    def numbered(number: int) -> str:
        return f"{path.stem}-{number}{path.suffix}"

    if not _exists(name, folder):
        return name
    taken, free = 0, 1
    while _exists(numbered(free), folder):
        taken, free = free, free * 2
    while free - taken > 1:
        middle = (taken + free) // 2
        taken, free = (middle, free) if _exists(numbered(middle), folder) else (taken, middle)
    return numbered(free)


def _exists(name: str, folder: int) -> bool:
    try:
        os.lstat(name, dir_fd=folder)
    except FileNotFoundError:
        return False
    return True
