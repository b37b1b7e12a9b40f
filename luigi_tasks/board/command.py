"""`edge-fleet board`: the web application."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from luigi_tasks.fleet.commands.command import Subparsers, read_settings

if TYPE_CHECKING:
    import argparse

_TEXT = "web pages that show the fleet, its rollouts and releases, and act on them; runs on"
_EXTRA = {"tornado", "jinja2", "markupsafe"}


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser: argparse.ArgumentParser = subparsers.add_parser("board", help=_TEXT, description=_TEXT)
    parser.add_argument("--host", default="", help="address to listen at (default: [board] host)")
    parser.add_argument(
        "--port", type=int, default=None, help="its port (default: [board] port); 0: a free one"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Serve until SIGTERM or Ctrl-C."""
    import asyncio  # noqa: PLC0415 - --help needs none of it

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    given = {"host": options.host or None, "port": options.port}
    settings = read_settings(board={name: value for name, value in given.items() if value is not None})
    try:
        from luigi_tasks.board.board import open_board  # noqa: PLC0415 - as above
        from luigi_tasks.board.server import serve  # noqa: PLC0415 - as above
    except ModuleNotFoundError as e:
        if e.name not in _EXTRA:
            raise
        msg = f"the board needs {e.name}: pip install 'edge-fleet[board]'"
        raise SettingsError(msg) from e
    asyncio.run(serve(open_board(settings)))
    return ""
