"""The HTTP server, with a bound on connections: without one they take all descriptors, and nothing works."""

from __future__ import annotations

import collections
import resource
from typing import Any

import tornado.httpserver
import tornado.iostream

# A page that is open has one for its stream and some for what it loads.
_WANTED_FILES, _CONNECTIONS = 4096, 2000
# Files, the store's connections, children.
_OTHER_FILES = 128


class BoundedServer(tornado.httpserver.HTTPServer):
    """A server that closes new connections when there are too many, in all or of one address."""

    def initialize(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 - Tornado's
        """Allow as many as there are descriptors for."""
        super().initialize(*arguments, **options)
        files = _raise_file_limit()
        self._at_most = max(8, min(_CONNECTIONS, files - _OTHER_FILES))
        self._by_address: collections.Counter[str] = collections.Counter()

    def handle_stream(self, stream: tornado.iostream.IOStream, address: Any) -> None:  # noqa: ANN401 - as above
        """Take a connection, or close it."""
        peer = str(address[0])
        if self._by_address.total() >= self._at_most or self._by_address[peer] >= self._at_most // 2:
            stream.close()
            return
        self._by_address[peer] += 1
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:  # noqa: ANN401 - as above
        """Count a connection that ended."""
        super().on_close(server_conn)
        peer = str(server_conn.context.address[0])
        self._by_address[peer] -= 1
        if self._by_address[peer] <= 0:
            del self._by_address[peer]


def _raise_file_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _WANTED_FILES if hard == resource.RLIM_INFINITY else min(_WANTED_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft if soft != resource.RLIM_INFINITY else wanted
