"""Run `scripts/demo --keep` as a user does: each command that it prints, each page of its board, then Ctrl-C.

Nothing may be left.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DEMO = Path(__file__).with_name("demo")
COMMAND_LIMIT_S = 120
BOARD_PAGES = ("", "rollouts", "releases", "label", "try", "pipeline")


def main() -> int:
    """Return 0 if all that the demo promises holds."""
    command = [str(DEMO), "--keep", *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        commands, folder, board = follow(demo.stdout or ())
        failed = [one for one in commands if not works(one)]
        failed += [one for one in BOARD_PAGES if board and not is_shown(board + one)]
        # As a terminal does: to the demo and all that it started.
        os.killpg(demo.pid, signal.SIGINT)
    if not commands or failed:
        sys.exit(f"the demo ended with {demo.returncode}; of its commands these failed: {failed}")
    if Path(folder).exists():
        sys.exit(f"left after Ctrl-C: {folder}")
    return 0


def follow(output: Iterable[str]) -> tuple[list[str], str, str]:
    """Show the output of the demo; return the commands that it tells to try, its folder, and its board."""
    commands: list[str] = []
    folder, board, before = "", "", ""
    for line in output:
        sys.stdout.write(line)
        sys.stdout.flush()
        if before.startswith("  # "):
            commands.append(line.strip())
        if found := re.search(r"its files lie in (\S+)\. Try", line):
            folder = found[1]
        if found := re.match(r"Board: (http\S+)", line):
            board = found[1]
        if line.startswith("Ctrl-C"):
            break
        before = line
    return commands, folder, board


def is_shown(page: str) -> bool:
    """Whether a page of the board answers."""
    sys.stdout.write(f"$ GET {page}\n")
    try:
        with urllib.request.urlopen(page, timeout=COMMAND_LIMIT_S) as answer:  # noqa: S310 - on loopback
            return b"</main>" in answer.read()
    except OSError as e:
        sys.stdout.write(f"{e}\n")
        return False


def works(command: str) -> bool:
    """Whether a command works in another terminal, whose environment knows nothing of the demo."""
    sys.stdout.write(f"$ {command}\n")
    environment = {"PATH": "/usr/bin:/bin", "HOME": tempfile.gettempdir()}
    ran = subprocess.run(
        ["/bin/sh", "-c", command],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd="/",
        timeout=COMMAND_LIMIT_S,
    )
    sys.stdout.write(ran.stdout[-2000:] + ran.stderr[-2000:])
    return ran.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
