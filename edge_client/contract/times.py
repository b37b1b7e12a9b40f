"""Time of day as both sides write it into documents."""

from __future__ import annotations

import datetime


def current_time() -> datetime.datetime:
    """Return the system clock's time, aware UTC."""
    return datetime.datetime.now(datetime.timezone.utc)


def utc_now() -> str:
    """Return the system clock's time as ISO 8601 text: UTC, milliseconds."""
    return current_time().isoformat(timespec="milliseconds")


def parse_time(text: str) -> datetime.datetime:
    """Return a time of a document, aware; the beginning of 1970 where it is none."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except ValueError:
        return datetime.datetime.fromtimestamp(0, datetime.timezone.utc)
    return time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)


def seconds_of(text: str) -> float:
    """Return a time of a document in seconds since 1970; 0 for none, and for what is no time."""
    return max(parse_time(text).timestamp(), 0.0) if text else 0.0


def seconds_until(text: str) -> float:
    """Return the seconds from now to a time of a document; negative if it has passed."""
    return (parse_time(text) - current_time()).total_seconds()
