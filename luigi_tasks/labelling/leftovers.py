"""Hidden copies that a killed run left between writing a file and renaming it; see `edge_client.disk`."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
from typing import TYPE_CHECKING

from luigi_tasks.logs import LUIGI_LOGGER

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

# Of `write_durably`: a dot, the name, a dot, and the eight characters of mkstemp.
_SUFFIX = r"\.[a-z0-9_]{8}"

logger = logging.getLogger(LUIGI_LOGGER)


@contextlib.contextmanager
def without_leftovers(place: Path, folders: Callable[[], Iterable[Path]], names: str) -> Iterator[None]:
    """Remove what killed runs left, and hold `place` for the block, so that no other run removes its files.

    While another run holds it, nothing is removed: the copies may be that one's.

    Args:
        place: A folder that all writers of these files know; nothing is done while it does not exist.
        folders: Returns the folders that the files lie in.
        names: Regular expression of the files' own names.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # no such folder yet, or a file system without locks
            descriptor = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            if _is_alone(descriptor):
                _sweep(folders(), re.compile(rf"\.{names}{_SUFFIX}"))
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


def _is_alone(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sweep(folders: Iterable[Path], left: re.Pattern[str]) -> None:
    count = 0
    for folder in folders:
        with contextlib.suppress(OSError), os.scandir(folder) as inside:
            for one in inside:
                if left.fullmatch(one.name) and one.is_file(follow_symlinks=False):
                    os.unlink(one.path)  # noqa: PTH108 - scandir gives a text
                    count += 1
    if count:
        logger.info("Removed %d hidden copies that a run which was killed had left", count)
