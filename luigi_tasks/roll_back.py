"""The task that points a channel back to an earlier release."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import luigi

from luigi_tasks import steps
from luigi_tasks.logs import log_errors_as_messages
from luigi_tasks.luigid import Reschedulable
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.targets import announcement_target
from luigi_tasks.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from luigi_tasks.targets import AnnouncementTarget


class RollBack(Reschedulable):
    """Point a channel back to an earlier release; the one that it leaves is withdrawn.

    No run points there again until data or settings change.
    """

    to = luigi.Parameter(description="release id to go back to")

    @functools.cached_property
    def workspace(self) -> Workspace:
        """Store, repository and broker."""
        log_errors_as_messages()
        return open_workspace(load_settings())

    def output(self) -> AnnouncementTarget:
        """Exists when the announcement of what the channel points to is retained."""
        return announcement_target(self.workspace)

    def complete(self) -> bool:
        """Whether the channel points to the earlier release, and the announcement does."""
        return steps.current_release(self.workspace) == self.to and self.output().exists()

    def run(self) -> None:
        """Publish the older release under newer metadata, then announce; a rollout that runs is aborted."""
        channel = self.workspace.settings.release.channel
        self.workspace.fleet.leave(channel, "RollBack", f"the channel goes back to {self.to}")
        steps.roll_back(self.workspace, str(self.to))
        steps.announce(self.workspace)
