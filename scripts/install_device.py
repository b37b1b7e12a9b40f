"""`scripts/install-device`: a Raspberry Pi from nothing to serving; again: an upgrade; `--uninstall`.

Order: all that the user gave is read and checked before anything changes. Then packages, user and folders,
which harm nobody; a new environment beside the one in use; settings; doctor, with the new environment; and
only then the link that the service starts from, the unit, and a restart. If doctor finds a fault that it did
not find before, or the service does not start, what was there before serves again.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The checkout's own modules, which need no more than the standard library.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from installation import service
from installation import wishes as user
from installation.environment import Environment, environment_in_use, remove_old_environments, use_environment
from installation.machine import Machine, ask, check_machine, check_root
from installation.places import (
    COMMAND,
    ENVIRONMENTS,
    EXAMPLE,
    LOCK,
    PROGRAM,
    SERVICE,
    SETTINGS_FILE,
    SETTINGS_FOLDER,
    STATE_FOLDER,
    UNIT,
    USER,
    InstallError,
)
from installation.settings import change_settings, check_settings, differences, one_setting, read_settings

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_FAULTS_FOUND = 5
_INTERRUPTED = 130


def main() -> int:
    """Do what the command line says; an error is one paragraph on standard error."""
    options = user.parse()
    os.umask(0o022)  # the service's user must be able to read what root installs
    try:
        if not options.dry_run or (SETTINGS_FILE.exists() and not os.access(SETTINGS_FILE, os.R_OK)):
            check_root()
        check_machine()
        with Path(os.devnull if options.dry_run else LOCK).open("w", encoding="utf-8") as lock:
            _take(lock.fileno(), dry_run=options.dry_run)
            return _uninstall(options) if options.uninstall else _install(options)
    except InstallError as e:
        sys.stderr.write(f"install-device: {e}\n")
        return e.code
    except OSError as e:
        sys.stderr.write(f"install-device: {e.filename}: {e.strerror}; mend that and run this again\n")
        return 1
    except (KeyboardInterrupt, EOFError):
        sys.stderr.write("\ninstall-device: interrupted; run it again to complete the installation\n")
        return _INTERRUPTED


def _take(lock: int, *, dry_run: bool) -> None:
    try:
        if not dry_run:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        msg = "another install-device is at work on this machine; wait until it has ended"
        raise InstallError(msg) from e


def _install(options: argparse.Namespace) -> int:
    machine = Machine(dry_run=options.dry_run)
    wishes = user.read_flags(options)
    before = _settings_text()
    if before is None:
        if user.on_terminal() and not options.yes:
            user.ask_questions(wishes)
        user.is_complete(wishes)
        wishes.changes.setdefault(("broker", "host"), "")
    after = change_settings(before or _example(), wishes.changes)
    settings = read_settings(after)
    if not options.source:  # of another version, whose settings may be others
        check_settings(after)
    service.check_visible(settings)
    _prepare(machine, settings)
    environment = Environment(
        machine, options.source, options.wheels, _extras(settings), system_camera=_has_pi_camera(settings)
    ).build(anew=options.reinstall)
    old = environment_in_use()
    undo = _write_settings(machine, wishes, before, after)
    if machine.dry_run:
        use_environment(machine, environment)
        service.write_unit(machine, settings)
        service.start(machine)
        return 0
    try:
        found = service.ask_doctor(environment)
        if old is not None and old != environment:
            _refuse_worse(found, old)
    except InstallError:
        undo()
        raise
    _put_into_service(machine, environment, old, settings, undo)
    if options.bundle is not None:
        print(f"{options.bundle}: its keys are in {SETTINGS_FOLDER} now; delete it, here and elsewhere")
    return _report(found)


def _settings_text() -> str | None:
    """Return the settings, without the mark that editors of Windows put before them."""
    try:
        return SETTINGS_FILE.read_text(encoding="utf-8-sig") if SETTINGS_FILE.exists() else None
    except UnicodeDecodeError as e:
        msg = f"{SETTINGS_FILE}: is not UTF-8 ({e}); save it as UTF-8 and run this again"
        raise InstallError(msg, 2) from e


def _example() -> str:
    return EXAMPLE.read_text(encoding="utf-8")


def _has_pi_camera(settings: Mapping[str, Any]) -> bool:
    return bool(one_setting(settings, "source", "kind") == "picamera")


def _extras(settings: Mapping[str, Any]) -> set[str]:
    wanted = {
        "video": one_setting(settings, "source", "kind") == "video",
        "picamera": _has_pi_camera(settings),
        "metrics": bool(one_setting(settings, "metrics", "port", 0)),
    }
    return {name for name, needed in wanted.items() if needed}


def _prepare(machine: Machine, settings: Mapping[str, Any]) -> None:
    """Make what the environment and the service stand on: packages, user, folders."""
    packages = ["python3-picamera2", "python3-numpy"] if _has_pi_camera(settings) else []
    if importlib.util.find_spec("ensurepip") is None:
        packages.append("python3-venv")
    if not _CERTIFICATES.exists():
        packages.append("ca-certificates")
    machine.install_packages(packages)
    machine.make_user()
    machine.make_folder(SETTINGS_FOLDER)
    machine.make_folder(ENVIRONMENTS)
    machine.make_folder(service.state_folder(settings), mode=0o750, owner=USER)
    if watched := service.watched_folder(settings):
        machine.make_folder(watched, owner=USER)


def _write_settings(
    machine: Machine, wishes: user.Wishes, before: str | None, after: str
) -> Callable[[], None]:
    """Write settings and the files that they name; return what puts the old settings back."""
    for name, (content, secret) in wishes.files.items():
        _write(machine, SETTINGS_FOLDER / name, content, secret=secret)
    machine.protect(SETTINGS_FOLDER / user.ROOT.place, mode=0o644)
    if before not in {None, after}:
        machine.write(SETTINGS_FILE.with_suffix(".toml.before"), (before or "").encode(), mode=0o640)
    for line in differences(before or _example(), after):
        machine.say(f"settings: {line}")
    # An address of a camera may hold a password.
    _write(machine, SETTINGS_FILE, after.encode(), secret=True)

    def undo() -> None:
        if before is None:
            machine.remove(SETTINGS_FILE)
        else:
            _write(machine, SETTINGS_FILE, before.encode(), secret=True)

    return undo


def _write(machine: Machine, path: Path, content: bytes, *, secret: bool) -> None:
    machine.write(path, content, mode=0o640 if secret else 0o644, group=USER if secret else "root")


def _refuse_worse(found: service.Findings, old: Path) -> None:
    """Raise InstallError if doctor finds a fault that it does not find with the environment in use.

    Both read the new settings: what is wrong with these is told, and no reason to keep an old environment.
    """
    if not found.failed:
        return
    try:
        known = service.ask_doctor(old)
    except InstallError:
        return  # settings that the old one does not know
    if not known.readable:
        return
    worse = {
        name: detail for name, detail in found.failed.items() if name in known.passed or not found.readable
    }
    if worse:
        faults = "; ".join(f"{name}: {detail}" for name, detail in worse.items())
        msg = f"the device would be worse off than before, so nothing was changed: {faults}"
        raise InstallError(msg)


def _put_into_service(
    machine: Machine,
    environment: Path,
    old: Path | None,
    settings: Mapping[str, Any],
    undo: Callable[[], None],
) -> None:
    """Let the service run from an environment; go back if it does not start. Raises: InstallError."""
    unit = UNIT.read_bytes() if UNIT.exists() else None
    use_environment(machine, environment)
    if old == PROGRAM:
        old = ENVIRONMENTS / "by-hand"
    service.write_unit(machine, settings)
    try:
        service.start(machine)
    except InstallError as e:
        if old is None or old == environment:
            raise
        undo()
        use_environment(machine, old)
        if unit is not None:
            machine.write(UNIT, unit, mode=0o644)
        try:
            service.start(machine)
        except InstallError:
            msg = f"{e}. Nor does what was installed before, which is back; see `systemctl status {SERVICE}`"
            raise InstallError(msg) from e
        msg = f"{e}. What was installed before serves again"
        raise InstallError(msg) from e
    remove_old_environments(machine, {environment} | ({old} if old else set()))


def _report(found: service.Findings) -> int:
    for name, detail in found.failed.items():
        sys.stderr.write(f"FAIL {name}: {detail}\n")
    print(f"Installed: {service.version_of(PROGRAM.resolve())}, settings in {SETTINGS_FILE}")
    if found.failed:
        print(
            f"The service tries again by itself; mend what failed, and check with: sudo {COMMAND.name} doctor"
        )
        return _FAULTS_FOUND
    print(f"Every check passed. See `sudo {COMMAND.name} status` and `journalctl -u {SERVICE} -f`")
    return 0


def _uninstall(options: argparse.Namespace) -> int:
    machine = Machine(dry_run=options.dry_run)
    text = _settings_text()
    state = service.state_folder(read_settings(text)) if text else STATE_FOLDER
    if options.purge and not (options.yes or options.dry_run):
        if not user.on_terminal():
            raise InstallError("--purge without a terminal needs --yes", 2)
        if input(f"Remove {SETTINGS_FOLDER} and {state}, with all pictures in it? Type yes: ") != "yes":
            raise InstallError("nothing was removed")
    service.stop_for_good(machine)
    service.forget_unit(machine)
    if COMMAND.is_symlink():
        machine.remove(COMMAND)
    for path in (PROGRAM, ENVIRONMENTS, *((SETTINGS_FOLDER, state) if options.purge else ())):
        machine.remove(path)
    if options.purge:
        _remove_user(machine)
    print(
        "Removed."
        if options.purge
        else f"Removed; {SETTINGS_FOLDER} and {state} stay (--purge removes them too)"
    )
    return 0


def _remove_user(machine: Machine) -> None:
    known = {line.split(":")[0] for line in ask("getent", "passwd").splitlines()}
    if USER in known:
        machine.run("userdel", USER)


if __name__ == "__main__":
    sys.exit(main())
