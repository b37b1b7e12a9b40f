"""Change single settings in a TOML file that people edit too: comments, order and all other lines stay.

A new file starts from configs/device.toml, where each setting stands with its default and its reason; a
changed setting takes the place of its commented line.
"""

from __future__ import annotations

import copy
import difflib
import json
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomllib

from edge_client.contract.addresses import shown_address, without_secrets
from edge_client.contract.errors import SettingsError
from edge_client.settings.file import load_settings
from installation.places import CAMERA_FOLDER, SETTINGS_FILE, InstallError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Value = str | int | float | bool | list[str]
# (section, key) -> value.
Changes = dict[tuple[str, str], Value]

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_TEXT_SETTING = re.compile(r'(?P<before>[+-][# ]*\w+ = ")(?P<value>.*)"')
_TLS_PORT = 8883
_KINDS = ("folder", "files", "pipe", "video", "picamera")


def change_settings(text: str, changes: Mapping[tuple[str, str], Value]) -> str:
    """Return a settings file with other values of some settings.

    Raises: InstallError if the file is no TOML, or is written in a way that single lines cannot change.
    """
    wanted = copy.deepcopy(read_settings(text))
    for (section, key), value in changes.items():
        table = wanted.setdefault(section, {})
        if isinstance(table, dict) and table.get(key) != value:
            text = _with_setting(text, section, key, value)
        if isinstance(table, dict):
            table[key] = value
    try:
        changed = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        changed = None
    if changed != wanted:
        names = ", ".join(f"[{section}] {key}" for section, key in changes)
        msg = f"the settings file is written so that single lines cannot be changed: set {names} by hand"
        raise InstallError(msg, 2)
    return text


def read_settings(text: str) -> dict[str, Any]:
    """Parse TOML. Raises: InstallError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as e:
        msg = f"the settings file is no TOML: {e}; correct that line, or move the file away to begin anew"
        raise InstallError(msg, 2) from e


def one_setting(settings: Mapping[str, Any], section: str, key: str, default: Any = "") -> Any:  # noqa: ANN401
    """Return a setting, or its default where the file does not have it."""
    table = settings.get(section, {})
    return table.get(key, default) if isinstance(table, dict) else default


def differences(before: str, after: str) -> Iterator[str]:
    """Yield the changed lines of a settings file, without what may be secret in addresses."""
    for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0):
        if line[:1] in "+-" and not line.startswith(("+++", "---")):
            found = _TEXT_SETTING.fullmatch(line)
            yield f'{found["before"]}{shown_address(found["value"])}"' if found else without_secrets(line)


def broker_settings(text: str, *, tls: bool) -> Changes:
    """Read `HOST` or `HOST:PORT`; `none` is no broker. Raises: InstallError."""
    if text.lower() == "none":
        return {("broker", "host"): ""}
    found = re.fullmatch(r"(?:mqtts?://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/@\[\]]+)(?::(\d{1,5}))?/?", text)
    if found is None or not 0 < int(found[2] or 1) < 65536:
        msg = f"broker {text!r}: give HOST or HOST:PORT, as in 192.168.1.5:1883, or `none`"
        raise InstallError(msg, 2)
    tls = tls or text.startswith("mqtts:") or found[2] == str(_TLS_PORT)
    port = int(found[2]) if found[2] else _TLS_PORT if tls else 1883
    host = found[1].strip("[]")
    return {("broker", "host"): host, ("broker", "port"): port, **({("broker", "tls"): True} if tls else {})}


def camera_settings(text: str) -> Changes:
    """Read what `--camera` takes: where the pictures come from."""
    kind, path = _camera(text)
    if kind == "folder" and not path.startswith("/"):
        path = str(Path(path).absolute())
    return {("source", "kind"): kind, ("source", "path"): path}


def _camera(text: str) -> tuple[str, str]:
    kind, colon, rest = text.partition(":")
    if kind in _KINDS and not rest.startswith("//"):
        return kind, (rest if colon else str(CAMERA_FOLDER) if kind == "folder" else "")
    if text.isdecimal() or text.startswith("/dev/") or _SCHEME.match(text):
        return "video", text
    return ("video" if Path(text).is_file() else "folder"), text


def given_setting(text: str) -> tuple[tuple[str, str], Value]:
    """Read `SECTION.KEY=VALUE`, where VALUE is TOML, or text without quotes. Raises: InstallError."""
    found = re.fullmatch(r"([a-z_]+)\.([a-z_]+)=(.*)", text, re.DOTALL)
    if found is None:
        msg = f"--set {text!r}: give SECTION.KEY=VALUE, as in --set homeassistant.discovery=true"
        raise InstallError(msg, 2)
    try:
        value = tomllib.loads(f"value = {found[3]}")["value"]
    except tomllib.TOMLDecodeError:
        value = found[3]
    return (found[1], found[2]), value


def check_settings(text: str) -> None:
    """Raise InstallError for what the daemon of this checkout would refuse."""
    with tempfile.TemporaryDirectory(prefix="edge-client-settings-") as folder:
        file = Path(folder, SETTINGS_FILE.name)
        file.write_text(text, encoding="utf-8")
        try:
            load_settings(file, machine_name="this-device")  # doctor looks for the real one
        except SettingsError as e:
            said = str(e).replace(str(file), str(SETTINGS_FILE)).replace(folder, str(SETTINGS_FILE.parent))
            said += "" if said.endswith("?") else "."
            msg = f"{said} A flag of this command sets it, or --set SECTION.KEY=VALUE; nothing was changed"
            raise InstallError(msg, 2) from e


def _with_setting(text: str, section: str, key: str, value: Value) -> str:
    """Put a setting at its line, its commented line, or below the head of its section."""
    lines = text.splitlines()
    new = f"{key} = {_as_toml(value)}"
    head, end = _section_lines(lines, section)
    if head is None:
        return "\n".join([*lines, "", f"[{section}]", new]) + "\n"
    for pattern in (rf"\s*{key}\s*=", rf"#\s?{key}\s*="):
        for number in range(head + 1, end):
            if re.match(pattern, lines[number]):
                lines[number : _end_of_value(lines, number, end)] = [new]
                return "\n".join(lines) + "\n"
    return "\n".join([*lines[: head + 1], new, *lines[head + 1 :]]) + "\n"


def _section_lines(lines: list[str], section: str) -> tuple[int | None, int]:
    """Return the line of a section's head, None if there is none, and the line after its last."""
    heads = [number for number, line in enumerate(lines) if re.match(r"\s*\[", line)]
    for head in heads:
        if re.match(rf"\s*\[\s*{section}\s*\]", lines[head]):
            return head, next((later for later in heads if later > head), len(lines))
    return None, len(lines)


def _end_of_value(lines: list[str], number: int, end: int) -> int:
    """Return the line after a value, which may be a list of several lines."""
    for last in range(number + 1, end + 1):
        try:
            tomllib.loads("\n".join(lines[number:last]))
        except tomllib.TOMLDecodeError:
            continue
        return last
    return number + 1


def _as_toml(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    if isinstance(value, str):
        if _CONTROL.search(value):
            msg = f"{value!r}: control characters do not belong into a setting"
            raise InstallError(msg, 2)
        return json.dumps(value, ensure_ascii=False)  # a TOML string, as there are no control characters
    return str(value)
