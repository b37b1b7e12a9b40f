"""The page Rollouts."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class RolloutsPage(Page):
    """The page Rollouts."""

    section = "rollouts"

    async def get(self) -> None:
        """Show it."""
        self.answer("rollouts.html", {})


HANDLERS = ((r"rollouts", RolloutsPage),)
