"""An Arm user land in a folder: Debian's packages, unpacked without being configured, run by the emulator.

The emulator is given the folder as its prefix (`qemu -L`): an absolute path that is there is read there,
all else is the host's, the network, `/proc` and `/tmp` too. That needs no root, mount, chroot or
registration with the kernel (binfmt_misc), and a killed run leaves nothing behind. Of Arm's programs,
Python alone can be started, by a script in its place that calls the emulator. That script is what
`sys.executable` names, so each child of the device is emulated too.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from arm.boards import EMULATORS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from arm.boards import Board, Variant

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# What `debootstrap` installs has all of these; base-files first, since it may say where `/lib` leads.
PACKAGES = ("base-files", "libc6", "libstdc++6", "python3", "python3-venv", "tzdata")
# Increase to make each user land anew.
RECIPE = 1


class ArmError(Exception):
    """The user land cannot be made or used; the message says the way out."""


class UserLand:
    """One release of Debian for Arm below a folder of the cache.

    Args:
        name: Of the variant.
        variant: Which release.
        board: Whose processor is emulated.
        cache: Holds a folder for each variant; it is made.
    """

    def __init__(self, name: str, variant: Variant, board: Board, cache: Path) -> None:
        self.name = name
        self.variant = variant
        self.board = board
        self.folder = cache / name
        self.root = self.folder / "root"
        self.environment = self.folder / "edge-client"  # where the device is installed
        self.emulator = find_emulator(variant.architecture)

    @property
    def python(self) -> Path:
        """The interpreter of the device's environment."""
        return self.environment / "bin/python"

    @property
    def edge_client(self) -> Path:
        """The device's command."""
        return self.environment / "bin/edge-client"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of this folder; the lock ends with the process, however it ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another run that uses {self.folder}", flush=True)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def make(self) -> bool:
        """Download and unpack Debian's packages, unless that was done; return whether it had to be.

        What a killed run left is removed: a folder becomes `root` in one step, when it is complete.
        """
        stamp = {"recipe": RECIPE, "packages": PACKAGES, "suite": self.variant.suite}
        identity = hashlib.sha256(json.dumps(stamp).encode()).hexdigest()
        note = self.root / ".made-by-test-arm"
        made = note.is_file() and note.read_text() == identity
        if not made:
            for old in (self.root, self.environment, self.folder / "part"):
                shutil.rmtree(old, ignore_errors=True)
            part = self.folder / "part"
            self._unpack(part)
            (part / note.name).write_text(identity)
            part.rename(self.root)
        self._write_interpreter()
        (self.root / "proc").mkdir(exist_ok=True)
        (self.root / "proc/cpuinfo").write_text(self.board.cpuinfo())
        return not made

    def run(self, *command: str | Path, timeout_s: float = 600) -> str:
        """Run a command of the device's environment and return what it prints.

        Raises: ArmError with the end of its output if it fails.
        """
        done = subprocess.run(
            [*map(str, command)], capture_output=True, text=True, check=False, timeout=timeout_s
        )
        if done.returncode != 0:
            tail = (done.stdout + done.stderr)[-3000:]
            msg = f"{self.name}: {' '.join(map(str, command))} ended with {done.returncode}:\n{tail}"
            raise ArmError(msg)
        return done.stdout

    def _unpack(self, target: Path) -> None:
        with AptState(self.folder / "apt", self.variant) as apt:
            packages = apt.download(PACKAGES)
            target.mkdir()
            packages.sort(key=lambda path: not path.name.startswith("base-files_"))
            for package in packages:
                subprocess.run(["/usr/bin/dpkg-deb", "-x", package, target], check=True)
        # Python's own children and scripts find it by the name that a virtual environment links to.
        (target / "usr/local/bin").mkdir(parents=True, exist_ok=True)

    def _write_interpreter(self) -> None:
        """Write the script that stands for Python: `$0` is its name in the environment that links to it."""
        real = self.root / f"usr/bin/python{self.variant.python}"
        if not real.is_file():
            msg = f"{real} is missing: {self.variant.suite} has another Python; correct scripts/arm/boards.py"
            raise ArmError(msg)
        script = self.root / "usr/local/bin/python3"
        script.unlink(missing_ok=True)
        script.write_text(
            "#!/bin/sh\nunset PWD OLDPWD\n"
            f'exec "{self.emulator}" -cpu {self.board.processor} -L "{self.root}" -0 "$0" "{real}" "$@"\n'
        )
        script.chmod(0o755)


class AptState:
    """State of apt for another architecture and release, apart from the machine's own, for a `with` block."""

    def __init__(self, folder: Path, variant: Variant) -> None:
        self.folder = folder
        self.variant = variant

    def __enter__(self) -> Self:
        shutil.rmtree(self.folder, ignore_errors=True)
        for name in ("state/lists/partial", "cache/archives/partial", "sources"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "state/status").touch()
        (self.folder / "sources/list").write_text(
            f"deb [signed-by={KEYRING}] {find_mirror()} {self.variant.suite} main\n"
        )
        return self

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def download(self, packages: tuple[str, ...]) -> list[Path]:
        """Download packages and all that they depend on, with their signatures checked."""
        self._apt("update")
        self._apt("install", "--download-only", "--yes", *packages)
        return sorted((self.folder / "cache/archives").glob("*.deb"))

    def _apt(self, *arguments: str) -> None:
        options = {
            "APT::Architecture": self.variant.architecture,
            "APT::Architectures::": self.variant.architecture,
            "APT::Install-Recommends": "false",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
            "Dir::State": str(self.folder / "state"),
            "Dir::State::status": str(self.folder / "state/status"),
            "Dir::Cache": str(self.folder / "cache"),
            "Dir::Etc::sourcelist": str(self.folder / "sources/list"),
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
        }
        settings = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        command = ["/usr/bin/apt-get", "-q", *settings, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            msg = (
                f"apt-get {arguments[0]} for {self.variant.suite} {self.variant.architecture} ended with "
                f"{done.returncode}:\n{done.stderr[-2000:]}"
            )
            raise ArmError(msg)


def find_mirror() -> str:
    """Return the address from which this machine has its own packages of Debian."""
    if not Path("/usr/bin/apt-get").is_file() or not KEYRING.is_file():
        msg = f"apt-get and {KEYRING} are needed, to download Debian's packages; use a machine with Debian"
        raise ArmError(msg)
    listed = subprocess.run(
        [
            "/usr/bin/apt-get",
            "indextargets",
            "--format",
            "$(ORIGIN) $(LABEL) $(SITE)",
            "Created-By: Packages",
        ],
        capture_output=True,
        text=True,
        check=False,
    ).stdout
    for line in listed.splitlines():
        origin, label, site = [*line.split(" ", 2), "", ""][:3]
        if (origin, label) == ("Debian", "Debian"):
            return site
    msg = "apt lists no packages of Debian: run `apt-get update` first, on a machine with Debian"
    raise ArmError(msg)


def find_emulator(architecture: str) -> str:
    """Return the path of the user-mode emulator."""
    for name in EMULATORS[architecture]:
        if found := shutil.which(name):
            return found
    msg = "qemu's user-mode emulator is not installed: apt-get install qemu-user-static"
    raise ArmError(msg)
