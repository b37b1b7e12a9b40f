"""Load the device's settings file: TOML to frozen dataclasses, with all faults reported at once.

`configs/device.toml` shows all settings with their defaults, units and reasons; a test compares.
The file holds no secrets: it names the files or environment variables that hold them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import SettingsError
from edge_client.contract.nearest import did_you_mean
from edge_client.settings.frames import InboxSettings, SourceSettings
from edge_client.settings.paths import resolve
from edge_client.settings.readers import read_value
from edge_client.settings.reporting import (
    BrokerSettings,
    HomeAssistantSettings,
    MetricsSettings,
    StatusSettings,
)
from edge_client.settings.results import ActionSettings, SinkSettings
from edge_client.settings.serving import DriftSettings, ProbationSettings, ShadowSettings
from edge_client.settings.update import (
    CheckSettings,
    DeviceSettings,
    StoreSettings,
    TrustSettings,
    UpdateSettings,
    read_toml,
)

if TYPE_CHECKING:
    from collections.abc import Collection

    from edge_client.settings.checks import Section

DEFAULT_FILE = Path("/etc/edge-client/device.toml")
# Below the state folder: the state folders of the extra channels.
CHANNELS_FOLDER = "channels"


@dataclasses.dataclass(frozen=True)
class Settings(CheckSettings):
    """All sections; `file` is the file that they were read from."""

    file: Path
    broker: BrokerSettings
    probation: ProbationSettings
    shadow: ShadowSettings
    drift: DriftSettings
    status: StatusSettings
    source: SourceSettings
    sinks: SinkSettings
    action: ActionSettings
    inbox: InboxSettings
    homeassistant: HomeAssistantSettings
    metrics: MetricsSettings


SECTIONS: dict[str, type[Section]] = {
    "device": DeviceSettings,
    "store": StoreSettings,
    "trust": TrustSettings,
    "broker": BrokerSettings,
    "update": UpdateSettings,
    "probation": ProbationSettings,
    "shadow": ShadowSettings,
    "drift": DriftSettings,
    "status": StatusSettings,
    "source": SourceSettings,
    "sinks": SinkSettings,
    "action": ActionSettings,
    "inbox": InboxSettings,
    "homeassistant": HomeAssistantSettings,
    "metrics": MetricsSettings,
}
# Old names of settings, refused with the new name.
RENAMED = {("update", "look_timeout_s"): "check_timeout_s"}
# Silence of a store that a person waits for at a terminal.
_PATIENCE_S = 7.0
_SEE_EXAMPLE = "configs/device.toml shows all settings"


def load_settings(file: Path, machine_name: str | None = None) -> Settings:
    """Read and check a settings file.

    Args:
        file: TOML, UTF-8.
        machine_name: Device id where the file gives none, see `machine.machine_name`.
    Raises: SettingsError that lists every fault at once.
    """
    with contextlib.suppress(RuntimeError):  # no home: the file is not found then
        file = file.expanduser()
    table = read_toml(file, "copy configs/device.toml there, or name yours with --config")
    faults: list[str] = [
        _explain_unknown_section(name, value) for name, value in table.items() if name not in SECTIONS
    ]
    sections = {
        name: _section(name, kind, table.get(name, {}), file.parent, faults)
        for name, kind in SECTIONS.items()
    }
    settings = Settings(file=file, **sections)
    if not faults:
        settings = _with_thing(_with_device_id(settings, machine_name))
        faults = find_faults(settings)
        if not settings.device.id:
            faults.append("[device] id: this machine has no serial number; give it a name of its own")
    if faults:
        msg = f"{file}: {'; '.join(faults)}"
        raise SettingsError(msg)
    return settings


def of_channels(settings: Settings) -> tuple[Settings, ...]:
    """Return the settings of each channel, the main channel first; each has a state folder of its own."""
    device = settings.device
    further = (
        dataclasses.replace(
            device, channel=name, more_channels=(), state_dir=device.state_dir / CHANNELS_FOLDER / name
        )
        for name in device.more_channels
    )
    return (settings, *(dataclasses.replace(settings, device=one) for one in further))


def of_channel(settings: Settings, channel: str) -> Settings:
    """Return the settings of one channel; an empty name is the main channel.

    Raises: SettingsError if the device does not follow it.
    """
    channels = {one.device.channel: one for one in of_channels(settings)}
    name = channel or settings.device.channel
    if name not in channels:
        msg = f"channel {name!r}: this device follows {', '.join(channels)} ([device] channel, more_channels)"
        raise SettingsError(msg)
    return channels[name]


def hurried(settings: Settings) -> Settings:
    """Return the settings for a command that somebody waits for: a silent store ends it soon."""
    limit_s = min(settings.store.timeout_s, _PATIENCE_S)
    return dataclasses.replace(settings, store=dataclasses.replace(settings.store, timeout_s=limit_s))


def find_faults(settings: Settings) -> list[str]:
    """Return one sentence for each setting that cannot work."""
    # A model file needs no store; where its section says something, that must be right.
    needless = {"store"} if settings.device.model and settings.store == StoreSettings() else set()
    faults = [
        f"[{name}] {fault}"
        for name in SECTIONS
        if name not in needless
        for fault in getattr(settings, name).faults()
    ]
    if needless and settings.inbox.upload and not settings.inbox.base_url:
        faults.append("[inbox] upload: with [device] model and no store, give base_url, or set it to false")
    if settings.homeassistant.discovery and not settings.status.retain:
        faults.append(
            "[homeassistant] discovery: Home Assistant reads the retained status; set [status] retain = true"
            ", or no discovery"
        )
    return faults


def refuse_own_model(settings: Settings, command: str) -> None:
    """Raise SettingsError if a command is for releases, and a model file of one's own serves."""
    if model := settings.device.model:
        msg = (
            f"[device] model = {model!r} serves on this device, not a channel, so there is nothing to "
            f"{command}: replace the file and restart the daemon, or remove the setting to follow a channel"
        )
        raise SettingsError(msg)


def _with_device_id(settings: Settings, machine_name: str | None) -> Settings:
    device_id = settings.device.id or machine_name or ""
    return dataclasses.replace(settings, device=dataclasses.replace(settings.device, id=device_id))


def _with_thing(settings: Settings) -> Settings:
    """Fill in what [store] leaves out of this device's identity in AWS IoT, from [broker] and the id."""
    store, broker = settings.store, settings.broker
    if not store.credentials_endpoint:
        return settings
    own = bool(store.certificate_file or store.key_file)
    identity = dataclasses.replace(
        store,
        thing_name=store.thing_name or settings.device.id,
        certificate_file=store.certificate_file if own else broker.certificate_file,
        key_file=store.key_file if own else broker.key_file,
    )
    return dataclasses.replace(settings, store=identity)


def _section(name: str, kind: type[Any], table: object, folder: Path, faults: list[str]) -> Any:  # noqa: ANN401 - built from any section's dataclass
    """Build one section; append its faults to `faults`."""
    if not isinstance(table, dict):
        faults.append(f"{name}: write it as a section, [{name}]")
        return kind()
    types = typing.get_type_hints(kind, include_extras=True)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in types:
            faults.append(f"[{name}] {key}: {_explain_unknown(name, key, types)}")
            continue
        try:
            found = read_value(value, types[key])
            values[key] = resolve(name, key, found, types[key], table, folder)
        except (TypeError, ValueError) as e:
            faults.append(f"[{name}] {key}: {e}")
    return kind(**values)


def _explain_unknown_section(name: str, value: object) -> str:
    if not isinstance(value, dict):
        owners = [section for section, kind in SECTIONS.items() if name in _names(kind)]
        where = f"write it below [{owners[0]}]" if owners else _SEE_EXAMPLE
        return f"{name}: stands above all sections; {where}"
    return f"[{name}]: no such section{did_you_mean(name, SECTIONS, _SEE_EXAMPLE)}"


def _explain_unknown(section: str, key: str, known: Collection[str]) -> str:
    if (section, key) in RENAMED:
        return f"renamed to {RENAMED[section, key]}; use the new name"
    owners = [name for name, kind in SECTIONS.items() if key in _names(kind)]
    belongs = f"; it belongs to [{'] or ['.join(owners)}]" if owners else ""
    return f"no such setting{belongs}{did_you_mean(key, known, '' if owners else _SEE_EXAMPLE)}"


def _names(section: type[Section]) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}
