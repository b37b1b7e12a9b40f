"""Source of video files, USB cameras and RTSP streams, through OpenCV."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol, cast

from edge_client.contract.addresses import shown_address
from edge_client.contract.errors import DeviceError
from edge_client.sources.driver import SILENT_S, DriverWatch
from edge_client.sources.newest import NewestFrame
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Generator, Iterator

    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


class _Capture(Protocol):
    """Part of `cv2.VideoCapture` that is used here."""

    def isOpened(self) -> bool: ...  # noqa: N802 - OpenCV's name
    def set(self, number: int, value: float) -> bool: ...
    def grab(self) -> bool: ...
    def read(self) -> tuple[bool, NDArray[np.uint8]]: ...
    def release(self) -> None: ...


class VideoSource:
    """Frames of a video file, once, or of a camera or stream, without end.

    A camera or stream that stops is opened again, with growing pauses; without a frame for `silent_s` it is
    faulty.
    """

    def __init__(
        self,
        path: str,
        *,
        width: int = 640,
        height: int = 480,
        pace: Pace | None = None,
        driver: DriverWatch | None = None,
        first_pause_s: float = _FIRST_PAUSE_S,
        silent_s: float = SILENT_S,
    ) -> None:
        """Prepare to read.

        Args:
            path: A file, a camera's number, or a URL.
            width: Width to request from a camera, pixels.
            height: Height to request from a camera, pixels.
            pace: Limit on the frame rate.
            driver: Watches the calls of OpenCV.
            first_pause_s: Pause before a camera that stopped is opened again; doubles up to a minute.
            silent_s: Seconds without a frame after which a camera is faulty.
        Raises: DeviceError if OpenCV is not installed.
        """
        self._cv2 = _import_opencv()
        self._path = path
        self._camera = int(path) if path.isdecimal() else None
        self._live = self._camera is not None or "://" in path
        self._size = (width, height)
        self._pace = pace or Pace()
        self._driver = driver or DriverWatch()
        self._first_pause_s = first_pause_s
        self._silent_s = silent_s

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; DeviceError also if a camera is silent for too long."""
        capture: _Capture | None = self._open()
        seen_at = time.monotonic()
        while capture is not None:
            read = self._read_newest if "://" in self._path else self._read
            with contextlib.closing(read(capture, stop)) as frames:
                for frame in frames:
                    yield frame
                    seen_at = time.monotonic()
            capture = self._reopen(stop, seen_at + self._silent_s) if self._live else None

    def _open(self) -> _Capture:
        with self._driver:
            opened = self._cv2.VideoCapture(self._path if self._camera is None else self._camera)
        capture = cast("_Capture", opened)
        if not capture.isOpened():
            capture.release()
            msg = f"{self._name()}: cannot be opened; check path and cable, and that no other program uses it"
            raise DeviceError(msg)
        if self._camera is not None:
            capture.set(self._cv2.CAP_PROP_FRAME_WIDTH, self._size[0])
            capture.set(self._cv2.CAP_PROP_FRAME_HEIGHT, self._size[1])
        if self._live:
            capture.set(self._cv2.CAP_PROP_BUFFERSIZE, 1)  # the newest frame, not the oldest
        return capture

    def _reopen(self, stop: threading.Event, deadline: float) -> _Capture | None:
        """Open the camera again, trying until `deadline` (monotonic seconds); None if `stop` was set before.

        Raises: DeviceError at the deadline.
        """
        pause_s = self._first_pause_s
        while not stop.wait(min(pause_s, max(deadline - time.monotonic(), 0))):
            if time.monotonic() >= deadline:
                raise self._silent_error()
            try:
                return self._open()
            except DeviceError as e:
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
                logger.warning("%s; next try in %.0f s", e, pause_s)
        return None

    def _silent_error(self) -> DeviceError:
        return DeviceError(
            f"{self._name()}: no picture for {self._silent_s:g} s; check its power, cable and network. It is "
            "opened again"
        )

    def _read(self, capture: _Capture, stop: threading.Event) -> Generator[Frame, None, None]:
        """Yield frames until the capture ends; release it then."""
        try:
            while not stop.is_set():
                self._skip(capture, stop)
                if not self._pace.wait(stop):
                    return
                frame = self._grab_frame(capture)
                if frame is None:
                    if self._live:
                        logger.warning("%s: no more frames; opening it again", self._name())
                    return
                yield Frame(self._name(), self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB))
        finally:
            self._release(capture)

    def _read_newest(self, capture: _Capture, stop: threading.Event) -> Generator[Frame, None, None]:
        """Yield the newest frame of a stream each time, until the stream ends.

        Raises: DeviceError if the decoder hangs.
        """
        stream = NewestFrame(
            functools.partial(self._grab_frame, capture), functools.partial(self._release, capture)
        )
        try:
            while self._pace.wait(stop) and (frame := stream.read(stop, self._silent_s)) is not None:
                yield Frame(self._name(), self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB))
        except TimeoutError as e:
            raise self._silent_error() from e
        finally:
            stream.close()
        if not stop.is_set():
            logger.warning("%s: no more frames; opening it again", self._name())

    def _grab_frame(self, capture: _Capture) -> NDArray[np.uint8] | None:
        """Wait for a frame, (H, W, 3) uint8 BGR; None at the end."""
        with self._driver:
            found, frame = capture.read()
        return frame if found else None

    def _release(self, capture: _Capture) -> None:
        with self._driver:
            capture.release()

    def _skip(self, capture: _Capture, stop: threading.Event) -> None:
        """Discard frames of a camera that come too early; otherwise they queue up and the delay grows."""
        while self._live and self._pace.left_s() > 0 and not stop.is_set():
            with self._driver:
                grabbed = capture.grab()
            if not grabbed:
                return

    def _name(self) -> str:
        """Return the name for results and errors, without what may be secret of an address."""
        return f"camera-{self._camera}" if self._camera is not None else shown_address(self._path)


def _import_opencv() -> Any:  # noqa: ANN401 - OpenCV has no types
    try:
        import cv2  # noqa: PLC0415 - an extra
    except ImportError as e:
        msg = f"video needs OpenCV: pip install edge-fleet[video] ({e})"
        raise DeviceError(msg) from e
    return cv2
