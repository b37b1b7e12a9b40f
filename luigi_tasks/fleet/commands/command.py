"""What every command of `edge-fleet` has: its parser, its settings, and its two kinds of output.

A subject's module has `add_parser(subparsers)`, which makes a parser with `new_command` for each of its
commands, and `run(options)`, which returns the text that is written. Heavy imports stand in `run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.text import printable_json
from luigi_tasks.fleet.commands.faults import FoundFaultsError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.settings.values import PipelineSettings

Subparsers = Any  # argparse's own type of it has no public name


# Exit code where signatures do not hold.
NOT_TRUSTED = 3
_FAULTS = 5


def new_command(
    subparsers: Subparsers, name: str, run: Callable[[argparse.Namespace], str], text: str
) -> argparse.ArgumentParser:
    """Return the parser of a command that `run` runs; it has `--json`.

    Args:
        subparsers: Where commands are added.
        name: Name of the command.
        run: Returns what is written to standard output.
        text: One line of help.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=text)
    parser.add_argument("--json", action="store_true", help="one JSON object, for machines")
    parser.set_defaults(run=run)
    return parser


def read_settings(board: Mapping[str, object] | None = None) -> PipelineSettings:
    """Return the settings of luigi.cfg; raises SettingsError.

    Args:
        board: Settings of [board] that the command's options give.
    """
    from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - imports luigi

    return load_settings(board=board or {})


def finish(view: FleetView, text: str) -> str:
    """Return a text that stands on a view; raise it with what could not be shown, if there is any.

    Raises: FoundFaultsError.
    """
    return finish_with(view.faults, text)


def finish_with(faults: Sequence[str], text: str) -> str:
    """Return a text; raise it with what could not be shown, if there is any.

    Raises: FoundFaultsError.
    """
    if faults:
        more = f"; and {len(faults) - _FAULTS} more" if len(faults) > _FAULTS else ""
        message = f"not all is shown: {'; '.join(faults[:_FAULTS])}{more}"
        raise FoundFaultsError(message, text, NOT_TRUSTED)
    return text


def to_json(value: object) -> str:
    """Return a value as one line of JSON that is safe on a terminal."""
    return printable_json(msgspec.json.encode(value).decode()) + "\n"
