"""A folder into which others drop pictures.

A file is taken once it is complete: it has not changed for `settle_s`. A file that was moved in is
old already and is taken at once; one that is still being written is not. A file that cannot be
decoded is tried again a few seconds later, because some writers pause, and is then given up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.preprocessing import decode_picture
from edge_client.sources.driver import SILENT_S
from edge_client.sources.files import is_picture_name
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator
    from pathlib import Path

logger = logging.getLogger(__name__)

DONE_FOLDER = "done"
BROKEN_FOLDER = "broken"

_POLL_S = 0.1
# Looking takes 2 us a file: a folder with very many kept files must not cost a whole core.
_LARGEST_SHARE_OF_TIME = 0.1
# A file that cannot be decoded may be one whose writer pauses; after so long it is given up.
_BROKEN_AFTER_S = 5.0


@dataclasses.dataclass
class _Known:
    """A file that was seen.

    Attributes:
        signature: inode, size and mtime_ns: another one is another picture.
        since: Monotonic time at which this signature was first seen.
        old: Its mtime was already past when it was first seen: it was moved in.
        failed: It could not be decoded.
        taken: It was given out, or given up.
    """

    signature: tuple[int, int, int]
    since: float
    old: bool
    failed: bool = False
    taken: bool = False


class WatchedFolder:
    """New pictures of one folder, oldest first; subfolders are not looked at."""

    def __init__(
        self,
        folder: Path,
        *,
        after: str = "keep",
        settle_s: float = 0.5,
        pace: Pace | None = None,
        gone_s: float = SILENT_S,
    ) -> None:
        """See `SourceSettings` for the meaning of the others.

        Args:
            folder: Which one.
            after: What happens to a file.
            settle_s: A file must not have changed for so long.
            pace: Limit of pictures per second.
            gone_s: Of a folder that cannot be read for so long, `frames` says so by its end.
        """
        self._folder = folder
        self._after = after
        self._settle_s = settle_s
        self._pace = pace or Pace()
        self._gone_s = gone_s
        self._known: dict[str, _Known] = {}

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; ends only with `stop`."""
        self._check()
        gone_at: float | None = None
        while not stop.is_set():
            started = time.monotonic()
            try:
                ready = self._look(started)
                gone_at = None
            except OSError as e:
                # A stick that was pulled out may come back: wait for it, and say so once.
                if gone_at is None:
                    gone_at = started
                    logger.warning("%s: %s; waiting for it to come back", self._folder, e.strerror or e)
                if started - gone_at >= self._gone_s:
                    msg = f"{self._folder}: gone for {self._gone_s:g} s ({e.strerror or e}); check the disk"
                    raise DeviceError(msg) from e
                ready = []
            yield from self._take(ready, stop)
            looked_s = time.monotonic() - started if not ready else 0.0
            stop.wait(max(_POLL_S, looked_s / _LARGEST_SHARE_OF_TIME))

    def _check(self) -> None:
        if not self._folder.is_dir():
            msg = f"{self._folder}: no such folder; create it, or change [source] path"
            raise DeviceError(msg)
        if self._after != "keep" and not os.access(self._folder, os.W_OK):
            msg = (
                f"{self._folder}: may not be changed by this user, so pictures could not be removed after "
                'use; change its owner or set [source] after = "keep"'
            )
            raise DeviceError(msg)

    def _look(self, now: float) -> list[str]:
        """Update what is known from the disk; return the names that are complete, oldest first.

        Raises: OSError if the folder cannot be read.
        """
        seen: dict[str, _Known] = {}
        wall = time.time()
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not is_picture_name(entry.name):
                    continue
                with contextlib.suppress(FileNotFoundError):  # removed while we looked
                    if entry.is_file():
                        seen[entry.name] = self._remember(entry.name, entry.stat(), now, wall)
        self._known = seen  # forgets the files that are gone
        ready = [name for name, file in seen.items() if self._is_ready(file, now)]
        return sorted(ready, key=lambda name: (seen[name].signature[2], name))

    def _remember(self, name: str, stat: os.stat_result, now: float, wall: float) -> _Known:
        signature = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        known = self._known.get(name)
        if known is not None and known.signature == signature:
            return known
        # A file that changed before our eyes is being written, whatever its mtime says.
        return _Known(signature, now, old=known is None and wall - stat.st_mtime >= self._settle_s)

    def _is_ready(self, file: _Known, now: float) -> bool:
        if file.taken:
            return False
        stable_s = now - file.since
        if file.failed:
            return stable_s >= max(_BROKEN_AFTER_S, self._settle_s)
        return file.old or stable_s >= self._settle_s

    def _take(self, names: list[str], stop: threading.Event) -> Iterator[Frame]:
        for name in names:
            if not self._pace.wait(stop):
                return
            path, file = self._folder / name, self._known[name]
            try:
                pixels = decode_picture(path)
            except InputError as e:
                self._judge_broken(path, file, e)
                continue
            file.taken = True
            yield Frame(name, pixels, functools.partial(self._clear, path, DONE_FOLDER))

    def _judge_broken(self, path: Path, file: _Known, error: InputError) -> None:
        if not path.exists():
            return  # taken away by its owner
        if not file.failed:
            file.failed = True
            return
        file.taken = True
        logger.warning("%s", error)  # one bad picture must not stop the others
        self._clear(path, BROKEN_FOLDER)

    def _clear(self, path: Path, folder: str) -> None:
        """Keep, move or delete a file that is dealt with.

        A failure is logged only: the file stays known as taken, so it does not come again and again.
        """
        try:
            if self._after == "delete":
                path.unlink(missing_ok=True)
            elif self._after == "move":
                target = self._folder / folder
                target.mkdir(exist_ok=True)
                path.replace(_free_name(target / path.name))
        except FileNotFoundError:
            pass  # somebody was faster
        except OSError as e:
            logger.warning(
                "%s: cannot be removed after use: %s; it is classified again after a restart",
                path,
                e.strerror or e,
            )


def _free_name(path: Path) -> Path:
    """Return `path`, or a numbered sibling if it is taken: cameras count from 1 again."""
    number, free = 1, path
    while free.exists():
        free = path.with_stem(f"{path.stem}-{number}")
        number += 1
    return free
