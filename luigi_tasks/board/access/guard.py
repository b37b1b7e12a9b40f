"""What every request must fulfil whoever sends it: its host, and that a page of the board itself sent it.

A website in the browser of somebody who may see the board can send forms to it (CSRF), and can give its own
name the board's address (DNS rebinding). The first is refused by where the request says that it comes from
and by a token in the form; the second by the name that the browser wrote as host.
"""

from __future__ import annotations

import hashlib
import hmac
import socket
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import tornado.web

from edge_client.contract.text import excerpt
from luigi_tasks.board.access.clients import origin_of, parse_address, split_host

if TYPE_CHECKING:
    from tornado.httputil import HTTPHeaders, HTTPServerRequest

    from luigi_tasks.board.access.clients import Client
    from luigi_tasks.settings.values import BoardSettings

CSRF_FIELD, CSRF_HEADER = "csrf", "X-Board-Csrf"
SAFE_METHODS = frozenset({"GET", "HEAD"})
# What a browser says of a request of this board's pages, and of one that its person typed.
_OWN_SITES = frozenset({"same-origin", "none"})
_HOW_TO_NAME = "use its IP address, or name it in luigi.cfg, [board] url or hosts, on the board's machine"


class Refusal(tornado.web.HTTPError):
    """A request that is refused, with the reason and the way out.

    Args:
        status: HTTP status.
        text: What is wrong, and the way out, for a person.
        needs: Role that would do; empty: no role helps.
        retry_s: When trying again may help; 0: not by waiting.
        is_stale: Whether the same form would be taken, made anew: its person looks at it and sends it again.
    """

    def __init__(
        self, status: int, text: str, *, needs: str = "", retry_s: float = 0.0, is_stale: bool = False
    ) -> None:
        super().__init__(status, "%s", text)
        self.text = text
        self.needs = needs
        self.retry_s = retry_s
        self.is_stale = is_stale


class Guard:
    """Checks of requests.

    Args:
        settings: Section [board].
        secret: What the tokens in forms are made with.
    """

    def __init__(self, settings: BoardSettings, secret: bytes) -> None:
        self._secret = secret
        self._url = settings.url
        self._names = {"localhost", *_names(settings)}
        # Asks the name server, which may be away for long.
        threading.Thread(target=self._add_own_names, daemon=True).start()

    def check_host(self, request: HTTPServerRequest, client: Client) -> None:
        """Refuse a request for a name that is not this board's.

        Raises: Refusal.
        """
        # Both: a page that took over a name (rebinding) writes any other header as it likes.
        for host in (request.headers.get("Host", ""), client.host):
            if not self._is_own(host):
                raise Refusal(421, f"{excerpt(host)!r} is no name of this board: {_HOW_TO_NAME}")

    def check_origin(self, request: HTTPServerRequest, client: Client, *, is_program: bool) -> None:
        """Refuse a change that no page of this board sent, and what another page loads into itself.

        Args:
            request: The request.
            client: Who sends it.
            is_program: Whether it may come without saying where from: it brings a token of its own, as no
                foreign page can, or changes nothing.

        Raises: Refusal.
        """
        site = request.headers.get("Sec-Fetch-Site", "")
        if request.method in SAFE_METHODS:
            # A link is followed; pictures, scripts and streams are for the board's own pages.
            is_loaded = request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"
            if site and is_loaded and site not in _OWN_SITES:
                raise Refusal(403, "asked for by a page of another site")
            return
        own = {client.origin, origin_of(self._url)} - {""}
        origin = _origin(request.headers)
        if site:
            is_own = site in _OWN_SITES
        elif origin:
            is_own = origin_of(origin) in own
        else:
            is_own = is_program
        if is_own:
            return
        if not (site or origin):
            text = "neither Origin nor a token: programs send `Authorization: Bearer TOKEN`"
            raise Refusal(403, f"{text} (edge-fleet board-token)")
        sender = excerpt(origin) or "another site"
        text = f"sent by a page of {sender}, not of this board: open the board and do it there"
        if origin and not site:
            text += "; if that is the board's own address behind a proxy, set [board] url to it"
        raise Refusal(403, text)

    def csrf_token(self, identity: str) -> str:
        """Return the token of the forms that are sent to this person."""
        return hmac.new(self._secret, f"form of {identity}".encode(), hashlib.sha256).hexdigest()[:40]

    def check_csrf(self, identity: str, given: str) -> None:
        """Refuse a form that was not made for this person.

        Raises: Refusal.
        """
        if not hmac.compare_digest(self.csrf_token(identity).encode(), given.encode(errors="replace")):
            text = "this form was made before you signed in or out: load the page again and send it once more"
            raise Refusal(403, text, is_stale=True)

    def _is_own(self, host: str) -> bool:
        split = split_host(host)
        if split is None:
            return False
        name, _ = split
        return parse_address(name) is not None or name in self._names or name.endswith(".localhost")

    def _add_own_names(self) -> None:
        self._names.add(socket.getfqdn().lower().rstrip("."))


def _names(settings: BoardSettings) -> list[str]:
    own = socket.gethostname().lower()
    told = [urlsplit(settings.url).hostname or "", *settings.hosts.split(",")]
    named = [_ascii(one.strip().lower().rstrip(".")) for one in told if one.strip()]
    return [own, f"{own.partition('.')[0]}.local", *named]


def _ascii(name: str) -> str:
    """Return a name as browsers write it."""
    try:
        return name.encode("idna").decode()
    except UnicodeError:
        return name


def _origin(headers: HTTPHeaders) -> str:
    return headers.get("Origin", "") or headers.get("Referer", "")
