"""The virtual environment of the device: a new one beside the old one, then one rename.

An environment is complete once its stamp is there; one that was killed before is removed by the next run. The
last one stays, for going back.

A Pi camera's picamera2 is bound to the system's Python and compiled for the system's NumPy. On Bookworm that
is NumPy 1: a NumPy 2 in the environment breaks it ("numpy.dtype size changed"; picamera2#1088, #1211, #1266).
So the environment sees the system's packages, and NumPy keeps the major version of the system's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from installation.machine import Machine, ask
from installation.places import COMMAND, ENVIRONMENTS, PROGRAM, REPOSITORY, USER, InstallError

if TYPE_CHECKING:
    from collections.abc import Iterator

STAMP = "installed"
# What a wheel of this project is made of.
_PARTS = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "edge_client", "luigi_tasks")
_PICAMERA_CHECK = "import numpy, picamera2; print(numpy.__version__)"


class Environment:
    """The environment that one configuration of a device needs.

    Args:
        machine: Where to install.
        source: Wheel, source archive or address of this project; empty: this checkout.
        wheels: Folder of wheels that are used in place of a package index.
        extras: Extras of this project.
        system_camera: Whether a Pi camera is used, so that the system's picamera2 must work.
    """

    def __init__(
        self, machine: Machine, source: str, wheels: Path | None, extras: set[str], *, system_camera: bool
    ) -> None:
        self._machine, self._wheels, self._extras, self._system = machine, wheels, extras, system_camera
        self._source = source or self._found_wheel() or str(REPOSITORY)

    def build(self, *, anew: bool) -> Path:
        """Return a complete environment: one that has all this already, or a new one.

        Raises: InstallError; the environment in use is then untouched.
        """
        stamp = self._stamp()
        found = None if anew else next((one for one in _environments() if _stamp_of(one) == stamp), None)
        if found is not None and self._works(found):
            self._machine.say(f"{found} is up to date")
            return found
        folder = self._new_folder()
        self._machine.say(f"install {self._source} into {folder} (a few minutes on a Pi)")
        if not self._machine.dry_run:
            try:
                self._fill(folder)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            (folder / STAMP).write_text(stamp, encoding="utf-8")
        return folder

    def _fill(self, folder: Path) -> None:
        options = ["--system-site-packages"] if self._system else []
        ask(sys.executable, "-m", "venv", *options, str(folder))
        with tempfile.TemporaryDirectory(prefix="edge-client-install-") as scratch:
            limits = Path(scratch, "limits.txt")
            limits.write_text("".join(f"{line}\n" for line in self._limits()), encoding="utf-8")
            project = self._wheel(folder, Path(scratch))
            extras = f"[{','.join(sorted(self._extras))}]" if self._extras else ""
            self._pip(folder, "install", "--constraint", str(limits), f"{project}{extras}")
        self._check(folder)

    def _limits(self) -> list[str]:
        """Return pip's constraints."""
        return [f"numpy=={system_numpy().split('.')[0]}.*"] if self._system else []

    def _works(self, folder: Path) -> bool:
        """Return whether an environment still does; `pip install` by hand may have changed it."""
        try:
            self._check(folder)
        except InstallError:
            return False
        return True

    def _check(self, folder: Path) -> None:
        """Raise InstallError unless the service's user can run the device from an environment."""
        ask(str(folder / "bin/edge-client"), "--version", as_user=USER, cwd=Path("/"))
        if not self._system:
            return
        try:
            ask(str(folder / "bin/python"), "-c", _PICAMERA_CHECK, as_user=USER, cwd=Path("/"))
        except InstallError as e:
            msg = (
                f"picamera2 does not work in the new environment, so neither would the Pi's camera: {e}. "
                "See whether `/usr/bin/python3 -c 'import picamera2'` works; what `sudo pip install` "
                "once put into /usr/local/lib/python3* comes before the system's: `sudo pip uninstall "
                "--break-system-packages NAME` removes one"
            )
            raise InstallError(msg) from e

    def _wheel(self, folder: Path, scratch: Path) -> str:
        """Return what pip installs; a checkout is built outside of itself: no file of root's stays there."""
        if not Path(self._source).is_dir():
            return self._source
        copy, wheels = scratch / "project", scratch / "wheels"
        copy.mkdir()
        for name in _PARTS:
            part = Path(self._source, name)
            if part.is_dir():
                shutil.copytree(part, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif part.exists():
                shutil.copy(part, copy / name)
        self._pip(folder, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(copy))
        return str(next(wheels.glob("*.whl")))

    def _pip(self, folder: Path, *arguments: str) -> None:
        offline = [] if self._wheels is None else ["--no-index", "--find-links", str(self._wheels)]
        pip = [
            str(folder / "bin/python"),
            "-m",
            "pip",
            "--quiet",
            "--disable-pip-version-check",
            "--no-input",
        ]
        try:
            # Bytecode is compiled now, since the service may not write it.
            ask(*pip, *arguments, *offline, environment=_without("PYTHONDONTWRITEBYTECODE"))
        except InstallError as e:
            way_out = self._way_out(str(e))
            msg = f"the packages cannot be installed; what ran before still does: {e}. {way_out}"
            raise InstallError(msg) from e

    def _way_out(self, said: str) -> str:
        """Return what helps where pip said this."""
        if "No space left" in said:
            return f"Free some space (df -h {ENVIRONMENTS.parent} {tempfile.gettempdir()}): it takes 200 MB"
        if "CERTIFICATE_VERIFY_FAILED" in said:
            return "Set this machine's clock (timedatectl); behind a proxy with a CA of its own set PIP_CERT"
        if self._wheels:
            python = f"{sys.version_info[0]}.{sys.version_info[1]}"
            return (
                f"Fill {self._wheels} as `install-device --help` says, for Python {python} and "
                f"{os.uname().machine}"
            )
        return "Mend the network and run this again, or bring the packages: --wheels FOLDER"

    def _found_wheel(self) -> str:
        """Return the wheel of this project that lies among the wheels; empty if none does."""
        found = sorted(self._wheels.glob("edge_fleet-*.whl")) if self._wheels else []
        return str(found[-1]) if found else ""

    def _new_folder(self) -> Path:
        """Return the folder of a new environment, after removing what killed runs left."""
        numbers = [0]
        for folder in _environments():
            if _stamp_of(folder) is None and folder != environment_in_use() and folder.name.isdecimal():
                self._machine.say(f"remove {folder}, which is not complete")
                if not self._machine.dry_run:
                    # A pip of the killed run may still write there; then the next run removes the rest.
                    shutil.rmtree(folder, ignore_errors=True)
            numbers += [int(folder.name)] if folder.name.isdecimal() else []
        return ENVIRONMENTS / str(max(numbers) + 1)

    def _stamp(self) -> str:
        """Describe what an environment is made of: equal stamps, equal environments."""
        facts = [sys.version, self._source, *sorted(self._extras), *self._limits(), str(self._system)]
        digest = hashlib.sha256("\n".join(facts).encode())
        source = Path(self._source)
        files = sorted(_files_of(source)) if source.is_dir() else [source] if source.is_file() else []
        for file in files:
            digest.update(f"\n{file} ".encode() + hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()


def system_numpy() -> str:
    """Return the version of the system's NumPy; "1" where none is installed yet, as on Bookworm."""
    with contextlib.suppress(InstallError):
        version = ask("dpkg-query", "--show", "--showformat", "${Version}", "python3-numpy")
        found = re.match(r"(?:\d+:)?(\d+\.\d+)", version)
        return found[1] if found else "1"
    return "1" if sys.version_info < (3, 13) else "2"


def environment_in_use() -> Path | None:
    """Return the environment that serves; one that was made by hand is PROGRAM itself."""
    if PROGRAM.is_symlink():
        found = PROGRAM.resolve()
        return found if (found / "bin/edge-client").exists() else None
    return PROGRAM if (PROGRAM / "bin/edge-client").exists() else None


def use_environment(machine: Machine, folder: Path) -> None:
    """Let the service's next start use an environment."""
    if PROGRAM.is_dir() and not PROGRAM.is_symlink():
        # Made by hand; its scripts name /opt/edge-client, and work again whenever the link points here.
        by_hand = ENVIRONMENTS / "by-hand"
        machine.say(f"move {PROGRAM}, made by hand, to {by_hand}")
        machine.remove(by_hand)
        if not machine.dry_run:
            PROGRAM.rename(by_hand)
            PROGRAM.symlink_to(by_hand)  # until the next line, which replaces it in one step
    machine.link(PROGRAM, folder)
    if COMMAND.is_symlink() or not COMMAND.exists():
        machine.link(COMMAND, PROGRAM / "bin/edge-client")
    else:
        machine.say(f"{COMMAND} is a file of somebody else: run {PROGRAM}/bin/edge-client")


def remove_old_environments(machine: Machine, keep: set[Path]) -> None:
    """Remove all environments but those in use and before."""
    for folder in _environments():
        if folder not in keep:
            machine.remove(folder)


def _environments() -> list[Path]:
    return [path for path in sorted(ENVIRONMENTS.glob("*")) if path.is_dir()]


def _stamp_of(folder: Path) -> str | None:
    try:
        return (folder / STAMP).read_text(encoding="utf-8")
    except OSError:
        return None


def _files_of(checkout: Path) -> Iterator[Path]:
    for name in _PARTS:
        part = checkout / name
        files = part.rglob("*") if part.is_dir() else [part]
        yield from (file for file in files if file.is_file() and "__pycache__" not in file.parts)


def _without(name: str) -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != name}
