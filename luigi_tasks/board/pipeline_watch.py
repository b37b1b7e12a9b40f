"""Looks at runs and at luigid while somebody has a page open, and tells the pages what changed."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from luigi_tasks.board.live.streams import PIPELINE
from luigi_tasks.board.runs.view import version_of

if TYPE_CHECKING:
    from luigi_tasks.board.board import Board

logger = logging.getLogger("edge-fleet")

# Nobody looks: often enough that luigid has not forgotten a run's steps (ten minutes after their end).
_UNSEEN_TIMES = 60
# A luigid with thousands of tasks is asked less often: at most this part of its time.
_PART_OF_TIME = 0.2


async def watch_pipeline(board: Board) -> None:
    """Look until the board ends; what fails is logged once in a row, and looked at again."""
    look_s, looked_at, had_failed = board.settings.board.look_s, -1e9, False
    pause_s = look_s
    while not board.streams.has_ended:
        if len(board.streams) or time.monotonic() - looked_at > _UNSEEN_TIMES * look_s:
            began = time.monotonic()
            try:
                await tell_pipeline(board)
                had_failed = False
            except Exception as e:  # noqa: BLE001 - a look is repeated, and the board goes on
                if not had_failed:
                    logger.warning("Runs of the pipeline: %s", e)
                had_failed = True
            looked_at = time.monotonic()
            pause_s = max(look_s, (looked_at - began) / _PART_OF_TIME)
        await asyncio.sleep(pause_s)


async def tell_pipeline(board: Board) -> None:
    """Look once, and tell the pages that are open."""
    version = await board.in_thread(lambda: version_of(board.runs, board.luigid))
    board.streams.tell(PIPELINE, version)
