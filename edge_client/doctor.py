"""`edge-client doctor`: is everything there that this device needs, and if not, what to do."""

from __future__ import annotations

import dataclasses
import datetime
import os
import shutil
import tempfile
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.files import disk_errors
from edge_client.inference.runtime import runtime_name

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_client.settings import Settings

# No device runs this code before it was written: an earlier clock was never set.
EARLIEST_CLOCK = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes:
        name: What.
        passed: Whether it is as it should be.
        detail: What was found; on a failure also the way out.
    """

    name: str
    passed: bool
    detail: str


def examine(
    settings: Settings,
    clock: Callable[[], datetime.datetime] = lambda: datetime.datetime.now(datetime.timezone.utc),
) -> tuple[Check, ...]:
    """Make all checks; changes nothing but a probe file in the state folder, which it removes."""
    checks: Sequence[tuple[str, Callable[[], str]]] = (
        ("runtime", runtime_name),
        ("clock", lambda: _check_clock(clock())),
        ("state folder", lambda: _check_state(settings)),
        ("root of trust", lambda: _check_root(settings)),
        ("store", lambda: _check_store(settings)),
        ("broker", lambda: _check_broker(settings)),
        ("source", lambda: _check_source(settings)),
        ("release", lambda: _check_release(settings)),
    )
    return tuple(_make(name, check) for name, check in checks)


def _make(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, passed=True, detail=check())
    except EdgeError as e:
        return Check(name, passed=False, detail=str(e))


def _check_clock(now: datetime.datetime) -> str:
    if now < EARLIEST_CLOCK:
        msg = (
            f"{now.isoformat(timespec='seconds')}: was never set, so expired metadata looks fresh; "
            "timedatectl set-ntp true, or add a real-time clock"
        )
        raise DeviceError(msg)
    return now.isoformat(timespec="seconds")


def _check_state(settings: Settings) -> str:
    folder, update = settings.device.state_dir, settings.update
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"probe")
            os.fsync(probe.fileno())
        free = shutil.disk_usage(folder).free
    wanted = update.min_free_bytes + update.max_release_bytes
    if free < wanted:
        msg = (
            f"{folder}: {free // 1_000_000} MB free; a largest release and the reserve take "
            f"{wanted // 1_000_000} MB ([update] max_release_bytes, min_free_bytes); make room"
        )
        raise DeviceError(msg)
    return f"{folder}: writable, {free // 1_000_000} MB free"


def _check_root(settings: Settings) -> str:
    from edge_client.settings import read_root  # noqa: PLC0415
    from edge_client.update.trust import describe_root  # noqa: PLC0415 - imports python-tuf

    return describe_root(read_root(settings.trust), str(settings.trust.root))


def _check_store(settings: Settings) -> str:
    from edge_client.update.trust import open_repository  # noqa: PLC0415 - imports python-tuf

    with open_repository(settings, remember=False) as repository:
        repository.refresh()
        channel = repository.channel(settings.device.channel)
    return f"{settings.store.base_url}: channel {channel.channel} points to release {channel.release}"


def _check_broker(settings: Settings) -> str:
    from edge_client.mqtt import try_connection  # noqa: PLC0415

    if not settings.broker.host:
        return "none is set: this device only polls"
    try_connection(settings.broker, f"{settings.device.id[:50]}-doctor")
    return f"{settings.broker.host}:{settings.broker.port}: lets this device in"


def _check_source(settings: Settings) -> str:
    from edge_client.sources import open_source  # noqa: PLC0415

    source = settings.source
    open_source(source)
    if source.kind == "folder" and not os.path.isdir(os.path.expanduser(source.path)):  # noqa: PTH111, PTH112
        msg = f"{source.path}: no such folder; create it, or correct [source] path"
        raise DeviceError(msg)
    return f"{source.kind} {source.path}".strip()


def _check_release(settings: Settings) -> str:
    from edge_client.update.slots import Slots  # noqa: PLC0415
    from edge_client.update.updater import open_slot  # noqa: PLC0415

    slots = Slots(settings.device.state_dir)
    if slots.current is None:
        return "none yet; `edge-client run` fetches it"
    open_slot(slots.folder(slots.current), settings.device.threads)
    return f"{slots.current} loads and runs"
