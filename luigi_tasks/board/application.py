"""The addresses of the board, and who answers them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tornado.iostream
import tornado.web

from luigi_tasks.board.page import HEADERS, NotFound, Page
from luigi_tasks.board.pages import device, fleet, label, pipeline, releases, rollouts, trial
from luigi_tasks.board.streams import Stream, TooManyStreamsError, event

if TYPE_CHECKING:
    from luigi_tasks.board.board import Board

# Each has HANDLERS: address below the board, a regular expression, and its handler.
PAGES = (fleet, device, rollouts, releases, label, trial, pipeline)
STATIC = Path(__file__).parent / "static"
# In a stream in which nothing else happens: a page that hears nothing for three times as long connects again,
# and writing shows the board which pages are gone.
ALIVE = event("alive", "")
_ALIVE_S = 15.0


class StreamPage(Page):
    """The stream of changes."""

    async def get(self) -> None:
        """Send events until the page is closed."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        # Not compressed: zlib would hold 256 kB for each page that is open.
        self.set_header("Content-Encoding", "identity")
        try:
            stream = self.board.streams.open()
        except TooManyStreamsError:
            self.set_header("Retry-After", "60")
            raise tornado.web.HTTPError(503, reason="too many pages are open") from None
        try:
            # The first event lets proxies that wait for a body pass the answer on.
            self.write(ALIVE)
            await self.flush()
            while True:
                self.write(await _next_event(stream))
                await self.flush()
        except tornado.iostream.StreamClosedError:
            pass
        finally:
            self.board.streams.close(stream)


async def _next_event(stream: Stream) -> str:
    try:
        return await asyncio.wait_for(stream.get(), _ALIVE_S)
    except asyncio.TimeoutError:
        return ALIVE


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
