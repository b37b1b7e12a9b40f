"""Settings of where frames come from, and of which are kept for labelling."""

from __future__ import annotations

import dataclasses
import math
from urllib.parse import urlsplit

from edge_client.settings.region import read_region

KINDS = ("folder", "files", "pipe", "video", "picamera")


AFTER = ("keep", "delete", "move")


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


_SMALLEST_MAX_BYTES = 100_000


_SMALLEST_SIDE = 32


@dataclasses.dataclass(frozen=True)
class InboxSettings:
    """Section [inbox].

    Attributes:
        unsure_below: Frames whose answer has less confidence are kept; 0: none is.
        disagreements: Keep frames on which a release beside the serving one says something else.
        per_hour: At most so many are kept, evenly spread.
        max_bytes: Of all that is kept; the oldest go first.
        keep_days: What is older is deleted.
        longest_side: Frames are scaled down to so many pixels.
        never_labels: Frames in which one of these may be seen are never kept; with commas between.
        upload: Bring them to the store.
        upload_s: Time between uploads.
        base_url: Address of the inbox; empty: the store's.
    """

    unsure_below: float = 0.0
    disagreements: bool = False
    per_hour: float = 20.0
    max_bytes: int = 50_000_000
    keep_days: float = 14.0
    longest_side: int = 640
    never_labels: str = ""
    upload: bool = False
    upload_s: float = 900.0
    base_url: str = ""

    @property
    def keeps(self) -> bool:
        """Whether any frame is ever kept."""
        return self.unsure_below > 0 or self.disagreements

    def private_labels(self) -> frozenset[str]:
        """Labels that must not be seen in a frame that is kept."""
        return frozenset(name for part in self.never_labels.split(",") if (name := part.strip()))

    def faults(self) -> tuple[str, ...]:
        """Say what is wrong with the settings; empty if nothing is."""
        url = urlsplit(self.base_url)
        checks = [
            (0 <= self.unsure_below <= 1, "unsure_below: 0 to 1"),
            (_is_positive(self.per_hour), "per_hour: above 0"),
            (self.max_bytes >= _SMALLEST_MAX_BYTES, f"max_bytes: {_SMALLEST_MAX_BYTES} or more"),
            (_is_positive(self.keep_days), "keep_days: above 0"),
            (self.longest_side >= _SMALLEST_SIDE, f"longest_side: {_SMALLEST_SIDE} or more"),
            (_is_positive(self.upload_s), "upload_s: above 0"),
            (
                not self.base_url or (url.scheme in {"http", "https"} and bool(url.hostname)),
                f"base_url {self.base_url!r}: give http(s)://host/bucket/prefix, or nothing",
            ),
        ]
        return tuple(message for holds, message in checks if not holds)


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0
