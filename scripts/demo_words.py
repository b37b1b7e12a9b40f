"""What the demos say on the terminal."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from pathlib import Path

# A log has no width of its own, and the bars need some.
console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


def say(text: str) -> None:
    """Print a line."""
    console.print(text)


def explain_failure(log: Path) -> str:
    """Return the error that a run logged last; else the end of its log."""
    errors = re.findall(
        r"(?:Input|Settings|Transport|Trust|Device|RolloutHalted)Error: (.+)", log.read_text(errors="replace")
    )
    return str(errors[-1]) if errors else f"its log ends:\n{tail(log)}"


def tail(path: Path, lines: int = 40) -> str:
    """Return the end of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
