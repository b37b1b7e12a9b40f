"""The pages *Sign in* and *Sign out*: a token becomes a cookie, and ends.

The token comes in the body of a form and is kept nowhere; the cookie is a random value, for this board's path
alone, out of reach of scripts and of other sites.
"""

from __future__ import annotations

import functools
import re
import time
from typing import TYPE_CHECKING, ClassVar

from luigi_tasks.board.access.kept_form import read_form
from luigi_tasks.board.access.people import SIGN_IN
from luigi_tasks.board.access.rights import NOBODY, OPERATOR
from luigi_tasks.board.page import Page

if TYPE_CHECKING:
    from luigi_tasks.board.access.tokens import Token

_HOUR_S = 3600.0
# A path of this board: no second slash or backslash, which browsers take for another host.
_OWN_PATH = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")


class SignInPage(Page):
    """A token is exchanged for a cookie."""

    section = "sign-in"
    needs: ClassVar[dict[str, str]] = {"GET": NOBODY, "HEAD": NOBODY, "POST": NOBODY}
    body_bytes = 64 << 10  # anybody may send it

    def get(self) -> None:
        """Show the form."""
        self._show(self.get_query_argument("next", ""))

    async def post(self) -> None:
        """Sign in."""
        self.board.access.check_wrong(self.client)
        shown = self.get_body_argument("token", "").strip()
        token = self.board.access.tokens.find(shown)
        if token is None or token.has_ended:
            self.board.access.count_wrong(self.client)
            self.audit("sign-in", result="refused: no such token" if token is None else "refused: expired")
            self.set_status(403)
            self._show(self.get_body_argument("next", ""), error=_fault(token, shown))
            return
        until = min(token.ends_at, time.time() + self.board.settings.board.session_h * _HOUR_S)
        value = await self.in_thread(lambda: self.board.access.sessions.open(token.id, until))
        self._remember(value, until)
        self.person = self.board.access.people.by_cookie(value)
        self.audit("sign-in", until=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(until)))
        act, fields = (
            self._own(self.get_body_argument("act", "")),
            read_form(self.get_body_argument("form", "")),
        )
        if act and not self.wants_json:
            self.answer("send_again.html", {"error": "", "act": act, "fields": fields})
            return
        self._go_on(self.get_body_argument("next", ""))

    def _go_on(self, address: str) -> None:
        if self.wants_json:
            self.go("", {"name": self.person.name, "role": self.person.role})
        else:
            self.redirect(self._own(address) or self.path(), status=303)

    def _show(self, address: str, error: str = "") -> None:
        known = {"name": self.person.name, "role": self.person.role, "error": error or self.person.fault}
        act, form = self.get_body_argument("act", ""), self.get_body_argument("form", "")
        more = {"next": self._own(address), "act": self._own(act), "form": form, "needs": OPERATOR}
        self.answer("sign_in.html", known, **more)

    def _remember(self, value: str, until: float) -> None:
        self.set_cookie(
            self.board.access.cookie,
            value,
            max_age=int(until - time.time()),
            path=self.board.prefix,
            httponly=True,
            samesite="Strict",
            secure=self.client.scheme == "https",
        )

    def _own(self, address: str) -> str:
        """Return an address if it is one of this board's pages, else nothing."""
        is_own = _OWN_PATH.fullmatch(address) is not None and address.startswith(self.board.prefix)
        return address if is_own and not address.startswith(self.path("sign-")) else ""


class SignOutPage(Page):
    """A cookie ends."""

    section = "sign-in"
    needs: ClassVar[dict[str, str]] = {"GET": NOBODY, "HEAD": NOBODY, "POST": NOBODY}

    def get(self) -> None:
        """Go to where it is done: a link or a picture of another page must not."""
        self.redirect(self.path("sign-in"), status=303)

    async def post(self) -> None:
        """Sign out."""
        access = self.board.access
        for cookie in access.people.cookies(self.request):
            await self.in_thread(functools.partial(access.sessions.end, cookie))
        if self.person.by == SIGN_IN:
            self.audit("sign-out")
        self.forget_cookie()
        self.go("")


def _fault(token: Token | None, shown: str) -> str:
    if token is not None:
        return f"the token of {token.name} has expired; edge-fleet board-token makes one"
    if not shown:
        return "paste the token that edge-fleet board-token printed"
    return "this token does not count: mistyped, revoked, or of another board"


HANDLERS = ((r"sign-in", SignInPage), (r"sign-out", SignOutPage))
