"""The addresses of the board, and who answers them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import tornado.iostream
import tornado.web

from luigi_tasks.board.page import HEADERS, NotFound, Page
from luigi_tasks.board.pages import device, fleet, label, pipeline, releases, rollouts, trial

if TYPE_CHECKING:
    from luigi_tasks.board.board import Board

# Each has HANDLERS: address below the board, a regular expression, and its handler.
PAGES = (fleet, device, rollouts, releases, label, trial, pipeline)
STATIC = Path(__file__).parent / "static"


class StreamPage(Page):
    """The stream of changes."""

    async def get(self) -> None:
        """Send events until the page is closed."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        queue = self.board.streams.open()
        try:
            await self.flush()
            while True:
                self.write(await queue.get())
                await self.flush()
        except tornado.iostream.StreamClosedError:
            pass
        finally:
            self.board.streams.close(queue)


class StaticFile(tornado.web.StaticFileHandler):
    """Style sheet, script and what is vendored."""

    def set_default_headers(self) -> None:
        """Let browsers guess no types."""
        for name, value in HEADERS.items():
            if name != "Cache-Control":
                self.set_header(name, value)


def make_application(board: Board) -> tornado.web.Application:
    """Return the application: at the root, and below the path of `[board] url`, which a proxy may strip."""
    handlers: list[Any] = []
    for prefix in dict.fromkeys(("/", board.prefix)):
        for page in PAGES:
            handlers += [(prefix + address, handler, {"board": board}) for address, handler in page.HANDLERS]
        handlers.append((f"{prefix}streams", StreamPage, {"board": board}))
        handlers.append((f"{prefix}static/(.*)", StaticFile, {"path": str(STATIC)}))
    return tornado.web.Application(
        handlers,
        default_handler_class=NotFound,
        default_handler_args={"board": board},
        compress_response=True,
        static_path=str(STATIC),
        static_url_prefix=f"{board.prefix}static/",
        static_handler_class=StaticFile,
        websocket_max_message_size=0,
    )
