"""The page Label."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class LabelPage(Page):
    """The page Label."""

    section = "label"

    async def get(self) -> None:
        """Show it."""
        self.answer("label.html", {})


HANDLERS = ((r"label", LabelPage),)
