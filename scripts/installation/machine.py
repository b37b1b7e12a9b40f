"""What an installation does to this machine: packages, user, folders, files.

Each act may be repeated, so that an installation that was killed is completed by the next one. Under
`--dry-run` each is printed and not done.
"""

from __future__ import annotations

import contextlib
import grp
import os
import platform
import pwd
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from installation.places import GROUPS, STATE_FOLDER, USER, InstallError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

RELEASES = ("bookworm", "trixie")
ARCHITECTURES = ("arm64", "amd64")
# Seconds for which apt waits for another apt, such as the automatic upgrades of a first boot.
_APT_LOCK_S = 600
# What pip says of a network before it gives up.
_BROKEN = "after connection broken by "


class Machine:
    """Acts on this machine, or prints them."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run

    def say(self, text: str) -> None:
        """Tell what happens now."""
        print(f"{'would: ' if self.dry_run else ''}{text}", flush=True)

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a command that changes something; return what it printed. Raises: InstallError if it fails."""
        if self.dry_run:
            self.say(shlex.join(command))
            return ""
        return ask(*command, environment=environment)

    def write(self, path: Path, content: bytes, *, mode: int, group: str = "root") -> None:
        """Write a file of root's durably; its old content stays until the new one is complete."""
        if path.is_file() and path.read_bytes() == content and not path.is_symlink():
            self._give(path, mode, group)
            return
        self.say(f"write {path}")
        if self.dry_run:
            return
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                file.write(content)
                file.flush()
                os.fchown(file.fileno(), 0, grp.getgrnam(group).gr_gid)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
                Path(file.name).replace(path)
            except BaseException:
                Path(file.name).unlink(missing_ok=True)
                raise
        _sync(path.parent)

    def make_folder(self, path: Path, *, mode: int = 0o755, owner: str = "root") -> None:
        """Make a folder that is not there yet; one that is there stays as it is."""
        if path.is_dir():
            return
        self.say(f"make {path}, of {owner}")
        if self.dry_run:
            return
        path.mkdir(parents=True)
        entry = pwd.getpwnam(owner)
        os.chown(path, entry.pw_uid, entry.pw_gid)
        path.chmod(mode)

    def link(self, path: Path, target: Path) -> None:
        """Let a link name its target from one moment to the next."""
        if path.is_symlink() and path.readlink() == target:
            return
        self.say(f"let {path} be {target}")
        if self.dry_run:
            return
        new = path.with_name(f".{path.name}.new")
        new.unlink(missing_ok=True)
        new.symlink_to(target)
        new.replace(path)
        _sync(path.parent)

    def remove(self, path: Path) -> None:
        """Remove a file, a link or a folder with all that it holds; a missing one is removed already."""
        if not path.is_symlink() and not path.exists():
            return
        self.say(f"remove {path}")
        if self.dry_run:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=path.is_mount())
        else:
            path.unlink()

    def _give(self, path: Path, mode: int, group: str) -> None:
        """Make a file root's, readable as it should be."""
        found = path.stat()
        group_id = 0 if self.dry_run else grp.getgrnam(group).gr_gid
        if self.dry_run or (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (0, group_id, mode):
            return
        os.chown(path, 0, group_id)
        path.chmod(mode)

    def protect(self, path: Path, *, mode: int, group: str = "root") -> None:
        """Make a file that is there root's, readable as it should be, and written by root alone."""
        if path.is_file():
            self._give(path, mode, group)

    def install_packages(self, packages: Iterable[str]) -> None:
        """Install the Debian packages that are missing. Raises: InstallError."""
        missing = [name for name in packages if not has_package(name)]
        if not missing:
            return
        self.say(f"install Debian packages: {' '.join(missing)}")
        if self.dry_run:
            return
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-qq", "-y", "-o", f"DPkg::Lock::Timeout={_APT_LOCK_S}"]
        try:
            # After a power cut in the middle of an earlier apt; and lists of yesterday may do.
            attempt("dpkg", "--configure", "-a", environment=quiet)
            attempt(*apt, "update", environment=quiet)
            ask(*apt, "install", "--no-install-recommends", *missing, environment=quiet)
        except InstallError as e:
            msg = (
                f"Debian's {' '.join(missing)} cannot be installed: {e}. Without a network bring the "
                "packages of another machine (apt-get download there, dpkg -i here), and run this again"
            )
            raise InstallError(msg) from e

    def make_user(self) -> None:
        """Make the service's user, and let it use cameras and pins."""
        try:
            pwd.getpwnam(USER)
        except KeyError:
            self.say(f"make the user {USER}")
            home = ("--no-create-home", "--home-dir", str(STATE_FOLDER))
            self.run("useradd", "--system", "--user-group", *home, "--shell", "/usr/sbin/nologin", USER)
        for name in GROUPS:
            with contextlib.suppress(KeyError):
                if USER not in grp.getgrnam(name).gr_mem:
                    self.run("usermod", "--append", "--groups", name, USER)


def check_machine() -> None:
    """Check system and architecture. Raises: InstallError with the way out."""
    release = platform.freedesktop_os_release() if Path("/etc/os-release").exists() else {}
    name = release.get("PRETTY_NAME", "this system")
    codename = release.get("VERSION_CODENAME", "")
    if codename not in RELEASES or shutil.which("dpkg") is None:
        msg = (
            f"{name}: works on Raspberry Pi OS and Debian, Bookworm or Trixie. Elsewhere install by hand: a "
            "virtual environment with this project, the unit configs/edge-client.service, configs/device.toml"
        )
        raise InstallError(msg)
    architecture = ask("dpkg", "--print-architecture").strip()
    kernel = os.uname().machine
    if architecture in ARCHITECTURES and struct.calcsize("P") == 8:
        return
    if kernel in {"aarch64", "x86_64"}:
        msg = (
            f"{name} is a 32-bit system ({architecture}) on a 64-bit kernel (`uname -m` says {kernel}), so "
            "64-bit packages do not run. The board can do it: write the 64-bit image to the card (Raspberry "
            "Pi Imager: Raspberry Pi OS (64-bit)) and run this again"
        )
    else:
        msg = (
            f"{name} is a 32-bit system ({architecture}, kernel {kernel}), and the runtime has 64-bit "
            "packages only. A Pi 3, 4, 5 or Zero 2 runs the 64-bit image; older boards cannot"
        )
    raise InstallError(msg)


def check_root() -> None:
    """Raise InstallError unless root runs this."""
    if os.geteuid() != 0:
        msg = f"makes a user, folders and a service, so run it as root: sudo {shlex.join(_own_words())}"
        raise InstallError(msg)


def _own_words() -> list[str]:
    """Return the command line as it was typed, as far as that is known."""
    return [str(Path(__file__).resolve().parents[1] / "install-device"), *sys.argv[1:]]


def has_package(name: str) -> bool:
    """Return whether a Debian package is installed and configured."""
    command = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}", name]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout == "installed"


def ask(
    *command: str,
    environment: Mapping[str, str] | None = None,
    as_user: str | None = None,
    cwd: Path | None = None,
) -> str:
    """Run a command and return its standard output. Raises: InstallError with the end of what it said."""
    done = attempt(*command, environment=environment, as_user=as_user, cwd=cwd)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        told = [line.strip() for line in lines if line.lstrip().startswith(("ERROR:", "E:"))]  # pip; apt
        # pip ends with "no matching distribution" also where the network is the trouble.
        causes = [line.partition(_BROKEN)[2] for line in lines if _BROKEN in line]
        told += [f"(connection broken by {cause})" for cause in causes[-1:]]
        said = " ".join(" ".join(told or lines).split())[-600:]
        msg = f"`{shlex.join(command)[:200]}` ended with {done.returncode}: {said or 'it said nothing'}"
        raise InstallError(msg)
    return done.stdout


def attempt(
    *command: str,
    environment: Mapping[str, str] | None = None,
    as_user: str | None = None,
    cwd: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, whatever that is. Raises: InstallError if it cannot be started."""
    entry = None if as_user is None else pwd.getpwnam(as_user)
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=cwd,
            user=entry and entry.pw_uid,
            group=entry and entry.pw_gid,
            extra_groups=entry and os.getgrouplist(entry.pw_name, entry.pw_gid),
        )
    except OSError as e:
        msg = f"`{command[0]}` cannot be run: {e.strerror}; is it installed, and on root's PATH?"
        raise InstallError(msg) from e


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
