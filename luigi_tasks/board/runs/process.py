"""The process beside a run of the pipeline: keeps its log and its exit code, whatever becomes of the board.

    python -m luigi_tasks.board.runs.process FOLDER ID

It leads a session of its own and holds the lock of the run, which it was born with, for as long as the run
lasts: a board that was started anew sees by the lock that the run is there. A file ID.stop ends the run.

    ID.json   what was started        ID.log, ID.log.1   the end of what the run wrote
    ID.stop   who stopped it          ID.end.json        exit code and time
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from edge_client import children

if TYPE_CHECKING:
    from types import FrameType

# The log is two files of at most this size: the newest, and the one before.
LOG_BYTES = 1 << 20
LOOK_S = 0.25
# SIGTERM, then SIGKILL: what a killed run leaves behind, the next one finishes.
_GRACE_S = 10.0
_CHUNK = 65536


class BoundedLog:
    """A log of bounded size; a disk that is full costs lines, and no run.

    Args:
        path: Of the newest part; the one before lies beside it, with `.1` at the end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = path.stat().st_size if path.exists() else 0

    def write(self, data: bytes) -> None:
        """Append."""
        with contextlib.suppress(OSError):
            if self._size > LOG_BYTES:
                self._path.replace(f"{self._path}.1")
                self._size = 0
            with self._path.open("ab") as file:
                file.write(data)
            self._size += len(data)


def keep(folder: Path, name: str) -> int:
    """Run what a run's document says; return its exit code."""
    signalled: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - of signal
        signalled.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, note)
    command = json.loads((folder / f"{name}.json").read_bytes())["command"]
    log = BoundedLog(folder / f"{name}.log")
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=children.die_with_parent,  # noqa: PLW1509 - this process has one thread
    )
    _write(folder / f"{name}.pid", str(process.pid).encode())
    output, stop = cast("IO[bytes]", process.stdout), folder / f"{name}.stop"
    asked_at = 0.0
    while process.poll() is None:
        _pass_on(output, log, LOOK_S)
        if not asked_at and (signalled or stop.exists()):
            asked_at = time.monotonic()
            _signal(process, signal.SIGTERM)
        elif asked_at and time.monotonic() - asked_at > _GRACE_S:
            _signal(process, signal.SIGKILL)
    while _pass_on(output, log, 0):
        pass
    end = {"code": process.returncode, "ended_at": time.time(), "signal": next(iter(signalled), 0)}
    _write(folder / f"{name}.end.json", json.dumps(end).encode())
    return process.returncode


def _pass_on(output: IO[bytes], log: BoundedLog, wait_s: float) -> bool:
    """Write to the log what the run wrote; return whether there may be more."""
    if not select.select([output], [], [], wait_s)[0]:
        return False
    data = os.read(output.fileno(), _CHUNK)
    if not data:
        time.sleep(wait_s)  # it closed its output, and goes on
        return False
    log.write(data)
    return True


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal the run and the workers that it started: its session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _write(path: Path, data: bytes) -> None:
    """Write a small file in one step."""
    with contextlib.suppress(OSError):
        temporary = path.with_name(f".{path.name}")
        temporary.write_bytes(data)
        temporary.replace(path)


if __name__ == "__main__":
    keep(Path(sys.argv[1]), sys.argv[2])
