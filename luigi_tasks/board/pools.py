"""Threads for what blocks: a few for each part of the board, so that one that hangs holds up no other.

A page waits for a while and then says what did not answer; the thread goes on, and counts as taken until it
ends. Threads are daemons: a store that hangs keeps no process from its end.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from edge_client.contract.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

THREADS, WAITING = 4, 64
# A page waits so long for what is away, and so long for what it changes.
READ_S, ACT_S = 8.0, 60.0


class Pool:
    """Threads of one part.

    Args:
        name: The part, for messages.
        threads: Number of threads; they start when they are needed.
        waiting: So many may wait for one.
    """

    def __init__(self, name: str, threads: int = THREADS, waiting: int = WAITING) -> None:
        self._name = name
        self._threads = threads
        self._started = 0
        self._unfinished = 0
        self._lock = threading.Lock()
        self._jobs: queue.Queue[tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[[], Any]]]
        self._jobs = queue.Queue(waiting)

    async def run(self, work: Callable[[], T], limit_s: float) -> T:
        """Return what a function that blocks returns.

        Args:
            work: The function.
            limit_s: Time to wait for it, seconds.
        Raises: TransportError if it takes longer, or all threads are taken by others.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        try:
            self._jobs.put_nowait((loop, future, work))
        except queue.Full:
            waiting = self._jobs.maxsize
            msg = f"the board is busy: {waiting} requests wait for {self._name} already; try again soon"
            raise TransportError(msg) from None
        self._start_one_more()
        try:
            return await asyncio.wait_for(future, limit_s)
        except asyncio.TimeoutError:
            msg = (
                f"{self._name} took over {limit_s:g} s: the store or luigid does not answer, or slowly; "
                "load the page again, or ask on the board's machine: edge-fleet doctor"
            )
            raise TransportError(msg) from None

    def _start_one_more(self) -> None:
        with self._lock:
            self._unfinished += 1
            if self._unfinished <= self._started or self._started >= self._threads:
                return
            self._started += 1
        threading.Thread(target=self._serve, name=f"board {self._name}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            loop, future, work = self._jobs.get()
            if not future.cancelled():  # else nobody waits any more
                try:
                    result = work()
                except BaseException as e:  # noqa: BLE001 - told by who waits
                    self._tell(loop, future, None, e)
                else:
                    self._tell(loop, future, result, None)
            with self._lock:
                self._unfinished -= 1

    @staticmethod
    def _tell(
        loop: asyncio.AbstractEventLoop,
        future: asyncio.Future[Any],
        result: Any,  # noqa: ANN401 - of any work
        error: BaseException | None,
    ) -> None:
        def tell() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        try:
            loop.call_soon_threadsafe(tell)
        except RuntimeError:  # the board ended meanwhile
            return
