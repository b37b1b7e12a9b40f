"""An S3 endpoint that refuses as it is told: any status and code, now and then or always."""

from __future__ import annotations

import contextlib
import http.server
import ssl
from typing import TYPE_CHECKING

from tests.fakes.serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tests.fakes.certificates import KeyPair

ERROR = "<?xml version='1.0'?><Error><Code>{code}</Code><Message>{words}</Message>{more}</Error>"


class RefusingS3:
    """Answers 200 and an empty object, but what `refuse` is told.

    Attributes:
        requests: Method, path and headers of each request.
        listing: Answer to a request for a listing.
    """

    def __init__(self, tls: KeyPair | None = None) -> None:
        self.listing = b""
        self._scheme = "https" if tls else "http"
        self.requests: list[tuple[str, str, Mapping[str, str]]] = []
        self._refusals: list[tuple[tuple[str, ...], str, int, bytes, dict[str, str], list[int]]] = []
        fake = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.requests.append((self.command, self.path, dict(self.headers)))
                for methods, header, status, body, headers, left in fake._refusals:
                    if self.command in methods and header in ("", *self.headers) and left[0]:
                        left[0] -= 1
                        return self.send(status, body, headers)
                is_listing = "list-type=2" in self.path
                return self.send(200, fake.listing if is_listing else b"", {"ETag": '"0"'})

            def send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
                self.send_response_only(status)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_HEAD = do_DELETE = answer  # noqa: N815 - names that the server looks for

            def log_message(self, *_arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key)
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def url(self) -> str:
        """Endpoint."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def refuse(
        self,
        status: int,
        code: str,
        *methods: str,
        times: int = -1,
        header: str = "",
        words: str = "No.",
        more: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Refuse requests of these methods (none: all), or those alone that have a header.

        Args:
            status: HTTP status.
            code: S3's code.
            methods: HTTP methods.
            times: How often; -1: always.
            header: Of the requests that are refused.
            words: S3's message.
            more: Further elements of the answer.
            headers: Of the answer.
        """
        body = ERROR.format(code=code, words=words, more=more).encode()
        some = methods or ("GET", "PUT", "HEAD", "DELETE")
        self._refusals.append((some, header, status, body, dict(headers or {}), [times]))

    def reset(self) -> None:
        """Forget what was asked, and refuse nothing."""
        self.requests.clear()
        self._refusals.clear()
        self.listing = b""

    @contextlib.contextmanager
    def running(self) -> Iterator[RefusingS3]:
        """Serve while the block runs."""
        with serving(self._server):
            yield self
