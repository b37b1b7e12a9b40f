"""The daemon's inbox: which frames are worth labelling, kept and brought to the store now and then."""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import InboxFigures
from edge_client.inbox import INBOX_DIR, why_keep
from edge_client.inbox.keeper import FrameKeeper, kept_records
from edge_client.inbox.upload import upload_in_child

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_client.contract.messages import Result
    from edge_client.inference.classifier import Classification
    from edge_client.settings import Settings

logger = logging.getLogger(__name__)

# A fleet that was switched on at one moment must not upload at one moment.
_JITTER = 0.5


class Inbox:
    """Takes frames from the daemon; both of its threads may lag behind without harm."""

    def __init__(self, settings: Settings) -> None:
        """Start to keep, and to upload where that is wanted."""
        self._settings = settings
        self._folder = settings.device.state_dir / INBOX_DIR
        self._keeper = FrameKeeper(
            settings.inbox, self._folder, min_free_bytes=settings.update.min_free_bytes
        )
        self._uploaded = 0
        self._error: str | None = None
        self._stop = threading.Event()
        self._uploads = threading.Thread(target=self._upload_now_and_then, name="uploads", daemon=True)
        if settings.inbox.upload:
            self._uploads.start()

    def consider(
        self, pixels: NDArray[np.uint8], answer: Classification, result: Result, *, disagreed: bool
    ) -> None:
        """Keep a frame, (H, W, 3) uint8 RGB, if it is worth labelling; never waits."""
        scores = dict(zip(answer.labels, map(float, answer.scores), strict=True))
        why = why_keep(self._settings.inbox, scores, answer.confidence, disagreed=disagreed)
        if why is not None:
            self._keeper.take(pixels, result, why)

    def moment(self) -> dict[str, Any]:
        """Return what the status says of it."""
        waiting = len(kept_records(self._folder))
        return {"inbox": InboxFigures(waiting=waiting, uploaded=self._uploaded, error=self._error)}

    def close(self) -> None:
        """End; an upload on its way goes on at the next start."""
        self._stop.set()
        self._keeper.close()

    def _upload_now_and_then(self) -> None:
        interval_s = self._settings.inbox.upload_s
        while not self._stop.wait(interval_s * random.uniform(1 - _JITTER, 1)):  # noqa: S311 - no secret
            if kept_records(self._folder):
                self._upload()

    def _upload(self) -> None:
        try:
            report = upload_in_child(self._settings)
        except DeviceError as e:
            error: str | None = str(e)
        else:
            self._uploaded += report.uploaded
            error = report.error
        if error is not None and error != self._error:
            logger.warning("no upload for labelling: %s", error)
        self._error = error
