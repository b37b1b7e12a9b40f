"""The daily window of a rollout, as "01:00-05:00", in the local time of a device.

It goes over midnight if its end comes first. Times of day alone, compared with the clock on the wall: on the
day that the clocks go forward a window in the missing hour does not open; when they go back one may
open twice.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError

if TYPE_CHECKING:
    import datetime

_WINDOW = re.compile(r"(\d{1,2}):(\d{2})\s*-\s*(\d{1,2}):(\d{2})", re.ASCII)
_DAY_MINUTES = 24 * 60


@dataclasses.dataclass(frozen=True)
class DailyWindow:
    """Part of each day, in minutes since midnight; it goes over midnight if `end` is not after `start`."""

    start: int
    end: int

    @property
    def length_s(self) -> float:
        """Seconds from opening to closing."""
        return 60.0 * ((self.end - self.start) % _DAY_MINUTES or _DAY_MINUTES)

    def opens_in_s(self, now: datetime.datetime) -> float:
        """Return the seconds until the window opens, by the clock on the wall; 0 if it is open."""
        return 0.0 if self.closes_in_s(now) > 0 else (60.0 * self.start - _seconds_of_day(now)) % 86400.0

    def closes_in_s(self, now: datetime.datetime) -> float:
        """Return the seconds until the window closes; 0 if it is closed.

        Args:
            now: Local time.
        """
        since_s = (_seconds_of_day(now) - 60.0 * self.start) % 86400.0
        return max(self.length_s - since_s, 0.0)


def parse_window(text: str) -> DailyWindow:
    """Read a window.

    Raises: InputError if it is none, with an example.
    """
    found = _WINDOW.fullmatch(text.strip())
    if found is not None:
        hours, minutes, end_hours, end_minutes = map(int, found.groups())
        start, end = 60 * hours + minutes, 60 * end_hours + end_minutes
        valid = max(minutes, end_minutes) < 60 and start < _DAY_MINUTES and end <= _DAY_MINUTES
        if valid and start != end:
            return DailyWindow(start, end)
    msg = f"window {text[:40]!r}: give two times of day that differ, as in 01:00-05:00 or 22:00-04:00"
    raise InputError(msg)


def _seconds_of_day(time: datetime.datetime) -> float:
    return 3600.0 * time.hour + 60.0 * time.minute + time.second + time.microsecond / 1e6
