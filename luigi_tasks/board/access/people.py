"""Finds out who sends a request, from its headers alone."""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING

from edge_client.contract.text import one_line
from luigi_tasks.board.access.rights import LABELLER, NOBODY, OPERATOR, VIEWER, Person
from luigi_tasks.board.access.tokens import PREFIX

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest

    from luigi_tasks.board.access.clients import Client
    from luigi_tasks.board.access.sessions import Sessions
    from luigi_tasks.board.access.tokens import Token, Tokens
    from luigi_tasks.settings.values import BoardSettings

logger = logging.getLogger("edge-fleet")

BEARER = "bearer"
TOKEN, SIGN_IN, PROXY = "token", "sign-in", "proxy"
_NAME_CHARACTERS = 200
_COOKIES = 8


class People:
    """Says who sends a request.

    Args:
        settings: Section [board].
        tokens: Tokens of the board.
        sessions: Browsers that are signed in.
        cookie: Name of their cookie.
    """

    def __init__(self, settings: BoardSettings, tokens: Tokens, sessions: Sessions, cookie: str) -> None:
        self._settings = settings
        self._tokens = tokens
        self._sessions = sessions
        self._cookie = cookie
        self._roles = {
            role: frozenset(one.strip() for one in names.split(",") if one.strip())
            for role, names in (
                (OPERATOR, settings.operators),
                (LABELLER, settings.labellers),
                (VIEWER, settings.viewers),
            )
        }
        self._has_warned = False

    def of(self, request: HTTPServerRequest, client: Client) -> Person:
        """Return who sends a request; what does not count is in their `fault`."""
        proxied = self._by_proxy(request, client)
        shown = request.headers.get("Authorization", "")
        # A proxy that signs people in itself may send its own token on; ours say whose they are.
        scheme, _, token = shown.partition(" ")
        if scheme.lower() == BEARER and (proxied is None or token.strip().startswith(PREFIX)):
            return self._by_token(token.strip())
        shown_by = [self.by_cookie(value) for value in self.cookies(request)]
        known = next((one for one in shown_by if not one.fault), proxied)
        if known is not None:
            return known
        return shown_by[0] if shown_by else Person("", self._settings.anonymous, identity="anybody")

    def cookies(self, request: HTTPServerRequest) -> list[str]:
        """Return the values of our cookie: another host of the domain may have set one of the same name."""
        pairs = (one.strip().partition("=") for one in request.headers.get("Cookie", "").split(";"))
        return [value for name, _, value in pairs if name == self._cookie and value.strip('"')][:_COOKIES]

    def _by_token(self, shown: str) -> Person:
        token = self._tokens.find(shown)
        if token is None:
            fault = "this token is not known, or was revoked: edge-fleet board-token makes one"
            return Person("", NOBODY, by=TOKEN, fault=fault)
        if token.has_ended:
            fault = f"the token of {token.name} has expired: edge-fleet board-token makes one"
            return Person("", NOBODY, by=TOKEN, fault=fault)
        return Person(token.name, token.role, by=TOKEN, identity=f"token {token.id}")

    def by_cookie(self, value: str) -> Person:
        """Return who has a cookie; what does not count is in their `fault`."""
        session = self._sessions.find(value)
        token = self._tokens.by_id(session.token) if session is not None else None
        fault = _fault_of(token, has_session=session is not None)
        if fault or token is None:
            return Person("", self._settings.anonymous, identity="anybody", fault=fault)
        digest = hashlib.sha256(value.encode(errors="replace")).hexdigest()
        return Person(token.name, token.role, by=SIGN_IN, identity=f"session {digest}")

    def _by_proxy(self, request: HTTPServerRequest, client: Client) -> Person | None:
        header = self._settings.proxy_user_header
        said = request.headers.get_list(header) if header else []
        if not said:
            return None
        if not client.is_proxied:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "%s came from %s, which is none of [board] trusted_proxies: ignored, here and later",
                    header,
                    client.address,
                )
            return None
        name = said[0].strip()
        if len(said) > 1 or not name or len(name) > _NAME_CHARACTERS:
            logger.warning("%s: %d values: counts as nobody; the proxy must replace it", header, len(said))
            return None
        groups = self._groups(request)
        role = next((role for role, names in self._roles.items() if _is_in(names, name, groups)), "")
        return Person(one_line(name), role or self._settings.anonymous, by=PROXY, identity=f"proxy {name}")

    def _groups(self, request: HTTPServerRequest) -> frozenset[str]:
        header = self._settings.proxy_groups_header
        said = request.headers.get_list(header) if header else []
        return frozenset(f"@{one.strip()}" for one in said[0].split(",")) if len(said) == 1 else frozenset()


def _is_in(names: frozenset[str], name: str, groups: frozenset[str]) -> bool:
    return "*" in names or (name in names and not name.startswith("@")) or bool(groups & names)


def _fault_of(token: Token | None, *, has_session: bool) -> str:
    if not has_session:
        return "you are signed out: the time of your sign-in is over"
    if token is None:
        return "you are signed out: your token was revoked"
    return "you are signed out: your token has expired" if token.has_ended else ""
