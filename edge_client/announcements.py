"""Announcements: hints from an untrusted broker, trusted for nothing but to make a device look."""

from __future__ import annotations

import dataclasses
import threading
import time

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError
from edge_client.contract.messages import ANNOUNCEMENT_LIMIT_BYTES, Announcement
from edge_client.contract.names import check_name


def read_announcement(payload: bytes, *, topic: str, channel: str) -> str:
    """Return the release that an announcement names; safe in a log line and a path.

    Args:
        payload: What arrived.
        topic: Where, named in errors.
        channel: The channel that this device follows.
    Raises: InputError if it is huge, no announcement, or for another channel; in one printable line.
    """
    source = f"announcement on {topic}"
    announcement = decode_document(Announcement, payload, source=source, limit_bytes=ANNOUNCEMENT_LIMIT_BYTES)
    if announcement.channel != channel:
        msg = f"{source}: is for channel {announcement.channel[:80]!r}; ignored"
        raise InputError(msg)
    return check_name(announcement.release, f"{source}: release id")


@dataclasses.dataclass(frozen=True)
class Ring:
    """An announcement that arrived at `arrived` (monotonic seconds)."""

    payload: bytes
    arrived: float


@dataclasses.dataclass(frozen=True)
class Awaited:
    """A release that was announced at `since` (monotonic seconds) and did not come to serve yet."""

    release: str
    since: float


class Doorbell:
    """Hands announcements from paho's thread to the updater; only the newest waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._ring: Ring | None = None
        self._nudged = self._closed = False

    def ring(self, payload: bytes) -> None:
        """Leave an announcement; never waits, never raises."""
        ring = Ring(payload, time.monotonic())
        with self._changed:
            self._ring = ring
            self._changed.notify_all()

    def nudge(self) -> None:
        """Wake whoever waits, without an announcement."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> Ring | None:
        """Take the newest announcement; None after `timeout_s`, a nudge, or once closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._ring or self._nudged or self._closed, max(timeout_s, 0))
            ring, self._ring, self._nudged = self._ring, None, False
            return ring

    def close(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
