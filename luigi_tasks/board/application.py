"""The addresses of the board, and who answers them."""

from __future__ import annotations

import asyncio
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tornado.iostream
import tornado.web

from edge_client.contract.text import one_line
from luigi_tasks.board.access.guard import SAFE_METHODS, Refusal
from luigi_tasks.board.live.streams import Stream, TooManyStreamsError, event
from luigi_tasks.board.page import HEADERS, NotFound, Page
from luigi_tasks.board.pages import (
    acts,
    device,
    fleet,
    health,
    label,
    pipeline,
    releases,
    rollouts,
    sign_in,
    trial,
)

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest

    from luigi_tasks.board.board import Board

logger = logging.getLogger("edge-fleet")

# Each has HANDLERS: address below the board, a regular expression, and its handler.
PAGES = (fleet, device, rollouts, releases, label, trial, pipeline, acts, sign_in, health)
STATIC = Path(__file__).parent / "static"
# In a stream in which nothing else happens: a page that hears nothing for three times as long connects again,
# and writing shows the board which pages are gone.
ALIVE = event("alive", "")
_ALIVE_S = 15.0
# As much as somebody types into a form.
_TYPED_BYTES = 64 << 10


class StreamPage(Page):
    """The stream of changes."""

    async def get(self) -> None:
        """Send events until the page is closed, or its person has no right any more."""
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        # Not compressed: zlib would hold 256 kB for each page that is open.
        self.set_header("Content-Encoding", "identity")
        try:
            stream = self.board.streams.open(self.client.network)
        except TooManyStreamsError:
            raise Refusal(503, "too many pages are open: close some", retry_s=60) from None
        try:
            # The first event lets proxies that wait for a body pass the answer on.
            self.write(ALIVE)
            await self.flush()
            while self._may_still() and not self.board.streams.has_ended:
                self.write(await _next_event(stream))
                await self.flush()
        except (tornado.iostream.StreamClosedError, asyncio.CancelledError):
            pass  # the page is closed, or the board ends
        finally:
            self.board.streams.close(stream)

    def _may_still(self) -> bool:
        return self.board.access.people.of(self.request, self.client).may(self.role_for("GET"))

    def head(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401, ARG002 - as the base
        """Refuse: a stream has no end that its headers could be told at."""
        raise tornado.web.HTTPError(405)


async def _next_event(stream: Stream) -> str:
    try:
        return await asyncio.wait_for(stream.get(), _ALIVE_S)
    except asyncio.TimeoutError:
        return ALIVE


class ToStart(Page):
    """The board's address without the slash at its end."""

    def get(self) -> None:
        """Go to the first page."""
        self.redirect(self.path())


class StaticFile(tornado.web.StaticFileHandler):
    """Style sheet, script and what is vendored."""

    def validate_absolute_path(self, root: str, absolute_path: str) -> str | None:
        """Return the path of a file of ours; what is no path is not found."""
        try:
            return super().validate_absolute_path(root, absolute_path)
        except (ValueError, OSError):
            raise tornado.web.HTTPError(404) from None

    def set_default_headers(self) -> None:
        """Let browsers guess no types."""
        for name, value in HEADERS.items():
            if name != "Cache-Control":
                self.set_header(name, value)
        self.clear_header("Server")


@tornado.web.stream_request_body
class RefusedBody(Page):
    """Answers before a body is read that is too large, or that its sender has no right to send."""

    def initialize(self, board: Board, refusal: Refusal) -> None:  # type: ignore[override]
        """Take why."""
        super().initialize(board)
        self._refusal = refusal

    def prepare(self) -> None:
        """Say why."""
        raise self._refusal

    def data_received(self, chunk: bytes) -> None:
        """Drop what came already."""


class BoardApplication(tornado.web.Application):
    """Routes requests; a body that will be refused is not read.

    Args:
        board: The board.
        handlers: Addresses and handlers.
        settings: Of Tornado.
    """

    def __init__(self, board: Board, handlers: list[Any], **settings: Any) -> None:  # noqa: ANN401
        super().__init__(handlers, **settings)
        self._board = board

    def get_handler_delegate(
        self,
        request: HTTPServerRequest,
        target_class: type[tornado.web.RequestHandler],
        target_kwargs: dict[str, Any] | None = None,
        path_args: list[bytes] | None = None,
        path_kwargs: dict[str, bytes] | None = None,
    ) -> Any:  # noqa: ANN401 - Tornado's own
        """Return who reads a request; its headers are there, its body is not."""
        if not getattr(target_class, "_stream_request_body", False):
            limit = target_class.body_bytes if issubclass(target_class, Page) else 0
            connection: Any = request.connection
            connection.set_max_body_size(limit)
            if refusal := self._refuse_body(request, target_class, limit):
                kwargs = {"board": self._board, "refusal": refusal}
                return super().get_handler_delegate(request, RefusedBody, kwargs)
        return super().get_handler_delegate(request, target_class, target_kwargs, path_args, path_kwargs)

    def _refuse_body(
        self, request: HTTPServerRequest, target: type[tornado.web.RequestHandler], limit: int
    ) -> Refusal | None:
        length = request.headers.get("Content-Length", "")
        size = int(length) if length.isascii() and length.isdigit() and len(length) < 19 else 0
        if "Transfer-Encoding" in request.headers:  # of any size, up to the limit
            size = limit
        if size > limit:
            return Refusal(413, f"{size:,} bytes; at most {limit:,} are taken here")
        # What somebody typed is read, and kept while they sign in; more than that is not read for nobody.
        if size <= _TYPED_BYTES or not issubclass(target, Page) or request.method in SAFE_METHODS:
            return None
        access = self._board.access
        client = access.clients.of(request)
        person = access.people.of(request, client)
        role = target.role_for(request.method or "")
        return None if person.may(role) else Refusal(403, f"this needs the role {role}", needs=role)


def make_application(board: Board) -> tornado.web.Application:
    """Return the application: at the root, and below the path of `[board] url`, which a proxy may strip."""
    handlers: list[Any] = []
    for prefix in dict.fromkeys(("/", re.escape(board.prefix))):
        for page in PAGES:
            handlers += [(prefix + address, handler, {"board": board}) for address, handler in page.HANDLERS]
        handlers.append((f"{prefix}streams", StreamPage, {"board": board}))
        handlers.append((f"{prefix}static/(.*)", StaticFile, {"path": str(STATIC)}))
    if board.prefix != "/":
        handlers.append((re.escape(board.prefix.rstrip("/")), ToStart, {"board": board}))
    return BoardApplication(
        board,
        handlers,
        default_handler_class=NotFound,
        default_handler_args={"board": board},
        compress_response=True,
        static_path=str(STATIC),
        static_url_prefix=f"{board.prefix}static/",
        static_handler_class=StaticFile,
        websocket_max_message_size=0,
        log_function=log_request,
    )


def log_request(handler: tornado.web.RequestHandler) -> None:
    """Log what changed something and what failed here; nothing that a stranger could fill the log with."""
    request, status = handler.request, handler.get_status()
    # 503 was explained already, with its reason.
    if status in {500, 502, 504} or (request.method not in SAFE_METHODS and status < 400):
        name = one_line(handler.person.name) if isinstance(handler, Page) else ""
        level = logging.ERROR if status >= 500 else logging.INFO
        path = one_line(request.path[:200])
        logger.log(level, "%s %s: %d for %s", request.method, path, status, name or request.remote_ip)
