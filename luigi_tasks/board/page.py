"""What all pages have: rights, two forms of an answer (HTML and JSON), errors, headers against attackers."""

from __future__ import annotations

import functools
import http
import logging
import math
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import markupsafe
import msgspec
import tornado.web

from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import one_line
from luigi_tasks.board.board import Board  # noqa: TC001 - Tornado's `initialize`
from luigi_tasks.board.guard import CSRF_FIELD, CSRF_HEADER, SAFE_METHODS, Refusal, is_of_browser
from luigi_tasks.board.rights import OPERATOR, VIEWER, Person
from luigi_tasks.board.templating import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.board.clients import Client

T = TypeVar("T")

logger = logging.getLogger("edge-fleet")

HTML, JSON = "text/html; charset=utf-8", "application/json"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


_CSRF_INPUT = markupsafe.Markup('<input type="hidden" name="{}" value="{}">')


class Page(tornado.web.RequestHandler):
    """Base of all handlers.

    Attributes:
        needs: Role that a method needs.
        section: Address of the page in the navigation that the handler belongs to, such as `rollouts`.
        changes: Whether a POST changes something: then a page of the board, or a token, must have sent it.
    """

    needs: ClassVar[dict[str, str]] = {"GET": VIEWER, "HEAD": VIEWER, "POST": OPERATOR}
    section: ClassVar[str] = ""
    changes: ClassVar[bool] = True
    board: Board

    def initialize(self, board: Board) -> None:
        """Take the board."""
        self.board = board

    def set_default_headers(self) -> None:
        """Let browsers load nothing from elsewhere, guess no types and keep nothing."""
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def prepare(self) -> None:
        """Refuse what is not for this board, what no page of it sent, and who has no right."""
        self.board.guard.check_host(self.request, self.client)
        has_bearer = self.request.headers.get("Authorization", "").startswith("Bearer ")
        if self.changes or is_of_browser(self.request.headers):
            self.board.guard.check_origin(self.request, self.client, has_bearer=has_bearer)
        self.check_right()
        if self.changes and self.request.method not in SAFE_METHODS and not has_bearer:
            given = self.request.headers.get(CSRF_HEADER) or self.get_body_argument(CSRF_FIELD, "")
            self.board.guard.check_csrf(self.person.identity, given)

    @functools.cached_property
    def client(self) -> Client:
        """Where the request comes from."""
        return self.board.clients.of(self.request)

    @functools.cached_property
    def person(self) -> Person:
        """Who sends the request."""
        return self.board.rights.person(self.request)

    @property
    def wants_json(self) -> bool:
        """Whether the answer is JSON: it stands in `Accept`, and HTML does not."""
        accept = self.request.headers.get("Accept", "")
        return JSON in accept and "text/html" not in accept

    def check_right(self) -> None:
        """Refuse who has not the role that the method needs; raises HTTPError."""
        role = self.needs.get(self.request.method or "", OPERATOR)
        if not self.person.may(role):
            raise Refusal(403, f"this needs the role {role}; yours is {self.person.role}", needs=role)

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Return what a function that blocks returns."""
        return await self.board.in_thread(work)

    def path(self, address: str = "") -> str:
        """Return a path for the browser.

        Args:
            address: Below the board, such as `rollouts/stable`.
        """
        return self.board.prefix + address.lstrip("/")

    def answer(self, template: str, model: object, **more: Any) -> None:  # noqa: ANN401 - values of a template
        """Answer with a page, or with the same as JSON.

        Args:
            template: Its file in `templates/`.
            model: What is shown: the whole of the JSON, and `model` in the template.
            more: Further variables of the template, which the JSON does without.
        """
        if self.wants_json:
            self.set_header("Content-Type", JSON)
            self.finish(msgspec.json.encode(model))
            return
        self.set_header("Content-Type", HTML)
        self.finish(render(template, {**self._common(), "model": model, **more}))

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ANN401 - Tornado's
        """Answer with what is wrong, as page or JSON."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = http.HTTPStatus(status_code).phrase
        if isinstance(error, EdgeError):
            self.set_error_status(error)
            text = one_line(str(error))
        elif isinstance(error, Refusal):
            text = error.text
        elif isinstance(error, tornado.web.HTTPError) and error.reason:
            text = error.reason
        model = {"error": text, "status": self.get_status()}
        if isinstance(error, Refusal) and error.needs:
            model |= {"needs": error.needs, "role": self.person.role, "sign_in": self.path("sign-in")}
        self.answer("error.html", model)

    def set_error_status(self, error: EdgeError) -> None:
        """Set the status of an explained error, and when to ask again where that is known."""
        self.set_status(400 if isinstance(error, InputError) else 503)
        if retry_s := getattr(error, "retry_s", 0):
            self.set_header("Retry-After", str(math.ceil(retry_s)))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:  # noqa: ANN401 - Tornado's
        """Log what was not expected with its traceback, and what is explained in one line."""
        if isinstance(value, EdgeError):
            logger.warning("%s %s: %s", self.request.method, self.request.path, one_line(str(value)))
        else:
            super().log_exception(typ, value, tb)

    def _common(self) -> dict[str, Any]:
        csrf = self.board.guard.csrf_token(self.person.identity)
        return {
            "path": self.path,
            "static": self.static_url,
            "person": self.person,
            "section": self.section,
            "csrf": csrf,
            "csrf_field": _CSRF_INPUT.format(CSRF_FIELD, csrf),
            "versions": self.board.streams.versions,
            "fleet": self.board.settings.broker.fleet,
        }


class NotFound(Page):
    """All other addresses."""

    def prepare(self) -> None:
        """Say so."""
        self.board.guard.check_host(self.request, self.client)
        raise tornado.web.HTTPError(404, reason="no such page")
