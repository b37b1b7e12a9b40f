"""A memory control group, as systemd's MemoryMax= or a container makes one, for a process under test."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

_CGROUPS = Path("/sys/fs/cgroup")


@contextlib.contextmanager
def memory_group(limit_bytes: int) -> Iterator[list[str]]:
    """Make a group with a limit and no swap; yield the words before a command that runs within.

    Skips where this user may make no group.
    """
    version_1 = (_CGROUPS / "memory" / "memory.limit_in_bytes").exists()
    folder = (_CGROUPS / "memory" if version_1 else _CGROUPS) / f"edge-test-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir()
        limits = {"memory.limit_in_bytes": limit_bytes} if version_1 else {"memory.max": limit_bytes}
        for name, value in limits.items():
            (folder / name).write_text(str(value))
        for name in ("memory.memsw.limit_in_bytes", "memory.swap.max"):
            with contextlib.suppress(OSError):  # where the kernel counts no swap, there is none to forbid
                if (folder / name).exists():
                    (folder / name).write_text(str(limit_bytes if version_1 else 0))
    except OSError as e:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no memory group can be made here: {e}")
    shell = shutil.which("sh") or "sh"
    try:
        yield [shell, "-c", f'echo $$ > {folder}/cgroup.procs && exec "$@"', shell]
    finally:
        for process in (folder / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(process), 9)
        _remove(folder)


def _remove(folder: Path) -> None:
    for _ in range(100):
        try:
            folder.rmdir()
        except OSError:
            os.sched_yield()  # the kernel still ends the last process
        else:
            return
