"""A TFLite file in a child process: a crash, a hang or a lack of memory there is an error here.

The pipeline holds signing keys and reads files of a bucket; one of 3,000 mutated TFLite files crashes LiteRT,
another never answers. The child has neither credentials nor paths of keys in its environment, and where the
kernel allows it no network; it ends with this process.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from edge_client.children import FOLDER, bare_environment, describe_exit, python_command
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.text import one_line
from luigi_tasks.inference.protocol import MESSAGE_LIMIT_BYTES, Act, Loaded, Reply, Request, answers_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, NoReturn

    from numpy.typing import NDArray
    from typing_extensions import Self

    from edge_client.contract.release import Normalization
    from luigi_tasks.dataset.pixels import PixelRows
    from luigi_tasks.progress import Progress

# Longest silence of the child: while it loads a model, or answers 32 pictures on each core. An int8
# MobileNetV2 takes 0.1 s for those, a float ResNet50 some seconds.
ANSWER_LIMIT_S = 60.0
# Pictures in shared memory at once, in each of two requests: while one is answered, the next is made.
BLOCK_BYTES = 32 << 20
BLOCK_PICTURES = 1000
OPEN_AT_MOST = 4
# Share of this machine's memory that a model may take.
MEMORY_SHARE = 0.5
# For the Python objects of a parsed file: those of a backbone take 10 MB above its size.
PARSING_BYTES = 1 << 30
ERRORS_SHOWN = 300


@dataclasses.dataclass(frozen=True)
class ModelFile:
    """A TFLite file.

    Attributes:
        content: Its bytes.
        name: What it is, for messages, e.g. `the candidate 7c1f... (int8)`.
        remedy: What to do if it cannot be used.
        labels: Label of each output of a classifier; empty: it is a backbone.
        normalization: Of a classifier.
    """

    content: bytes = dataclasses.field(repr=False)
    name: str
    remedy: str = "remove it from the store and run again to compute it"
    labels: tuple[str, ...] = ()
    normalization: Normalization | None = None

    @property
    def full_name(self) -> str:
        """Name with the start of the SHA-256, which tells which file was read."""
        return f"{self.name} (SHA-256 {hashlib.sha256(self.content).hexdigest()[:12]})"


class ModelProcess:
    """One model in a child process, which is started at first use and again if it ended in between.

    Close it, or use it in a `with` block; it ends with this process at the latest. Threads take turns.
    """

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        self._lock = threading.RLock()
        self._child: _Child | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the child."""
        with self._lock:
            child, self._child = self._child, None
            if child is not None:
                child.end()

    @property
    def loaded(self) -> Loaded:
        """The model as the child has it open.

        Raises: InputError if it is no model of this kind, or crashes the runtime, or does not answer;
            DeviceError if the runtime cannot run it, or no child can be started.
        """
        with self._failing_as_errors():
            return self._running().loaded

    def check_parsing(self) -> None:
        """Let the child read the file's FlatBuffers in Python, before this process does.

        A file of a megabyte can name the same megabyte a thousand times.

        Raises: as `loaded`.
        """
        with self._failing_as_errors():
            self._running().parse()

    def run(self, pixels: PixelRows | NDArray[np.uint8], progress: Progress, what: str) -> NDArray[Any]:
        """Return the (N, ...) answers to (N, H, W, 3) RGB pictures, see `Loaded`.

        Raises: as `loaded`.
        """
        with self._failing_as_errors():
            child = self._running()
            answers = np.empty((len(pixels), *child.loaded.answer), child.loaded.dtype)
            block = max(1, min(BLOCK_PICTURES, BLOCK_BYTES // int(np.prod(child.loaded.given))))
            under_way: collections.deque[_Block] = collections.deque()
            for start in range(0, len(pixels), block):
                if len(under_way) > 1:
                    child.finish(under_way.popleft(), answers, progress, what)
                under_way.append(child.begin(Act.RUN, start, pixels[start : start + block]))
            for one in under_way:
                child.finish(one, answers, progress, what)
        return answers

    def run_alone(self, pixels: NDArray[np.uint8]) -> NDArray[Any]:
        """Return the answers to pictures one after the other, with nothing else running in the child."""
        with self._failing_as_errors():
            child = self._running()
            answers = np.empty((len(pixels), *child.loaded.answer), child.loaded.dtype)
            child.finish(child.begin(Act.RUN_ALONE, 0, pixels), answers, lambda *_: None, "")
        return answers

    def _running(self) -> _Child:
        if self._child is None or self._child.has_ended:
            self.close()
            self._child = _Child(self.file)
        return self._child

    @contextlib.contextmanager
    def _failing_as_errors(self) -> Iterator[None]:
        """Keep the child for the block; if it fails, the child ends."""
        with self._lock:
            try:
                yield
            except BaseException:
                self.close()
                raise


class _OpenModels:
    """Models that are open in children of this process; those used last stay.

    A worker needs the same two backbones for each of its shards, and the gate measures a candidate twice; to
    start a child takes as long as a hundred pictures. No child ever opens a second file: what took it over
    would answer for that one too.
    """

    def __init__(self) -> None:
        self._by_file: collections.OrderedDict[tuple[object, ...], ModelProcess] = collections.OrderedDict()
        self._lock = threading.Lock()
        # `luigi --workers 2` forks: two processes must not talk to one child, nor wait for a lost lock.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._by_file, self._lock = collections.OrderedDict(), threading.Lock()

    def open(self, file: ModelFile) -> ModelProcess:
        key = (hashlib.sha256(file.content).digest(), len(file.labels), file.normalization)
        with self._lock:
            process = self._by_file.pop(key, None) or ModelProcess(file)
            process.file = file  # another name, perhaps
            self._by_file[key] = process
            while len(self._by_file) > OPEN_AT_MOST:
                self._by_file.popitem(last=False)[1].close()
        return process


_open_models = _OpenModels()


def open_model(file: ModelFile) -> ModelProcess:
    """Return the process of a file, which stays open for later; the child starts at first use."""
    return _open_models.open(file)


@dataclasses.dataclass
class _Block:
    """Pictures that the child answers.

    Attributes:
        number: Of the request.
        start: Row of the first one.
        count: How many.
        memory: Holds them and their answers.
        left: How many are not answered yet.
    """

    number: int
    start: int
    count: int
    memory: BinaryIO
    left: int


class _Child:
    """A child process that has a model open.

    Raises: as `ModelProcess.loaded`.
    """

    def __init__(self, file: ModelFile) -> None:
        self._file = file
        self._number = 0
        self._blocks: dict[int, _Block] = {}
        self._errors: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = _start(theirs, self._errors)
        except OSError as e:
            self._channel.close()
            self._errors.close()
            msg = f"{file.full_name}: {sys.executable} cannot be started to run it: {e}; free some memory"
            raise DeviceError(msg) from e
        self._owner = os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._process, self._channel, self._owner)
        try:
            self.loaded = self._load()
        except BaseException:
            self.end()
            raise

    @property
    def has_ended(self) -> bool:
        """Whether the child is gone, or belongs to the process that this one was forked from."""
        return os.getpid() != self._owner or self._process.poll() is not None

    def end(self) -> None:
        """End the process."""
        self._finalizer()
        for file in (self._errors, *(one.memory for one in self._blocks.values())):
            file.close()
        self._blocks.clear()

    def parse(self) -> None:
        """Let the child parse the file in Python."""
        content = self._file.content
        self._number += 1
        request = Request(
            act=Act.PARSE,
            number=self._number,
            size_bytes=max(len(content), 1),
            model_bytes=len(content),
            memory_bytes=PARSING_BYTES,
        )
        with self._send(request, np.frombuffer(content, np.uint8)):
            if self._receive().number != self._number:
                self._fail("answered what was not asked")

    def begin(self, act: Act, start: int, pixels: NDArray[np.uint8]) -> _Block:
        """Give the child pictures; it answers them while this process goes on."""
        count = len(pixels)
        if pixels.shape[1:] != self.loaded.given:
            msg = f"{self._file.full_name}: takes pictures of {self.loaded.given}, not of {pixels.shape[1:]}"
            raise InputError(msg)
        size = answers_at(self.loaded, count) + count * self._answer_bytes
        self._number += 1
        request = Request(act=act, number=self._number, size_bytes=max(size, 1), pictures=count)
        memory = self._send(request, pixels.reshape(-1))
        block = self._blocks[self._number] = _Block(self._number, start, count, memory, count)
        return block

    def finish(self, block: _Block, answers: NDArray[Any], progress: Progress, what: str) -> None:
        """Wait for the answers to a block, and copy them to their rows."""
        while block.left:
            reply = self._receive()
            found = self._blocks.get(reply.number)
            if found is None or not 0 < reply.done <= found.left:
                self._fail("answered what was not asked")
            found.left -= reply.done
            done = sum(one.count - one.left for one in self._blocks.values())
            progress(what, block.start + done, len(answers))
        del self._blocks[block.number]
        with block.memory as memory:
            memory.seek(answers_at(self.loaded, block.count))
            rows = answers[block.start : block.start + block.count]
            if _read(memory, rows) < rows.nbytes:
                self._fail("took its answers away")

    @property
    def _answer_bytes(self) -> int:
        return int(np.prod(self.loaded.answer)) * np.dtype(self.loaded.dtype).itemsize

    def _load(self) -> Loaded:
        file, size = self._file, len(self._file.content)
        request = Request(
            act=Act.LOAD_CLASSIFIER if file.labels else Act.LOAD_FEATURES,
            number=0,
            size_bytes=max(size, 1),
            model_bytes=size,
            outputs=len(file.labels),
            normalization=file.normalization,
        )
        with self._send(request, np.frombuffer(file.content, np.uint8)):
            loaded = self._receive().loaded
        if loaded is None or np.dtype(loaded.dtype).itemsize * np.prod(loaded.answer) > BLOCK_BYTES:
            self._fail("has answers of an impossible size")
        return loaded

    def _send(self, request: Request, content: NDArray[np.uint8]) -> BinaryIO:
        """Send a request with shared memory that begins with `content`; return the memory as a file.

        It is written and read as a file: to map it here too would cost a page fault for each 4 kB.
        """
        descriptor = os.memfd_create("edge-fleet-pictures", os.MFD_CLOEXEC)
        memory = os.fdopen(descriptor, "r+b", buffering=0)
        try:
            os.ftruncate(descriptor, request.size_bytes)
            _write(memory, np.ascontiguousarray(content))
            self._channel.settimeout(ANSWER_LIMIT_S)
            socket.send_fds(self._channel, [msgspec.json.encode(request)], [descriptor])
        except TimeoutError:
            self._fail_silent()
        except OSError as e:
            if e.errno in {errno.ENOSPC, errno.ENOMEM}:
                msg = f"{self._file.full_name}: no memory for its pictures: {e.strerror}; free some"
                raise DeviceError(msg) from e
            self._fail_ended()  # the channel is closed
        return memory

    def _receive(self) -> Reply:
        self._channel.settimeout(ANSWER_LIMIT_S)
        try:
            data = self._channel.recv(MESSAGE_LIMIT_BYTES)
        except TimeoutError:
            self._fail_silent()
        except OSError:
            data = b""
        if not data:
            self._fail_ended()
        try:
            reply = msgspec.json.decode(data, type=Reply)
        except msgspec.MsgspecError:
            self._fail("answered what is no answer")
        if reply.fault:
            msg = f"{self._file.full_name}: {one_line(reply.fault)}; {self._file.remedy}"
            raise InputError(msg) if reply.refused else DeviceError(msg)
        return reply

    def _fail_ended(self) -> NoReturn:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(ANSWER_LIMIT_S)
        end = describe_exit(self._process.poll() or 0, "it crashed the TFLite runtime")
        self._fail(end or f"the child that ran it exited with code {self._process.poll()}")

    def _fail_silent(self) -> NoReturn:
        self._fail(f"the TFLite runtime gave no answer within {ANSWER_LIMIT_S:g} s, and was ended")

    def _fail(self, fault: str) -> NoReturn:
        """Raise InputError that says what the file did, and what the runtime printed last."""
        self._errors.seek(0)
        printed = one_line(self._errors.read().decode(errors="replace"))[-ERRORS_SHOWN:]
        words = f" ({printed})" if printed else ""
        msg = f"{self._file.full_name}: {fault}{words}; {self._file.remedy}"
        raise InputError(msg)


def _start(channel: socket.socket, errors: BinaryIO) -> subprocess.Popen[bytes]:
    memory = int(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MEMORY_SHARE)
    return subprocess.Popen(
        [*python_command("luigi_tasks.inference.child"), str(channel.fileno()), str(memory)],
        stdin=subprocess.DEVNULL,
        stdout=errors,
        stderr=errors,
        cwd=FOLDER,
        # The child has a thread for each core; those of numerical libraries would only take memory.
        env={**bare_environment(), "TF_CPP_MIN_LOG_LEVEL": "2"},
        pass_fds=[channel.fileno()],
    )


def _write(file: BinaryIO, array: NDArray[Any]) -> None:
    """Write all bytes: one call writes 2 GB at most."""
    data = array.reshape(-1).view(np.uint8).data
    while len(data):
        data = data[file.write(data) :]


def _read(file: BinaryIO, array: NDArray[Any]) -> int:
    """Fill a contiguous array; return how many bytes there were."""
    data, done = array.reshape(-1).view(np.uint8).data, 0
    while done < len(data) and (count := file.readinto(data[done:])):  # type: ignore[attr-defined]
        done += count
    return done


def _end(process: subprocess.Popen[bytes], channel: socket.socket, owner: int) -> None:
    channel.close()
    if os.getpid() == owner:  # a forked worker that forgets the child leaves it to its owner
        process.kill()
        process.wait()
