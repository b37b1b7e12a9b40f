"""Triggers of update checks: requests, and announcements, which come from an untrusted broker.

An announcement is trusted for nothing; all it can do is to bring the next update check forward.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError
from edge_client.contract.messages import ANNOUNCEMENT_LIMIT_BYTES, Announcement
from edge_client.contract.names import check_name

if TYPE_CHECKING:
    from collections.abc import Callable

# Different announcements between two looks of the thread that checks.
ANNOUNCEMENTS_KEPT = 16


def read_announcement(payload: bytes, *, topic: str, channel: str) -> str:
    """Return the release id of an announcement, safe in a log line and in a path.

    Args:
        payload: The received message.
        topic: Its topic, named in errors.
        channel: Channel that this device follows.
    Raises: InputError if the payload is too large, malformed, or for another channel; in one printable line.
    """
    source = f"announcement on {topic}"
    announcement = decode_document(Announcement, payload, source=source, limit_bytes=ANNOUNCEMENT_LIMIT_BYTES)
    if announcement.channel != channel:
        msg = f"{source}: is for channel {announcement.channel[:80]!r}; ignored"
        raise InputError(msg)
    return check_name(announcement.release, f"{source}: release id")


@dataclasses.dataclass(frozen=True)
class ReceivedAnnouncement:
    """A well-formed announcement, and when it arrived (monotonic seconds)."""

    payload: bytes
    arrived: float
    release: str = ""


@dataclasses.dataclass(frozen=True)
class Trigger:
    """What asks for an update check since the last `UpdateTriggers.wait`.

    Attributes:
        announcements: The newest announcements, each content once, in the order of their arrival.
        malformed: What is wrong with the newest malformed one; empty if there was none.
        requested: Whether the channel's release was requested (`edge-client update`, Home Assistant).
        forgiving: Whether all refusals are to be forgotten (`edge-client update --retry`).
    """

    announcements: tuple[ReceivedAnnouncement, ...] = ()
    malformed: str = ""
    requested: bool = False
    forgiving: bool = False


class UpdateTriggers:
    """Passes announcements and requests from any thread to the one that checks.

    A malformed announcement, or one that says what another said, never takes the place of a well-formed one.
    Where more different ones come than are kept, the newest stay: each makes the device look at what is
    signed.
    """

    def __init__(
        self,
        read: Callable[[bytes], str] = lambda payload: payload.decode(errors="replace"),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin without a trigger.

        Args:
            read: Returns the release that an announcement names; raises InputError.
            clock: Monotonic seconds.
        """
        self._read = read
        self._clock = clock
        self._changed = threading.Condition()
        self._trigger = Trigger()
        self._woken = self._closed = False

    def announce(self, payload: bytes) -> None:
        """Pass on an announcement; never waits, never raises."""
        try:
            announcement = ReceivedAnnouncement(payload, self._clock(), self._read(payload))
        except InputError as e:
            with self._changed:
                self._trigger = dataclasses.replace(self._trigger, malformed=str(e))
                self._changed.notify_all()
            return
        with self._changed:
            others = tuple(one for one in self._trigger.announcements if one.payload != payload)
            kept = (*others, announcement)[-ANNOUNCEMENTS_KEPT:]
            self._trigger = dataclasses.replace(self._trigger, announcements=kept)
            self._changed.notify_all()

    def request(self, *, forgiving: bool = False) -> None:
        """Request the channel's release, whichever it is; see `Trigger`."""
        with self._changed:
            forgiving = forgiving or self._trigger.forgiving
            self._trigger = dataclasses.replace(self._trigger, requested=True, forgiving=forgiving)
            self._changed.notify_all()

    def wake(self) -> None:
        """End a `wait` without an announcement or a request."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> Trigger:
        """Wait for a trigger and take it; it is empty after `timeout_s`, after `wake`, and once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._trigger != Trigger() or self._woken or self._closed, max(timeout_s, 0)
            )
            trigger, self._trigger, self._woken = self._trigger, Trigger(), False
            return trigger

    def close(self) -> None:
        """End every `wait` from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
