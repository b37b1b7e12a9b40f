"""Files of a watched folder that are left alone: counted for the status, and each kind of them named once.

Who finds no results looks for the reason here: a name without `.jpg`, an upload that never ends, a folder of
the day into which nobody looks.
"""

from __future__ import annotations

import enum
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.text import excerpt, text_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)


class Reason(enum.Enum):
    """Why a file is left alone, as it stands behind a number of files."""

    NAME = "without the name of a picture (.jpg, .jpeg, .png, .bmp, .gif, .webp, .tif, .tiff)"
    HIDDEN = "hidden"
    PARTIAL = "uploads that are not finished"
    EMPTY = "empty"
    LINK = "links, which are not followed"
    SPECIAL = "no regular files"
    UNREADABLE = "that this user may not read"
    BROKEN = "that are no complete pictures"
    FOLDER = "subfolders ([source] recursive = true looks into them)"
    CLOSED_FOLDER = "subfolders that this user may not read"


# Those that an upload leaves for a moment are named once they stay.
_PASSING = frozenset({Reason.HIDDEN, Reason.PARTIAL, Reason.EMPTY})
_STAYS_S = 3.0


class PassedOver:
    """Count of the files that one look at a folder left alone, by reason, with an example of each."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, logs: bool = True) -> None:
        """Count nothing yet; with `logs`, each reason is named once in the log."""
        self._clock = clock
        self._last: dict[Reason, tuple[int, str]] = {}
        self._current: dict[Reason, tuple[int, str]] = {}
        self._since: dict[Reason, float] = {}
        self._named: set[Reason] = set() if logs else set(Reason)
        self._broken: tuple[int, str] = (0, "")

    def begin(self) -> None:
        """Begin a look at the folder."""
        self._current = {}

    def add(self, reason: Reason, example: str, count: int = 1) -> None:
        """Count files of this look."""
        before, first = self._current.get(reason, (0, example))
        self._current[reason] = (before + count, first)

    def add_broken(self, name: str) -> None:
        """Count a file that was read and is no picture; the log names each."""
        self._broken = (self._broken[0] + 1, self._broken[1] or name)
        self._named.add(Reason.BROKEN)

    def end(self, folder: Path) -> None:
        """End the look: its counts are those of the status; a reason that is new is named in the log."""
        self._last, now = self._current, self._clock()
        self._since = {reason: self._since.get(reason, now) for reason in self._current}
        for reason in self._current.keys() - self._named:
            if reason in _PASSING and now - self._since[reason] < _STAYS_S:
                continue
            self._named.add(reason)
            count, example = self._current[reason]
            if reason is Reason.LINK:
                logger.warning(
                    "%s: a link, which is not followed; move the file here", text_of(folder / example)
                )
            else:
                told = text_of(folder), count, reason.value, text_of(example)
                logger.warning("%s: passed over: %d %s (%s)", *told)

    def describe(self) -> str | None:
        """Return the counts as text; None if no file is passed over."""
        counts = dict(self._last)
        if self._broken[0]:
            counts[Reason.BROKEN] = self._broken
        parts = [
            f"{count} {reason.value} ({excerpt(text_of(example))})"
            for reason in Reason
            if (found := counts.get(reason))
            for count, example in [found]
        ]
        return "; ".join(parts) or None
