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

    def __init__(
        self,
        read: Callable[[], NDArray[np.uint8] | None],
        close: Callable[[], None],
        skip: Callable[[], bool] | None = None,
    ) -> None:
        """Start the thread.

        Args:
            read: Waits for the next frame; returns None at the end of the stream.
            close: Called in the thread after the last frame.
            skip: Waits for the next frame and drops it, cheaper than `read`; returns False at the end of the
                stream. Called while nobody waits for a frame: the next one is not far. None: all are read.
        """
        self._read, self._close, self._skip = read, close, skip
        self._is_waited_for = False
        self._changed = threading.Condition()
        self._newest: NDArray[np.uint8] | None = None
        self._ended = False
        self._wanted = True
        self._thread = threading.Thread(target=self._run, name="stream", daemon=True)
        self._thread.start()

    def read(self, stop: threading.Event, limit_s: float = math.inf) -> NDArray[np.uint8] | None:
        """Wait for the newest frame not yet returned; None at the end of the stream or once `stop` is set.

        Raises: TimeoutError if no frame came for `limit_s`.
        """
        deadline = time.monotonic() + limit_s
        with self._changed:
            self._is_waited_for = True
            while self._newest is None and not self._ended and not stop.is_set():
                if time.monotonic() >= deadline:
                    raise TimeoutError
                self._changed.wait(0.1)
            newest, self._newest = self._newest, None
            self._is_waited_for = False
            return newest

    def close(self, limit_s: float = 0.0) -> None:
        """Let the thread end after the frame that it waits for; wait for that no longer than `limit_s`."""
        self._wanted = False
        self._thread.join(limit_s)

    def _take_one(self) -> bool:
        """Wait for one frame; return whether there was one."""
        if self._skip is not None and not self._is_waited_for:
            return self._skip()
        if (frame := self._read()) is None:
            return False
        with self._changed:
            self._newest = frame
            self._is_waited_for = False
            self._changed.notify_all()
        return True

    def _run(self) -> None:
        try:
            while self._wanted and self._take_one():
                pass
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
