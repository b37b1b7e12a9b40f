"""Luigi targets: a document in the store, a signed channel, a retained announcement.

A target exists when the world already is as the task would make it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import luigi

from luigi_tasks.storage.documents import PendingDocument, StoredDocument

if TYPE_CHECKING:
    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.workspace import Workspace


class DocumentTarget(StoredDocument, luigi.Target):
    """The record of a step that is done."""


class PendingTarget(PendingDocument, luigi.Target):
    """Target whose address depends on a result that does not exist yet."""


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
        pointer = self.repository.recent().channel(self.channel)
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

    def __init__(self, repository: ReleaseRepository, announcer: BrokerClient, channel: str) -> None:
        self.repository = repository
        self.announcer = announcer
        self.channel = channel

    def exists(self) -> bool:
        """Whether a device that connects now hears of the right release."""
        pointer = self.repository.recent().channel(self.channel)
        return pointer is not None and self.announcer.announced_release(self.channel) == pointer.release


def channel_target(workspace: Workspace, release: str) -> ChannelTarget:
    """Return the target of a release that the run's channel offers."""
    rules = workspace.settings.release
    return ChannelTarget(workspace.repository, rules.channel, release, rules.share_percent)


def announcement_target(workspace: Workspace) -> AnnouncementTarget:
    """Return the target of the announcement of the run's channel."""
    return AnnouncementTarget(workspace.repository, workspace.broker, workspace.settings.release.channel)
