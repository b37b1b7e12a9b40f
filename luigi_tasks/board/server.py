"""The process of the board: it listens, looks at the bucket, and ends at SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import TYPE_CHECKING

import tornado.httpserver
import tornado.netutil

from edge_client.contract.errors import SettingsError
from luigi_tasks.board.application import make_application
from luigi_tasks.board.pipeline_watch import watch_pipeline

if TYPE_CHECKING:
    from luigi_tasks.board.board import Board

logger = logging.getLogger("edge-fleet")

# Largest request; a page that takes pictures says so itself.
_BODY_BYTES = 16 << 20


async def serve(board: Board) -> None:
    """Serve until SIGTERM or Ctrl-C.

    Raises: SettingsError if the address cannot be listened at.
    """
    sockets = _bind(board.settings.board.host, board.settings.board.port)
    server = tornado.httpserver.HTTPServer(
        make_application(board), max_body_size=_BODY_BYTES, max_header_size=65536
    )
    server.add_sockets(sockets)
    host, port = sockets[0].getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    named = f"; for browsers {board.settings.board.url}" if board.settings.board.url else ""
    logger.info("Board: http://%s:%d%s%s", name, port, board.prefix, named)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    watching = [loop.create_task(one) for one in (board.watch.run(), watch_pipeline(board))]
    await ended.wait()
    for one in watching:
        one.cancel()
    server.stop()
    board.watch.close()
    board.pictures.close()
    board.threads.shutdown(wait=False, cancel_futures=True)


def _bind(host: str, port: int) -> list[socket.socket]:
    try:
        return tornado.netutil.bind_sockets(port, host)
    except (OSError, socket.gaierror) as e:
        msg = f"[board] host {host!r}, port {port}: cannot be listened at: {e}; give --host and --port"
        raise SettingsError(msg) from e
