"""Settings of the frame source, and of the frames kept for labelling."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from edge_client.contract.addresses import CAMERA_EXAMPLE, is_address, is_malformed, shown_address
from edge_client.settings.checks import (
    Section,
    failed,
    is_not_negative,
    is_positive,
    store_url_fault,
    wrong_choice,
)
from edge_client.settings.readers import Numbers  # noqa: TC001 - read by get_type_hints

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

KINDS = ("folder", "files", "pipe", "video", "picamera")
# What other programs call them.
_OTHER_WORDS = {
    **dict.fromkeys(("usb", "webcam", "camera", "v4l2", "rtsp", "http", "mjpeg", "stream"), "video"),
    **dict.fromkeys(("csi", "libcamera", "rpicam", "picamera2"), "picamera"),
    **dict.fromkeys(("directory", "watch", "dir"), "folder"),
    **dict.fromkeys(("file", "image", "images"), "files"),
    **dict.fromkeys(("stdin", "fifo"), "pipe"),
}


# Four printable characters, the last ones may be spaces: "Y16 ".
_PIXEL_FORMAT = re.compile(r"[!-~][ -~]{3}")

AFTER = ("keep", "delete", "move")


@dataclasses.dataclass(frozen=True)
class SourceSettings(Section):
    """Section [source].

    Attributes:
        kind: `folder` (watched for new files), `files` (each once, then the daemon ends), `pipe` (JPEG and
            PNG, one after the other), `video` (needs the extra `video`) or `picamera` (needs the extra
            `picamera`).
        path: folder: the folder, or one file that is replaced all the time. files: a file, a folder or a
            pattern such as `/data/*.jpg`. pipe: a named pipe, or `-` for standard input. video: a file, a
            camera's number or device, or an address. picamera: the camera's number; empty means 0.
        after: What happens to a file of a watched folder once its result is written. `keep` leaves it (it
            is classified again after a restart), `move` moves it to the subfolder `done/`, `delete` deletes
            it. A file that cannot be decoded is left, moved to `broken/`, or deleted, respectively; one that
            the daemon died at is left, or moved to `broken/`.
        recursive: Watch the subfolders of a watched folder too.
        settle_s: A file of a watched folder is read once it has not changed for so long, in seconds.
        frames_per_second: Limit on the frame rate; 0: no limit.
        width: Camera frames, pixels.
        height: Camera frames, pixels.
        pixel_format: Format to request from a USB camera, four letters; a camera without it gives what it
            has. Empty: the camera's own.
        region: Region of interest of each frame, `left, top, right, bottom` as shares from 0 to 1; empty: the
            whole frame.
        min_change_percent: A frame is skipped if less than this share of its area has changed since the last
            classified frame; 0: no frame is skipped.
        longest_still_s: Longest time without a classified frame, in seconds, however little changes.
    """

    kind: str = "folder"
    path: str = ""
    after: str = "keep"
    recursive: bool = False
    settle_s: float = 0.5
    frames_per_second: float = 0.0
    width: int = 640
    height: int = 480
    pixel_format: str = "MJPG"
    region: Numbers = ""
    min_change_percent: float = 0.0
    longest_still_s: float = 60.0

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        checks = (
            (is_not_negative(self.settle_s), f"settle_s {self.settle_s}: give seconds, 0 or more"),
            (
                is_not_negative(self.frames_per_second),
                f"frames_per_second {self.frames_per_second}: give 0 (no limit) or more",
            ),
            (
                min(self.width, self.height) >= 1,
                f"width and height {self.width}x{self.height}: give pixels, 1 or more",
            ),
            (
                not self.pixel_format or _PIXEL_FORMAT.fullmatch(self.pixel_format) is not None,
                f"pixel_format {self.pixel_format!r}: give four letters such as MJPG or YUYV, or nothing",
            ),
            (
                0 <= self.min_change_percent <= 100,
                f"min_change_percent {self.min_change_percent}: give 0 (all frames) to 100",
            ),
            (
                is_positive(self.longest_still_s),
                f"longest_still_s {self.longest_still_s}: give seconds, above 0",
            ),
        )
        return (
            *wrong_choice("kind", self.kind, KINDS, _OTHER_WORDS),
            *wrong_choice("after", self.after, AFTER),
            *self._path_faults(),
            *failed(*checks),
            *region_faults(self.region),
        )

    def _path_faults(self) -> tuple[str, ...]:
        shown = shown_address(self.path)
        only_videos = (
            f'path {shown!r}: is an address, which kind = "video" reads; give the path of the {self.kind}'
        )
        malformed = f"path {shown!r}: write an address as {CAMERA_EXAMPLE}, a path with / in front"
        return failed(
            (self.kind in {"video", "picamera"} or not is_address(self.path), only_videos),
            (self.kind != "video" or not is_malformed(self.path), malformed),
            (
                bool(self.path) or self.kind == "picamera",
                f"path is empty: name the file, folder, pipe or camera of the {self.kind} source",
            ),
            (
                self.kind != "picamera" or (self.path or "0").isdecimal(),
                f"path {shown!r}: give the camera's number, or leave it empty",
            ),
        )


_SMALLEST_MAX_BYTES = 100_000
_SMALLEST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class InboxSettings(Section):
    """Section [inbox].

    Attributes:
        unsure: Frames that the serving release is not sure of are kept, see `OperatingPoint`.
        unsure_below: Frames classified with less confidence are kept too, and those that the release is not
            sure of; 0: no frame is kept for its confidence.
        disagreements: Keep frames for which the shadow release predicts another label than the serving one.
        per_hour: Limit on kept frames per hour, evenly spread.
        max_bytes: Limit on the size of all kept frames; the oldest are deleted first.
        keep_days: Older frames are deleted, see `inbox/ages.py`.
        longest_side: Frames are scaled down so that their longer side has at most so many pixels.
        never_labels: A frame that may show one of these labels is never kept.
        upload: Upload kept frames to the store.
        upload_s: Time between uploads.
        base_url: Address of the inbox; empty: the store's.
    """

    unsure: bool = False
    unsure_below: float = 0.0
    disagreements: bool = False
    per_hour: float = 20.0
    max_bytes: int = 50_000_000
    keep_days: float = 14.0
    longest_side: int = 640
    never_labels: tuple[str, ...] = ()
    upload: bool = False
    upload_s: float = 900.0
    base_url: str = ""

    @property
    def keeps(self) -> bool:
        """Whether any frame is ever kept."""
        return self.unsure_frames or self.disagreements

    @property
    def unsure_frames(self) -> bool:
        """Whether frames that a release is not sure of are kept."""
        return self.unsure or self.unsure_below > 0

    def private_labels(self) -> frozenset[str]:
        """Return the labels that no kept frame may show."""
        return frozenset(self.never_labels)

    def faults(self) -> tuple[str, ...]:
        """See `Section.faults`."""
        wanted = "http(s)://host/bucket/prefix, file:///folder, or nothing"
        fault = store_url_fault(self.base_url, wanted) if self.base_url else ""
        return failed(
            (0 <= self.unsure_below <= 1, "unsure_below: 0 to 1"),
            (is_positive(self.per_hour), "per_hour: above 0"),
            (self.max_bytes >= _SMALLEST_MAX_BYTES, f"max_bytes: {_SMALLEST_MAX_BYTES} or more"),
            (is_positive(self.keep_days), "keep_days: above 0"),
            (self.longest_side >= _SMALLEST_SIDE, f"longest_side: {_SMALLEST_SIDE} or more"),
            (is_positive(self.upload_s), "upload_s: above 0"),
            (not fault, f"base_url {shown_address(self.base_url)!r}: {fault}"),
        )


@dataclasses.dataclass(frozen=True)
class Region:
    """Part of a frame, as shares of its width and height in [0, 1]."""

    left: float
    top: float
    right: float
    bottom: float

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return this part of (H, W, 3) pixels, at least one pixel."""
        height, width = pixels.shape[:2]
        top, left = min(int(self.top * height), height - 1), min(int(self.left * width), width - 1)
        bottom, right = round(self.bottom * height), round(self.right * width)
        return pixels[top : max(bottom, top + 1), left : max(right, left + 1)]


def read_region(text: str) -> Region | None:
    """Parse `left, top, right, bottom`; empty: no region.

    Raises: ValueError with the way out.
    """
    if not text.strip():
        return None
    try:
        region = Region(*(float(part) for part in text.split(",")))
    except (TypeError, ValueError):
        region = Region(0, 0, 0, 0)
    if not (0 <= region.left < region.right <= 1 and 0 <= region.top < region.bottom <= 1):
        msg = f'region {text!r}: give "left, top, right, bottom" from 0 to 1, e.g. "0.25, 0, 0.75, 1"'
        raise ValueError(msg)
    return region


def region_faults(text: str) -> tuple[str, ...]:
    """Return the message of `read_region` for a text that it refuses, else nothing."""
    try:
        read_region(text)
    except ValueError as e:
        return (str(e),)
    return ()
