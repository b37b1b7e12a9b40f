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
    from collections.abc import Iterator
    from typing import NoReturn

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this package, with `environment`."""
    return [sys.executable, "-m", module]


def environment() -> dict[str, str]:
    """Return a child's environment: it finds this package, and numerical libraries use one thread.

    Their thread pools would reserve memory for each core.
    """
    package_root = str(Path(edge_client.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def die_with_parent() -> None:
    """Ask Linux to kill this child when the daemon dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def prefer_as_oom_victim() -> None:
    """Ask Linux to kill this child before the daemon where memory runs out (`oom_score_adj`, proc(5))."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


@contextlib.contextmanager
def hidden_modules(*names: str) -> Iterator[None]:
    """Make optional modules look uninstalled within the block; modules that are loaded already stay.

    For a child whose libraries import more than they need wherever it is installed.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]  # importlib: "not found"
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def self_test_command(threads: int, memory_bytes: int | None, latency_budget_ms: float = 0.0) -> list[str]:
    """Return the command of a self-test; see `update/selftest.py`."""
    command = [*python_command("edge_client.update.selftest"), "--threads", str(threads)]
    if memory_bytes is not None:
        command += ["--memory-bytes", str(memory_bytes)]
    if latency_budget_ms:
        command += ["--latency-budget-ms", str(latency_budget_ms)]
    return command


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a child with pipes to its standard streams.

    Raises: OSError.
    """
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )


def exit_now(code: int) -> NoReturn:
    """Exit without the interpreter's shutdown, which takes 20 ms and frees what the kernel frees anyway."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def describe_exit(returncode: int, crash: str) -> str | None:
    """Return which signal ended a child; None if it exited by itself.

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
        return "the child was killed (SIGKILL), as the kernel does when memory runs out; free some memory"
    return f"{crash} ({name})"
