"""A settings bundle: all that makes a machine one device of the fleet, in one file.

A tar with `device.toml` and the files that it names, which `scripts/install-device --bundle` takes; it can be
unpacked into a settings folder by hand as well. It holds private keys: mode 600, to be deleted once used.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError, SettingsError
from edge_client.settings.file import load_settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Mapping

# As in `scripts/installation/wishes.py`: name in the bundle by the setting that names the file.
PLACES = {
    ("trust", "root"): "root.json",
    ("device", "key_file"): "report-key.pem",
    ("broker", "password_file"): "broker-password",
    ("broker", "ca_file"): "broker-ca.pem",
    ("broker", "certificate_file"): "device-certificate.pem",
    ("broker", "key_file"): "device-key.pem",
    ("store", "access_key_file"): "access-key.toml",
    ("store", "ca_file"): "store-ca.pem",
}
SETTINGS_NAME = "device.toml"
SUFFIX = ".tar"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_LIMIT_BYTES = 1 << 20

# Values by section and key, as in device.toml.
Settings = dict[str, dict[str, Any]]


def pack_bundle(settings: Settings, files: Mapping[tuple[str, str], bytes]) -> bytes:
    """Return the content of a bundle.

    Args:
        settings: Values by section and key.
        files: Content by the setting that is to name the file.
    Raises: InputError for a value that no setting can have.
    """
    named = {section: dict(values) for section, values in settings.items()}
    for section, key in files:
        named.setdefault(section, {})[key] = PLACES[section, key]
    contents = {SETTINGS_NAME: _as_toml(named).encode()}
    contents |= {PLACES[place]: data for place, data in files.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in contents.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o600
            tar.addfile(entry, io.BytesIO(data))
    return packed.getvalue()


def read_template(path: Path) -> tuple[Settings, dict[tuple[str, str], bytes]]:
    """Return settings that many devices have, and the files beside it that they name.

    A relative path names a file that goes into the bundle, an absolute one a file of the device.
    Raises: InputError.
    """
    try:
        data = path.read_bytes()
        found = tomllib.loads(data.decode("utf-8-sig"))
    except OSError as e:
        msg = f"{path}: {e.strerror}; give a device.toml with the settings that all of these devices have"
        raise InputError(msg) from e
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        msg = f"{path}: is no TOML ({e}); give a device.toml with the settings that all devices have"
        raise InputError(msg) from e
    if wrong := [name for name, values in found.items() if not isinstance(values, dict)]:
        msg = f"{path}: {', '.join(wrong)} stands outside of a section; put it below its [section]"
        raise InputError(msg)
    files = {}
    for section, key in PLACES:
        name = found.get(section, {}).get(key, "")
        if isinstance(name, str) and name and not name.startswith(("/", "~")):
            files[section, key] = read_file(path.parent / name, f"{path}: [{section}] {key}")
    return found, files


def check_settings(settings: Settings, source: Path) -> None:
    """Check the settings that devices will have, as the daemon does; better here than in a shop.

    Args:
        settings: Values by section and key.
        source: The file that they come from, for messages.
    Raises: InputError.
    """
    if "path" not in settings.get("source", {}):  # the camera is named where the device is installed
        settings = {**settings, "source": {"path": "camera"}}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / SETTINGS_NAME
        file.write_text(_as_toml(settings), encoding="utf-8")
        try:
            load_settings(file, "device")
        except SettingsError as e:
            msg = f"{source}: no device would start with it: {str(e).removeprefix(f'{file}: ')}"
            raise InputError(msg) from e


def read_file(path: Path, what: str) -> bytes:
    """Return the content of a file that goes into bundles; raises InputError."""
    try:
        data = path.expanduser().read_bytes()
    except OSError as e:
        msg = f"{what}: {path}: {e.strerror}; correct the path"
        raise InputError(msg) from e
    if len(data) > _LIMIT_BYTES:
        msg = f"{what}: {path}: {len(data)} bytes, at most {_LIMIT_BYTES} go into a bundle"
        raise InputError(msg)
    return data


def _as_toml(settings: Settings) -> str:
    lines = ["# Of `edge-fleet enroll`; all other settings are at their defaults."]
    for section, values in settings.items():
        lines += ["", f"[{section}]"]
        lines += [f"{key} = {_as_value(section, key, value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _as_value(section: str, key: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_as_value(section, key, one) for one in value)}]"
    if isinstance(value, str) and not _CONTROL.search(value):
        return json.dumps(value, ensure_ascii=False)  # a TOML string, as there are no control characters
    msg = f"[{section}] {key}: {value!r:.80} cannot be a value of a setting"
    raise InputError(msg)
