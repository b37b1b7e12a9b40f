"""Source of a Raspberry Pi camera, through picamera2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError
from edge_client.sources.driver import DriverWatch
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator


class PiCamera:
    """Frames of one camera, without end."""

    def __init__(
        self,
        number: int = 0,
        *,
        width: int = 640,
        height: int = 480,
        pace: Pace | None = None,
        driver: DriverWatch | None = None,
    ) -> None:
        """Prepare to read; `driver` watches the calls of picamera2 that may hang.

        Raises: DeviceError if picamera2 is not installed.
        """
        self._camera_class = _import_picamera2()
        self._number = number
        self._size = (width, height)
        self._pace = pace or Pace()
        self._driver = driver or DriverWatch()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; DeviceError also if the camera fails later."""
        name = f"picamera-{self._number}"
        try:
            with self._driver:
                camera = self._camera_class(self._number)
        except (RuntimeError, IndexError) as e:
            msg = f"{name}: cannot be opened: {e}; check the ribbon cable and `rpicam-hello --list-cameras`"
            raise DeviceError(msg) from e
        try:
            # libcamera names formats by their order in a little-endian word: BGR888 is R, G, B in memory.
            # Source: the Picamera2 manual, appendix A.
            with self._driver:
                camera.configure(camera.create_video_configuration({"size": self._size, "format": "BGR888"}))
                camera.start()
            while self._pace.wait(stop):
                with self._driver:
                    pixels = camera.capture_array("main")
                yield Frame(name, pixels)
        except RuntimeError as e:
            msg = f"{name}: failed: {e}; check the ribbon cable and the power supply"
            raise DeviceError(msg) from e
        finally:
            with self._driver:
                camera.close()


def _import_picamera2() -> Any:  # noqa: ANN401
    try:
        from picamera2 import Picamera2  # noqa: PLC0415
    except ImportError as e:
        msg = (
            "the Pi's camera needs picamera2: apt install python3-picamera2 (in a virtual environment with "
            f"--system-site-packages), or pip install edge-fleet[picamera] ({e})"
        )
        raise DeviceError(msg) from e
    return Picamera2
