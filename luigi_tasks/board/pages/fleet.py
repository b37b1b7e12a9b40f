"""The page Fleet."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class FleetPage(Page):
    """The page Fleet."""

    section = ""

    async def get(self) -> None:
        """Show it."""
        self.answer("fleet.html", {})


HANDLERS = ((r"", FleetPage),)
