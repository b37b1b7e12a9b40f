"""Check what this device tells its fleet of itself, and the key that it signs its reports with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError

if TYPE_CHECKING:
    from edge_client.settings.file import Settings


def check_reports(settings: Settings) -> str:
    """Return what goes out. Raises: SettingsError, DeviceError if the key cannot be used, or others may."""
    device, status = settings.device, settings.status
    facts = [f"as {device.id} to fleet {device.fleet}"]
    facts += [f"site {device.site}"] if device.site else []
    facts += [f"class {device.device_class}"] if device.device_class else []
    facts += [f"tags {', '.join(device.tags)}"] if device.tags else []
    told = f"every {status.report_interval_s:g} s, or as the fleet asks, {', '.join(facts)}"
    kept = "" if status.retain else "; no retained status"
    return f"{told}; {_check_key(device.key_file)}{kept}"


def _check_key(file: str) -> str:
    if not file:
        return "not signed ([device] key_file)"
    from edge_client.reporting.report_key import find_exposure, read_report_key  # noqa: PLC0415

    key = read_report_key(Path(file))
    if exposure := find_exposure(Path(file)):
        raise DeviceError(exposure)
    return f"signed with key {key.keyid[:12]}"
