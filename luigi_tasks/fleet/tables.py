"""Tables of the commands: with rich on a terminal, else plain columns for `grep` and `awk`.

Most of what they show was sent by devices. A cell is therefore text and never markup, on one line, of bounded
length, with control and direction characters as escapes.
"""

from __future__ import annotations

import datetime
import shutil
import sys
from typing import TYPE_CHECKING

from edge_client.contract.text import one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

UNKNOWN = "unknown"
_CELL_CHARACTERS = 120
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86400
# Longer cells are folded in their column.
_COLUMN_CHARACTERS, _PADDING = 24, 3


def shown(text: str, limit: int = _CELL_CHARACTERS) -> str:
    """Return text from outside as one safe line of at most `limit` characters."""
    safe = one_line(text[: 4 * limit])
    return safe if len(safe) <= limit else safe[: limit - 1] + "…"


def age_in_words(seconds: float) -> str:
    """Return how long ago something was, such as `5 min ago`; a negative age is a clock that differs."""
    if seconds < 0:
        return "in the future" if seconds < -_MINUTE_S else "now"
    for limit, unit_s, unit in (
        (2 * _MINUTE_S, 1, "s"),
        (2 * _HOUR_S, _MINUTE_S, "min"),
        (2 * _DAY_S, _HOUR_S, "h"),
    ):
        if seconds < limit:
            return f"{int(seconds // unit_s)} {unit} ago"
    return f"{int(seconds // _DAY_S)} days ago"


def clock_in_words(seconds: float) -> str:
    """Return seconds since 1970 as a time, UTC."""
    time = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return time.isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")


def count(number: int, thing: str) -> str:
    """Return a number of things, such as `1 device` or `3 devices`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], cell_limit: int = _CELL_CHARACTERS) -> str:
    """Return a table; cells are shown as by `shown`, with at most so many characters each."""
    safe = [[shown(cell, cell_limit) for cell in row] for row in rows]
    return _on_terminal(columns, safe) if sys.stdout.isatty() else _plain(columns, safe)


def _plain(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, *rows]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    texts = ("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "".join(f"{text}\n" for text in texts)


def _on_terminal(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from rich.box import SIMPLE_HEAD  # noqa: PLC0415 - only on a terminal
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    kept = [number for number in range(len(columns)) if any(row[number] for row in rows)]
    drawn = Table(box=SIMPLE_HEAD, pad_edge=False)
    least = 0
    for number in kept:
        widest = max(len(columns[number]), *(len(row[number]) for row in rows))
        least += min(widest, _COLUMN_CHARACTERS) + _PADDING
        drawn.add_column(Text(columns[number]), overflow="fold", min_width=min(widest, _COLUMN_CHARACTERS))
    for row in rows:
        drawn.add_row(*(Text(row[number]) for number in kept))
    # Where the terminal is too narrow it breaks the lines; rich would leave parts of them out.
    console = Console(file=sys.stdout, width=max(shutil.get_terminal_size().columns, least))
    with console.capture() as capture:
        console.print(drawn)
    lines = [line.rstrip() for line in capture.get().split("\n")]
    return "\n".join(lines).strip("\n") + "\n"
