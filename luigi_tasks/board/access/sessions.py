"""Who signed in with a token in a browser.

The browser's cookie is a random value, of which the board keeps a hash beside the id of the token; a session
ends with its token, after `[board] session_h`, and when its person signs out. It outlives a restart.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import threading
import time
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import EdgeError
from edge_client.contract.text import one_line
from edge_client.disk import write_durably
from luigi_tasks.board.access.state import locked

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger("edge-fleet")

# A token has so many browsers at once; the oldest is signed out by one more.
_PER_TOKEN = 20
_LIMIT_BYTES = 4 << 20


class Session(Document, frozen=True, kw_only=True):
    """A browser that is signed in.

    Attributes:
        key: SHA-256 of the cookie's value.
        token: Id of the token.
        until: Seconds since 1970.
    """

    key: str
    token: str
    until: float


class SessionList(Document, frozen=True, kw_only=True):
    """`sessions.json`."""

    sessions: tuple[Session, ...] = ()


class Sessions:
    """The browsers that are signed in; opening and ending one writes a file, and blocks.

    Args:
        folder: `[board] state_dir`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "sessions.json"
        self._lock = threading.Lock()
        self._by_key = {one.key: one for one in self._read()}

    def open(self, token: str, until: float) -> str:
        """Sign a browser in; return the value of its cookie.

        Raises: DeviceError.
        """
        value = secrets.token_urlsafe(32)
        made = Session(key=_key(value), token=token, until=until)
        with self._lock:
            now = time.time()
            others = [one for one in self._by_key.values() if one.until > now]
            same = [one for one in others if one.token == token]
            dropped = {one.key for one in same[: max(0, len(same) - _PER_TOKEN + 1)]}
            self._save([*(one for one in others if one.key not in dropped), made])
        return value

    def find(self, value: str) -> Session | None:
        """Return the session of a cookie, if it has not ended."""
        found = self._by_key.get(_key(value))
        return found if found is not None and found.until > time.time() else None

    def end(self, value: str) -> None:
        """Sign a browser out.

        Raises: DeviceError.
        """
        with self._lock:
            if _key(value) in self._by_key:
                self._save([one for one in self._by_key.values() if one.key != _key(value)])

    def _save(self, sessions: list[Session]) -> None:
        self._by_key = {one.key: one for one in sessions}
        with locked(self._folder):
            write_durably(self._path, encode_document(SessionList(sessions=tuple(sessions))))

    def _read(self) -> tuple[Session, ...]:
        try:
            data, source = self._path.read_bytes(), str(self._path)
            return decode_document(SessionList, data, source=source, limit_bytes=_LIMIT_BYTES).sessions
        except FileNotFoundError:
            return ()
        except (OSError, EdgeError) as e:
            logger.warning("%s: %s. Everybody signs in again", self._path, one_line(str(e)))
            return ()


def _key(value: str) -> str:
    return hashlib.sha256(value.encode(errors="replace")).hexdigest()
