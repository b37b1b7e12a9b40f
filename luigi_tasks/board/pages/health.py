"""Whether the board runs, for monitors: it tells nothing else, and needs no right."""

from __future__ import annotations

from luigi_tasks.board.page import Page


class HealthPage(Page):
    """Says ok."""

    def prepare(self) -> None:
        """Let everybody ask, by any name."""

    def get(self) -> None:
        """Say so."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish("ok\n")


HANDLERS = ((r"healthz", HealthPage),)
