"""Child processes of the daemon: what must not crash it, hang it, or stay in its memory runs in one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import edge_client

if TYPE_CHECKING:
    from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this package, with `environment`."""
    return [sys.executable, "-m", module]


def environment() -> dict[str, str]:
    """Let the child find this package, and keep numerical libraries from reserving memory for each core."""
    package_root = str(Path(edge_client.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def die_with_parent() -> None:
    """Ask Linux to kill this child when the daemon dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def be_first_to_go() -> None:
    """Ask Linux to take this child, and not the daemon that serves, where memory runs out (proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def self_test_command(threads: int, memory_bytes: int | None, latency_budget_ms: float = 0.0) -> list[str]:
    """Return the command of a self-test; see `selftest.py`."""
    command = [*python_command("edge_client.update.selftest"), "--threads", str(threads)]
    if memory_bytes is not None:
        command += ["--memory-bytes", str(memory_bytes)]
    if latency_budget_ms:
        command += ["--latency-budget-ms", str(latency_budget_ms)]
    return command


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a child that is talked to through pipes.

    Raises: OSError.
    """
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def leave(code: int) -> NoReturn:
    """End this process at once: tidying up takes 20 ms, and the kernel does it anyway."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe_death(returncode: int, crash: str) -> str | None:
    """Say which signal ended a child; None if none did.

    Args:
        returncode: As `subprocess` gives it.
        crash: What a crash means, e.g. `the model crashed the runtime`.
    """
    if returncode >= 0:
        return None
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if -returncode == signal.SIGKILL:
        return "the child was killed (SIGKILL), as the kernel does where memory runs out; free some"
    return f"{crash} ({name})"
