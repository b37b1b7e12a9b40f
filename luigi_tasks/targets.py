"""Luigi targets: a document in the store, a signed channel, a retained announcement.

A target exists when the world already is as the task would make it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import luigi

from luigi_tasks.evidence.records import PendingDocument, StoredDocument

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.release.published import RepositoryState
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.workspace import Workspace


class DocumentTarget(StoredDocument, luigi.Target):
    """The record of a step that is done."""


class PendingTarget(PendingDocument, luigi.Target):
    """Target whose address depends on a result that does not exist yet."""


class PublishedTarget(luigi.Target):
    """Target in the signed repository.

    Args:
        load: Returns what is published; targets that are asked together may share one answer.
    """

    def __init__(self, load: Callable[[], RepositoryState]) -> None:
        self.load = load


class ChannelTarget(PublishedTarget):
    """Exists when the signed channel points to the release for the right share of devices.

    Also where a person withdrew the release, or its rollout runs or waits: then there is nothing to do.
    """

    def __init__(
        self,
        load: Callable[[], RepositoryState],
        channel: str,
        release: str,
        share_percent: float,
        is_taken_up: Callable[[], bool] = bool,
    ) -> None:
        super().__init__(load)
        self.is_taken_up = is_taken_up
        self.channel = channel
        self.release = release
        self.share_percent = share_percent

    def exists(self) -> bool:
        """Whether there is nothing to publish."""
        state = self.load()
        pointer = state.channel(self.channel)
        wanted = (self.release, self.share_percent)
        points_here = pointer is not None and (pointer.release, pointer.share_percent) == wanted
        return points_here or self.release in state.withdrawn(self.channel) or self.is_taken_up()


class FreshSignaturesTarget(PublishedTarget):
    """Exists while the published signatures are far enough from their expiry."""

    def __init__(
        self, repository: ReleaseRepository, load: Callable[[], RepositoryState] | None = None
    ) -> None:
        super().__init__(load or repository.load)
        self.repository = repository

    def exists(self) -> bool:
        """Whether there is nothing to renew (also where nothing is published yet)."""
        return not self.repository.is_renewable(self.load())


class AnnouncementTarget(PublishedTarget):
    """Exists when the broker, if there is one, retains the announcement of the channel's release.

    While a release is rolled out, that one is announced: a device ignores the announcement of what it has.
    """

    def __init__(self, load: Callable[[], RepositoryState], client: BrokerClient, channel: str) -> None:
        super().__init__(load)
        self.client = client
        self.channel = channel

    def exists(self) -> bool:
        """Whether a device that connects now receives the announcement of the current release."""
        from luigi_tasks.release import announcement  # noqa: PLC0415 - seldom asked for

        release = announcement.release_to_announce(self.load(), self.channel)
        # Without one, the channel's first rollout has not begun: there is nothing to announce.
        return release is None or announcement.is_announced(self.client, self.channel, release)


def channel_target(
    workspace: Workspace, release: str, load: Callable[[], RepositoryState] | None = None
) -> ChannelTarget:
    """Return the target of a release that the run's channel offers."""
    rules = workspace.settings.release
    return ChannelTarget(
        load or workspace.repository.load,
        rules.channel,
        release,
        rules.share_percent,
        lambda: workspace.is_taken_up(release),
    )


def announcement_target(
    workspace: Workspace, load: Callable[[], RepositoryState] | None = None
) -> AnnouncementTarget:
    """Return the target of the announcement of the run's channel."""
    channel = workspace.settings.release.channel
    return AnnouncementTarget(load or workspace.repository.load, workspace.broker, channel)
