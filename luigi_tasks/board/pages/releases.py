"""The page Releases."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class ReleasesPage(Page):
    """The page Releases."""

    section = "releases"

    async def get(self) -> None:
        """Show it."""
        self.answer("releases.html", {})


HANDLERS = ((r"releases", ReleasesPage),)
