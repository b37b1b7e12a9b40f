"""Child processes of the daemon: what must not crash it, hang it, or stay in its memory runs in one.

No child imports from the folder in which the daemon was started: each starts in `/`, with `-P` where Python
has it (3.11). Before 3.11, `-m` puts the current folder first on the path, which is `/` then.
"""

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
    from typing import IO, Any, NoReturn

# linux/prctl.h
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
# linux/sched.h
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_CAPABILITY_VERSION_3, _CAP_DAC_READ_SEARCH = 0x20080522, 2  # linux/capability.h
# Processor time of a self-test's imports, on the slowest board.
_IMPORTS_S = 60
# Folder in which children start.
FOLDER = "/"
# Prefix of the variables that may hold the store's keys (`settings.update.read_credentials`).
SECRETS = "AWS_"
# What Python, the loader and the runtime read; a child that runs a model gets nothing else.
_NEEDED = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "VIRTUAL_ENV")
_NEEDED_PREFIXES = ("LC_", "LD_", "PYTHON", "TF_", "OMP_", "OPENBLAS_", "MALLOC_", "GLIBC_", "EDGE_CLIENT_")
# A crash of the runtime by itself.
_CRASHES = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGILL,
    signal.SIGFPE,
    signal.SIGABRT,
    signal.SIGTRAP,
}


def python_command(module: str) -> list[str]:
    """Return the command that runs a module of this package, in `FOLDER` with `environment`."""
    safe_path = ["-P"] if sys.version_info >= (3, 11) else []
    return [sys.executable, *safe_path, "-m", module]


def secrets() -> dict[str, str]:
    """Return the variables that may hold keys. A child that needs them gets them through a pipe.

    What a process gets with its environment, every process of the same user could read while it starts.
    """
    return {name: value for name, value in os.environ.items() if name.startswith(SECRETS)}


def environment() -> dict[str, str]:
    """Return a child's environment: no secrets, it finds this package, numerical libraries use one thread.

    Their thread pools would reserve memory for each core.
    """
    package_root = str(Path(edge_client.__file__).resolve().parents[1])
    # An empty entry is the current folder, whichever that is; a relative one was meant for the daemon's.
    given = [
        str(Path(entry).absolute()) for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry
    ]
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(SECRETS)},
        "PYTHONPATH": os.pathsep.join(dict.fromkeys([package_root, *given])),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }


def bare_environment() -> dict[str, str]:
    """Return the environment of a child that runs an untrusted model: what Python and the runtime need."""
    return {
        name: value
        for name, value in environment().items()
        if name in _NEEDED or name.startswith(_NEEDED_PREFIXES)
    }


def hide_from_others() -> None:
    """Keep other processes of this user from reading this one's memory and environment (prctl(2), dumpable).

    It has no core dump any more, and a debugger or `py-spy` needs root.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def forbid_privileges() -> None:
    """Give up the right to new privileges, as of setuid programs (prctl(2), no_new_privs)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def confine() -> None:
    """Give up what a child that runs an untrusted model does not need; before its first thread starts.

    No new privileges, no capabilities but root's to read the files of the daemon's user, and no network: a
    namespace of its own, where the kernel allows one (systemd: `RestrictNamespaces=user net`). Root needs no
    user namespace for it. Where the kernel allows none, the child runs with the network.
    """
    forbid_privileges()
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        if libc.unshare(_CLONE_NEWNET):
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
        if _set_capabilities(libc, 1 << _CAP_DAC_READ_SEARCH):
            _set_capabilities(libc, 0)


def _set_capabilities(libc: ctypes.CDLL, mask: int) -> int:
    """Keep these capabilities, of root or of a new user namespace, and give up the others.

    Those of a namespace open parts of the kernel to a hostile model.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(mask, mask)  # effective, permitted, inheritable; then their upper halves
    return int(libc.capset(header, sets))


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


def self_test_command(
    threads: int, memory_bytes: int | None, latency_budget_ms: float = 0.0, timeout_s: float | None = None
) -> list[str]:
    """Return the command of a self-test; see `update/selftest.py`."""
    command = [*python_command("edge_client.update.selftest"), "--threads", str(threads)]
    if timeout_s is not None:
        command += ["--cpu-seconds", str(int(timeout_s * (threads + 1)) + _IMPORTS_S)]
    if memory_bytes is not None:
        command += ["--memory-bytes", str(memory_bytes)]
    if latency_budget_ms:
        command += ["--latency-budget-ms", str(latency_budget_ms)]
    return command


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start a child that runs a model, with pipes to its standard streams.

    Raises: OSError.
    """
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=bare_environment(), cwd=FOLDER)


def read_order(pipe: IO[bytes]) -> Any:  # noqa: ANN401 - what the daemon pickled
    """Return what the daemon pickled for its child, which ends in silence if the daemon was killed before.

    `die_with_parent` does not see a daemon that died while Python started.
    """
    import pickle  # noqa: PLC0415 - a self-test, which imports this module, does without

    try:
        return pickle.load(pipe)  # noqa: S301 - only from the daemon that started this process
    except (EOFError, pickle.UnpicklingError):
        exit_now(1)


def exit_now(code: int) -> NoReturn:
    """Exit without the interpreter's shutdown, which takes 20 ms and frees what the kernel frees anyway."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def is_crash(returncode: int) -> bool:
    """Return whether a child crashed by itself, rather than being killed or having exited."""
    return -returncode in _CRASHES


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
    return f"{crash} ({name})" if is_crash(returncode) else f"the child was ended by a signal ({name})"
