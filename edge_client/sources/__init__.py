"""Where pictures come from: a watched folder, a list of files, a pipe, a video or a camera."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import SettingsError
from edge_client.sources.region import read_region

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.sources.driver import DriverWatch

KINDS = ("folder", "files", "pipe", "video", "picamera")
AFTER = ("keep", "delete", "move")


def _nothing() -> None:
    """Do nothing: a camera's frame is gone by itself, a listed file stays."""


@dataclasses.dataclass(frozen=True)
class Frame:
    """One picture on its way to the classifier.

    Attributes:
        source: File name or camera name, for the result.
        pixels: (H, W, 3) uint8 RGB.
        done: Call once its result is written; a watched folder then moves or deletes the file. A frame
            that is never done comes again after a restart.
    """

    source: str
    pixels: NDArray[np.uint8]
    done: Callable[[], None] = _nothing


class Source(Protocol):
    """Gives one frame after the other."""

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Yield frames until `stop` is set or there are no more.

        May be called again after an error: a watched folder then goes on where it was.

        Raises: DeviceError if the folder or camera cannot be opened, or is gone for long.
        """
        ...


@dataclasses.dataclass(frozen=True)
class SourceSettings:
    """Which source, and how it is read.

    Attributes:
        kind: `folder` (watched for new files), `files` (each once, then the daemon ends), `pipe` (JPEG and
            PNG, one after the other), `video` (needs the extra `video`) or `picamera` (needs the extra
            `picamera`).
        path: folder: the folder. files: a file, a folder or a pattern such as `/data/*.jpg`. pipe: a named
            pipe, or `-` for standard input. video: a file, a camera's number or an RTSP URL. picamera: the
            camera's number; empty means 0.
        after: What happens to a file of a watched folder once its result is written. `keep` leaves it (it
            is classified again after a restart), `move` puts it into `done/` beside it, `delete` removes
            it. A file that is no picture stays, goes to `broken/`, or is removed, in this order.
        settle_s: A file of a watched folder is taken once it has not changed for so long, in seconds.
        frames_per_second: Takes at most so many; 0 means as many as come.
        width: Camera frames, pixels.
        height: Camera frames, pixels.
        region: The part of each frame that is looked at, `left, top, right, bottom` as shares from 0 to 1;
            empty: all of it.
        min_change_percent: Frames of which less than this share of the area has changed since the last one
            that was classified are skipped; 0: none is.
        longest_still_s: So long after the last one a frame is classified even so, in seconds.
    """

    kind: str = "folder"
    path: str = ""
    after: str = "keep"
    settle_s: float = 0.5
    frames_per_second: float = 0.0
    width: int = 640
    height: int = 480
    region: str = ""
    min_change_percent: float = 0.0
    longest_still_s: float = 60.0

    def faults(self) -> tuple[str, ...]:
        """Say what is wrong with the settings, each with its way out; empty if nothing is."""
        found = []
        if self.kind not in KINDS:
            found.append(f"kind {self.kind!r}: choose one of {', '.join(KINDS)}")
        if self.after not in AFTER:
            found.append(f"after {self.after!r}: choose one of {', '.join(AFTER)}")
        if not self.path and self.kind != "picamera":
            found.append(f"path is empty: say where the {self.kind} source is")
        if self.kind == "picamera" and not (self.path or "0").isdecimal():
            found.append(f"path {self.path!r}: give the camera's number, or leave it empty")
        if not (math.isfinite(self.settle_s) and self.settle_s >= 0):
            found.append(f"settle_s {self.settle_s}: give seconds, 0 or more")
        if not (math.isfinite(self.frames_per_second) and self.frames_per_second >= 0):
            found.append(f"frames_per_second {self.frames_per_second}: give 0 (no limit) or more")
        if min(self.width, self.height) < 1:
            found.append(f"width and height {self.width}x{self.height}: give pixels, 1 or more")
        return (*found, *self._attention_faults())

    def _attention_faults(self) -> list[str]:
        found = []
        if not 0 <= self.min_change_percent <= 100:
            found.append(f"min_change_percent {self.min_change_percent}: give 0 (all frames) to 100")
        if not (math.isfinite(self.longest_still_s) and self.longest_still_s > 0):
            found.append(f"longest_still_s {self.longest_still_s}: give seconds, above 0")
        try:
            read_region(self.region)
        except ValueError as e:
            found.append(str(e))
        return found


def open_source(settings: SourceSettings, driver: DriverWatch | None = None) -> Source:
    """Build the source that the settings name.

    Args:
        settings: Which one.
        driver: Is told of a camera's driver, which may hang; None: nobody asks.
    Raises: SettingsError with all faults; DeviceError if an extra is not installed.
    """
    faults = settings.faults()
    if faults:
        raise SettingsError("; ".join(f"[source] {fault}" for fault in faults))
    source = _open(settings, Pace(settings.frames_per_second), driver)
    region = read_region(settings.region)
    if region is None and settings.min_change_percent == 0:
        return source
    from edge_client.sources.attention import AttentiveSource  # noqa: PLC0415 - settings need no NumPy

    return AttentiveSource(
        source,
        region=region,
        min_change_percent=settings.min_change_percent,
        longest_still_s=settings.longest_still_s,
    )


def _open(settings: SourceSettings, pace: Pace, driver: DriverWatch | None) -> Source:
    # Each kind is imported where it is chosen: a Pi with a camera needs no OpenCV.
    if settings.kind == "folder":
        from edge_client.sources.folder import WatchedFolder  # noqa: PLC0415

        return WatchedFolder(
            Path(settings.path).expanduser(), after=settings.after, settle_s=settings.settle_s, pace=pace
        )
    if settings.kind == "files":
        from edge_client.sources.files import ImageFiles, find_pictures  # noqa: PLC0415

        return ImageFiles(find_pictures(settings.path), pace=pace)
    if settings.kind == "pipe":
        from edge_client.sources.pipe import PicturePipe  # noqa: PLC0415

        return PicturePipe(settings.path, pace=pace)
    if settings.kind == "video":
        from edge_client.sources.video import VideoSource  # noqa: PLC0415

        return VideoSource(
            settings.path, width=settings.width, height=settings.height, pace=pace, driver=driver
        )
    from edge_client.sources.picamera import PiCamera  # noqa: PLC0415

    return PiCamera(
        int(settings.path or 0), width=settings.width, height=settings.height, pace=pace, driver=driver
    )


class Pace:
    """Spaces frames in time, for those who want fewer than come."""

    def __init__(self, frames_per_second: float = 0.0) -> None:
        self._interval_s = 1 / frames_per_second if frames_per_second > 0 else 0.0
        self._next = 0.0

    def left_s(self) -> float:
        """Seconds until the next frame may be taken; 0 if it may be taken now."""
        return max(self._next - time.monotonic(), 0.0)

    def wait(self, stop: threading.Event) -> bool:
        """Wait for the next frame's turn and take it; False if `stop` was set before."""
        if stop.wait(self.left_s()) if self._interval_s else stop.is_set():
            return False
        self.take()
        return True

    def take(self) -> None:
        """A frame is taken now: the next one's turn is an interval later."""
        self._next = time.monotonic() + self._interval_s
