"""Run `scripts/demo --keep` as a user does: each command that it prints, then Ctrl-C; nothing may be left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

DEMO = Path(__file__).with_name("demo")
COMMAND_LIMIT_S = 120


def main() -> int:
    """Return 0 if all that the demo promises holds."""
    command = [str(DEMO), "--keep", *sys.argv[1:]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as demo:
        commands, folder = follow(demo.stdout or ())
        failed = [one for one in commands if not works(one)]
        # As a terminal does: to the demo and all that it started.
        os.killpg(demo.pid, signal.SIGINT)
    if not commands or failed:
        sys.exit(f"the demo ended with {demo.returncode}; of its commands these failed: {failed}")
    if Path(folder).exists():
        sys.exit(f"left after Ctrl-C: {folder}")
    return 0


def follow(output: Iterable[str]) -> tuple[list[str], str]:
    """Show the output of the demo; return the commands that it tells to try, and its folder."""
    commands: list[str] = []
    folder, before = "", ""
    for line in output:
        sys.stdout.write(line)
        sys.stdout.flush()
        if before.startswith("  # "):
            commands.append(line.strip())
        if found := re.search(r"its files lie in (\S+)\. Try", line):
            folder = found[1]
        if line.startswith("Ctrl-C"):
            break
        before = line
    return commands, folder


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
