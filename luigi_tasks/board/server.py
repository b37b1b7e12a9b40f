"""The process of the board: it listens, looks at the bucket, and ends at SIGTERM."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import signal
import threading
from typing import TYPE_CHECKING

import tornado.netutil

from edge_client.contract.errors import SettingsError
from luigi_tasks.board.access.rights import NOBODY
from luigi_tasks.board.application import make_application
from luigi_tasks.board.connections import BoundedServer
from luigi_tasks.board.pipeline_watch import watch_pipeline

if TYPE_CHECKING:
    import socket

    from luigi_tasks.board.board import Board

logger = logging.getLogger("edge-fleet")

_HEADER_BYTES = 16 << 10
# A connection may be quiet, or send its headers, for so long; a body takes at most so long. A handler for
# what is large gives itself more.
_QUIET_S, _BODY_S = 75.0, 30.0
# Threads that wait for a store that hangs keep the process from its end no longer than this.
_END_S = 4.0
_ACCESS_LOGS = ("tornado.access", "tornado.general")


async def serve(board: Board) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises: SettingsError if the address cannot be listened at.
    """
    sockets = _bind(board.settings.board.host, board.settings.board.port)
    server = BoundedServer(
        make_application(board),
        max_body_size=0,
        max_header_size=_HEADER_BYTES,
        idle_connection_timeout=_QUIET_S,
        body_timeout=_BODY_S,
    )
    for name in _ACCESS_LOGS:  # what somebody else sends wrongly is no warning of ours
        logging.getLogger(name).setLevel(logging.ERROR)
    # It tells of the credentials at each opening of the store, which is each page of some.
    logging.getLogger("botocore.credentials").setLevel(logging.WARNING)
    server.add_sockets(sockets)
    _say_where(board, sockets)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    watching = [loop.create_task(one) for one in (board.watch.run(), watch_pipeline(board))]
    await ended.wait()
    _end_at_the_latest_in(_END_S)
    server.stop()
    board.streams.end()
    board.watch.close()
    for one in watching:
        one.cancel()
    board.pictures.close()
    board.audit.close()


def _end_at_the_latest_in(seconds: float) -> None:
    def end() -> None:
        logger.warning("something did not end within %g s: ended all the same", seconds)
        logging.shutdown()
        os._exit(0)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()


def _say_where(board: Board, sockets: list[socket.socket]) -> None:
    host, port = sockets[0].getsockname()[:2]
    settings = board.settings.board
    shown = f"[{host}]" if ":" in host else host
    named = f"; for browsers {settings.url}" if settings.url else ""
    logger.info("Board: http://%s:%d%s%s", shown, port, board.prefix, named)
    if ipaddress.ip_address(host.partition("%")[0]).is_loopback:
        return
    if settings.anonymous != NOBODY:
        logger.warning(
            "[board] anonymous = %s and host = %s: everybody who reaches port %d may read the board and see "
            "pictures of the cameras; set anonymous = none, or host = 127.0.0.1 and a proxy before it",
            settings.anonymous,
            settings.host,
            port,
        )
    if not settings.url.startswith("https://"):
        logger.warning("tokens cross the network in the clear: put a proxy with TLS before (docs/board.md)")


def _bind(host: str, port: int) -> list[socket.socket]:
    """Return sockets that listen; with a name of several addresses and port 0, all have the same port."""
    try:
        return tornado.netutil.bind_sockets(port, host.strip("[]"))
    except (OSError, UnicodeError) as e:
        said = e.strerror if isinstance(e, OSError) and e.strerror else str(e)
        msg = f"[board] host {host!r}, port {port}: cannot be listened at: {said}; give --host and --port"
        raise SettingsError(msg) from e
