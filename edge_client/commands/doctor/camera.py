"""Check the source of the frames: the folder, or the camera's first picture."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError, EdgeError

if TYPE_CHECKING:
    from edge_client.settings.file import Settings
    from edge_client.sources.source import Source

CAMERAS = {"video", "picamera"}
# Longest time for a camera's first frame.
CAMERA_S = 15.0


def check_source(settings: Settings) -> str:
    from edge_client.sources.opening import open_source  # noqa: PLC0415
    from edge_client.state_folder import daemon_runs  # noqa: PLC0415

    source = settings.source
    found = f"{source.kind} {shown_address(source.path)}".strip()
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
