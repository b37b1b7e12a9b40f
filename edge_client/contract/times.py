"""Time of day as both sides write it into documents."""

from __future__ import annotations

import datetime


def current_time() -> datetime.datetime:
    """Return the system clock's time, aware UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


def utc_now() -> str:
    """Return the system clock's time as ISO 8601 text: UTC, milliseconds."""
    return current_time().isoformat(timespec="milliseconds")
