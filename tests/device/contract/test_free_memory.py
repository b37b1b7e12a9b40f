"""What a picture may cost is what the machine, its control groups and the process's own limits leave."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from edge_client.contract.free_memory import free_memory_bytes

REPOSITORY = Path(__file__).resolve().parents[3]


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    proc = tmp_path / "proc"
    write(proc, meminfo="MemTotal:  9000 kB\nMemAvailable:  4000 kB\n")
    write(proc / "self", cgroup="", status="VmSize: 10 kB\n")
    return proc


def test_the_machine_decides_where_nothing_else_is_set(tmp_path: Path, proc: Path) -> None:
    assert free_memory_bytes(proc, tmp_path / "none") == 4000 * 1024


def test_each_group_up_to_the_root_counts_without_the_pages_that_the_kernel_drops(
    tmp_path: Path, proc: Path
) -> None:
    write(proc / "self", cgroup="0::/system.slice/edge-client.service\n")
    groups = tmp_path / "cgroup"
    write(groups / "system.slice", memory__max="max\n", memory__current="500\n")
    own = groups / "system.slice" / "edge-client.service"
    write(own, memory__max="1000\n", memory__high="900\n", memory__current="700\n")
    write(own, memory__stat="anon 600\ninactive_file 50\n")
    assert free_memory_bytes(proc, groups) == 900 - 700 + 50
    write(groups / "system.slice", memory__max="600\n")
    assert free_memory_bytes(proc, groups) == 100


def test_groups_of_the_first_version_count(tmp_path: Path, proc: Path) -> None:
    write(proc / "self", cgroup="5:cpu,cpuacct:/\n4:memory:/box\n0::/\n")
    group = tmp_path / "cgroup" / "memory" / "box"
    write(group, memory__limit_in_bytes="1000", memory__usage_in_bytes="400")
    write(group, memory__stat="inactive_file 1\ntotal_inactive_file 30\n")
    assert free_memory_bytes(proc, tmp_path / "cgroup") == 630


def test_a_container_finds_its_group_at_the_mount_point(tmp_path: Path, proc: Path) -> None:
    write(proc / "self", cgroup="0::/docker/0123\n")
    write(tmp_path / "cgroup", memory__max="1000", memory__current="2000")
    assert free_memory_bytes(proc, tmp_path / "cgroup") == 0


def test_limits_of_the_process_count() -> None:
    found = subprocess.run(
        [sys.executable, "-c", "from edge_client.contract.free_memory import *; print(free_memory_bytes())"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (200_000_000, 200_000_000)),
        capture_output=True,
        text=True,
        check=True,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert 0 < int(found.stdout) < 200_000_000


def test_without_procfs_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory_bytes(tmp_path, tmp_path) is None
