"""`edge-fleet`: look at the fleet and its rollouts, decide on them, and tell what is wrong.

Exit codes: 0 done; 1 a name, document or file cannot be used, or the state does not allow it; 2 wrong usage
or settings; 3 signatures do not hold; 4 store or broker cannot be reached, try again; 130 interrupted.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.addresses import without_secrets
from edge_client.contract.errors import EdgeError, InputError, SettingsError, TransportError, TrustError
from edge_client.contract.text import one_line
from luigi_tasks.board import command as board
from luigi_tasks.board.access import token_command as board_token
from luigi_tasks.fleet.commands import (
    clean,
    collect,
    decisions,
    devices,
    doctor,
    registry,
    releases,
    rollouts,
    status,
    why,
)
from luigi_tasks.fleet.commands.faults import FoundFaultsError
from luigi_tasks.settings.files import check_before_luigi

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_CODES: dict[type[EdgeError], int] = {
    InputError: 1,
    SettingsError: 2,
    TrustError: 3,
    TransportError: 4,
}
_INTERRUPTED = 130
# Each has `add_parser(subparsers)`, which names the function that runs it, see `commands/command.py`.
SUBJECTS = (
    status,
    devices,
    releases,
    rollouts,
    why,
    decisions,
    registry,
    collect,
    board,
    board_token,
    clean,
    doctor,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error is one paragraph on standard error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(
            stream, io.TextIOWrapper
        ):  # a terminal of another encoding shows what it has no sign for
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        check_before_luigi()
        sys.stdout.write(options.run(options))
        sys.stdout.flush()
    except FoundFaultsError as e:
        sys.stdout.write(e.text)
        _report(e)
        return e.code
    except EdgeError as e:
        return _report(e)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader went away (`| head`); Python must not fail again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _report(error: EdgeError) -> int:
    sys.stderr.write(f"edge-fleet: {one_line(without_secrets(str(error)))}\n")
    return next((code for kind, code in EXIT_CODES.items() if isinstance(error, kind)), 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-fleet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"edge-fleet {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for subject in SUBJECTS:
        subject.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
