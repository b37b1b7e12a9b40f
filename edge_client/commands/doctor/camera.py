"""Check the source of the frames: the folder and what is in it, or the camera's first picture."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError, EdgeError

if TYPE_CHECKING:
    from edge_client.settings.file import Settings
    from edge_client.settings.frames import SourceSettings
    from edge_client.sources.source import Source

CAMERAS = {"video", "picamera"}
# Longest time for a camera's first frame.
CAMERA_S = 15.0


def check_source(settings: Settings) -> str:
    """Open the source, where no daemon holds it, and look at a first picture. Raises: DeviceError."""
    from edge_client.sources.files import find_pictures  # noqa: PLC0415
    from edge_client.sources.opening import open_source  # noqa: PLC0415
    from edge_client.sources.pipe import PicturePipe  # noqa: PLC0415
    from edge_client.state_folder import daemon_runs  # noqa: PLC0415

    source = settings.source
    found = f"{source.kind} {shown_address(source.path)}".strip()
    if source.kind == "folder":
        return f"{found}: {_survey(source)}"
    opened = open_source(source)
    if source.kind == "files":
        return f"{found}: {len(find_pictures(source.path))} files"
    if source.kind == "pipe":
        PicturePipe(source.path).check()
    if source.kind not in CAMERAS:
        return found
    # Several may watch a stream; a camera of this machine has one reader.
    if (name := _name_of_camera(source)) and daemon_runs(settings.device.state_dir):
        return f"{found}: {_ask_daemon(settings, name)}"
    size = _first_frame(opened)
    given = getattr(opened, "given_format", "")
    return f"{found}: gives {size} pixels{f' ({given})' if given else ''}"


def _survey(source: SourceSettings) -> str:
    """Return what is in a watched folder. Raises: DeviceError if it cannot be watched."""
    from edge_client.sources.folder import WatchedFolder  # noqa: PLC0415
    from edge_client.sources.passed_over import PassedOver  # noqa: PLC0415

    folder, silent = Path(source.path).expanduser(), PassedOver(logs=False)
    return WatchedFolder(folder, after=source.after, recursive=source.recursive, passed_over=silent).survey()


def _name_of_camera(source: SourceSettings) -> str:
    """Return how results name a camera of this machine; "" for a file or a stream."""
    from edge_client.sources.v4l2 import is_video_device  # noqa: PLC0415

    if source.kind == "picamera":
        return f"picamera-{source.path or 0}"
    if source.path.isdecimal():
        return f"camera-{source.path}"
    return source.path if "://" not in source.path and is_video_device(source.path) else ""


def _ask_daemon(settings: Settings, name: str) -> str:
    """Return what the daemon that holds a camera says of it. Raises: DeviceError with its fault."""
    from edge_client.reporting.status import read_status  # noqa: PLC0415

    fault = None
    with contextlib.suppress(EdgeError):  # the daemon has written none yet
        fault = read_status(settings.device.state_dir).last_error
    if fault is not None and fault.startswith(name):
        msg = f"the daemon says: {fault}"
        raise DeviceError(msg)
    return "in use by the daemon; stop it to test the camera"


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
