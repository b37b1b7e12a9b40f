"""Newest frame of a stream, so that a slow reader does not fall behind."""

from __future__ import annotations

import logging
import math
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


class NewestFrame:
    """Reads a stream in a thread of its own, and keeps only the newest frame.

    Frames queue up in the stream's decoder: a reader slower than the frame rate would fall further and
    further behind.
    """

    def __init__(self, read: Callable[[], NDArray[np.uint8] | None], close: Callable[[], None]) -> None:
        """Start the thread.

        Args:
            read: Waits for the next frame; returns None at the end of the stream.
            close: Called in the thread after the last frame.
        """
        self._read, self._close = read, close
        self._changed = threading.Condition()
        self._newest: NDArray[np.uint8] | None = None
        self._ended = False
        self._wanted = True
        threading.Thread(target=self._run, name="stream", daemon=True).start()

    def read(self, stop: threading.Event, limit_s: float = math.inf) -> NDArray[np.uint8] | None:
        """Wait for the newest frame not yet returned; None at the end of the stream or once `stop` is set.

        Raises: TimeoutError if no frame came for `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        with self._changed:
            while self._newest is None and not self._ended and not stop.is_set():
                if time.monotonic() >= deadline:
                    raise TimeoutError
                self._changed.wait(0.1)
            newest, self._newest = self._newest, None
            return newest

    def close(self) -> None:
        """Let the thread end after the frame that it waits for; do not wait for the thread."""
        self._wanted = False

    def _run(self) -> None:
        try:
            while self._wanted and (frame := self._read()) is not None:
                with self._changed:
                    self._newest = frame
                    self._changed.notify_all()
        except Exception:
            # A decoder may raise anything: the stream ends, and is opened again.
            logger.exception("the stream failed")
        finally:
            with self._changed:  # before `close`, which may fail or hang
                self._ended = True
                self._changed.notify_all()
        try:
            self._close()
        except Exception:
            # The stream is not read any more.
            logger.exception("the stream could not be closed")
