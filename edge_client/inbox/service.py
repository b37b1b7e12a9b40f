"""Inbox of the daemon: keep frames worth labelling, and upload them at intervals."""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import InboxMetrics
from edge_client.inbox.keeper import FrameKeeper
from edge_client.inbox.selection import INBOX_DIR, why_keep
from edge_client.inbox.upload import upload_in_child

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inbox.selection import ChannelAnswer
    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)

# Devices that were switched on at the same time must not upload at the same time.
_JITTER = 0.5


class Inbox:
    """Keeps and uploads frames in two threads, which may lag behind without harm."""

    def __init__(self, settings: Settings) -> None:
        """Start the threads that keep frames and, if enabled, upload them."""
        self._settings = settings
        self._keeper = FrameKeeper(
            settings.inbox,
            settings.device.state_dir / INBOX_DIR,
            min_free_bytes=settings.update.min_free_bytes,
        )
        self._uploaded = 0
        self._error: str | None = None
        self._chance = random.Random()  # noqa: S311 - no secret
        self._stop = threading.Event()
        self._uploads = threading.Thread(target=self._upload_now_and_then, name="uploads", daemon=True)
        if settings.inbox.upload:
            self._uploads.start()

    @property
    def alive(self) -> bool:
        """Whether the threads are alive."""
        return self._keeper.alive and (self._uploads.is_alive() or not self._settings.inbox.upload)

    def consider(self, pixels: NDArray[np.uint8], answers: Sequence[ChannelAnswer]) -> None:
        """Keep a frame if it is worth labelling; never waits.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            answers: One for each channel that serves. Leave the frame out where one is missing: its
                release might see a private label.
        """
        if (found := why_keep(self._settings.inbox, answers)) is not None:
            why, answer = found
            self._keeper.keep(pixels, answer.result, why)

    def live_fields(self) -> dict[str, Any]:
        """Return the status fields of the inbox; reads no disk."""
        metrics = InboxMetrics(waiting=self._keeper.kept, uploaded=self._uploaded, error=self._error)
        return {"inbox": metrics}

    def close(self) -> None:
        """End the threads; an interrupted upload continues at the next start."""
        self._stop.set()
        self._keeper.close()

    def _upload_now_and_then(self) -> None:
        interval_s = self._settings.inbox.upload_s
        while not self._stop.wait(interval_s * self._chance.uniform(1 - _JITTER, 1)):
            try:
                if self._keeper.count():
                    self._upload()
                    self._keeper.count()
            except Exception:
                # The frames stay on the disk, and the next upload tries again.
                logger.exception("upload for labelling failed")

    def _upload(self) -> None:
        try:
            report = upload_in_child(self._settings)
        except DeviceError as e:
            error: str | None = str(e)
        else:
            self._uploaded += report.uploaded
            error = report.error
        if error is not None and error != self._error:
            logger.warning("upload for labelling failed: %s", error)
        self._error = error
