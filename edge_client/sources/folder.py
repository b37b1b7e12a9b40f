"""Source of a watched folder, into which other programs drop pictures.

Which files are complete `folder_scan.py` knows. A file that cannot be decoded is tried again a few seconds
later, because some writers pause, and is then given up; one for which the machine lacks memory, as during an
update, or this user the right, after a minute. One that the disk does not give is never deleted: it may be
readable later. A file that the daemon died at is set aside.

Whoever may write into the folder may put anything there, at any moment: names are looked at without following
links, and what is opened is used only if it is a regular file.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import threading
import time
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.text import text_of
from edge_client.sources.decoding import PictureDecoder
from edge_client.sources.driver import SILENT_S
from edge_client.sources.files import is_picture_name
from edge_client.sources.folder_scan import (
    BROKEN_FOLDER,
    DONE_FOLDER,
    STARVED_AFTER_S,
    FolderScan,
    Known,
    is_same,
    signature_of,
)
from edge_client.sources.passed_over import PassedOver
from edge_client.sources.source import Frame, Pace
from edge_client.sources.v4l2 import is_video_device

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_POLL_S = 0.1
# A scan takes 2 us a file: a folder with very many kept files must not cost a whole core.
_LARGEST_SHARE_OF_TIME = 0.1
# A single file is away for a moment where it is removed and written anew.
_MOMENT_S = 2.0


class WatchedFolder:
    """New pictures of one folder, oldest first; or the contents of one file that is replaced all the time."""

    def __init__(
        self,
        folder: Path,
        *,
        after: str = "keep",
        settle_s: float = 0.5,
        recursive: bool = False,
        pace: Pace | None = None,
        gone_s: float = SILENT_S,
        decoder: PictureDecoder | None = None,
        passed_over: PassedOver | None = None,
    ) -> None:
        """Prepare to watch; see `SourceSettings` for `after`, `settle_s` and `recursive`.

        Args:
            folder: Folder to watch, or the one file of it to watch.
            after: Fate of a file once its result is written.
            settle_s: Seconds without a change after which a file is complete.
            recursive: Watch its subfolders too.
            pace: Limit on the frame rate.
            gone_s: Seconds for which the folder may be unreadable before `frames` raises.
            decoder: Reads and decodes the files.
            passed_over: Counts the files that are left alone.
        """
        self._only = "" if folder.is_dir() or not is_picture_name(folder.name) else folder.name
        self._folder = folder.parent if self._only else folder
        self._after = after
        self._pace = pace or Pace()
        self._gone_s = gone_s
        self._decoder = decoder or PictureDecoder()
        self._passed_over = passed_over or PassedOver()
        self._scan = FolderScan(
            self._folder,
            settle_s=settle_s,
            recursive=recursive,
            only=self._only,
            passed_over=self._passed_over,
            on_found=self._on_found,
        )
        self._moving = threading.Lock()  # a result may be safe in another thread than that of the frames

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; ends only with `stop`."""
        with self._decoder.watching(self._folder):
            self._check()
        gone_at: float | None = None
        warned = False
        while not stop.is_set():
            started = time.monotonic()
            try:
                with self._decoder.watching(self._folder):
                    ready = self._scan.look(started)
                gone_at, warned = None, False
            except OSError as e:
                # A USB stick that was pulled out may come back: wait for it, with one warning.
                gone_at = started if gone_at is None else gone_at
                if not warned and started - gone_at >= (_MOMENT_S if self._only else 0):
                    warned = True
                    logger.warning("%s: %s; waiting for it to come back", self._watched, e.strerror or e)
                if started - gone_at >= self._gone_s:
                    msg = f"{self._watched}: gone for {self._gone_s:g} s ({e.strerror or e}); check the disk"
                    raise DeviceError(msg) from e
                ready = []
            yield from self._read(ready, stop)
            scan_s = time.monotonic() - started if not ready else 0.0
            stop.wait(max(_POLL_S, scan_s / _LARGEST_SHARE_OF_TIME))

    def survey(self) -> str:
        """Return what is there, for people. Raises: DeviceError if it cannot be watched."""
        self._check()
        try:
            self._scan.look(time.monotonic())
        except OSError as e:
            msg = f"{self._watched}: {e.strerror or e}; check the path, its rights and the disk"
            raise DeviceError(msg) from e
        passed = self._passed_over.describe()
        count = self._scan.count()
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        return f"{pictures}; passed over: {passed}" if passed else pictures

    @property
    def _watched(self) -> str:
        return text_of(self._folder / self._only)

    def _check(self) -> None:
        if self._only and glob.has_magic(self._only) and not os.path.lexists(self._folder / self._only):
            msg = (
                f"{self._watched}: a pattern, which is not watched; give the folder, or set [source] kind = "
                '"files" to classify what is there once'
            )
            raise DeviceError(msg)
        if not self._folder.is_dir():
            msg = f"{text_of(self._folder)}: {_say_no_folder(self._folder)}"
            raise DeviceError(msg)
        if self._after != "keep" and not os.access(self._folder, os.W_OK):
            msg = (
                f"{self._folder}: is not writable by this user, so pictures could not be removed after "
                'use; change its owner or set [source] after = "keep"'
            )
            raise DeviceError(msg)

    def _on_found(self, name: str, found: os.stat_result, file: Known) -> None:
        if self._decoder.is_given_up(self._folder / name, found):
            self._set_aside(name, file)

    def _set_aside(self, name: str, file: Known) -> None:
        """Move a file that an earlier run died at to `broken/`, or leave it there unread."""
        file.done = True
        self._passed_over.add_broken(name)
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

    def _read(self, names: list[str], stop: threading.Event) -> Iterator[Frame]:
        for name in names:
            if not self._pace.wait(stop):
                return
            yield from self._read_one(name, self._scan.file(name))

    def _read_one(self, name: str, file: Known) -> Iterator[Frame]:
        """Yield the frame of one file; its pixels are not kept while the next file is decoded."""
        try:
            pixels = self._decoder.decode_file(self._folder / name, follow_link=bool(self._only))
        except InputError as e:
            self._on_undecodable(name, file, e)
            return
        if file.replacements and self._was_written_meanwhile(name, file):
            return  # two pictures in one; the next look finds the second
        file.done, file.unreadable = True, False
        yield Frame(text_of(name), pixels, functools.partial(self._dispose, name, file, DONE_FOLDER))

    def _was_written_meanwhile(self, name: str, file: Known) -> bool:
        """Return whether a file was written in place while it was read; one that was replaced was whole."""
        try:
            now = signature_of((self._folder / name).stat())
        except OSError:
            return False
        return now[0] == file.signature[0] and now != file.signature

    def _on_undecodable(self, name: str, file: Known, error: InputError) -> None:
        if not os.path.lexists(self._folder / name):
            return  # removed by its owner
        if isinstance(error.__cause__, PermissionError):
            # Its writer gives it away a moment later, or somebody mends the rights. It stays where it is.
            file.failed = file.starved = file.unreadable = True
            file.since = time.monotonic()
            return
        if not file.failed:
            file.failed, file.since = True, time.monotonic()
            file.starved = isinstance(error.__cause__, MemoryError)
            if file.starved:
                logger.warning("%s; tried once more in %g s", error, STARVED_AFTER_S)
            return
        file.done = True
        self._passed_over.add_broken(name)
        logger.warning("%s", error)  # and go on with the other files
        unread = isinstance(error.__cause__, OSError) and error.__cause__.errno is not None
        self._dispose(name, file, BROKEN_FOLDER, spared=unread)

    def _dispose(self, name: str, file: Known, folder: str, *, spared: bool = False) -> None:
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

    def _dispose_of(self, name: str, file: Known, folder: str, *, delete: bool) -> None:
        """Move or delete a file, unless it was replaced.

        Raises: OSError.
        """
        *above, last = name.split("/")
        with self._opened(above) as parent:
            if not is_same(signature_of(os.lstat(last, dir_fd=parent)), file.signature, time.time()):
                return
            if delete:
                os.unlink(last, dir_fd=parent)
                return
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
        """Move a file to a subfolder, below which it keeps its own subfolders.

        Raises: OSError.
        """
        *above, last = name.split("/")
        with self._opened(above) as parent, self._opened([folder, *above], make=True) as target, self._moving:
            os.rename(last, _free_name(last, target), src_dir_fd=parent, dst_dir_fd=target)

    @contextlib.contextmanager
    def _opened(self, parts: list[str], *, make: bool = False) -> Iterator[int]:
        """Open a folder below the watched one, none of which may be a link: that may lead anywhere.

        Raises: OSError.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        descriptor = os.open(self._folder, flags)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=descriptor)
                inner = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = inner
            yield descriptor
        finally:
            os.close(descriptor)


def _say_no_folder(path: Path) -> str:
    """Return what a path is in place of a folder, with the setting that reads that."""
    if path.is_fifo():
        return 'is a named pipe, not a folder; set [source] kind = "pipe"'
    if is_video_device(str(path)):
        return 'is a device, not a folder; set [source] kind = "video"'
    if path.is_file():
        return 'is a file, not a folder; set [source] kind = "video" for a film'
    return "no such folder; create it, or change [source] path"


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
