"""Source of a Raspberry Pi camera, through picamera2."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError
from edge_client.sources.driver import DriverWatch
from edge_client.sources.library import NUMPY_MISMATCH, import_library
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

_INSTALL = (
    "apt install python3-picamera2, in an environment with the system's packages (python3 -m venv "
    "--system-site-packages …), as scripts/install-device makes it"
)
_FOR_ANOTHER_NUMPY = (
    "the system's picamera2 is built for the system's NumPy, and another one hides that: in this environment "
    "run pip uninstall numpy simplejpeg"
)
_REMEDIES = (
    (("picamera2.py", "is not a package"), "a file named picamera2.py hides the library; rename it"),
    (NUMPY_MISMATCH, _FOR_ANOTHER_NUMPY),
    (("'pykms'", "'kms'"), "apt install python3-kms++"),
    (("libcamera", "'pidng'", "'prctl'", "'v4l2'"), f"libcamera is the system's: {_INSTALL}"),
)
# Parts of what picamera2 and libcamera say, in lower case.
_IN_USE = ("busy", "acquire", "did not complete", "in use", "already")
_ABSENT = ("list index", "out of range", "no camera", "not detected")


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

        Raises: DeviceError if picamera2 cannot be imported.
        """
        self._camera_class = _import_picamera2()
        self._number = number
        self._size = (width, height)
        self._pace = pace or Pace()
        self._driver = driver or DriverWatch()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`; DeviceError also if the camera fails later."""
        camera = self._open()
        try:
            while self._pace.wait(stop):
                yield Frame(self._name, self._capture(camera))
        finally:
            self._close(camera)

    @property
    def _name(self) -> str:
        return f"picamera-{self._number}"

    def _open(self) -> Any:  # noqa: ANN401 - picamera2 has no types
        camera = None
        try:
            with self._driver:
                camera = self._camera_class(self._number)
                # libcamera names formats by their order in a little-endian word: BGR888 is R, G, B in memory.
                # Source: the Picamera2 manual, appendix A.
                main = {"size": self._size, "format": "BGR888"}
                camera.configure(camera.create_video_configuration(main))
                camera.start()
        except Exception as e:
            # libcamera, the kernel's driver and picamera2 raise whatever they like.
            if camera is not None:
                self._close(camera)
            msg = f"{self._name}: cannot be opened: {str(e) or type(e).__name__}; {_way_out(e)}"
            raise DeviceError(msg) from e
        return camera

    def _capture(self, camera: Any) -> Any:  # noqa: ANN401 - as above
        try:
            with self._driver:
                return camera.capture_array("main")
        except Exception as e:
            why = str(e) or type(e).__name__
            msg = f"{self._name}: failed: {why}; check the ribbon cable and the power supply"
            raise DeviceError(msg) from e

    def _close(self, camera: Any) -> None:  # noqa: ANN401 - as above
        try:
            with self._driver:
                camera.close()
        except Exception as e:  # noqa: BLE001 - the error before this one says more
            logger.warning("%s: cannot be closed: %s", self._name, e)


def _way_out(error: Exception) -> str:
    text = str(error).lower()
    if any(part in text for part in _ABSENT):
        return (
            "no such camera was found: check the ribbon cable, `rpicam-hello --list-cameras`, and "
            "camera_auto_detect=1 in /boot/firmware/config.txt"
        )
    if any(part in text for part in _IN_USE):
        return "another program uses it, or did and hangs: end that one (`sudo fuser -v /dev/media*`)"
    if isinstance(error, PermissionError) or "permission" in text:
        return "let the daemon's user into the group video (sudo usermod -aG video …)"
    return "check the ribbon cable and `rpicam-hello --list-cameras`"


def _import_picamera2() -> Any:  # noqa: ANN401 - as above
    otherwise = f"mend the installation: sudo apt full-upgrade, {_INSTALL}"
    what, install = "the Pi's camera needs picamera2", f"{_INSTALL}, with pip install edge-fleet[picamera]"
    module = import_library("picamera2", what, install, _REMEDIES, otherwise)
    try:
        return module.Picamera2
    except AttributeError as e:
        msg = f"the Pi's camera needs picamera2: {getattr(module, '__file__', module)} is another; {_INSTALL}"
        raise DeviceError(msg) from e
