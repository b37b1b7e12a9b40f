"""A server on loopback that answers every request with the same bytes, whether they are HTTP or not."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

_LIMIT_S = 30.0


class RawServer:
    """Use in a `with` block.

    Attributes:
        answer: What is sent.
        requests: What was asked, headers and all, in order.
    """

    def __init__(self, answer: bytes) -> None:
        self.answer = answer
        self.requests: list[bytes] = []
        self._speaks = threading.Event()
        self._speaks.set()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True

    @property
    def port(self) -> int:
        """TCP port."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}/bucket"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @contextlib.contextmanager
    def silent(self) -> Iterator[None]:
        """Take requests in the block, and answer nothing."""
        self._speaks.clear()
        try:
            yield
        finally:
            self._speaks.set()

    def _handler(self) -> type[socketserver.BaseRequestHandler]:
        server = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    server.requests.append(self.request.recv(65536))
                    server._speaks.wait(_LIMIT_S)
                    self.request.sendall(server.answer)

        return Handler
