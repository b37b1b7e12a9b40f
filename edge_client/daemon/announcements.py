"""Announcements of one channel, which anybody may send: what is news, and what is told of them."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_client.contract.names import announcement_topic
from edge_client.rate_limit import RateLimit
from edge_client.update.triggers import read_announcement

if TYPE_CHECKING:
    from edge_client.settings.update import DeviceSettings
    from edge_client.update.schedule import CheckSchedule
    from edge_client.update.triggers import Trigger

logger = logging.getLogger(__name__)

# Malformed announcements that reach log and status: so many at once, then one in each interval.
MALFORMED_AT_ONCE, MALFORMED_INTERVAL_S = 10, 60.0


class Announcements:
    """Reads the announcements of a channel."""

    def __init__(self, device: DeviceSettings) -> None:
        """Prepare."""
        self._channel = device.channel
        self._topic = announcement_topic(device.fleet, device.channel)
        self._malformed_told = RateLimit(MALFORMED_AT_ONCE, MALFORMED_INTERVAL_S)

    def read(self, payload: bytes) -> str:
        """Return the release of an announcement; raises InputError if it is malformed."""
        return read_announcement(payload, topic=self._topic, channel=self._channel)

    def is_noise(self, trigger: Trigger, schedule: CheckSchedule, newest: str | None, now: float) -> bool:
        """Pass announcements to the schedule; return whether some came, and none is news.

        Args:
            trigger: What came.
            schedule: Of the update checks.
            newest: Release that was installed last.
            now: Monotonic seconds.
        """
        news = [schedule.note_announcement(one, newest, now) for one in trigger.announcements]
        return bool(trigger.malformed or news) and not any(news)

    def describe_fault(self, trigger: Trigger) -> str:
        """Log a malformed announcement, unless there were too many; return the text for the status, or none.

        The status is without what was sent, which anybody may write: each new text would wear out the card.
        """
        if not trigger.malformed or not self._malformed_told.allows():
            return ""
        logger.warning("%s", trigger.malformed)
        return f"the last message on {self._topic} was not a valid announcement; see the log"
