"""The page *History*: what people did on this board, newest first."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from edge_client.contract.times import seconds_of
from luigi_tasks.board.access.audit import Act  # noqa: TC001 - msgspec reads the type
from luigi_tasks.board.access.rights import OPERATOR
from luigi_tasks.board.page import Page
from luigi_tasks.board.paging import whole_number

_USUAL, _MOST = 200, 2000


class ShownActs(msgspec.Struct, frozen=True):
    """What the page shows.

    Attributes:
        acts: Acts, newest first.
        is_all: Whether there are no older ones.
    """

    acts: tuple[Act, ...]
    is_all: bool


class HistoryPage(Page):
    """The last acts."""

    section = "audit"
    needs: ClassVar[dict[str, str]] = {"GET": OPERATOR, "HEAD": OPERATOR}

    async def get(self) -> None:
        """Show them."""
        number = min(whole_number(self.get_query_argument("acts", ""), _USUAL), _MOST)
        acts = await self.in_thread(lambda: self.board.audit.last(number + 1))
        shown = ShownActs(acts[:number], len(acts) <= number)
        self.answer("audit.html", shown, seconds=seconds_of)


HANDLERS = ((r"audit", HistoryPage),)
