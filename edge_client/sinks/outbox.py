"""Results on their way to the broker: none is lost in silence, and the thread of the frames never waits.

    put -> memory -> [disk, while the broker is away] -> sent -> acknowledged by the broker

A thread of its own sends in this order, a few at a time. Results leave the memory once the broker has
acknowledged them (QoS 1: a lost acknowledgement brings a result twice), or once they are durable on the
disk. What is neither when the daemon ends is written there, and sent after the next start.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import Result, SinkMetrics

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.sinks.kept import KeptResults

logger = logging.getLogger(__name__)

# In memory, beyond which results are dropped if the disk takes none either: about 1 MB.
MAX_WAITING, MAX_WAITING_BYTES = 2_000, 4_000_000
# So many are moved to the disk at once, when twice as many wait: one durable write wears out a card less.
KEPT_AT_ONCE, KEPT_AT_ONCE_BYTES = 500, 1_000_000
# While the broker is away, results do not wait in memory for longer, where a power cut would lose them.
KEPT_AFTER_S = 900.0
# Sent and not acknowledged. paho has 20 of them on the wire.
WINDOW = 100
# A disk that takes nothing is tried again after this time.
DISK_RETRY_S = 60.0
_LONGEST_WAIT_S = 10.0
# Limits on `close`: for the broker to take the rest, and for the disk to keep it.
FLUSH_S, KEEP_S = 1.5, 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class _Waiting:
    """A result that waits.

    Attributes:
        channel: Channel of its topic.
        payload: JSON of one line.
        safe: To be called once it is out or durable; None: it is durable already.
        file: Number of the file that it was read from; 0: none.
    """

    channel: str
    payload: bytes
    safe: Callable[[], None] | None
    file: int = 0


class Outbox:
    """Queue of results, and the thread that sends them."""

    def __init__(
        self,
        kept: KeptResults,
        *,
        send: Callable[[str, bytes], int | None],
        connected: Callable[[], bool],
        topic_of: Callable[[str], str],
    ) -> None:
        """Start the thread.

        Args:
            kept: Results on the disk; those of the last run are sent first.
            send: Sends (topic, payload), and returns a number that `acknowledged` gets later; None if that is
                not possible now.
            connected: Whether the broker is there.
            topic_of: Returns the topic for the results of a channel.
        """
        self._kept = kept
        self._send = send
        self._connected = connected
        self._topic_of = topic_of
        self._changing = threading.Lock()  # guards `_memory` and the counts; never held while sending
        self._memory: collections.deque[_Waiting] = collections.deque()
        self._memory_bytes = 0
        self._next: collections.deque[_Waiting] = collections.deque()  # older than all files and the memory
        self._sent: dict[int, _Waiting] = {}
        self._left: collections.Counter[int] = collections.Counter()  # unacknowledged results of each file
        self._acknowledged: collections.deque[int] = collections.deque()
        self._written = self._dropped = self._dropped_now = 0
        self._error: str | None = None
        self._disk_after = float("-inf")
        self._kept_at = time.monotonic()
        self._ending = False
        self._wake = threading.Event()
        if waiting := kept.results:
            logger.info("%d results of the last run wait for the broker", waiting)
        self._thread = threading.Thread(target=self._run, name="results", daemon=True)
        self._thread.start()

    def put(self, channel: str, payload: bytes, safe: Callable[[], None]) -> None:
        """Queue a result; never waits.

        Args:
            channel: Its channel.
            payload: Its JSON, without line breaks.
            safe: Called in another thread once the result is out or durable; never if it is lost.
        """
        with self._changing:
            full = len(self._memory) >= MAX_WAITING or self._memory_bytes >= MAX_WAITING_BYTES
            starts = full and not self._dropped_now
            if full:
                self._dropped += 1
                self._dropped_now += 1
            else:
                self._memory.append(_Waiting(channel, payload, safe))
                self._memory_bytes += len(payload)
        if starts:
            logger.warning("%d results wait for the broker; newer ones are dropped", self._unsent)
        self._wake.set()

    def acknowledged(self, number: int) -> None:
        """Note that the broker has a message, or that it was not one of these; takes no lock."""
        self._acknowledged.append(number)
        self._wake.set()

    def wake(self) -> None:
        """Try to send now: the broker is there again."""
        self._wake.set()

    def metrics(self) -> SinkMetrics:
        """Return the counts since start."""
        return SinkMetrics(
            written=self._written,
            unsent=self._unsent,
            kept=self._kept.results + sum(self._left.values()),
            dropped=self._dropped,
            error="newer results are dropped: too many wait for the broker"
            if self._dropped_now
            else self._error,
        )

    def close(self) -> None:
        """Send what waits, for a moment and while the broker is there, and keep the rest on the disk."""
        self._ending = True
        self._wake.set()
        self._thread.join(FLUSH_S + KEEP_S)
        if self._thread.is_alive():
            logger.error("%d results are neither sent nor kept: the disk hangs", self._unsent)

    @property
    def _unsent(self) -> int:
        return len(self._sent) + len(self._next) + self._kept.results + len(self._memory)

    @property
    def _crowded(self) -> bool:
        """Whether the oldest results in memory are to move to the disk."""
        return len(self._memory) >= 2 * KEPT_AT_ONCE or self._memory_bytes >= 2 * KEPT_AT_ONCE_BYTES

    # The thread

    def _run(self) -> None:
        while not self._ending:
            self._wake.wait(_LONGEST_WAIT_S)
            self._step()
        deadline = time.monotonic() + FLUSH_S
        self._step()
        while self._unsent and self._connected() and (left_s := deadline - time.monotonic()) > 0:
            self._wake.wait(left_s)
            self._step()
        self._keep_rest()

    def _step(self) -> None:
        self._wake.clear()
        try:
            self._note_acknowledged()
            self._send_next()
            self._keep_what_waits()
            self._note_room()
        except Exception:
            # The results stay where they are; the next one tries again.
            logger.exception("results could not be sent")

    def _note_acknowledged(self) -> None:
        while self._acknowledged:
            one = self._sent.pop(self._acknowledged.popleft(), None)
            if one is None:
                continue  # retained state
            self._written += 1
            self._settle(one)

    def _settle(self, one: _Waiting) -> None:
        """Release the picture of a result that is out, and the file that all results of are out."""
        if one.safe is not None:
            one.safe()
        if one.file:
            self._left[one.file] -= 1
            if self._left[one.file] == 0:
                del self._left[one.file]
                self._on_disk(lambda: self._kept.remove(one.file))

    def _send_next(self) -> None:
        while len(self._sent) < WINDOW and self._connected():
            one = self._take()
            if one is None:
                return
            number = self._send(self._topic_of(one.channel), one.payload)
            if number is None:
                self._next.appendleft(one)
                return
            self._sent[number] = one

    def _take(self) -> _Waiting | None:
        """Return the oldest result that was not sent; None without one."""
        while not self._next and self._kept.results:
            self._read_file()
        if self._next:
            return self._next.popleft()
        with self._changing:
            if not self._memory:
                return None
            one = self._memory.popleft()
            self._memory_bytes -= len(one.payload)
            return one

    def _read_file(self) -> None:
        """Read the oldest file into `_next`; what is damaged is dropped."""
        try:
            found = self._kept.take()
        except DeviceError as e:
            self._error = str(e)
            logger.warning("%s; its results are sent after the next start", e)
            return
        if found is None:
            return
        number, payloads, damaged = found
        for payload in payloads:
            try:
                channel = msgspec.json.decode(payload, type=Result).channel
            except (msgspec.DecodeError, UnicodeDecodeError):
                damaged += 1
            else:
                self._next.append(_Waiting(channel, payload, None, number))
                self._left[number] += 1
        if damaged:
            self._dropped += damaged
            logger.warning("%d results that were kept on the disk are damaged, and dropped", damaged)
        if not self._left[number]:
            self._on_disk(lambda: self._kept.remove(number))

    def _note_room(self) -> None:
        """Tell how many results were dropped, once there is room again."""
        with self._changing:
            full = len(self._memory) > MAX_WAITING // 2 or self._memory_bytes > MAX_WAITING_BYTES // 2
            if full or not self._dropped_now:
                return
            dropped, self._dropped_now = self._dropped_now, 0
        logger.warning("%d results were dropped, because too many waited for the broker", dropped)

    def _keep_what_waits(self) -> None:
        """Move results to the disk if there are many, or the broker has been away for long."""
        now = time.monotonic()
        if self._connected() or not self._memory:
            self._kept_at = now
        overdue = now - self._kept_at >= KEPT_AFTER_S
        if not (overdue or self._crowded):
            self._error = None  # whatever the disk refused was sent instead
        while self._memory and (overdue or self._crowded) and time.monotonic() >= self._disk_after:
            self._keep_oldest()
            self._kept_at = now

    def _keep_oldest(self) -> None:
        """Move the oldest results from the memory to the disk."""
        oldest, size = [], 0
        for one in itertools.islice(list(self._memory), KEPT_AT_ONCE):
            oldest.append(one)
            size += len(one.payload)
            if size >= KEPT_AT_ONCE_BYTES:
                break
        if not self._on_disk(lambda: self._kept.append([one.payload for one in oldest])):
            self._disk_after = time.monotonic() + DISK_RETRY_S
            return
        with self._changing:
            for one in oldest:
                self._memory.popleft()
                self._memory_bytes -= len(one.payload)
        for one in oldest:
            if one.safe is not None:
                one.safe()

    def _keep_rest(self) -> None:
        """Keep what is not acknowledged: what was sent or read before the files, the memory behind them."""
        self._note_acknowledged()
        first, last = [*self._sent.values(), *self._next], list(self._memory)
        kept = self._on_disk(lambda: self._kept.put_back([one.payload for one in first]))
        kept_last = not last or self._on_disk(lambda: self._kept.append([one.payload for one in last]))
        for one in (*(first if kept else ()), *(last if kept_last else ())):
            if one.safe is not None:
                one.safe()
        lost = (0 if kept else len([one for one in first if not one.file])) + (0 if kept_last else len(last))
        with self._changing:
            self._dropped += lost
            self._sent.clear()
            self._next.clear()
            self._memory.clear()
        if lost:
            logger.error("%d results are lost: they are neither sent nor kept on the disk", lost)
        if self._dropped_now:
            logger.warning(
                "%d results were dropped, because too many waited for the broker", self._dropped_now
            )
        if waiting := self._kept.results:
            logger.warning("%d results are not sent; they are kept for the next start", waiting)

    def _on_disk(self, act: Callable[[], bool | None]) -> bool:
        """Return whether the disk did it; what it did not do is told once."""
        try:
            done = act() is not False
            error = None if done else "no more results are kept on the disk ([sinks] unsent_max_bytes)"
        except DeviceError as e:
            done, error = False, str(e)
        if error is not None and error != self._error:
            logger.warning("%s", error)
        self._error = error
        return done
