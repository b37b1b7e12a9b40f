"""Tokens of the board: who may do what, until when.

    efb_3f9a0c12d4e5_Xq…      prefix, id, secret

Only a hash of a token is kept, in `[board] state_dir`/tokens.json, which is read again whenever it changed: a
token that `edge-fleet board-token --revoke` removes ends at the next request. The secret has 256 random bits,
so one SHA-256 is enough: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from typing import TYPE_CHECKING, Literal

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.text import one_line
from edge_client.disk import write_durably
from luigi_tasks.board.access.state import locked

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("edge-fleet")

Role = Literal["viewer", "labeller", "operator"]
TOKEN_ROLES: tuple[Role, ...] = ("viewer", "labeller", "operator")
PREFIX = "efb_"
DAYS, LONGEST_DAYS = 90, 3650
_TOKEN = re.compile(r"efb_(?P<id>[0-9a-f]{12})_(?P<secret>[A-Za-z0-9_-]{43})", re.ASCII)
_NAME_CHARACTERS = 64
_LIMIT_BYTES = 1 << 20
_DAY_S = 86400.0


class Token(Document, frozen=True, kw_only=True):
    """A token as it is kept.

    Attributes:
        id: Part of the token that finds it; no secret.
        name: Whose it is; what they do stands under this name.
        role: `viewer`, `labeller` or `operator`.
        digest: SHA-256 of the whole token.
        created_at: Seconds since 1970.
        ends_at: Seconds since 1970.
    """

    id: str
    name: str
    role: Role
    digest: str
    created_at: float
    ends_at: float

    @property
    def has_ended(self) -> bool:
        """Whether it has expired."""
        return time.time() >= self.ends_at


class TokenList(Document, frozen=True, kw_only=True):
    """`tokens.json`."""

    tokens: tuple[Token, ...] = ()


class Tokens:
    """The tokens of a board.

    Args:
        folder: `[board] state_dir`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "tokens.json"
        self._seen: tuple[int, int, int] | None = None
        self._by_id: dict[str, Token] = {}

    def issue(self, name: str, role: Role, days: float) -> tuple[str, Token]:
        """Make a token; return it, which is kept nowhere, and what is kept.

        Raises: InputError if the name or the days cannot be, or a token of this name counts already.
        """
        _check(name, days)
        identity = secrets.token_hex(6)
        shown = f"{PREFIX}{identity}_{secrets.token_urlsafe(32)}"
        now = time.time()
        made = Token(
            id=identity,
            name=name,
            role=role,
            digest=_digest(shown),
            created_at=now,
            ends_at=now + days * _DAY_S,
        )
        with locked(self._folder):
            old = self._read()
            if any(one.name == name and not one.has_ended for one in old):
                msg = f"{name!r} has a token: edge-fleet board-token --revoke {name!r}, or take another name"
                raise InputError(msg)
            self._write((*(one for one in old if one.name != name), made))
        return shown, made

    def revoke(self, name: str) -> Token:
        """End a token, and all that were signed in with it.

        Raises: InputError if there is none of this name.
        """
        with locked(self._folder):
            old = self._read()
            found = next((one for one in old if one.name == name), None)
            if found is None:
                msg = f"no token of {one_line(name)!r}: edge-fleet board-token --list shows them"
                raise InputError(msg)
            self._write(tuple(one for one in old if one.name != name))
        return found

    def all(self) -> tuple[Token, ...]:
        """Return all tokens, also those that have expired, by name."""
        return tuple(sorted(self._read(), key=lambda one: one.name))

    def find(self, shown: str) -> Token | None:
        """Return the token that somebody shows, also one that has expired; None: there is none like it."""
        parts = _TOKEN.fullmatch(shown)
        token = self.by_id(parts["id"]) if parts else None
        expected = token.digest if token else _digest("")
        return token if hmac.compare_digest(expected, _digest(shown)) else None

    def by_id(self, identity: str) -> Token | None:
        """Return a token, also one that has expired; None: it was revoked."""
        self._look()
        return self._by_id.get(identity)

    def _look(self) -> None:
        """Read the file again if it changed; what cannot be read counts as no tokens."""
        try:
            found = self._path.stat()
            seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        except OSError:
            self._seen, self._by_id = None, {}
            return
        if seen == self._seen:
            return
        try:
            self._by_id = {one.id: one for one in self._read()}
        except EdgeError as e:
            logger.error("%s. No token counts until it can be read", one_line(str(e)))  # noqa: TRY400
            self._by_id = {}
        self._seen = seen

    def _read(self) -> tuple[Token, ...]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as e:
            msg = f"{self._path}: {e.strerror}; it is the board's user's: run this as that user, or as root"
            raise DeviceError(msg) from e
        try:
            found = decode_document(TokenList, data, source=str(self._path), limit_bytes=_LIMIT_BYTES)
        except InputError as e:
            msg = f"{e}; restore it, or remove it, which ends all tokens, and make new ones"
            raise InputError(msg) from e
        return found.tokens

    def _write(self, tokens: tuple[Token, ...]) -> None:
        write_durably(self._path, encode_document(TokenList(tokens=tokens)))


def _digest(shown: str) -> str:
    return hashlib.sha256(shown.encode(errors="replace")).hexdigest()


def _check(name: str, days: float) -> None:
    if not 1 <= len(name) <= _NAME_CHARACTERS or name != name.strip() or not name.isprintable():
        msg = f"name {one_line(name)!r}: give 1 to {_NAME_CHARACTERS} printable characters, such as ann"
        raise InputError(msg)
    if not 0 < days <= LONGEST_DAYS:
        msg = f"--days {days:g}: above 0, at most {LONGEST_DAYS}"
        raise InputError(msg)
