"""The device's one settings file: TOML in, frozen settings out, every fault named at once.

`configs/device.toml` shows all settings with their defaults, units and reasons; a test compares.
No secret stands in this file: it names files or environment variables that hold them.
"""

from __future__ import annotations

import dataclasses
import math
import os
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.names import check_name
from edge_client.machine import machine_name
from edge_client.settings.frames import InboxSettings, SourceSettings
from edge_client.settings.reporting import (
    BrokerSettings,
    HomeAssistantSettings,
    MetricsSettings,
    StatusSettings,
)
from edge_client.settings.results import ActionSettings, SinkSettings
from edge_client.settings.serving import ProbationSettings, ShadowSettings
from edge_client.settings.update import (
    DeviceSettings,
    LookSettings,
    StoreSettings,
    TrustSettings,
    UpdateSettings,
    read_toml,
)

if TYPE_CHECKING:
    from collections.abc import Callable

DEFAULT_FILE = Path("/etc/edge-client/device.toml")
# Below the state folder: those of the channels beside the main one.
CHANNELS_FOLDER = "channels"


@dataclasses.dataclass(frozen=True)
class Settings(LookSettings):
    """All of them; `file` is where they were read."""

    file: Path
    broker: BrokerSettings
    probation: ProbationSettings
    shadow: ShadowSettings
    status: StatusSettings
    source: SourceSettings
    sinks: SinkSettings
    action: ActionSettings
    inbox: InboxSettings
    homeassistant: HomeAssistantSettings
    metrics: MetricsSettings


SECTIONS: dict[str, type[Any]] = {
    "device": DeviceSettings,
    "store": StoreSettings,
    "trust": TrustSettings,
    "broker": BrokerSettings,
    "update": UpdateSettings,
    "probation": ProbationSettings,
    "shadow": ShadowSettings,
    "status": StatusSettings,
    "source": SourceSettings,
    "sinks": SinkSettings,
    "action": ActionSettings,
    "inbox": InboxSettings,
    "homeassistant": HomeAssistantSettings,
    "metrics": MetricsSettings,
}
# Settings that name a file or folder: relative ones are relative to the settings file.
_PATHS = {
    ("store", "access_key_file"),
    ("store", "ca_file"),
    ("broker", "password_file"),
    ("broker", "ca_file"),
    ("broker", "certificate_file"),
    ("broker", "key_file"),
}


def load_settings(file: Path) -> Settings:
    """Read and check a settings file.

    Raises: SettingsError that lists every fault at once.
    """
    table = read_toml(file, "copy configs/device.toml there, or name yours with --config")
    faults: list[str] = [
        f"[{name}]: no such section (there are {', '.join(SECTIONS)})"
        for name in table
        if name not in SECTIONS
    ]
    sections = {
        name: _section(name, kind, table.get(name, {}), file.parent, faults)
        for name, kind in SECTIONS.items()
    }
    settings = Settings(file=file, **sections)
    if not faults:
        settings = _with_device_id(settings)
        faults = find_faults(settings)
    if faults:
        msg = f"{file}: {'; '.join(faults)}"
        raise SettingsError(msg)
    return settings


def of_channels(settings: Settings) -> tuple[Settings, ...]:
    """Return the settings of each channel, the main one first: each has a state folder of its own."""
    device = settings.device
    further = (
        dataclasses.replace(
            device, channel=name, more_channels="", state_dir=device.state_dir / CHANNELS_FOLDER / name
        )
        for name in device.further_channels()
    )
    return (settings, *(dataclasses.replace(settings, device=one) for one in further))


def of_channel(settings: Settings, channel: str) -> Settings:
    """Return the settings of one channel; an empty name stands for the main one.

    Raises: SettingsError if the device does not follow it.
    """
    channels = {one.device.channel: one for one in of_channels(settings)}
    name = channel or settings.device.channel
    if name not in channels:
        msg = f"channel {name!r}: this device follows {', '.join(channels)} ([device] channel, more_channels)"
        raise SettingsError(msg)
    return channels[name]


def find_faults(settings: Settings) -> list[str]:
    """Return one sentence for each setting that cannot work."""
    s = settings
    url = urlsplit(s.store.base_url)
    checks = [
        (1 <= s.device.threads <= 64, "[device] threads: 1 to 64"),
        (1 <= s.device.top <= 100, "[device] top: 1 to 100"),
        (s.device.latency_budget_ms >= 0, "[device] latency_budget_ms: 0 or more"),
        (
            url.scheme in {"http", "https"} and bool(url.hostname),
            f"[store] base_url {s.store.base_url!r}: give http(s)://host/bucket/prefix",
        ),
        (bool(s.store.region), "[store] region: give one; any works with most stores other than AWS"),
        (_is_positive(s.store.timeout_s), "[store] timeout_s: above 0"),
        (s.store.min_bytes_per_s >= 0, "[store] min_bytes_per_s: 0 or more"),
        (
            s.store.max_bytes_per_s == 0 or s.store.max_bytes_per_s >= 2 * max(s.store.min_bytes_per_s, 1),
            "[store] max_bytes_per_s: 0, or at least twice min_bytes_per_s",
        ),
        (1 <= s.broker.port <= 65535, "[broker] port: 1 to 65535"),
        (5 <= s.broker.keepalive_s <= 3600, "[broker] keepalive_s: 5 to 3600"),
        (
            bool(s.broker.certificate_file) == bool(s.broker.key_file),
            "[broker] certificate_file and key_file: give both or none",
        ),
        (
            s.broker.tls or not (s.broker.ca_file or s.broker.certificate_file),
            "[broker] ca_file and certificate_file need tls = true",
        ),
        (_is_positive(s.update.poll_s), "[update] poll_s: above 0"),
        (s.update.spread_s >= 0, "[update] spread_s: 0 or more"),
        (_is_positive(s.update.look_timeout_s), "[update] look_timeout_s: above 0"),
        (_is_positive(s.update.self_test_timeout_s), "[update] self_test_timeout_s: above 0"),
        (s.update.self_test_memory_bytes >= 0, "[update] self_test_memory_bytes: 0 or more"),
        (s.update.max_release_bytes > 0, "[update] max_release_bytes: above 0"),
        (s.update.min_free_bytes >= 0, "[update] min_free_bytes: 0 or more"),
        (_is_positive(s.status.interval_s), "[status] interval_s: above 0"),
        (0 <= s.metrics.port <= 65535, "[metrics] port: 1 to 65535, or 0 for none"),
    ]
    faults = [message for holds, message in checks if not holds]
    for section, name, value in (
        ("device", "id", s.device.id),
        ("device", "fleet", s.device.fleet),
        ("device", "channel", s.device.channel),
        *(("device", "more_channels", name) for name in s.device.further_channels()),
        *((("device", "device_class", s.device.device_class),) if s.device.device_class else ()),
        ("homeassistant", "prefix", s.homeassistant.prefix),
    ):
        try:
            check_name(value, f"[{section}] {name}")
        except InputError as e:
            faults.append(str(e))
    channels = (s.device.channel, *s.device.further_channels())
    if len(set(channels)) < len(channels):
        faults.append(f"[device] channel and more_channels: name each channel once ({', '.join(channels)})")
    faults += [f"[probation] {fault}" for fault in s.probation.faults()]
    faults += [f"[shadow] {fault}" for fault in s.shadow.faults()]
    faults += [f"[source] {fault}" for fault in s.source.faults()]
    faults += [f"[sinks] {fault}" for fault in s.sinks.faults()]
    faults += [f"[action] {fault}" for fault in s.action.faults()]
    faults += [f"[inbox] {fault}" for fault in s.inbox.faults()]
    return faults


def _with_device_id(settings: Settings) -> Settings:
    if settings.device.id:
        return settings
    name = machine_name()
    if name is None:
        msg = f"{settings.file}: [device] id: this machine has no serial number; give it a name of its own"
        raise SettingsError(msg)
    return dataclasses.replace(settings, device=dataclasses.replace(settings.device, id=name))


def _section(name: str, kind: type[Any], table: object, folder: Path, faults: list[str]) -> Any:  # noqa: ANN401 - built from any section's dataclass
    """Build one section; what is wrong with it goes to `faults`."""
    if not isinstance(table, dict):
        faults.append(f"{name}: write it as a section, [{name}]")
        return kind()
    types = typing.get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            faults.append(f"[{name}] {key}: no such setting (there are {', '.join(types)})")
            continue
        try:
            values[key] = _READERS[types[key]](value)
        except (TypeError, ValueError) as e:
            faults.append(f"[{name}] {key}: {e}")
            continue
        if types[key] is Path or (name, key) in _PATHS or _names_file(name, key, table):
            values[key] = _resolve(values[key], folder, types[key])
    return kind(**values)


def _names_file(section: str, key: str, table: dict[str, Any]) -> bool:
    """Whether a setting is a path only for some values of itself or another."""
    if (section, key) == ("source", "path"):
        kind = table.get("kind", "folder")
        return kind in {"folder", "files"} or (kind == "pipe" and table[key] != "-")
    return (section, key) == ("sinks", "json_lines") and table[key] != "-"


def _resolve(value: str | Path, folder: Path, kind: type[Any]) -> str | Path:
    if not str(value):
        return value
    path = Path(os.path.abspath(folder / Path(value).expanduser()))  # noqa: PTH100 - keeps symbolic links
    return path if kind is Path else str(path)


def _read_str(value: object) -> str:
    if isinstance(value, str):
        return value
    msg = f"{value!r} is no text; put it in quotes"
    raise TypeError(msg)


def _read_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    msg = f"{value!r} is neither true nor false"
    raise TypeError(msg)


def _read_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    msg = f"{value!r} is no whole number"
    raise TypeError(msg)


def _read_float(value: object) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    msg = f"{value!r} is no number"
    raise TypeError(msg)


_READERS: dict[Any, Callable[[object], Any]] = {
    str: _read_str,
    bool: _read_bool,
    int: _read_int,
    float: _read_float,
    Path: lambda value: Path(_read_str(value)),
}


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
