"""Identity of this machine and of its current boot, and what it is."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import os
import platform
from pathlib import Path

from edge_client.contract.report import MachineFacts

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SERIAL_NUMBER = Path("/proc/device-tree/serial-number")
_MACHINE_ID = Path("/etc/machine-id")
_BOARD = Path("/proc/device-tree/model")


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


@functools.cache
def machine_facts(fleet: str) -> MachineFacts:
    """Return what this machine is, for the reports to a fleet."""
    system = ""
    with contextlib.suppress(OSError):
        system = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    return MachineFacts(
        model=_first_line(_BOARD).strip("\0 ")[:100],
        architecture=platform.machine()[:40],
        cores=os.cpu_count() or 0,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        system=system[:100],
        fingerprint=machine_fingerprint(fleet),
    )


def machine_fingerprint(
    fleet: str, serial_number: Path = _SERIAL_NUMBER, machine_id: Path = _MACHINE_ID
) -> str:
    """Return what tells two machines with one device id apart; empty if this machine has no identity.

    Clones of one card share the machine id, so the board's serial number counts, too. Keyed with the fleet:
    machine-id(5) asks to tell nobody the id itself, and two fleets cannot compare their devices.
    """
    identity = f"{_first_line(machine_id).strip()}/{_first_line(serial_number).strip(chr(0) + ' ')}"
    if identity == "/":
        return ""
    return hmac.new(identity.encode(), f"edge-fleet report {fleet}".encode(), "sha256").hexdigest()


def _first_line(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")[0]
    except OSError:
        return ""
