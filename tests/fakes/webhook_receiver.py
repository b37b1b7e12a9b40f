"""A receiver of webhooks on loopback that records what it got, and misbehaves when told to."""

from __future__ import annotations

import http.server
import json
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Self


class WebhookReceiver:
    """Use in a `with` block.

    Attributes:
        received: Headers (lower case) and body of each request, in order, also of those that were refused.
        status: What is answered.
        refuse_after: Number of requests that are taken before all others get 503; None: all are taken.
        location: Header Location of the answer; empty: none.
    """

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.status = 204
        self.refuse_after: int | None = None
        self.location = ""
        self._hangs = threading.Event()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def url(self) -> str:
        """Address, with a part that is a secret."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook/T0KEN"

    @property
    def events(self) -> list[dict[str, Any]]:
        """Bodies of the requests."""
        return [json.loads(body) for _, body in self.received]

    def hang(self) -> None:
        """Answer nothing any more."""
        self._hangs.set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
                if receiver._hangs.is_set():
                    threading.Event().wait(20)
                limit = receiver.refuse_after
                self.send_response(
                    503 if limit is not None and len(receiver.received) > limit else receiver.status
                )
                if receiver.location:
                    self.send_header("Location", receiver.location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as its base has it
                """Say nothing."""

        return Handler
