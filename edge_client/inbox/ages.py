"""Age of kept frames, by a time that no wrong clock moves.

A Pi without a battery-backed clock starts days behind, and a time server or a person may set any clock
years ahead for a moment; the dates of files then say nothing about their age. So frames age by a time of
their own, in seconds. It goes on with the kernel's time since the boot. Over a reboot it goes on with the
clock, and stands still where that went back, or ahead by more than a day: a frame is kept longer then,
never shorter. It is stored beside the frames, and the modification time of a frame's record is set to it.
Any other modification time means a frame whose age is unknown; it counts from now on. The time begins at the
clock's, so that version 0.1, which goes by the clock, keeps these frames too.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import EdgeError
from edge_client.disk import write_durably
from edge_client.machine import boot_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Beside the folder of the frames.
CLOCK_FILE = "inbox.clock.json"
_LIMIT_BYTES = 4096
# More is not believed between two readings: no device that runs reads so seldom.
_LONGEST_STEP_S = 86400.0
# Damaged, if later: no device keeps frames for a thousand years.
_LATEST_S = 1000 * 365 * 86400.0
# What a power cut costs in age at most; each write wears out the card.
_SAVE_S = 3600.0


class Reading(NamedTuple):
    """All clocks of this machine at one moment.

    Attributes:
        boot: Id of the boot; empty if unknown.
        since_boot_s: Seconds since the boot, suspended ones too.
        wall_s: Seconds since 1970, right or wrong.
    """

    boot: str
    since_boot_s: float
    wall_s: float


class _ClockDocument(Document, frozen=True, kw_only=True):
    """Time of the frames, the clocks' readings at that time, and when the time of the frames began."""

    frames_s: float
    began_s: float = 0.0
    boot: str
    since_boot_s: float
    wall_s: float


def read_clocks() -> Reading:
    """Read all clocks of this machine."""
    return Reading(boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())


class FrameClock:
    """Time of the frames in one folder. One thread at a time."""

    def __init__(self, folder: Path, read: Callable[[], Reading] = read_clocks) -> None:
        """Go on from the stored time; begin at the clock's where there is none, or it is damaged."""
        self._file = folder.with_name(CLOCK_FILE)
        self._read = read
        self._began_s = self._now_s = max(read().wall_s, 0.0)
        self._last: Reading | None = None
        with contextlib.suppress(OSError, EdgeError):
            known = decode_document(
                _ClockDocument,
                self._file.read_bytes(),
                source=str(self._file),
                limit_bytes=_LIMIT_BYTES,
            )
            if 0 <= known.frames_s < _LATEST_S:
                self._began_s, self._now_s = known.began_s, known.frames_s
                self._last = Reading(known.boot, known.since_boot_s, known.wall_s)
        self._saved_s = self._now_s if self._last is not None else self._now_s - _SAVE_S

    def now_s(self) -> float:
        """Return the time of now; it never goes back while this object lives."""
        reading = self._read()
        if self._last is not None:
            step_s = _elapsed_s(self._last, reading)
            self._now_s += step_s if 0 <= step_s <= _LONGEST_STEP_S else 0.0
        self._last = reading
        if self._now_s - self._saved_s >= _SAVE_S:
            self.save()
        return self._now_s

    def save(self) -> None:
        """Store the time; never fails: without it, frames are kept longer."""
        if self._last is None:
            return
        document = _ClockDocument(frames_s=self._now_s, began_s=self._began_s, **self._last._asdict())
        with contextlib.suppress(EdgeError):
            write_durably(self._file, encode_document(document))
            self._saved_s = self._now_s

    def written_s(self, record: Path) -> float:
        """Return when a frame was kept; one of unknown age is marked as kept now. Raises: OSError."""
        written_s = record.stat().st_mtime
        if self._began_s <= written_s <= self._now_s:
            return written_s
        self.mark(record)
        return self._now_s

    def mark(self, record: Path) -> None:
        """Mark a frame as kept now; never fails."""
        with contextlib.suppress(OSError):
            os.utime(record, (self._now_s, self._now_s))


def _elapsed_s(before: Reading, after: Reading) -> float:
    if before.boot and before.boot == after.boot:
        return after.since_boot_s - before.since_boot_s
    return after.wall_s - before.wall_s
