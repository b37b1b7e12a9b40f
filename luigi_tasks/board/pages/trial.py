"""The page Try."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class TryPage(Page):
    """The page Try."""

    section = "try"

    async def get(self) -> None:
        """Show it."""
        self.answer("trial.html", {})


HANDLERS = ((r"try", TryPage),)
