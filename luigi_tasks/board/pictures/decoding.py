"""Pictures, decoded and classified in confined children under limits of memory and time.

The board's own process decodes no picture and loads no model. Two children at most (`child.py`) are
started when there is something to do, and end when there was nothing for a minute. Orders wait in a queue
that has an end. A child that hangs is killed with what it does; the next order gets a new one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import socket
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.children import FOLDER, bare_environment, describe_exit, python_command
from edge_client.contract.errors import DeviceError, InputError, TransportError
from edge_client.contract.text import one_line
from luigi_tasks.board.pictures.orders import (
    MESSAGE_LIMIT_BYTES,
    REPLY_LIMIT_BYTES,
    STAGE_BYTES,
    Ended,
    PictureOrder,
    PictureReply,
    ReleaseFolder,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from typing_extensions import Self

logger = logging.getLogger("edge-fleet")

# Children at once: one picture that takes long delays nobody.
CHILDREN = 2
# Orders that wait; the grids of ten people ask for six thumbnails each at once.
QUEUE = 64
# Of one picture, on top of the libraries: WebP of 50 megapixels takes 1.36 GB of it, the most of all formats.
MEMORY_BYTES = 3 << 29
# The largest picture that a device accepts takes 2 to 4 s, on a busy machine 7.
TIME_S = 20.0
IDLE_S = 60.0
_ERRORS_SHOWN = 300
_RETRY_S = 2


class BusyError(TransportError):
    """More is asked for than can be done now.

    Attributes:
        retry_s: When to ask again.
    """

    retry_s = _RETRY_S


class ChildGoneError(DeviceError):
    """A child ended between two orders, or could not start."""


class PictureMemory:
    """A picture in anonymous memory, which is no part of this process's; never on a disk.

    Attributes:
        descriptor: Its descriptor.
        size_bytes: What was written so far.
    """

    def __init__(self, data: bytes = b"") -> None:
        self.descriptor = os.memfd_create("picture", os.MFD_CLOEXEC)
        self.size_bytes = 0
        self.write(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, data: bytes) -> None:
        """Append.

        Raises: DeviceError if there is no memory.
        """
        rest = memoryview(data)
        try:
            while rest:
                done = os.pwrite(self.descriptor, rest, self.size_bytes)
                rest, self.size_bytes = rest[done:], self.size_bytes + done
        except OSError as e:
            msg = f"no memory for a picture: {e.strerror or e}; free some on the board's machine"
            raise DeviceError(msg) from e

    def close(self) -> None:
        """Give the memory back."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


class Pictures:
    """What decodes and classifies pictures; may be used from any thread.

    Attributes:
        ended: Children that were ended, because they hung or their work crashed.
    """

    def __init__(
        self, *, memory_bytes: int = MEMORY_BYTES, time_s: float = TIME_S, idle_s: float = IDLE_S
    ) -> None:
        """Start nothing yet.

        Args:
            memory_bytes: What a picture may take.
            time_s: How long it may take.
            idle_s: A child ends after so long without an order.
        """
        self.ended = 0
        self._memory_bytes, self._time_s, self._idle_s = memory_bytes, time_s, idle_s
        # A child ends with the thread that started it (prctl(2), PR_SET_PDEATHSIG): these stay.
        self._threads = concurrent.futures.ThreadPoolExecutor(CHILDREN, "pictures")
        self._lock = threading.Lock()
        self._idle: list[tuple[float, _Child]] = []
        self._busy: set[_Child] = set()
        self._timer: threading.Timer | None = None
        self._orders = 0
        self._closed = False

    async def thumbnail(self, data: bytes, side: int, name: str = "the picture") -> bytes:
        """Return a picture as JPEG, upright, its longest side as given at most.

        Args:
            data: The picture's file.
            side: Pixels.
            name: For messages.
        Raises: InputError if it cannot be decoded within the limits; BusyError; DeviceError.
        """
        with PictureMemory(data) as memory:
            return (await self.work(memory, name=name, side=side)).thumbnail

    async def classify(
        self,
        picture: PictureMemory,
        releases: Sequence[ReleaseFolder],
        *,
        name: str = "the picture",
        start: int = 0,
        size_bytes: int | None = None,
    ) -> PictureReply:
        """Return what releases say of a picture, as a device with them would.

        Args:
            picture: Has the picture's file; it stays open until this returned.
            releases: The releases.
            name: For messages.
            start: Where the picture starts in the memory.
            size_bytes: Its size; None: to the end.
        Raises: As `thumbnail`. What a release is at fault for stands in its answer.
        """
        found = tuple(releases)
        return await self.work(picture, name=name, start=start, size_bytes=size_bytes, releases=found)

    async def work(
        self,
        picture: PictureMemory,
        *,
        name: str,
        start: int = 0,
        size_bytes: int | None = None,
        side: int = 0,
        releases: tuple[ReleaseFolder, ...] = (),
    ) -> PictureReply:
        """Have an order done; see `thumbnail` and `classify`."""
        order = PictureOrder(
            name=one_line(name),
            start=start,
            size_bytes=picture.size_bytes - start if size_bytes is None else size_bytes,
            memory_bytes=self._memory_bytes,
            processor_s=max(1, int(self._time_s)),
            side=side,
            releases=releases,
        )
        with self._lock:
            if self._orders >= QUEUE + CHILDREN or self._closed:
                msg = f"{self._orders} pictures wait already; try again in {_RETRY_S} s"
                raise BusyError(msg)
            self._orders += 1
        # The work goes on if its asker goes away, so the memory is the work's own.
        own = os.dup(picture.descriptor)
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._do, order, own)

    def close(self) -> None:
        """End all children."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            if self._timer is not None:
                self._timer.cancel()
            for child in self._busy:  # their threads wait for nothing any more
                child.kill()
        for _, child in idle:
            child.end()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _do(self, order: PictureOrder, picture: int) -> PictureReply:
        try:
            reply = self._attempt(order, picture)
        finally:
            os.close(picture)
            with self._lock:
                self._orders -= 1
        if reply.fault:
            raise InputError(reply.fault) if reply.refused else DeviceError(reply.fault)
        return reply

    def _attempt(self, order: PictureOrder, picture: int) -> PictureReply:
        """Do an order; a child that is gone saw no picture, so a new one is tried."""
        try:
            return self._run(self._take(), order, picture)
        except ChildGoneError as e:
            if self._closed:
                raise BusyError("the board ends; try again in a moment") from e
            logger.warning("Pictures: %s; another one is started", e)
            return self._run(_Child(), order, picture)

    def _run(self, child: _Child, order: PictureOrder, picture: int) -> PictureReply:
        try:
            with self._lock:
                self._busy.add(child)
                if self._closed:
                    child.kill()
            reply = child.run(order, picture, self._time_s)
        except BaseException as e:
            if child.is_lost:
                child.end()
            else:
                self._give_back(child)
            with self._lock:
                self.ended += 1
                self._busy.discard(child)
            logger.warning("Pictures: a decoder was ended: %s", e)
            raise
        self._give_back(child)
        return reply

    def _take(self) -> _Child:
        with self._lock:
            while self._idle:
                child = self._idle.pop()[1]
                if not child.is_gone:
                    return child
                child.end()
        return _Child()

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            self._busy.discard(child)
            if not self._closed:
                self._idle.append((time.monotonic(), child))
                self._watch_idle()
                return
        child.end()

    def _watch_idle(self) -> None:
        """Look after a while whether a child has nothing to do; called with the lock."""
        if self._timer is None and self._idle and not self._closed:
            self._timer = threading.Timer(self._idle_s, self._end_idle)
            self._timer.daemon = True
            self._timer.start()

    def _end_idle(self) -> None:
        since = time.monotonic() - self._idle_s
        with self._lock:
            over = [child for at, child in self._idle if at <= since]
            self._idle = [(at, child) for at, child in self._idle if at > since]
            self._timer = None
            self._watch_idle()
        for child in over:
            child.end()


class _Child:
    """A running child; one order at a time.

    Attributes:
        is_lost: Whether it can take no further order.
    """

    def __init__(self) -> None:
        """Start it; raises DeviceError if it cannot be started."""
        self.is_lost = False
        self._channel, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile("a+b")  # noqa: SIM115 - closed by `end`
        try:
            with other:
                self._process = subprocess.Popen(
                    [*python_command("luigi_tasks.board.pictures.child"), str(other.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=self._errors,
                    stderr=self._errors,
                    cwd=FOLDER,
                    env={**bare_environment(), "TF_CPP_MIN_LOG_LEVEL": "2"},
                    pass_fds=[other.fileno()],
                )
        except OSError as e:
            self._channel.close()
            self._errors.close()
            msg = f"no process can be started to decode pictures: {e}; free memory on the board's machine"
            raise DeviceError(msg) from e

    @property
    def is_gone(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def run(self, order: PictureOrder, picture: int, time_s: float) -> PictureReply:
        """Return what came of an order.

        Raises: InputError if its process hung or crashed; DeviceError; ChildGoneError if the child is gone.
        """
        os.truncate(self._errors.fileno(), 0)
        reply = os.memfd_create("reply", os.MFD_CLOEXEC)
        try:
            os.pwrite(reply, b"\0" * STAGE_BYTES, 0)
            ended = self._order(order, [picture, reply], time_s, reply)
            if ended.returncode:
                self._fail(order, reply, ended.returncode)
            return _read(reply)
        finally:
            os.close(reply)

    def kill(self) -> None:
        """Kill it; who waits for it gets an error."""
        self._process.kill()

    def end(self) -> None:
        """Kill it, and with it what it does."""
        self._channel.close()
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _order(self, order: PictureOrder, descriptors: list[int], time_s: float, reply: int) -> Ended:
        data = b""
        self._channel.settimeout(time_s)
        try:
            with contextlib.suppress(BrokenPipeError, ConnectionError):
                socket.send_fds(self._channel, [msgspec.json.encode(order)], descriptors)
                data = self._channel.recv(MESSAGE_LIMIT_BYTES)
            if data:
                return msgspec.json.decode(data, type=Ended)
        except TimeoutError as e:
            self.is_lost = True
            what, remedy = _stage(order, reply)
            msg = f"{what}: no answer within {time_s:g} s, the limit; {remedy}"
            raise InputError(msg) from e
        self.is_lost = True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(time_s)
        code = self._process.poll()
        why = describe_exit(code or 0, "it crashed") or f"it exited with code {code}"
        msg = f"the process that decodes pictures is gone: {why}{self._printed()}"
        raise ChildGoneError(msg)

    def _fail(self, order: PictureOrder, reply: int, returncode: int) -> None:
        """Raise what the end of an order's process means."""
        what, remedy = _stage(order, reply)
        why = describe_exit(returncode, "it crashed its decoder or the runtime")
        if why is None:
            why = f"its process exited with code {returncode}{self._printed()}"
        msg = f"{what}: {why}; {remedy}"
        raise InputError(msg)

    def _printed(self) -> str:
        self._errors.seek(0)
        words = one_line(self._errors.read(REPLY_LIMIT_BYTES).decode(errors="replace"))[-_ERRORS_SHOWN:]
        return f" ({words})" if words else ""


def _stage(order: PictureOrder, reply: int) -> tuple[str, str]:
    """Return what an order was at when it ended, and what to do."""
    number = os.pread(reply, STAGE_BYTES, 0)[0]
    if 0 < number <= len(order.releases):
        release = order.releases[number - 1].release
        return f"release {release}", "try another picture or release"
    return order.name, "save it again as a JPEG, or leave it out"


def _read(reply: int) -> PictureReply:
    size = os.fstat(reply).st_size
    if size > REPLY_LIMIT_BYTES:
        msg = f"a decoder answered {size} bytes; leave this picture out"
        raise InputError(msg)
    try:
        return msgspec.msgpack.decode(os.pread(reply, size, STAGE_BYTES), type=PictureReply)
    except msgspec.MsgspecError as e:
        msg = f"a decoder answered what is no answer ({e}); leave this picture out"
        raise InputError(msg) from e
