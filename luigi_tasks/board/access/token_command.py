"""`edge-fleet board-token`: tokens of the board.

edge-fleet board-token --role operator --name ann      prints the token, once
edge-fleet board-token --list
edge-fleet board-token --revoke ann
"""

from __future__ import annotations

import datetime
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError
from edge_client.contract.text import excerpt, one_line
from luigi_tasks.board.access.tokens import DAYS, TOKEN_ROLES, Token, Tokens
from luigi_tasks.fleet.commands.command import Subparsers, new_command, read_settings, to_json

if TYPE_CHECKING:
    import argparse

_TEXT = "tokens with which people and programs may label or act on the board"


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    parser = new_command(subparsers, "board-token", run, _TEXT)
    parser.add_argument(
        "--role", choices=TOKEN_ROLES, help="what it allows, each also what the one before does"
    )
    parser.add_argument("--name", default="", help="whose it is; what they do stands under this name")
    parser.add_argument("--days", type=float, default=DAYS, help=f"time until it expires (default: {DAYS})")
    parser.add_argument("--list", action="store_true", help="show all tokens, without what is secret")
    parser.add_argument("--revoke", default="", metavar="NAME", help="end a token at once")


def run(options: argparse.Namespace) -> str:
    """Make a token, or show or end those there are."""
    settings = read_settings()
    tokens = Tokens(Path(settings.board.state_dir).expanduser())
    is_new = bool(options.role or options.name)
    if sum((is_new, options.list, bool(options.revoke))) != 1:
        raise InputError("give --role and --name for a new token, or --list, or --revoke NAME")
    if options.list:
        return _show(tokens.all(), as_json=options.json)
    if options.revoke:
        ended = tokens.revoke(options.revoke)
        return to_json(_facts(ended)) if options.json else f"ended: {_words(ended)}\n"
    if not (options.role and options.name):
        raise InputError("a new token needs both --role and --name")
    shown, made = tokens.issue(options.name, options.role, options.days)
    if options.json:
        return to_json({"token": shown, **_facts(made)})
    url = settings.board.url.rstrip("/") or f"http://{settings.board.host}:{settings.board.port}"
    sys.stderr.write(
        f"{_words(made)}. It is shown this once: paste it at {one_line(url)}/sign-in, or send "
        "`Authorization: Bearer TOKEN`\n"
    )
    return f"{shown}\n"


def _show(tokens: tuple[Token, ...], *, as_json: bool) -> str:
    if as_json:
        return to_json([_facts(one) for one in tokens])
    if not tokens:
        return "no tokens: edge-fleet board-token --role operator --name NAME makes one\n"
    return "".join(f"{_words(one)}\n" for one in tokens)


def _facts(token: Token) -> dict[str, Any]:
    return {
        "name": token.name,
        "role": token.role,
        "id": token.id,
        "created_at": _time(token.created_at),
        "ends_at": _time(token.ends_at),
        "has_ended": token.has_ended,
    }


def _words(token: Token) -> str:
    until = "expired" if token.has_ended else "until"
    return f"{excerpt(token.name)}: {token.role}, {until} {_time(token.ends_at)}"


def _time(seconds: float) -> str:
    at = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return at.isoformat(timespec="seconds").replace("+00:00", "Z")
