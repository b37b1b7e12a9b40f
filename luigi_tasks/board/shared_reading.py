"""One reading at a time for all who ask, in a thread of its own: who asks need not wait to its end."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class SharedReading(Generic[T]):
    """Who asks while a reading is on waits for that one, and may go away; the reading goes on.

    Args:
        name: Of the thread.
        read: Reads, and keeps what it read.
    """

    def __init__(self, name: str, read: Callable[[], T]) -> None:
        self._name = name
        self._read = read
        self._lock = threading.Lock()
        self._running: concurrent.futures.Future[T] | None = None

    def get(self, limit_s: float) -> T | None:
        """Return what is read; None if that takes longer than a limit. It raises what the reading raises."""
        with self._lock:
            running = self._running
            if running is None or running.done():
                running = self._running = concurrent.futures.Future()
                threading.Thread(target=self._run, args=(running,), name=self._name, daemon=True).start()
        try:
            return running.result(limit_s)
        except concurrent.futures.TimeoutError:
            return None

    def _run(self, running: concurrent.futures.Future[T]) -> None:
        try:
            running.set_result(self._read())
        except BaseException as e:  # noqa: BLE001 - raised by who waits
            running.set_exception(e)
