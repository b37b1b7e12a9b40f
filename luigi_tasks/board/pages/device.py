"""The page Device."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class DevicePage(Page):
    """The page Device."""

    section = ""

    async def get(self, device: str) -> None:
        """Show it."""
        self.answer("device.html", {"device": device})


HANDLERS = ((r"devices/([^/]+)", DevicePage),)
