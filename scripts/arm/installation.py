"""The device, installed in an Arm user land by that user land's own pip, and what is to be known of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from arm.userland import ArmError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from arm.userland import UserLand

REPOSITORY = Path(__file__).resolve().parents[2]
TEST_REQUIREMENTS = (
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.7",
    "hypothesis>=6.100",
    "iotcore>=0.4,<0.5",
)
METRICS = "prometheus_client>=0.20,<1"
# The kernel of a Raspberry Pi 5 has pages of 16 KiB; glibc loads no file whose segments are aligned to less.
PAGE_BYTES = 16384
_PT_LOAD = 1

FACTS = """
import importlib.metadata as m, json, os, platform, ssl, sys
from edge_client.inference.runtime import runtime_name
names = ("numpy", "pillow", "msgspec", "paho-mqtt", "tuf", "cryptography", "zstandard", "urllib3")
print(json.dumps({
    "os": platform.freedesktop_os_release()["PRETTY_NAME"], "machine": platform.machine(),
    "python": platform.python_version(), "glibc": platform.libc_ver()[1], "openssl": ssl.OPENSSL_VERSION,
    "runtime": runtime_name(), "packages": {name: m.version(name) for name in names},
}))
"""
SIZE = """
import sys
sys.path.insert(0, sys.argv[1])
from footprint import installed_bytes
print(installed_bytes("edge-fleet"))
"""


@dataclasses.dataclass(frozen=True)
class Installed:
    """What an installation is made of.

    Attributes:
        facts: Versions.
        size_bytes: Of the device and all that it needs.
        shared_objects: Number of compiled files.
        misaligned: Those that a kernel with pages of 16 KiB cannot load.
        broken: What `pip check` complains of; empty: nothing.
    """

    facts: dict[str, str | dict[str, str]]
    size_bytes: int
    shared_objects: int
    misaligned: list[str]
    broken: str


def install(land: UserLand) -> Installed:
    """Install the working tree's device with what it needs, unless what it needs is there already."""
    stamp = hashlib.sha256((REPOSITORY / "setup.py").read_bytes()).hexdigest()
    note = land.environment / ".installed"
    with tempfile.TemporaryDirectory(prefix="edge-arm-") as folder:
        wheel = build_wheel(Path(folder))
        pip = [str(land.python), "-m", "pip", "--disable-pip-version-check", "--quiet"]
        if not (note.is_file() and note.read_text() == stamp):
            shutil.rmtree(land.environment, ignore_errors=True)
            make_environment(land)
            # Nothing is compiled beforehand: under emulation that takes longer than all else.
            land.run(*pip, "install", "--no-compile", wheel)
            installed = examine(land)
            (land.environment / ".facts.json").write_text(json.dumps(dataclasses.asdict(installed)))
            # For the tests. The device alone was examined.
            land.run(*pip, "install", "--no-compile", METRICS, *TEST_REQUIREMENTS)
            note.write_text(stamp)
        else:
            land.run(*pip, "install", "--no-compile", "--force-reinstall", "--no-deps", wheel)
    return Installed(**json.loads((land.environment / ".facts.json").read_text()))


def make_environment(land: UserLand) -> None:
    """Make a virtual environment with Debian's pip.

    Its wheel is named in full: `ensurepip` of 3.13 reads attributes of a path that the emulator does not map.
    """
    land.run(land.root / "usr/local/bin/python3", "-m", "venv", "--without-pip", land.environment)
    [wheel] = (land.root / "usr/share/python-wheels").glob("pip-*.whl")
    land.run(land.python, wheel / "pip", "install", "--quiet", "--no-index", "--no-compile", wheel)


def build_wheel(folder: Path) -> Path:
    """Build this project's wheel from a copy, so that no earlier build is in it."""
    source = folder / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy2(REPOSITORY / name, source)
    for name in ("edge_client", "luigi_tasks"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", folder, source], check=True
    )
    return next(folder.glob("edge_fleet-*.whl"))


def examine(land: UserLand) -> Installed:
    """Return versions, size, and what is wrong with it."""
    objects = [*shared_objects(land.environment)]
    misaligned = [str(path.relative_to(land.environment)) for path in objects if alignment(path) % PAGE_BYTES]
    check = subprocess.run(
        [str(land.python), "-m", "pip", "check"], capture_output=True, text=True, check=False
    )
    return Installed(
        facts=json.loads(land.run(land.python, "-c", FACTS)),
        size_bytes=int(land.run(land.python, "-c", SIZE, REPOSITORY / "benchmarks")),
        shared_objects=len(objects),
        misaligned=misaligned,
        broken="" if check.returncode == 0 else check.stdout.strip(),
    )


def shared_objects(folder: Path) -> Iterator[Path]:
    """Yield the compiled files of an environment."""
    for path in sorted(folder.rglob("*.so*")):
        if path.is_file() and path.open("rb").read(4) == b"\x7fELF":
            yield path


def alignment(path: Path) -> int:
    """Return the largest page size with which a file's segments can be loaded.

    Source: System V ABI, program header; glibc, elf/dl-load.c: `p_align` is a multiple of the page size, and
    address and offset are equal modulo `p_align`.
    """
    content = path.read_bytes()
    if content[4] == 2:  # 64 bits
        start, entry, count = struct.unpack_from("<Q14xHH", content, 32)
        layout = "<I4xQQ8x16xQ"
    else:
        start, entry, count = struct.unpack_from("<I10xHH", content, 28)
        layout = "<IIII" + "12x" + "I"
    smallest = 1 << 62
    for number in range(count):
        fields = struct.unpack_from(layout, content, start + number * entry)
        if fields[0] != _PT_LOAD:
            continue
        offset, address, align = fields[1], fields[2], fields[-1]
        if (address - offset) % max(align, 1):
            msg = f"{path}: a segment's address and offset differ modulo its alignment"
            raise ArmError(msg)
        smallest = min(smallest, align)
    return smallest
