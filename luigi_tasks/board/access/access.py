"""All that decides about a request before a page's own code runs."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from typing import TYPE_CHECKING

from luigi_tasks.board.access.clients import Clients
from luigi_tasks.board.access.guard import SAFE_METHODS, Guard, Refusal
from luigi_tasks.board.access.limits import Rate, Slots
from luigi_tasks.board.access.people import TOKEN, People
from luigi_tasks.board.access.sessions import Sessions
from luigi_tasks.board.access.state import read_secret
from luigi_tasks.board.access.tokens import Tokens

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tornado.httputil import HTTPServerRequest

    from luigi_tasks.board.access.clients import Client
    from luigi_tasks.board.access.rights import Person
    from luigi_tasks.settings.values import BoardSettings

logger = logging.getLogger("edge-fleet")

# Labelling with the keyboard is an act or two a second.
_ACTS_AT_ONCE, _ACTS_PER_S = 60, 5.0
# What was refused to a person stands in the history, but must not push out of it what was done.
_REFUSED_AT_ONCE, _REFUSED_PER_S = 30, 1 / 60
# Wrong tokens of one network, and of all of them together.
_WRONG_AT_ONCE, _WRONG_PER_S = 8, 0.1
# Pictures that come at once, in all and of one network: a browser opens six connections.
_UPLOADS, _UPLOADS_EACH = 24, 6
_ALL_WRONG_AT_ONCE, _ALL_WRONG_PER_S = 60, 1.0


@dataclasses.dataclass(frozen=True)
class Access:
    """Who may do what.

    Attributes:
        clients: Where requests come from.
        guard: What every request must fulfil.
        tokens: Tokens of programs and of people who sign in.
        sessions: Browsers that are signed in.
        people: Who sends requests.
        cookie: Name of the browsers' cookie.
        acts: How many acts a person may do.
        refused: How many refusals of a person are written into the history.
        wrong: How many wrong tokens a network may send.
        all_wrong: How many wrong tokens all together may send.
        uploads: How many pictures may come at once.
    """

    clients: Clients
    guard: Guard
    tokens: Tokens
    sessions: Sessions
    people: People
    cookie: str
    acts: Rate
    refused: Rate
    wrong: Rate
    all_wrong: Rate
    uploads: Slots

    def check(
        self, request: HTTPServerRequest, client: Client, person: Person, role: str, *, changes: bool
    ) -> None:
        """Refuse what is not for this board, what no page of it sent, and who has no right.

        Args:
            request: The request.
            client: Where it comes from.
            person: Who sends it.
            role: Role that it needs.
            changes: Whether it may change something.

        Raises: Refusal.
        """
        self.guard.check_host(request, client)
        is_program = person.by == TOKEN
        self.guard.check_origin(request, client, is_program=is_program or not changes)
        if is_program and person.fault:
            self.count_wrong(client)
            raise Refusal(401, person.fault, needs=role)
        if not person.may(role):
            text = person.fault or f"this needs the role {role}; {_have(person)}"
            raise Refusal(403, text, needs=role)
        if request.method in SAFE_METHODS:
            return
        key = person.identity if person.by else client.network
        if wait_s := self.acts.wait_s(key):
            raise Refusal(429, f"too much at once: try again in {wait_s:.0f} s", retry_s=wait_s)
        self.acts.count(key)

    def may_note_refusal(self, person: Person) -> bool:
        """Count something that was refused to a person; return whether it is written into the history."""
        if self.refused.wait_s(person.identity):
            return False
        self.refused.count(person.identity)
        return True

    def take_upload(self, client: Client) -> Callable[[], None]:
        """Let a picture come; return what is to be called at its end, however it ends.

        Raises: Refusal if too many come at once.
        """
        give_back = self.uploads.take(client.network)
        if give_back is None:
            raise Refusal(429, "too many pictures come at once: send them one after another", retry_s=2.0)
        return give_back

    def check_wrong(self, client: Client) -> None:
        """Refuse a sign-in where too many failed.

        An attacker with one network locks out nobody else. One with many keeps those out who were wrong
        lately; who was not has a try also then.

        Raises: Refusal.
        """
        wait_s = self.wrong.wait_s(client.network)
        if not wait_s and not self.wrong.is_fresh(client.network):
            wait_s = self.all_wrong.wait_s("")
        if wait_s:
            raise Refusal(429, f"too many wrong tokens: try again in {wait_s:.0f} s", retry_s=wait_s)

    def count_wrong(self, client: Client) -> None:
        """Count a wrong token; 429 in place of the answer where there were too many.

        Raises: Refusal.
        """
        self.check_wrong(client)
        self.wrong.count(client.network)
        self.all_wrong.count("")
        logger.warning("a token that does not count came from %s", client.address)


def open_access(settings: BoardSettings, folder: Path) -> Access:
    """Return who may do what; reads the board's folder.

    Raises: DeviceError.
    """
    secret = read_secret(folder)
    tokens, sessions = Tokens(folder), Sessions(folder)
    # Cookies are shared by all ports of a host: each board has a name of its own.
    cookie = f"board-{hashlib.sha256(b'cookie of ' + secret).hexdigest()[:8]}"
    return Access(
        clients=Clients(settings),
        guard=Guard(settings, secret),
        tokens=tokens,
        sessions=sessions,
        people=People(settings, tokens, sessions, cookie),
        cookie=cookie,
        acts=Rate(_ACTS_AT_ONCE, _ACTS_PER_S),
        refused=Rate(_REFUSED_AT_ONCE, _REFUSED_PER_S),
        wrong=Rate(_WRONG_AT_ONCE, _WRONG_PER_S),
        all_wrong=Rate(_ALL_WRONG_AT_ONCE, _ALL_WRONG_PER_S),
        uploads=Slots(_UPLOADS, _UPLOADS_EACH),
    )


def _have(person: Person) -> str:
    if person.name:
        return f"{person.name} is {person.role}" if person.role != "none" else f"{person.name} has none"
    return "sign in with a token" if person.role == "none" else f"without a sign-in you are {person.role}"
