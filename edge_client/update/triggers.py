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
class Call:
    """What came since the last one.

    Attributes:
        ring: The newest announcement; None if none came.
        asked: Whether somebody asked for the channel's release.
    """

    ring: Ring | None = None
    asked: bool = False


class Doorbell:
    """Hands announcements and wishes to the updater, from any thread; only the newest announcement waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._call = Call()
        self._nudged = self._closed = False

    def ring(self, payload: bytes) -> None:
        """Leave an announcement; never waits, never raises."""
        ring = Ring(payload, time.monotonic())
        with self._changed:
            self._call = dataclasses.replace(self._call, ring=ring)
            self._changed.notify_all()

    def ask(self) -> None:
        """Leave the wish for the channel's release, whatever it is."""
        with self._changed:
            self._call = dataclasses.replace(self._call, asked=True)
            self._changed.notify_all()

    def nudge(self) -> None:
        """Wake whoever waits, without either."""
        with self._changed:
            self._nudged = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> Call:
        """Take what came; nothing after `timeout_s`, a nudge, or once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._call != Call() or self._nudged or self._closed, max(timeout_s, 0)
            )
            call, self._call, self._nudged = self._call, Call(), False
            return call

    def close(self) -> None:
        """Wake whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
