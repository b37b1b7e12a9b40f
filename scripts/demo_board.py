"""The board beside a demo, with a token for whoever looks at it."""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import sys
from typing import TYPE_CHECKING

from demo_words import say, tail
from device_watcher import end_process
from local_services import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PORT = 8090
_ADDRESS = re.compile(r"Board: (http\S+)")
_PROGRAM = [sys.executable, "-m", "luigi_tasks.edge_fleet"]


@contextlib.contextmanager
def running_board(work: Path) -> Iterator[str]:
    """Run `edge-fleet board` with the settings that the environment names; give its address.

    Args:
        work: Folder of the demo, for the log.
    """
    log = work / "board.log"
    for port in (PORT, 0):  # another board may have the usual one
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*_PROGRAM, "board", "--port", str(port)],
                stdout=file,
                stderr=file,
                cwd=work,
                start_new_session=True,
            )
        try:
            wait_until(functools.partial(_has_answered, process, log), "the board")
            if found := _ADDRESS.search(log.read_text()):
                yield found[1]
                return
        finally:
            end_process(process)
    sys.exit(f"edge-fleet board ended with {process.returncode}: {tail(log)}")


def say_where(address: str) -> None:
    """Say where the board is, and how to act on it."""
    command = [*_PROGRAM, "board-token", "--role", "operator", "--name", "demo", "--days", "1", "--json"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        sys.exit(f"edge-fleet board-token ended with {ran.returncode}: {ran.stderr[-2000:]}")
    say(f"\nBoard: [bold]{address}[/]   (to act on it, sign in with {json.loads(ran.stdout)['token']})")


def _has_answered(process: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether the board listens, or ended."""
    return process.poll() is not None or _ADDRESS.search(log.read_text()) is not None
