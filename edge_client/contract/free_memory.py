"""Memory that this process may still use: what the machine has left, within the limits set on the process."""

from __future__ import annotations

import contextlib
import ctypes
import resource
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
# Limit, usage and the statistic of the pages that the kernel drops first, in each version of cgroups.
_V2 = (("memory.max", "memory.high"), "memory.current", "inactive_file")
_V1 = (("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")


def free_memory_bytes(proc: Path = _PROC, cgroups: Path = _CGROUPS) -> int | None:
    """Return the bytes that this process can still allocate and touch; None if nothing tells.

    The smallest of: `MemAvailable`, what is left in each memory cgroup that this process is in (version 1 and
    2), and what is left to its own limits of address space and data. Takes 0.1 ms.

    Args:
        proc: Mount point of procfs, see proc(5).
        cgroups: Mount point of the control groups, see cgroups(7).
    """
    return min((*_of_machine(proc), *_of_groups(proc, cgroups), *_of_process(proc)), default=None)


def return_freed_memory() -> None:
    """Return to the system what the C library keeps of freed memory, after a large picture hundreds of MB.

    Takes some milliseconds. Source: malloc_trim(3); without glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _of_machine(proc: Path) -> Iterator[int]:
    fields = _fields(proc / "meminfo")
    if "MemAvailable:" in fields:
        yield fields["MemAvailable:"] * 1024


def _of_process(proc: Path) -> Iterator[int]:
    fields = _fields(proc / "self" / "status")
    for limit, used in ((resource.RLIMIT_AS, "VmSize:"), (resource.RLIMIT_DATA, "VmData:")):
        most = resource.getrlimit(limit)[0]
        if most != resource.RLIM_INFINITY and used in fields:
            yield max(most - fields[used] * 1024, 0)


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield what is left in each group, from this process's own up to the root."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            # A hybrid system mounts version 2 in `unified`.
            for mount in (cgroups, cgroups / "unified"):
                yield from _of_tree(mount, path, *_V2)
        elif "memory" in controllers.split(","):
            yield from _of_tree(cgroups / "memory", path, *_V1)


def _of_tree(mount: Path, path: str, limits: tuple[str, ...], usage: str, cache: str) -> Iterator[int]:
    group = mount / path.lstrip("/")
    if not group.is_dir():
        group = mount  # a container sees only its own group, at the mount point
    while group.is_relative_to(mount):
        most = [number for name in limits if (number := _number(group / name)) is not None]
        used = _number(group / usage)
        if most and used is not None:
            yield max(min(most) - used + _fields(group / "memory.stat").get(cache, 0), 0)
        group = group.parent


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None  # "max" is no limit


def _fields(path: Path) -> dict[str, int]:
    """Return the lines `name number ...` of a file."""
    found = {}
    for line in _text(path).splitlines():
        name, number, *_ = [*line.split(), "", ""]
        if number.isdecimal():
            found[name] = int(number)
    return found


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace")
    return ""
