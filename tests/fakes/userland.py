"""A Debian user land in a folder, made from Debian's packages: commands run in it as on a machine of its own.

The base is made once for each release and kept in the user's cache; tests work on copies. Debian packages
that an installation may ask for lie in it as an archive, and wheels beside it, so that an installation needs
no network. A booted one runs its own systemd in a container. Elsewhere `systemctl` may be a stand-in that
starts what the unit says, as the unit's user, and waits for its notification.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PYTHON = {"bookworm": "3.11", "trixie": "3.13"}
INCLUDED = {
    "bookworm": ("python3", "ca-certificates", "systemd-sysv", "dbus"),
    "trixie": ("python3", "ca-certificates"),
}
# What an installation may install: picamera2 is Raspberry Pi's own, and has a stand-in below. cftime's module
# is compiled for the NumPy of its release, as picamera2's simplejpeg is.
OFFERED = ("python3-venv", "python3-numpy", "python3-cftime")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-fleet"
_ARCHIVE = "/srv/archive"
_LIMIT_S = 300.0
# What makes a folder in memory a copy of a base: folder, base, wheels.
_COPY = 'mount -t tmpfs tmpfs "$1" && cp -a "$2/." "$1" && mkdir "$1/stick"'
# sh, as the first process, reaps what the installer and the service leave.
_ENTER = (
    f'{_COPY} && mount --bind "$3" "$1/stick" && mount -t proc proc "$1/proc" && '
    'mount --rbind /dev "$1/dev" && exec chroot "$1" sh -c "while sleep 600; do :; done"'
)
_BOOT = (
    f"{_COPY} && exec systemd-nspawn --quiet --register=no --keep-unit --machine=edge-$$ --console=pipe "
    '--bind-ro="$3:/stick" --directory="$1" --boot'
)

PICAMERA2 = """\
import numpy as np
import cftime


class Picamera2:
    def __init__(self, number=0):
        self._size = (0, 0)

    def create_video_configuration(self, main):
        return main

    def configure(self, main):
        self._size = main["size"]

    def start(self):
        pass

    def capture_array(self, name):
        return np.zeros((self._size[1], self._size[0], 3), np.uint8)

    def close(self):
        pass
"""
# Starts ExecStart as User, as a unit of Type=notify; says which commands it got.
SYSTEMCTL = r"""#!/usr/bin/python3 -B
import configparser, os, pathlib, pwd, signal, socket, subprocess, sys

UNIT = pathlib.Path("/etc/systemd/system/edge-client.service")
PID = pathlib.Path("/run/edge-client.pid")
with open("/var/log/systemctl", "a") as log:
    log.write(" ".join(sys.argv[1:]) + "\n")


def stop():
    if PID.exists():
        try:
            os.kill(int(PID.read_text()), signal.SIGTERM)
            while True:
                os.kill(int(PID.read_text()), 0)
        except ProcessLookupError:
            PID.unlink()


def start():
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(UNIT)
    service = unit["Service"]
    ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    pathlib.Path("/run/notify").unlink(missing_ok=True)
    ready.bind("/run/notify")
    os.chmod("/run/notify", 0o777)
    ready.settimeout(0.2)
    user = service["User"]
    account = pwd.getpwnam(user)
    with open("/var/log/daemon", "ab") as log:
        daemon = subprocess.Popen(
            service["ExecStart"].split(), stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd="/",
            user=user, group=account.pw_gid, extra_groups=os.getgrouplist(user, account.pw_gid),
            start_new_session=True, umask=0o027, env={"PATH": os.defpath, "NOTIFY_SOCKET": "/run/notify"},
        )
    while daemon.poll() is None:
        try:
            if b"READY=1" in ready.recv(4096):
                PID.write_text(str(daemon.pid))
                return 0
        except TimeoutError:
            pass
    return 1


verb = sys.argv[1]
if verb in ("restart", "disable"):
    stop()
if verb == "restart":
    sys.exit(start())
"""


def skip_without_userlands() -> None:
    """Skip the test where no user land can be made; says what is missing."""
    if os.geteuid() != 0:
        pytest.skip("a user land is made and entered by root")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("a user land needs mmdebstrap (Debian: apt-get install mmdebstrap)")


class Userland:
    """A copy of a base in memory, its namespaces, and the commands that run in it.

    Args:
        release: A key of PYTHON.
        folder: An empty folder.
        boot: Whether systemd of the user land runs, in a container of systemd-nspawn.
    """

    def __init__(self, release: str, folder: Path, *, boot: bool) -> None:
        self._folder = folder / release
        self._folder.mkdir()
        places = (self._folder, _base(release), _wheels(PYTHON[release]))
        flags = ("--mount",) if boot else ("--mount", "--pid", "--fork", "--kill-child")
        words = ["/usr/bin/unshare", *flags, "sh", "-c", _BOOT if boot else _ENTER, "sh", *map(str, places)]
        # What runs in the namespaces ends with their first process, and the copy with its mount.
        self._holder = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self._inner = self._first_process("systemd" if boot else "sleep")
        self.root = Path(f"/proc/{self._inner}/root")
        if boot:
            self._wait_for_boot()
        self._copy_checkout()

    def _wait_for_boot(self) -> None:
        end = time.monotonic() + _LIMIT_S
        while self.run("systemctl", "is-system-running").stdout.strip() not in {"running", "degraded"}:
            if time.monotonic() > end or self._holder.poll() is not None:
                self.close()
                pytest.skip(f"no systemd of {self._folder.name} can run here")
            time.sleep(0.2)

    def _first_process(self, name: str) -> str:
        """Wait for the process that all others there descend from; once ready one of a name."""
        end = time.monotonic() + _LIMIT_S
        while time.monotonic() < end and self._holder.poll() is None:
            for child in _children(self._holder.pid):
                if name in {_name(process) for process in (child, *_children(child))}:
                    return child
            time.sleep(0.05)
        return pytest.skip(f"no user land of {self._folder.name} can be entered here")

    @property
    def checkout(self) -> Path:
        """The project's files in this user land."""
        return self.root / "home/pi/edge-fleet"

    def close(self) -> None:
        """End all that runs there; nothing of it stays."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(self._inner), signal.SIGKILL)
        self._holder.wait()

    def command(self, *words: str) -> list[str]:
        """Return a command line that runs there, as root."""
        path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        enter = ["/usr/bin/nsenter", "--target", self._inner, "--all", "--root", "--wd"]
        return [*enter, "/usr/bin/env", "-i", path, "HOME=/root", *words]

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command there, as root and without a terminal."""
        return subprocess.run(
            self.command(*words),
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=_LIMIT_S,
            check=False,
        )

    def install(self, *flags: str) -> subprocess.CompletedProcess[str]:
        """Run the installer of the checkout, with wheels of the stick."""
        return self.run("/home/pi/edge-fleet/scripts/install-device", "--wheels", "/stick", *flags)

    def boot_stand_in(self) -> None:
        """Let systemctl work, as far as the installer uses it."""
        (self.root / "run/systemd/system").mkdir(parents=True)
        systemctl = self.root / "usr/bin/systemctl"
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)

    def _copy_checkout(self) -> None:
        """Copy what git would clone, owned by somebody else than root."""
        listed = [
            "git",
            "-C",
            str(REPOSITORY),
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ]
        files = subprocess.run(listed, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, files):
            if (REPOSITORY / name).is_file() and not name.startswith("tests/"):
                copy = self.checkout / name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / name, copy)
        subprocess.run(["/bin/chown", "-R", "1000:1000", str(self.root / "home/pi")], check=True)


def _base(release: str) -> Path:
    """Return the base of a release, made if it is not there."""
    base = _CACHE / "userlands" / f"{release}-{_digest(INCLUDED[release], OFFERED, PICAMERA2)}"
    if base.is_dir():
        return base
    making = base.with_name(f".{base.name}.{os.getpid()}")
    base.parent.mkdir(parents=True, exist_ok=True)
    download = (
        f"mkdir $1{_ARCHIVE} && chroot $1 apt-get install -y -qq --no-install-recommends --download-only "
        f"-o Dir::Cache::archives={_ARCHIVE} {' '.join(OFFERED)} && rm -rf $1{_ARCHIVE}/[pl]*[lk]"
    )
    options = ["--mode=root", "--variant=minbase", f"--include={','.join(INCLUDED[release])}"]
    options += ["--dpkgopt=force-unsafe-io", "--aptopt=Acquire::Check-Valid-Until false"]
    options += ["--quiet", f"--customize-hook={download}"]
    try:
        command = ["/usr/bin/mmdebstrap", *options, release, str(making)]
        made = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
        if made.returncode != 0:
            pytest.skip(f"mmdebstrap made no {release}: {made.stderr[-300:]}")
        _write_archive(making)
        making.rename(base)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return base


def _write_archive(root: Path) -> None:
    """Make the downloaded packages, and a stand-in of picamera2, what apt installs from."""
    archive = root / _ARCHIVE[1:]
    package = root / "tmp/picamera2"
    modules = package / "usr/lib/python3/dist-packages"
    (package / "DEBIAN").mkdir(parents=True)
    (package / "DEBIAN/control").write_text(
        "Package: python3-picamera2\nVersion: 0.3.31-1\nArchitecture: all\nMaintainer: A <a@example.com>\n"
        "Depends: python3, python3-numpy, python3-cftime\nDescription: stand-in\n"
    )
    (modules / "picamera2").mkdir(parents=True)
    (modules / "picamera2/__init__.py").write_text(PICAMERA2)
    (modules / "picamera2-0.3.31.egg-info").write_text(
        "Metadata-Version: 2.1\nName: picamera2\nVersion: 0.3.31\n"
    )
    build = ["/usr/bin/dpkg-deb", "--build", "--root-owner-group", str(package), str(archive)]
    subprocess.run(build, check=True, capture_output=True)
    shutil.rmtree(package)
    entries = []
    for deb in sorted(archive.glob("*.deb")):
        control = subprocess.run(
            ["/usr/bin/dpkg-deb", "--field", str(deb)], capture_output=True, text=True, check=True
        )
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        entries.append(
            f"{control.stdout}Filename: ./{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n"
        )
    (archive / "Packages").write_text("\n".join(entries))
    shutil.rmtree(root / "etc/apt/sources.list.d", ignore_errors=True)
    (root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{_ARCHIVE} ./\n")


def _wheels(python: str) -> Path:
    """Return a folder with what the device needs on a Python, under NumPy 2 and 1."""
    needed = [one for one in metadata.requires("edge-fleet") or () if not re.search(r"extra ==|armv7l", one)]
    further = [["setuptools>=68", "wheel"], *([["numpy<2"]] if python == "3.11" else [])]
    folder = _CACHE / "wheels" / f"cp{python}-{_digest(needed, further)}"
    if folder.is_dir():
        return folder
    making = folder.with_name(f".{folder.name}.{os.getpid()}")
    making.mkdir(parents=True)
    tags = ("manylinux_2_28", "manylinux_2_27", "manylinux2014")
    options = [f"--platform={tag}_{os.uname().machine}" for tag in tags]
    options += ["--only-binary=:all:", f"--python-version={python}", f"--dest={making}"]
    try:
        for more in further:
            command = [sys.executable, "-m", "pip", "download", "--quiet", *options, *needed, *more]
            done = subprocess.run(command, capture_output=True, text=True, timeout=_LIMIT_S, check=False)
            if done.returncode != 0:
                pytest.skip(f"wheels cannot be downloaded: {done.stderr[-300:]}")
        making.rename(folder)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return folder


def _children(process: int | str) -> list[str]:
    try:
        return Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return []


def _name(process: str) -> str:
    try:
        return Path(f"/proc/{process}/comm").read_text().strip()
    except OSError:
        return ""


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]
