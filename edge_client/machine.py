"""Identity of this machine and of its current boot."""

from __future__ import annotations

import hashlib
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SERIAL_NUMBER = Path("/proc/device-tree/serial-number")
_MACHINE_ID = Path("/etc/machine-id")


def boot_id() -> str:
    """Return the id of this boot; empty if the kernel does not report it."""
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def machine_name(serial_number: Path = _SERIAL_NUMBER, machine_id: Path = _MACHINE_ID) -> str | None:
    """Return a stable, unique name: from the board's serial number, else from a hash of the machine id.

    The serial number is preferred because cloned SD cards share a machine id, and a broker disconnects two
    devices with the same MQTT client id in turns (MQTT.js#1585).
    """
    serial = _first_line(serial_number).strip("\0 ")
    if serial and serial.strip("0"):
        return f"pi-{serial[-16:].lstrip('0')}"
    identity = _first_line(machine_id).strip()
    # systemd asks not to show the machine id itself on a network (machine-id(5)).
    return (
        f"device-{hashlib.sha256(f'edge-client {identity}'.encode()).hexdigest()[:12]}" if identity else None
    )


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[0]
    except OSError:
        return ""
