"""Luigi targets: an object on S3, a signed channel, a retained announcement.

A target exists when the world already is as the task would make it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import luigi

if TYPE_CHECKING:
    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.release.repository import ReleaseRepository


class PendingTarget(luigi.Target):
    """Stands for a target whose address depends on a result that is not there yet."""

    def exists(self) -> bool:
        """Never."""
        return False


class ChannelTarget(luigi.Target):
    """Exists when the signed channel points to the release for the right share of devices.

    Also where a person withdrew the release: then there is nothing to do.
    """

    def __init__(
        self, repository: ReleaseRepository, channel: str, release: str, share_percent: float
    ) -> None:
        self.repository = repository
        self.channel = channel
        self.release = release
        self.share_percent = share_percent

    def exists(self) -> bool:
        """Whether there is nothing to publish."""
        pointer = self.repository.load().channel(self.channel)
        if pointer is None:
            return False
        points_here = (pointer.release, pointer.share_percent) == (self.release, self.share_percent)
        return points_here or self.release in pointer.withdrawn


class FreshSignaturesTarget(luigi.Target):
    """Exists while the published signatures are far enough from their expiry."""

    def __init__(self, repository: ReleaseRepository) -> None:
        self.repository = repository

    def exists(self) -> bool:
        """Whether there is nothing to renew (also where nothing is published yet)."""
        return not self.repository.needs_renewal()


class AnnouncementTarget(luigi.Target):
    """Exists when the broker retains the announcement of what the channel points to."""

    def __init__(self, repository: ReleaseRepository, client: BrokerClient, channel: str) -> None:
        self.repository = repository
        self.client = client
        self.channel = channel

    def exists(self) -> bool:
        """Whether a device that connects now hears of the right release."""
        pointer = self.repository.load().channel(self.channel)
        return pointer is not None and self.client.announced_release(self.channel) == pointer.release
