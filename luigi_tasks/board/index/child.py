"""The child that makes an index: what it needs of memory ends with it.

    python -m luigi_tasks.board.index.child < ORDER

ORDER is pickled: settings, variables that hold keys of the store, folder, version. It answers with the
content as JSON, or with an error as one paragraph and the exit code 1.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import subprocess
import sys
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
from luigi_tasks.board.index.records import IndexContent

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.settings.values import PipelineSettings

_REFUSED = 1
_NICE = 10


class LoadError(TransportError):
    """The child could not make an index; why may pass."""


def load_in_child(settings: PipelineSettings, folder: Path, version: str, timeout_s: float) -> IndexContent:
    """Make an index as `loading.load` does, in a process of its own.

    Raises: LoadError.
    """
    order = pickle.dumps((settings, secrets(), folder, version))
    child = subprocess.Popen(
        python_command("luigi_tasks.board.index.child"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        cwd=FOLDER,
    )
    with child:
        try:
            answer, fault = child.communicate(order, timeout_s)
        except subprocess.TimeoutExpired as e:
            child.kill()
            msg = f"the index was not made within {timeout_s:g} s; tried again later"
            raise LoadError(msg) from e
        except BaseException:
            child.kill()
            raise
    if child.returncode:
        said = fault.decode(errors="replace").strip().splitlines()
        raise LoadError(one_line(describe_exit(child.returncode, "making the index crashed") or said[-1]))
    return msgspec.json.decode(answer, type=IndexContent)


def main() -> int:
    """Read the order, make the index, tell its content."""
    die_with_parent()
    prefer_as_oom_victim()
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    settings, variables, folder, version = read_order(sys.stdin.buffer)
    os.environ.update(variables)
    gc.disable()  # rows go by without cycles; looking for them would take longer than the rest
    try:
        content = load(settings, folder, version)
    except EdgeError as e:
        sys.stderr.write(one_line(str(e)) + "\n")
        return _REFUSED
    sys.stdout.buffer.write(msgspec.json.encode(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
