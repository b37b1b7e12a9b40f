"""`edge-client doctor`: check everything that this device needs, and name the remedy of each fault."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import shlex
import shutil
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError, SettingsError
from edge_client.contract.file_urls import folder_of_url, is_file_url
from edge_client.contract.names import inbox_key, probe_topic
from edge_client.contract.times import current_time
from edge_client.disk import disk_errors
from edge_client.inference.runtime import runtime_name
from edge_client.permissions import user_name, way_to_read
from edge_client.releases import read_release
from edge_client.settings.file import of_channels
from edge_client.settings.results import ACT

if TYPE_CHECKING:
    import datetime
    from collections.abc import Callable, Iterator, Sequence

    from edge_client.settings.file import Settings
    from edge_client.sources.source import Source

logger = logging.getLogger(__name__)

CAMERAS = {"video", "picamera"}
# Longest time for a camera's first frame.
CAMERA_S = 15.0
# A model may have a thousand.
_LABELS_SHOWN = 20


@dataclasses.dataclass(frozen=True)
class Check:
    """Result of one check.

    Attributes:
        name: Subject of the check.
        passed: Whether the check passed.
        detail: Finding; on a failure also the remedy.
    """

    name: str
    passed: bool
    detail: str


def examine(
    settings: Settings,
    clock: Callable[[], datetime.datetime] = current_time,
) -> tuple[Check, ...]:
    """Run all checks; writes nothing but a temporary file in the state folder."""
    checks: Sequence[tuple[str, Callable[[], str]]] = (
        ("runtime", runtime_name),
        ("clock", lambda: _check_clock(clock())),
        ("state folder", lambda: _check_state(settings)),
        ("files", lambda: _check_files(settings)),
        ("root of trust", lambda: _check_root(settings)),
        ("store", lambda: _check_store(settings)),
        ("broker", lambda: _check_broker(settings)),
        ("source", lambda: _check_source(settings)),
        *(
            (f"release of {one.device.channel}", functools.partial(_check_release, one))
            for one in of_channels(settings)
        ),
        ("inbox", lambda: _check_inbox(settings)),
        *((name, functools.partial(check, settings)) for name, check in _wanted(settings)),
    )
    return tuple(_make(name, check) for name, check in checks)


def _wanted(settings: Settings) -> Iterator[tuple[str, Callable[[Settings], str]]]:
    """Yield the checks of optional features that the settings enable."""
    if settings.sinks.json_lines not in {"", "-"}:
        yield "json lines", _check_json_lines
    if settings.action.names():
        yield "action", _check_action
    if settings.metrics.port:
        yield "metrics", _check_metrics


def _make(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, passed=True, detail=check())
    except EdgeError as e:
        return Check(name, passed=False, detail=str(e))
    except Exception as e:
        # A bug in one check must not hide the others.
        logger.debug("%s", name, exc_info=True)
        return Check(name, passed=False, detail=f"unexpected {type(e).__name__}: {e}; please report it")


def _check_clock(now: datetime.datetime) -> str:
    from edge_client.repository.clock import check_clock  # noqa: PLC0415

    check_clock(now)
    return now.isoformat(timespec="seconds")


def _check_state(settings: Settings) -> str:
    folder, update = settings.device.state_dir, settings.update
    with disk_errors(folder):
        found = _probe(folder) if folder.exists() else _check_makeable(folder)
        free = shutil.disk_usage(folder if folder.exists() else _above(folder)).free
    wanted = update.min_free_bytes + update.max_release_bytes
    if free < wanted:
        msg = (
            f"{folder}: {free // 1_000_000} MB free; the largest release and the reserve need "
            f"{wanted // 1_000_000} MB ([update] max_release_bytes, min_free_bytes); make room"
        )
        raise DeviceError(msg)
    return f"{folder}: {found}, {free // 1_000_000} MB free"


def _check_files(settings: Settings) -> str:
    """Check that this user may read the settings' files. Raises: DeviceError with the commands that help."""
    store, broker, user = settings.store, settings.broker, user_name(os.geteuid())
    public = [str(settings.file), str(settings.trust.root), store.ca_file, broker.ca_file]
    public.append(broker.certificate_file)
    secret = [store.access_key_file, broker.password_file, broker.key_file]
    told = [
        f"{file}: run `{command}`"
        for files in (public, secret)
        for file in files
        if file and (command := way_to_read(Path(file), secret=files is secret)) is not None
    ]
    if told:
        msg = f"{user} may not read {'; '.join(told)}"
        raise DeviceError(msg)
    return f"{user} may read all that the settings name"


def _probe(folder: Path) -> str:
    """Write and delete a temporary file. Raises: OSError."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(b"probe")
        os.fsync(probe.fileno())
    return "writable"


def _check_makeable(path: Path) -> str:
    """Check, without creating anything, that this user may create a file or folder and its parents.

    Raises: DeviceError.
    """
    above = _above(path)
    if not above.is_dir() or not os.access(above, os.W_OK | os.X_OK):
        msg = f"{path}: cannot be created: {above} is not writable for this user; change owner or setting"
        raise DeviceError(msg)
    return "not there yet, `edge-client run` creates it"


def _above(path: Path) -> Path:
    """Return the nearest existing folder above a path."""
    return next(folder for folder in path.parents if folder.exists())


def _check_root(settings: Settings) -> str:
    from edge_client.repository.trusted import describe_root  # noqa: PLC0415 - imports python-tuf
    from edge_client.settings.update import read_root  # noqa: PLC0415

    return describe_root(read_root(settings.trust), str(settings.trust.root))


def _check_store(settings: Settings) -> str:
    from edge_client.repository.opening import open_repository  # noqa: PLC0415 - imports python-tuf

    with open_repository(settings, remember=False) as repository:
        repository.refresh()
        channels = [repository.channel(one.device.channel) for one in of_channels(settings)]
    found = ", ".join(f"channel {one.channel} points to release {one.release}" for one in channels)
    return f"{settings.store.base_url}: {found}"


def _check_broker(settings: Settings) -> str:
    from edge_client.reporting.broker import try_connection, try_echo  # noqa: PLC0415

    device, broker = settings.device, settings.broker
    if not broker.host:
        return "none ([broker] host is empty): this device only polls"
    client_id, address = f"{device.id[:50]}-doctor", f"{broker.host}:{broker.port}"
    topic = probe_topic(device.fleet, device.id)
    try_connection(broker, client_id)
    if not try_echo(broker, client_id, topic):
        msg = (
            f"{address}: accepts this device, but a message published on {topic} does not come back. With "
            f"configs/mosquitto.acl [broker] username (now {broker.username!r}) must be the device id, and "
            "may read and write below edge/+/devices/<id>/"
        )
        raise DeviceError(msg)
    found = f"{address}: accepts this device and its messages"
    return f"{found}; warning: {broker.exposure}" if broker.exposure else found


def _check_source(settings: Settings) -> str:
    from edge_client.sources.opening import open_source  # noqa: PLC0415
    from edge_client.state_folder import daemon_runs  # noqa: PLC0415

    source = settings.source
    found = f"{source.kind} {source.path}".strip()
    opened = open_source(source)
    if source.kind == "folder" and not os.path.isdir(os.path.expanduser(source.path)):  # noqa: PTH111, PTH112
        msg = f"{source.path}: no such folder; create it, or correct [source] path"
        raise DeviceError(msg)
    if source.kind not in CAMERAS:
        return found
    if daemon_runs(settings.device.state_dir):
        return f"{found}: in use by the daemon; stop it to test the camera"
    return f"{found}: gives {_first_frame(opened)} pixels"


def _first_frame(source: Source) -> str:
    """Read one frame; return its size as text.

    Raises: DeviceError if no frame comes.
    """
    sizes: list[str] = []
    faults: list[EdgeError] = []
    stop = threading.Event()

    def read() -> None:
        try:
            for frame in source.frames(stop):
                sizes.append(f"{frame.pixels.shape[1]}x{frame.pixels.shape[0]}")
                return
        except EdgeError as e:
            faults.append(e)

    # In a thread: a driver that hangs must not hang the command.
    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(CAMERA_S)
    stop.set()
    if faults:
        raise faults[0]
    if not sizes:
        msg = f"no picture within {CAMERA_S:g} s; check cable, driver and address, and that it is not in use"
        raise DeviceError(msg)
    return sizes[0]


def _check_inbox(settings: Settings) -> str:
    from edge_client.inbox.keeper import kept_records  # noqa: PLC0415
    from edge_client.inbox.selection import INBOX_DIR  # noqa: PLC0415
    from edge_client.inbox.upload_child import check_inbox_folder  # noqa: PLC0415
    from edge_client.settings.update import read_credentials  # noqa: PLC0415

    inbox = settings.inbox
    if not inbox.keeps:
        return "no frames are kept for labelling"
    where = inbox.base_url or settings.store.base_url
    if inbox.upload and is_file_url(where):
        check_inbox_folder(folder_of_url(where))
        _check_makeable(folder_of_url(where) / inbox_key(settings.device.id, "x"))
    elif inbox.upload and read_credentials(settings.store) is None:
        msg = "[inbox] upload: needs keys that may write there; name them in [store] access_key_file"
        raise DeviceError(msg)
    _check_private_labels(settings)
    waiting = len(kept_records(settings.device.state_dir / INBOX_DIR))
    return f"{waiting} frames are kept and {f'uploaded to {where}' if inbox.upload else 'not uploaded'}"


def _check_private_labels(settings: Settings) -> None:
    """Raise SettingsError if no release has one of the [inbox] never_labels."""
    folders = [folder for one in of_channels(settings) if (folder := _current_slot(one)) is not None]
    known = {label for folder in folders for label in read_release(folder).labels}
    if folders and (unknown := settings.inbox.private_labels() - known):
        msg = (
            f"[inbox] never_labels: no release here has {', '.join(sorted(unknown))}, so frames that "
            f"show it are kept; there are {', '.join(sorted(known)[:_LABELS_SHOWN])}"
        )
        raise SettingsError(msg)


def _check_release(settings: Settings) -> str:
    from edge_client.serving.activation import open_slot  # noqa: PLC0415

    folder = _current_slot(settings)
    if folder is None:
        return "none yet; `edge-client run` downloads it"
    open_slot(folder, settings.device.threads)
    return f"{folder.name} loads and runs"


def _current_slot(settings: Settings) -> Path | None:
    """Return the folder of the serving release; None without one."""
    from edge_client.update.slots import Slots  # noqa: PLC0415

    slots = Slots(settings.device.state_dir)
    return None if slots.current is None else slots.folder(slots.current)


def _check_json_lines(settings: Settings) -> str:
    path = Path(settings.sinks.json_lines)
    if not path.exists():
        return f"{path}: {_check_makeable(path)}"
    if path.is_dir() or not os.access(path, os.W_OK):
        msg = f"{path}: not a file that this user may write; change its owner, or [sinks] json_lines"
        raise DeviceError(msg)
    return f"{path}: writable"


def _check_action(settings: Settings) -> str:
    commands = [shlex.split(text) for text in (settings.action.on_command, settings.action.off_command)]
    programs = [command[0] for command in commands if command]
    if missing := [program for program in programs if shutil.which(program) is None]:
        msg = f"{', '.join(missing)}: no such program for this user; install it, or correct [action]"
        raise DeviceError(msg)
    _check_watched_labels(settings)
    return f"{', '.join(programs)}: found"


def _check_watched_labels(settings: Settings) -> None:
    """Raise SettingsError if a release is never sure of a watched label, so that it never switches on."""
    if settings.action.when_unsure == ACT:
        return
    for one in of_channels(settings):
        folder = _current_slot(one)
        document = None if folder is None else read_release(folder)
        if document is None or (point := document.operating_point) is None:
            continue
        thresholds = zip(document.labels, point.thresholds, strict=True)
        sure = {label for label, threshold in thresholds if threshold is not None}
        if never := sorted(set(document.labels).intersection(settings.action.names()) - sure):
            msg = (
                f"[action] labels: release {document.release} is never sure of {', '.join(never)}: no score "
                f"gives a precision of {point.precision:g}, so nothing switches on; give it more pictures, "
                f'or set when_unsure = "{ACT}"'
            )
            raise SettingsError(msg)


def _check_metrics(settings: Settings) -> str:
    import edge_client.reporting.metrics  # noqa: F401, PLC0415 - refused without the extra
    from edge_client.state_folder import daemon_runs  # noqa: PLC0415

    host, port = settings.metrics.host, settings.metrics.port
    if daemon_runs(settings.device.state_dir):
        return f"{host}:{port}: in use by the daemon"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(found[0][0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(found[0][4])
    except OSError as e:
        msg = f"[metrics] {host}:{port}: {e.strerror or e}; give a free port"
        raise SettingsError(msg) from e
    return f"{host}:{port}: free"
