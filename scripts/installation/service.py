"""The systemd service of the device, and what `edge-client doctor` says of it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from installation.machine import Machine, ask, attempt
from installation.places import (
    CAMERA_FOLDER,
    DROP_IN,
    ENVIRONMENT_FILE,
    ENVIRONMENTS,
    REPOSITORY,
    SERVICE,
    SETTINGS_FILE,
    STATE_FOLDER,
    UNIT,
    USER,
    InstallError,
)
from installation.settings import one_setting

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# What the last installation wrote, so that changes by hand are seen.
_WRITTEN_UNIT = ENVIRONMENTS / "edge-client.service"
# The unit hides these folders from the service (ProtectHome, PrivateTmp).
_HIDDEN = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108
_SETTINGS_EXIT = 2


@dataclasses.dataclass(frozen=True)
class Findings:
    """What doctor said: each failed check with its remedy; `readable` is false if it said nothing usable."""

    failed: Mapping[str, str]
    passed: frozenset[str] = frozenset()
    readable: bool = True


def ask_doctor(environment: Path) -> Findings:
    """Let an environment's doctor examine this device, as the service's user.

    Raises: InstallError if the settings are refused.
    """
    command = [str(environment / "bin/edge-client"), "doctor", "--json", "--config", str(SETTINGS_FILE)]
    done = attempt(*command, as_user=USER, cwd=Path("/"), environment=_service_variables())
    if done.returncode == _SETTINGS_EXIT:
        said = " ".join(done.stderr.split()).removeprefix("edge-client: ")
        msg = f"{said}. A flag of this command sets it, or --set SECTION.KEY=VALUE; nothing was changed"
        raise InstallError(msg, _SETTINGS_EXIT)
    try:
        checks = json.loads(done.stdout)["checks"]
        return Findings(
            {one["name"]: " ".join(one["detail"].split()) for one in checks if not one["passed"]},
            frozenset(one["name"] for one in checks if one["passed"]),
        )
    except (ValueError, KeyError, TypeError):
        said = " ".join((done.stderr or done.stdout).split())[-400:]
        return Findings({"doctor": f"ended with {done.returncode}: {said}"}, readable=False)


def _service_variables() -> dict[str, str]:
    """Return the variables that the unit gives the service, among them the keys of its EnvironmentFile."""
    variables = {"PATH": os.defpath, "HOME": str(STATE_FOLDER), "LANG": "C.UTF-8"}
    if ENVIRONMENT_FILE.is_file():
        for line in ENVIRONMENT_FILE.read_text(encoding="utf-8").splitlines():
            name, found, value = line.strip().partition("=")
            if found and not name.startswith(("#", ";")):
                variables[name.strip()] = value.strip().strip("\"'")
    return variables


def check_visible(settings: Mapping[str, Any]) -> None:
    """Raise InstallError if the service could not see a folder that the settings name."""
    for name, path in _folders(settings):
        for hidden in _HIDDEN:
            if path.is_relative_to(hidden):
                msg = (
                    f"{name}: {path} lies below {hidden}, which the service does not see (ProtectHome, "
                    f"PrivateTmp in its unit): use a folder such as {CAMERA_FOLDER} or /srv/{path.name}"
                )
                raise InstallError(msg, _SETTINGS_EXIT)


def _folders(settings: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the folders that settings name, with the name of the setting."""
    yield "[device] state_dir", Path(one_setting(settings, "device", "state_dir", str(STATE_FOLDER)))
    if one_setting(settings, "source", "kind", "folder") in {"folder", "files"}:
        yield "[source] path", SETTINGS_FILE.parent / one_setting(settings, "source", "path")
    for section in ("store", "inbox"):
        url = urlsplit(one_setting(settings, section, "base_url"))
        if url.scheme == "file":
            yield f"[{section}] base_url", Path(unquote(url.path))


def state_folder(settings: Mapping[str, Any]) -> Path:
    """Return the folder of releases."""
    return Path(one_setting(settings, "device", "state_dir", str(STATE_FOLDER)))


def watched_folder(settings: Mapping[str, Any]) -> Path | None:
    """Return the watched folder; None if pictures come from elsewhere."""
    path = one_setting(settings, "source", "path")
    return Path(path) if one_setting(settings, "source", "kind", "folder") == "folder" and path else None


def drop_in(settings: Mapping[str, Any]) -> str:
    """Return what the unit needs for these settings: folders outside of its own that it writes to."""
    written = [state_folder(settings)]
    if (watched := watched_folder(settings)) and one_setting(settings, "source", "after", "keep") != "keep":
        written.append(watched)
    lines = one_setting(settings, "sinks", "json_lines")
    if lines.startswith("/"):
        written.append(Path(lines).parent)
    if one_setting(settings, "inbox", "upload", default=False) is True:
        written += [path / "inbox" for name, path in _folders(settings) if name.endswith("base_url")]
    outside = [str(path) for path in written if not path.is_relative_to(STATE_FOLDER)]
    if not outside:
        return ""
    # "-": a disk that is not mounted yet does not keep the service from starting.
    paths = " ".join(f'"-{path}"' for path in outside)
    head = "# By scripts/install-device, from device.toml; written again with each run."
    return f"{head}\n[Service]\nReadWritePaths={paths}\n"


def write_unit(machine: Machine, settings: Mapping[str, Any]) -> None:
    """Bring the unit up to date; one that was changed by hand is kept beside it."""
    new = (REPOSITORY / "configs/edge-client.service").read_bytes()
    old = _content(UNIT)
    if old not in {None, new, _content(_WRITTEN_UNIT)}:
        kept = UNIT.with_suffix(".service.before")
        machine.write(kept, old or b"", mode=0o644)
        machine.say(
            f"{UNIT} was another one: it is now {kept}. `systemctl edit {SERVICE}` holds changes of your own"
        )
    machine.write(UNIT, new, mode=0o644)
    machine.write(_WRITTEN_UNIT, new, mode=0o644)
    text = drop_in(settings)
    if text:
        machine.make_folder(DROP_IN.parent)
        machine.write(DROP_IN, text.encode(), mode=0o644)
    else:
        machine.remove(DROP_IN)


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def systemd_runs() -> bool:
    """Return whether systemd started this machine (sd_booted(3)); in a chroot it did not."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def start(machine: Machine) -> None:
    """Enable the service and start it anew. Raises: InstallError if it does not come up."""
    if shutil.which("systemctl") is None:
        machine.say(f"no systemd here: start `{SERVICE} run` by other means, as the user {USER}")
        return
    if systemd_runs():
        machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "enable", SERVICE)
    if not systemd_runs():
        machine.say("systemd does not run here: the service starts with the next boot")
        return
    machine.say(f"start {SERVICE}")
    try:
        machine.run("systemctl", "restart", SERVICE)  # returns once the daemon says that it is ready
    except InstallError as e:
        msg = f"the service does not start: {_last_words() or e}"
        raise InstallError(msg) from e


def _last_words() -> str:
    """Return the end of the service's journal."""
    if shutil.which("journalctl") is None:
        return ""
    said = attempt("journalctl", "--unit", SERVICE, "--lines", "8", "--output", "cat", "--no-pager")
    return " ".join(said.stdout.split())[-600:]


def stop_for_good(machine: Machine) -> None:
    """Stop the service and let no boot start it."""
    if shutil.which("systemctl") and UNIT.exists():
        words = ("disable", "--now") if systemd_runs() else ("disable",)
        machine.run("systemctl", *words, SERVICE)


def forget_unit(machine: Machine) -> None:
    """Remove the unit; changes of the user's own (`systemctl edit`) stay."""
    machine.remove(DROP_IN)
    machine.remove(UNIT)
    if not machine.dry_run and DROP_IN.parent.is_dir() and not any(DROP_IN.parent.iterdir()):
        DROP_IN.parent.rmdir()
    if systemd_runs():
        machine.run("systemctl", "daemon-reload")


def version_of(environment: Path) -> str:
    """Return what `edge-client --version` says."""
    return ask(str(environment / "bin/edge-client"), "--version", as_user=USER, cwd=Path("/")).strip()
