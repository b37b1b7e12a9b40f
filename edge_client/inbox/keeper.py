"""Keep frames on the disk, in a thread of its own: inference never waits for an SD card.

A frame is two files of one folder: `<name>.jpg` and, written last, its record `<name>.json`. A picture
without a record is incomplete.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import queue
import shutil
import threading
import time
from typing import TYPE_CHECKING

from PIL import Image

from edge_client.contract.averaging import average_blocks
from edge_client.contract.documents import encode_document
from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import InboxRecord
from edge_client.disk import disk_errors, write_durably
from edge_client.inbox.ages import FrameClock, read_clocks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.contract.messages import Result
    from edge_client.inbox.ages import Reading
    from edge_client.settings.frames import InboxSettings

logger = logging.getLogger(__name__)

_JPEG_QUALITY = 90
_DAY_S = 86400.0
# Longest time between two deletions of old frames, also where no frame comes.
_TIDY_S = 3600.0
_STOP_S = 2.0


class FrameKeeper:
    """Writes frames within the limits on size, rate and age."""

    def __init__(
        self,
        settings: InboxSettings,
        folder: Path,
        *,
        min_free_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
        clocks: Callable[[], Reading] = read_clocks,
    ) -> None:
        """Start the thread.

        Args:
            settings: Section [inbox].
            folder: Folder of the frames.
            min_free_bytes: Free space to leave on the disk.
            clock: Returns monotonic seconds.
            clocks: Returns what the age of frames depends on.
        """
        self._settings = settings
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._ages = FrameClock(folder, clocks)
        self._next = clock() + _rest_s(folder, self._interval_s)
        self._failing = False
        self._kept = 0
        self._waiting: queue.Queue[tuple[NDArray[np.uint8], Result, str] | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._run, name="inbox", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread is alive."""
        return self._thread.is_alive()

    @property
    def kept(self) -> int:
        """Number of frames on the disk as of the last count or write; reads no disk."""
        return self._kept

    def count(self) -> int:
        """Count the frames on the disk: another process may have uploaded some."""
        self._kept = len(kept_records(self._folder))
        return self._kept

    def keep(self, pixels: NDArray[np.uint8], result: Result, why: str) -> bool:
        """Queue a frame, (H, W, 3) uint8 RGB, if the rate limit allows it; never waits. True if queued."""
        now = self._clock()
        if now < self._next or self._waiting.full():
            return False
        self._next = now + self._interval_s
        self._waiting.put_nowait((pixels.copy(), result, why))  # a camera may reuse its buffer
        return True

    def close(self) -> None:
        """Write the queued frame, and end the thread."""
        with contextlib.suppress(queue.Full):
            self._waiting.put(None, timeout=_STOP_S)
        self._thread.join(_STOP_S)

    @property
    def _interval_s(self) -> float:
        return 3600 / self._settings.per_hour

    def _run(self) -> None:
        self._try(lambda: sweep(self._folder))
        self._try(self._tidy)
        while True:
            try:
                queued = self._waiting.get(timeout=_TIDY_S)
            except queue.Empty:
                self._try(self._tidy)
                continue
            if queued is None:
                if self._kept:
                    self._ages.save()
                return
            self._try(functools.partial(self._keep, *queued))
            del queued  # a large frame is not kept in memory until the next one comes

    def _try(self, act: Callable[[], None]) -> None:
        """Call `act`; log a failure, so that the next frame is tried whatever happens."""
        try:
            act()
        except DeviceError as e:
            if not self._failing:
                logger.warning("%s; frames for labelling are dropped until it works", e)
            self._failing = True
        except Exception:
            # Losing one frame is harmless; without the thread no frame would be kept, and none deleted.
            logger.exception("a frame for labelling is dropped")
        else:
            self._failing = False

    def _tidy(self) -> None:
        """Delete old frames."""
        self._make_room(0)

    def _keep(self, pixels: NDArray[np.uint8], result: Result, why: str) -> None:
        picture = to_jpeg(pixels, self._settings.longest_side)
        self._make_room(len(picture))
        self._check_free(len(picture))
        digest = hashlib.sha256(picture).hexdigest()
        name = f"{result.at[:19].replace('-', '').replace(':', '')}-{digest[:12]}"
        record = InboxRecord(
            device=result.device,
            picture=f"{name}.jpg",
            sha256=digest,
            why=why,
            label=result.label,
            confidence=result.confidence,
            sure=result.sure,
            top=result.top,
            release=result.release,
            channel=result.channel,
            at=result.at,
        )
        path = self._folder / f"{name}.json"
        try:
            write_durably(self._folder / record.picture, picture)
            write_durably(path, encode_document(record))
            self._ages.mark(path)
        except DeviceError:
            forget(path)  # a picture without a record is not counted against the limits
            raise
        self._kept += 1

    def _make_room(self, size_bytes: int) -> None:
        """Delete old frames, then the oldest until `size_bytes` more fit into the limit."""
        records = kept_records(self._folder)
        if not records and not size_bytes:
            self._kept = 0
            return
        oldest_s = self._ages.now_s() - self._settings.keep_days * _DAY_S
        # By age, then by name: names begin with a time that may have been wrong.
        kept = sorted((*self._written_and_size(path), path) for path in records)
        total = size_bytes + sum(size for _, size, _ in kept)
        left = len(kept)
        for written_s, size, path in kept:
            if written_s < oldest_s or total > self._settings.max_bytes:
                forget(path)
                total -= size
                left -= 1
        self._kept = left

    def _written_and_size(self, record: Path) -> tuple[float, int]:
        """Return when a frame was kept, see `FrameClock`, and the size of both files, in bytes."""
        try:
            size_bytes = record.stat().st_size + record.with_suffix(".jpg").stat().st_size
            return self._ages.written_s(record), size_bytes
        except FileNotFoundError:
            return float("-inf"), 0  # deleted meanwhile, or incomplete
        except OSError:
            return float("inf"), 0  # the disk fails: it may heal

    def _check_free(self, size_bytes: int) -> None:
        """Raise DeviceError unless a file of `size_bytes` leaves enough free space."""
        with disk_errors(self._folder):
            # The folder may not exist yet.
            free = shutil.disk_usage(self._folder if self._folder.is_dir() else self._folder.parent).free
        if free - size_bytes < self._min_free_bytes:
            msg = f"{self._folder}: {free} bytes free; make room ([update] min_free_bytes)"
            raise DeviceError(msg)


def kept_records(folder: Path) -> list[Path]:
    """Return the records of the frames in `folder`, oldest first: names begin with the time."""
    return sorted(folder.glob("*.json"))


def forget(record: Path) -> None:
    """Delete a frame, the record first: `sweep` deletes a picture without a record."""
    for path in (record, record.with_suffix(".jpg")):
        with contextlib.suppress(OSError):
            path.unlink()


def sweep(folder: Path) -> None:
    """Delete incomplete frames that a power cut left; never fails."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.suffix != ".json" and not path.with_suffix(".json").exists():
                path.unlink()


def to_jpeg(pixels: NDArray[np.uint8], longest_side: int) -> bytes:
    """Encode (H, W, 3) uint8 RGB as JPEG, scaled down to `longest_side` pixels where it is larger."""
    tile = min(max(pixels.shape) // (2 * longest_side), *pixels.shape[:2])
    if tile > 1:  # Pillow's copy of a large frame takes more memory than the frame
        pixels = average_blocks(pixels, tile, tile)
    image = Image.fromarray(pixels)
    image.thumbnail((longest_side, longest_side))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=_JPEG_QUALITY)
    return data.getvalue()


def _rest_s(folder: Path, interval_s: float) -> float:
    """Return the seconds until a frame may be kept after a start, so that restarts do not raise the rate.

    The folder's mtime is the time at which a frame was last kept, or uploaded since.
    """
    try:
        since_s = time.time() - folder.stat().st_mtime
    except OSError:
        return 0.0  # no frame was kept yet
    # A clock that was set back meanwhile makes this negative.
    return interval_s - min(max(since_s, 0.0), interval_s)
