"""The child that makes an index: what it needs of memory ends with it.

    python -m luigi_tasks.board.index.child < ORDER

ORDER is pickled: settings, the folder where their relative paths begin, variables that hold keys of the
store, folder, version; without a version the history is filled with what older snapshots tell. It answers
with the content as JSON, or with an error as one paragraph and the exit code 1.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_client.children import (
    FOLDER,
    describe_exit,
    die_with_parent,
    environment,
    prefer_as_oom_victim,
    python_command,
    read_order,
    secrets,
)
from edge_client.contract.errors import EdgeError, TransportError
from edge_client.contract.text import one_line
from luigi_tasks.board.index.loading import load
from luigi_tasks.board.index.past import fill_past
from luigi_tasks.board.index.records import IndexContent

if TYPE_CHECKING:
    from luigi_tasks.settings.values import PipelineSettings

_REFUSED = 1
_NICE = 10


class LoadError(TransportError):
    """The child could not make an index; why may pass."""


class Child:
    """Runs one child at a time, which ends with the board.

    Args:
        timeout_s: How long one may take.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._running: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def load(self, settings: PipelineSettings, folder: Path, version: str) -> IndexContent:
        """Make an index as `loading.load` does. Raises: LoadError."""
        return msgspec.json.decode(self._run(settings, folder, version), type=IndexContent)

    def fill_past(self, settings: PipelineSettings, folder: Path) -> int:
        """Fill the history as `past.fill_past` does. Raises: LoadError."""
        return msgspec.json.decode(self._run(settings, folder, ""), type=int)

    def close(self) -> None:
        """End the child that runs, and start none any more; from any thread."""
        self._is_closed = True
        if self._running is not None:
            self._running.kill()

    def _run(self, settings: PipelineSettings, folder: Path, version: str) -> bytes:
        order = pickle.dumps((settings, _here(), secrets(), folder, version))
        command = python_command(__name__)
        pipe = subprocess.PIPE
        with subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment(), cwd=FOLDER
        ) as child:
            self._running = child
            try:
                if self._is_closed:
                    child.kill()
                answer, fault = child.communicate(order, self._timeout_s)
            except subprocess.TimeoutExpired as e:
                child.kill()
                msg = f"the index was not made within {self._timeout_s:g} s; tried again later"
                raise LoadError(msg) from e
            except BaseException:
                child.kill()
                raise
            finally:
                self._running = None
        if child.returncode:
            said = fault.decode(errors="replace").strip().splitlines() or ["the child said nothing"]
            crashed = describe_exit(child.returncode, "making the index crashed")
            raise LoadError(one_line(crashed or said[-1]))
        return answer


def _here() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return FOLDER


def main() -> int:
    """Read the order, make the index, tell its content."""
    die_with_parent()
    prefer_as_oom_victim()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    settings, here, variables, folder, version = read_order(sys.stdin.buffer)
    with contextlib.suppress(OSError):  # it may be gone: absolute paths do without
        os.chdir(here)
    os.environ.update(variables)
    gc.disable()  # rows go by without cycles; looking for them would take longer than the rest
    try:
        content = load(settings, folder, version) if version else fill_past(settings, folder)
    except EdgeError as e:
        sys.stderr.write(one_line(str(e)) + "\n")
        return _REFUSED
    sys.stdout.buffer.write(msgspec.json.encode(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
