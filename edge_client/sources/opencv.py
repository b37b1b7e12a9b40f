"""OpenCV: its import, its backends, and the properties of a capture that are used here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Protocol

from edge_client.contract.errors import DeviceError
from edge_client.sources.library import NUMPY_MISMATCH, import_library

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Of cv::VideoCaptureProperties.
WIDTH, HEIGHT, PIXEL_FORMAT, BUFFER_SIZE = 3, 4, 6, 38

# Both write addresses with their passwords to standard error, past this program's log. Who wants to see that
# sets the variables: 16 is FFmpeg's level of errors.
_QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}

_INSTALL = (
    "run scripts/install-device again, or pip install edge-fleet[video] (where the system's is used: "
    "apt install python3-opencv)"
)
_FOR_ANOTHER_NUMPY = (
    "this OpenCV was built for another NumPy: pip install --upgrade --force-reinstall "
    "opencv-python-headless, or, with the system's OpenCV, pip uninstall numpy"
)
_WITH_WINDOWS = (
    "this OpenCV is the one with windows: pip uninstall opencv-python opencv-contrib-python, then "
    "pip install --force-reinstall opencv-python-headless (or apt install libgl1 libglib2.0-0)"
)
# Libraries that a machine without a screen has not.
_OF_WINDOWS = (
    "libgl",
    "libgthread",
    "libglib",
    "libsm.",
    "libxext",
    "libxrender",
    "libice",
    "libqt",
    "libegl",
)
_REMEDIES = (
    (NUMPY_MISMATCH, _FOR_ANOTHER_NUMPY),
    (_OF_WINDOWS, _WITH_WINDOWS),
)


class Capture(Protocol):
    """Part of `cv2.VideoCapture` that is used here."""

    def isOpened(self) -> bool: ...  # noqa: N802 - OpenCV's name
    def set(self, number: int, value: float) -> bool: ...
    def get(self, number: int) -> float: ...
    def grab(self) -> bool: ...
    def read(self) -> tuple[bool, NDArray[np.uint8]]: ...
    def release(self) -> None: ...


def import_opencv() -> Any:  # noqa: ANN401 - OpenCV has no types
    """Import OpenCV, silent. Raises: DeviceError with the way out."""
    for name, level in _QUIET.items():
        os.environ.setdefault(name, level)
    otherwise = f"reinstall it: pip install --force-reinstall opencv-python-headless, or {_INSTALL}"
    cv2 = import_library("cv2", "video needs OpenCV", _INSTALL, _REMEDIES, otherwise)
    if not hasattr(cv2, "VideoCapture"):  # a folder of this name, left by an installation that failed
        msg = f"video needs OpenCV: {getattr(cv2, '__path__', 'cv2')} is none; {otherwise}"
        raise DeviceError(msg)
    return cv2


def choose_backend(cv2: Any, wanted: str) -> int | None:  # noqa: ANN401 - OpenCV has no types
    """Return the number of a backend (V4L2, FFMPEG, GSTREAMER); None if this OpenCV lacks it.

    Without a choice OpenCV tries one after the other, and tells what each thinks of the address.
    """
    try:
        number = int(getattr(cv2, f"CAP_{wanted}"))
        return number if cv2.videoio_registry.hasBackend(number) else None
    except Exception:  # noqa: BLE001 - old and reduced ones lack the registry: OpenCV chooses itself
        return None


def format_number(name: str) -> float:
    """Return the number of a pixel format such as MJPG."""
    return float(int.from_bytes(name.encode("ascii"), "little"))


def format_name(number: float) -> str:
    """Return the name of a pixel format; "" if it has none."""
    name = int(number).to_bytes(8, "little", signed=True)[:4].decode("latin-1").strip("\0 ")
    return name if name.isascii() and name.isprintable() else ""
