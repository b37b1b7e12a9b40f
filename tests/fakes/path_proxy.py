"""A little reverse proxy that puts the board below a path, as nginx does, and passes on at once."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import Self

_NOT_PASSED = {"connection", "keep-alive", "transfer-encoding", "host", "x-forwarded-user"}
_CHUNK = 1 << 14


class PathProxy(contextlib.AbstractContextManager["PathProxy"]):
    """Serves what lies behind below a path.

    Args:
        path: Path without a slash at its end, such as `/fleet`.
        is_stripped: Whether the path is taken away before a request is passed on.
        address: Address from which it asks what lies behind.

    Attributes:
        url: Its address with the path, ending in a slash.
        user: Whom it says that everybody is; empty: it says nothing.
        behind: Address of what lies behind.
    """

    def __init__(self, path: str, *, is_stripped: bool, address: str) -> None:
        self.user = ""
        self.behind = ""
        self.path = path
        self.is_stripped = is_stripped
        self.address = address
        handler = type("Handler", (_Handler,), {"proxy": self})
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}{path}/"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    proxy: PathProxy

    def do_GET(self) -> None:
        """Pass a request on, and the answer back as it comes."""
        behind = urlsplit(self.proxy.behind)
        connection = http.client.HTTPConnection(
            behind.hostname or "", behind.port, source_address=(self.proxy.address, 0)
        )
        path = self.path.removeprefix(self.proxy.path) if self.proxy.is_stripped else self.path
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_PASSED}
        headers["X-Forwarded-For"] = self.client_address[0]
        headers["X-Forwarded-Proto"] = "http"
        headers["X-Forwarded-Host"] = self.headers["Host"]
        if self.proxy.user:
            headers["X-Forwarded-User"] = self.proxy.user
        with contextlib.suppress(OSError), contextlib.closing(connection):
            connection.request(self.command, path, body or None, headers)
            self._pass_back(connection.getresponse())

    do_POST = do_GET  # noqa: N815 - the server's names
    do_HEAD = do_GET  # noqa: N815

    def _pass_back(self, answer: http.client.HTTPResponse) -> None:
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.getheaders():
            if name.lower() not in _NOT_PASSED:
                self.send_header(name, value)
        self.send_header("Connection", "close")
        self.end_headers()
        while chunk := answer.read1(_CHUNK):
            self.wfile.write(chunk)
            self.wfile.flush()

    def log_message(self, *arguments: object) -> None:
        """Say nothing."""
