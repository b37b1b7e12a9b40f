"""`edge-client doctor`: is everything there that this device needs, and if not, what to do."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import os
import shutil
import tempfile
import threading
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.files import disk_errors
from edge_client.inference.runtime import runtime_name
from edge_client.settings import of_channels

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_client.settings import Settings
    from edge_client.sources import Source

CAMERAS = {"video", "picamera"}
# A camera that takes longer for its first picture is of no use.
CAMERA_S = 15.0


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
        *(
            (f"release of {one.device.channel}", functools.partial(_check_release, one))
            for one in of_channels(settings)
        ),
        ("inbox", lambda: _check_inbox(settings)),
    )
    return tuple(_make(name, check) for name, check in checks)


def _make(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, passed=True, detail=check())
    except EdgeError as e:
        return Check(name, passed=False, detail=str(e))


def _check_clock(now: datetime.datetime) -> str:
    from edge_client.update.clock import check_clock  # noqa: PLC0415

    check_clock(now)
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
        channels = [repository.channel(one.device.channel) for one in of_channels(settings)]
    found = ", ".join(f"channel {one.channel} points to release {one.release}" for one in channels)
    return f"{settings.store.base_url}: {found}"


def _check_broker(settings: Settings) -> str:
    from edge_client.mqtt import try_connection  # noqa: PLC0415

    if not settings.broker.host:
        return "none is set: this device only polls"
    try_connection(settings.broker, f"{settings.device.id[:50]}-doctor")
    return f"{settings.broker.host}:{settings.broker.port}: lets this device in"


def _check_source(settings: Settings) -> str:
    from edge_client.process import running_process  # noqa: PLC0415
    from edge_client.sources import open_source  # noqa: PLC0415

    source = settings.source
    found = f"{source.kind} {source.path}".strip()
    opened = open_source(source)
    if source.kind == "folder" and not os.path.isdir(os.path.expanduser(source.path)):  # noqa: PTH111, PTH112
        msg = f"{source.path}: no such folder; create it, or correct [source] path"
        raise DeviceError(msg)
    if source.kind not in CAMERAS:
        return found
    if running_process(settings.device.state_dir) is not None:
        return f"{found}: in use by the daemon; stop it to try the camera here"
    return f"{found}: gives {_first_frame(opened)} pixels"


def _first_frame(source: Source) -> str:
    """Take one frame; return its size, for people.

    Raises: DeviceError if none comes.
    """
    sizes: list[str] = []
    faults: list[EdgeError] = []
    stop = threading.Event()

    def take() -> None:
        try:
            for frame in source.frames(stop):
                sizes.append(f"{frame.pixels.shape[1]}x{frame.pixels.shape[0]}")
                return
        except EdgeError as e:
            faults.append(e)

    # A driver that hangs must not take this with it.
    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    thread.join(CAMERA_S)
    stop.set()
    if faults:
        raise faults[0]
    if not sizes:
        msg = f"no picture within {CAMERA_S:g} s; check cable, driver, address, and that nothing else uses it"
        raise DeviceError(msg)
    return sizes[0]


def _check_inbox(settings: Settings) -> str:
    from edge_client.inbox import INBOX_DIR  # noqa: PLC0415
    from edge_client.inbox.keeper import kept_records  # noqa: PLC0415
    from edge_client.settings import read_credentials  # noqa: PLC0415

    inbox = settings.inbox
    if not inbox.keeps:
        return "no frames are kept for labelling"
    if inbox.upload and read_credentials(settings.store) is None:
        msg = "[inbox] upload: needs keys that may write there; name them in [store] access_key_file"
        raise DeviceError(msg)
    waiting = len(kept_records(settings.device.state_dir / INBOX_DIR))
    where = f"uploaded to {inbox.base_url or settings.store.base_url}" if inbox.upload else "not uploaded"
    return f"{waiting} frames wait; they are {where}"


def _check_release(settings: Settings) -> str:
    from edge_client.update.slots import Slots  # noqa: PLC0415
    from edge_client.update.updater import open_slot  # noqa: PLC0415

    slots = Slots(settings.device.state_dir)
    if slots.current is None:
        return "none yet; `edge-client run` fetches it"
    open_slot(slots.folder(slots.current), settings.device.threads)
    return f"{slots.current} loads and runs"
