"""Source of video files, USB cameras and network streams, through OpenCV."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import time
from typing import TYPE_CHECKING, Any, cast

from edge_client.contract.addresses import shown_address, with_escaped_user, without_secrets
from edge_client.contract.errors import DeviceError
from edge_client.contract.text import text_of
from edge_client.sources.driver import SILENT_S, DriverWatch
from edge_client.sources.newest import NewestFrame
from edge_client.sources.opencv import (
    BUFFER_SIZE,
    HEIGHT,
    PIXEL_FORMAT,
    WIDTH,
    choose_backend,
    format_name,
    format_number,
    import_opencv,
)
from edge_client.sources.source import Frame, Pace
from edge_client.sources.stream_faults import explain_stream
from edge_client.sources.v4l2 import explain_device, is_video_device

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.sources.opencv import Capture

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
# A camera's first frames may be black or green until its exposure is set.
_WARM_UP_S = 2.0
# A camera that is not released yet could not be opened again.
_RELEASE_S = 1.0
# Such a frame: black, or the green that zeros are in YUV. Levels of 255.
_DARK = 16
_GREEN = (100, 170)
_LOOKED_AT = 32  # pixels of each side


class VideoSource:
    """Frames of a video file, once, or of a camera or stream, without end.

    A camera or stream that stops is opened again, with growing pauses; without a frame for `silent_s` it is
    faulty. Of both the newest frame is taken, however slow the reader is.

    Attributes:
        given_format: Format of the last camera or stream that gave a frame, e.g. MJPG; "" if it has no name.
    """

    def __init__(
        self,
        path: str,
        *,
        width: int = 640,
        height: int = 480,
        pixel_format: str = "MJPG",
        pace: Pace | None = None,
        driver: DriverWatch | None = None,
        first_pause_s: float = _FIRST_PAUSE_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """Prepare to read.

        Args:
            path: A file, a camera's number or device (`/dev/video0`, `/dev/v4l/by-id/…`), or an address.
            width: Width to request from a camera, pixels.
            height: Height to request from a camera, pixels.
            pixel_format: Four letters, to request from a camera; a camera without it gives what it has.
                Empty: the camera's own.
            pace: Limit on the frame rate.
            driver: Watches the calls of OpenCV.
            first_pause_s: Pause before a camera that stopped is opened again; doubles up to a minute.
            silent_s: Seconds without a frame after which a camera is faulty.
        Raises: DeviceError if OpenCV cannot be imported.
        """
        self._cv2 = import_opencv()
        self._path = with_escaped_user(_with_plain_scheme(path))
        self._number = int(path) if path.isdecimal() else None
        self._is_stream = (" ! " in path or "://" in path) and not path.startswith("file:")
        self._is_camera = self._number is not None or (not self._is_stream and is_video_device(path))
        # For results and errors: without what may be secret of an address.
        self._name = text_of(shown_address(self._path)) if self._number is None else f"camera-{self._number}"
        self._live = self._is_camera or self._is_stream
        self._size = (width, height)
        self._pixel_format = pixel_format
        self._pace = pace or Pace()
        self._driver = driver or DriverWatch()
        self._first_pause_s = first_pause_s
        self._silent_s = silent_s
        self._backend = "GSTREAMER" if " ! " in path else "V4L2" if self._is_camera else "FFMPEG"
        self._given = (0, 0)
        self.given_format = ""
        self._said_single = False

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; DeviceError also if a camera is silent for too long."""
        capture: Capture | None = self._open()
        seen_at = time.monotonic()
        while capture is not None:
            read = self._read_newest if self._live else self._read
            count = 0
            with contextlib.closing(read(capture, stop)) as frames:
                for frame in frames:
                    yield frame
                    count, seen_at = count + 1, time.monotonic()
            if not self._live:
                return
            if count == 1 and self._is_stream:  # the address of a snapshot
                self._say_single()
                stop.wait(self._pace.left_s())
                seen_at = time.monotonic()
            elif not stop.is_set():
                logger.warning("%s: no more frames; opening it again", self._name)
            capture = self._reopen(stop, seen_at + self._silent_s)

    def _open(self) -> Capture:
        """Open file, camera or stream. Raises: DeviceError that says why it cannot be opened."""
        try:
            with self._driver:
                capture = cast("Capture", self._capture())
                if capture.isOpened():
                    self._prepare(capture)
                    return capture
                capture.release()
        except Exception as e:  # noqa: BLE001 - OpenCV and drivers raise whatever they like
            msg = f"{self._name}: cannot be opened: {type(e).__name__}: {self._hide(str(e))}"
            raise DeviceError(msg) from None  # the cause names the address
        msg = f"{self._name}: cannot be opened: {self._explain()}"
        raise DeviceError(msg)

    def _capture(self) -> Any:  # noqa: ANN401 - OpenCV has no types
        target = self._path if self._number is None else self._number
        backend = choose_backend(self._cv2, self._backend) if self._live else None
        return self._cv2.VideoCapture(target) if backend is None else self._cv2.VideoCapture(target, backend)

    def _prepare(self, capture: Capture) -> None:
        """Ask a camera for format and size; the format first, which decides about the sizes there are."""
        if self._is_camera:
            if self._pixel_format:
                capture.set(PIXEL_FORMAT, format_number(self._pixel_format))
            capture.set(WIDTH, self._size[0])
            capture.set(HEIGHT, self._size[1])
        if self._live:
            capture.set(BUFFER_SIZE, 1)  # the newest frame, not the oldest
        with contextlib.suppress(Exception):  # only to be said
            self.given_format = format_name(capture.get(PIXEL_FORMAT))

    def _explain(self) -> str:
        """Return why OpenCV could not open what it was given, as far as that can be found out."""
        with self._driver:
            if self._is_camera:
                device = self._path if self._number is None else f"/dev/video{self._number}"
                found = explain_device(device)
            elif self._is_stream:
                found = explain_stream(self._path)
            else:
                found = _explain_file(self._path)
        if found:
            return found
        if choose_backend(self._cv2, self._backend) is None:
            package = (
                "python3-opencv of apt" if self._backend == "GSTREAMER" else "opencv-python-headless of pip"
            )
            return f"this OpenCV is built without {self._backend}; {package} has it"
        return "check path and cable, and that no other program uses it"

    def _reopen(self, stop: threading.Event, deadline: float) -> Capture | None:
        """Open the camera again, trying until `deadline` (monotonic seconds); None if `stop` was set before.

        Raises: DeviceError at the deadline.
        """
        pause_s, fault = self._first_pause_s, ""
        while not stop.wait(min(pause_s, max(deadline - time.monotonic(), 0))):
            if time.monotonic() >= deadline:
                raise self._silent_error(fault)
            try:
                return self._open()
            except DeviceError as e:
                pause_s, fault = min(pause_s * 2, _LONGEST_PAUSE_S), str(e)
                logger.warning("%s; next try in %.0f s", e, pause_s)
        return None

    def _silent_error(self, fault: str = "") -> DeviceError:
        why = fault.partition(": cannot be opened: ")[2] or "check its power, cable and network"
        return DeviceError(f"{self._name}: no picture for {self._silent_s:g} s; {why}. It is opened again")

    def _read(self, capture: Capture, stop: threading.Event) -> Generator[Frame, None, None]:
        """Yield the frames of a file; release it then."""
        try:
            while self._pace.wait(stop) and (frame := self._grab_frame(capture)) is not None:
                yield self._frame(frame)
        finally:
            self._release(capture)

    def _read_newest(self, capture: Capture, stop: threading.Event) -> Generator[Frame, None, None]:
        """Yield the newest frame of a camera or stream each time, until it ends.

        Raises: DeviceError if the driver or the decoder hangs.
        """
        # A stream's frames have to be decoded anyway, one after the other.
        skip = functools.partial(self._skip, capture) if self._is_camera else None
        read = functools.partial(self._grab_frame, capture)
        stream = NewestFrame(read, functools.partial(self._release, capture), skip)
        warm_at, blank = time.monotonic() + _WARM_UP_S, None
        try:
            while self._pace.wait(stop) and (frame := stream.read(stop, self._silent_s)) is not None:
                if time.monotonic() < warm_at and _is_blank(frame):
                    blank = frame
                    continue
                blank, warm_at = None, 0.0
                self._describe(frame)
                yield self._frame(frame)
            if blank is not None and not stop.is_set():  # a single picture, of the night
                yield self._frame(blank)
        except TimeoutError as e:
            raise self._silent_error() from e
        finally:
            stream.close(_RELEASE_S if self._is_camera else 0.0)

    def _frame(self, pixels: NDArray[np.uint8]) -> Frame:
        return Frame(self._name, self._cv2.cvtColor(pixels, self._cv2.COLOR_BGR2RGB))

    def _grab_frame(self, capture: Capture) -> NDArray[np.uint8] | None:
        """Wait for a frame, (H, W, 3) uint8 BGR; None at the end."""
        with self._driver:
            found, frame = capture.read()
        return frame if found else None

    def _skip(self, capture: Capture) -> bool:
        """Wait for a frame and drop it, without decoding it; False at the end."""
        with self._driver:
            return capture.grab()

    def _release(self, capture: Capture) -> None:
        with self._driver:
            capture.release()

    def _describe(self, frame: NDArray[np.uint8]) -> None:
        """Say once what a camera gives, which need not be what it was asked for."""
        height, width = frame.shape[:2]
        if self._given == (width, height):
            return
        self._given = width, height
        given = self.given_format
        as_asked = not self._is_camera or (width, height) == self._size
        asked = "" if as_asked else f", not the {self._size[0]}x{self._size[1]} that it was asked for"
        logger.info("%s: gives %dx%d%s%s", self._name, width, height, f" {given}" if given else "", asked)

    def _say_single(self) -> None:
        if not self._said_single:
            logger.info("%s: gives one picture at a time: it is asked again and again", self._name)
        self._said_single = True

    def _hide(self, text: str) -> str:
        """Return a message of OpenCV without the address, however odd that is."""
        return without_secrets(text.replace(self._path, self._name)) if self._is_stream else text


def _with_plain_scheme(path: str) -> str:
    """Return an address with its scheme in lower case, as FFmpeg wants it: a phone writes `Rtsp://`."""
    scheme, separator, rest = path.partition("://")
    return f"{scheme.lower()}{separator}{rest}" if separator and scheme.isalnum() else path


def _explain_file(path: str) -> str:
    """Return why a file cannot be opened, with the way out."""
    if os.path.isdir(path):  # noqa: PTH112 - a text that may be no path
        return 'it is a folder; for pictures set [source] kind = "folder"'
    if not os.path.exists(path):  # noqa: PTH110 - as above
        return "there is no such file; check [source] path"
    if not os.access(path, os.R_OK):
        return "this user may not read it; change its owner or rights"
    return "this OpenCV cannot decode it; convert it, for example to MP4 with H.264"


def _is_blank(frame: NDArray[np.uint8]) -> bool:
    """Whether a BGR frame shows nothing yet."""
    step = max(min(frame.shape[:2]) // _LOOKED_AT, 1)
    pixels = frame[::step, ::step]
    blue, green, red = (int(level) for level in pixels.max(axis=(0, 1)))
    if max(blue, red) > _DARK:
        return False
    return green <= _DARK or _GREEN[0] <= int(pixels[..., 1].min()) <= green <= _GREEN[1]
