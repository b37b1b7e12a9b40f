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

from edge_client.contract.addresses import without_passwords
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.text import one_line
from edge_client.contract.times import utc_now
from luigi_tasks.board.access.audit import DONE, Act, short
from luigi_tasks.board.access.guard import CSRF_FIELD, CSRF_HEADER, SAFE_METHODS, Refusal
from luigi_tasks.board.access.kept_form import kept_form, read_form
from luigi_tasks.board.access.limits import Rate
from luigi_tasks.board.access.people import TOKEN
from luigi_tasks.board.access.rights import OPERATOR, VIEWER, Person
from luigi_tasks.board.board import Board  # noqa: TC001 - Tornado's `initialize`
from luigi_tasks.board.live.streams import TOPICS
from luigi_tasks.board.pools import ACT_S, READ_S
from luigi_tasks.board.templating import render

if TYPE_CHECKING:
    from collections.abc import Callable

    from luigi_tasks.board.access.clients import Client

T = TypeVar("T")

logger = logging.getLogger("edge-fleet")

HTML, JSON = "text/html; charset=utf-8", "application/json"
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


# Lines of the log about answers that failed, of a kind.
_LOGGED = Rate(30, 0.2)
_CSRF_INPUT = markupsafe.Markup('<input type="hidden" name="{}" value="{}">')


class Page(tornado.web.RequestHandler):
    """Base of all handlers.

    Attributes:
        needs: Role that a method needs.
        section: Address of the page in the navigation that the handler belongs to, such as `rollouts`.
        part: Whose threads it takes where not those of its section.
        changes: Whether what is posted changes something; else it needs no token in the form.
        body_bytes: Largest body that is read. A handler that reads its body itself
            (`tornado.web.stream_request_body`) limits it itself.
    """

    needs: ClassVar[dict[str, str]] = {"GET": VIEWER, "HEAD": VIEWER, "POST": OPERATOR}
    section: ClassVar[str] = ""
    part: ClassVar[str] = ""
    changes: ClassVar[bool] = True
    body_bytes: ClassVar[int] = 256 << 10
    board: Board

    def initialize(self, board: Board) -> None:
        """Take the board."""
        self.board = board
        self._is_audited = False
        # Before anything is read: what changes meanwhile is then newer than what the page says that it shows.
        self._versions = dict(board.streams.versions)

    def set_default_headers(self) -> None:
        """Let browsers load nothing from elsewhere, guess no types and keep nothing."""
        for name, value in HEADERS.items():
            self.set_header(name, value)
        self.clear_header("Server")

    def prepare(self) -> None:
        """Refuse what is not for this board, what no page of it sent, and who has no right."""
        access = self.board.access
        access.check(
            self.request,
            self.client,
            self.person,
            self.role_for(self.request.method or ""),
            changes=self.changes,
        )
        if self.request.method not in SAFE_METHODS and self.changes and self.person.by != TOKEN:
            given = self.request.headers.get(CSRF_HEADER) or self.get_body_argument(CSRF_FIELD, "")
            access.guard.check_csrf(self.person.identity, given)

    async def head(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - of the address
        """Answer as to GET; Tornado leaves the body away."""
        done = self.get(*args, **kwargs)
        if done is not None:
            await done

    @functools.cached_property
    def client(self) -> Client:
        """Where the request comes from."""
        return self.board.access.clients.of(self.request)

    @functools.cached_property
    def person(self) -> Person:
        """Who sends the request."""
        return self.board.access.people.of(self.request, self.client)

    @property
    def wants_json(self) -> bool:
        """Whether the answer is JSON: it stands in `Accept`, and HTML does not."""
        accept = self.request.headers.get("Accept", "")
        return JSON in accept and "text/html" not in accept

    @classmethod
    def role_for(cls, method: str) -> str:
        """Return the role that a method needs."""
        return cls.needs.get(method, OPERATOR)

    def audit(self, what: str, why: str = "", result: str = DONE, **facts: object) -> None:
        """Write an act of this request's person into the history; it never blocks and never fails.

        Args:
            what: The act. What begins with `board.`, such as `board.run_started`, is told as an event too.
            why: Reason that the person gave.
            result: `done`, or how it failed.
            facts: What it was done to, by name.
        """
        self._is_audited = True
        act = Act(
            at=utc_now(),
            who=short(self.person.name),
            role=self.person.role,
            by=self.person.by,
            address=self.client.address,
            what=short(what),
            why=short(why),
            result=short(result),
            facts={name: short(value) for name, value in facts.items()},
        )
        self.board.audit.add(act)

    def on_finish(self) -> None:
        """Write a change that its handler did not write itself, and what was refused to a known person."""
        if self.request.method in SAFE_METHODS or not self.changes or self._is_audited:
            return
        if self.person.name:
            status = self.get_status()
            if status >= 400 and not self.board.access.may_note_refusal(self.person):
                return
            ended = "refused" if status < 500 else "failed"
            result = DONE if status < 400 else f"{ended}: {status} {http.HTTPStatus(status).phrase}"
            self.audit(f"{self.request.method} {self.below}", result=result)

    async def in_thread(self, work: Callable[[], T], limit_s: float = 0.0) -> T:
        """Return what a function that blocks returns; it runs in a thread of this part of the board.

        Args:
            work: The function.
            limit_s: Time to wait for it; 0: some seconds to read, a minute to change something.
        Raises: TransportError if it takes longer.
        """
        usual = READ_S if self.request.method in SAFE_METHODS else ACT_S
        return await self.board.in_thread(work, self.part or self.section or "the fleet", limit_s or usual)

    @property
    def below(self) -> str:
        """Address of the request below the board, as it stands in it."""
        path = self.request.path
        return (
            path.removeprefix(self.board.prefix) if path.startswith(self.board.prefix) else path.lstrip("/")
        )

    @property
    def sends_json(self) -> bool:
        """Whether the body is JSON; else it is a form."""
        return self.request.headers.get("Content-Type", "").partition(";")[0].strip() == JSON

    def sent_json(self, kind: type[T], example: str) -> T:
        """Return the body; raises InputError with an example if it is something else."""
        try:
            return msgspec.json.decode(self.request.body, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as e:
            msg = f"give JSON such as {example}: {e}"
            raise InputError(msg) from e

    def answer_json(self, model: object) -> None:
        """Answer with JSON, whatever was asked for."""
        self.set_header("Content-Type", JSON)
        self.finish(msgspec.json.encode(model))

    def go(self, address: str, model: object = None) -> None:
        """Answer an act: a browser goes to a page (303), a program gets what came of it as JSON.

        Args:
            address: Page below the board, names percent-encoded.
            model: JSON for a program.
        """
        if self.wants_json:
            self.answer_json({"done": True} if model is None else model)
        else:
            self.redirect(self.path(address), status=303)

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
            self.answer_json(model)
            return
        self.set_header("Content-Type", HTML)
        self.finish(render(template, {**self._common(), "model": model, **more}))

    def write_error(self, status_code: int, **kwargs: Any) -> None:  # noqa: ANN401 - Tornado's
        """Answer with what is wrong, as page or JSON."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        text = http.HTTPStatus(status_code).phrase
        if isinstance(error, EdgeError):
            self.set_error_status(error)
            status_code = self.get_status()
            text = one_line(without_passwords(str(error)))
        elif isinstance(error, Refusal):
            text = error.text
        elif isinstance(error, tornado.web.HTTPError) and error.reason:
            text = one_line(error.reason)
        self.set_status(status_code)  # the reason, which may be anything, is no part of the status line
        if isinstance(error, Refusal):
            self._refuse(error)
        else:
            passes = (
                status_code == http.HTTPStatus.SERVICE_UNAVAILABLE and self.request.method in SAFE_METHODS
            )
            self.answer("error.html", {"error": text, "status": status_code}, passes=passes)

    @property
    def _here(self) -> str:
        """Path of this page for the browser, with its query."""
        return self.path(self.below) + (f"?{self.request.query}" if self.request.query else "")

    def _refuse(self, error: Refusal) -> None:
        """Answer a refusal; who may lack a role can sign in right there, and send the form again."""
        model: dict[str, Any] = {"error": error.text, "status": error.status_code}
        if error.retry_s:
            self.set_header("Retry-After", str(math.ceil(error.retry_s)))
        if error.status_code == http.HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
        if error.is_stale and not self.wants_json and self.request.body_arguments:
            model |= {"act": self._here, "fields": read_form(kept_form(self.request.body_arguments))}
            return self.answer("send_again.html", model)
        if not error.needs:
            return self.answer("error.html", model)
        model |= {"needs": error.needs, "role": self.person.role, "sign_in": self.path("sign-in")}
        is_read = self.request.method in SAFE_METHODS
        here = self._here
        kept = "" if is_read else kept_form(self.request.body_arguments)
        # A link of another site brings no cookie (SameSite=Strict); the page that loads itself again does.
        again = is_read and self.request.headers.get("Sec-Fetch-Site") in {"cross-site", "same-site"}
        return self.answer(
            "refused.html",
            model,
            needs=error.needs,
            next=here if is_read else "",
            act="" if is_read else here,
            form=kept,
            loads_again=again,
        )

    def set_error_status(self, error: EdgeError) -> None:
        """Set the status of an explained error, and when to ask again where that is known."""
        self.set_status(400 if isinstance(error, InputError) else 503)
        if retry_s := getattr(error, "retry_s", 0):
            self.set_header("Retry-After", str(math.ceil(retry_s)))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:  # noqa: ANN401 - Tornado's
        """Log what was not expected with its traceback, and what is explained in one line.

        Anybody may cause such lines: a few of a kind are logged.
        """
        if isinstance(value, EdgeError):
            if _LOGGED.wait_s(typ.__name__):
                return
            _LOGGED.count(typ.__name__)
            path, text = one_line(self.request.path[:200]), one_line(without_passwords(str(value)))
            logger.warning("%s %s: %s", self.request.method, path, text)
        else:
            super().log_exception(typ, value, tb)

    def forget_cookie(self) -> None:
        """Let the browser forget that it was signed in."""
        self.clear_cookie(self.board.access.cookie, path=self.board.prefix)

    def _common(self) -> dict[str, Any]:
        csrf = self.board.access.guard.csrf_token(self.person.identity)
        return {
            "path": self.path,
            "static": self.static_url,
            "person": self.person,
            "section": self.section,
            "here": self._here,
            "csrf": csrf,
            "csrf_field": _CSRF_INPUT.format(CSRF_FIELD, csrf),
            "topics": TOPICS,
            "versions": self._versions,
            "fleet": self.board.settings.broker.fleet,
        }


class NotFound(Page):
    """All other addresses."""

    section: ClassVar[str] = "none"

    def prepare(self) -> None:
        """Say so."""
        self.board.access.guard.check_host(self.request, self.client)
        raise tornado.web.HTTPError(404, reason="no such page")
