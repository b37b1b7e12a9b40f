"""The page Pipeline."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class PipelinePage(Page):
    """The page Pipeline."""

    section = "pipeline"

    async def get(self) -> None:
        """Show it."""
        self.answer("pipeline.html", {})


HANDLERS = ((r"pipeline", PipelinePage),)
