"""The child that runs a TFLite file: what crashes or hangs the runtime ends here, not in the pipeline.

    python -m luigi_tasks.inference.child DESCRIPTOR DATA_BYTES

DESCRIPTOR is a socket to the pipeline, see `protocol.py`. The main thread reads requests, so it notices the
pipeline's end; pictures are answered by a thread for each core.
"""

from __future__ import annotations

import concurrent.futures
import functools
import mmap
import os
import resource
import socket
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from edge_client.children import confine, die_with_parent, prefer_as_oom_victim
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.inference.classifier import Classifier
from edge_client.inference.runtime import runtime_name
from luigi_tasks.inference.features import CHUNK, FeatureExtractor
from luigi_tasks.inference.protocol import MESSAGE_LIMIT_BYTES, Act, Loaded, Reply, Request, answers_at

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

ERRORS_LIMIT_BYTES = 1 << 16  # of what a runtime may print


class OpenModel(Protocol):
    """A model that is open."""

    loaded: Loaded

    def answer(self, pixels: NDArray[np.uint8], answers: NDArray[Any]) -> None:
        """Write the answers to (n, H, W, 3) pictures, in the calling thread."""


class Features:
    """A backbone that is open."""

    def __init__(self, model: bytes) -> None:
        self._extractor = own = FeatureExtractor(model)
        if len(own.given) != 3:
            msg = f"the model's input has the shape {own.given}: a backbone takes (height, width, 3)"
            raise InputError(msg)
        self.answer = own.extract
        self.loaded = Loaded(
            given=own.given,
            answer=own.shape,
            dtype="int8" if own.quantized else "float32",
            runtime=runtime_name(),
            scale=own.scale,
            zero_point=own.zero_point,
        )


class Scores:
    """An image classifier that is open: each answer is its scores, then `known` (or NaN) and milliseconds."""

    def __init__(self, open_classifier: Callable[[], Classifier]) -> None:
        self._open, self._own = open_classifier, threading.local()
        self._own.classifier = first = open_classifier()
        self.loaded = Loaded(
            given=(first.input_height, first.input_width, 3),
            answer=(len(first.labels) + 2,),
            dtype="float64",
            runtime=runtime_name(),
            tells_strangers=first.tells_strangers,
        )

    def answer(self, pixels: NDArray[np.uint8], answers: NDArray[Any]) -> None:
        """Write the answers to (n, H, W, 3) pictures, in the calling thread."""
        if not hasattr(self._own, "classifier"):
            self._own.classifier = self._open()
        classifier: Classifier = self._own.classifier
        for picture, row in zip(pixels, answers, strict=True):
            found = classifier.classify(picture)
            row[:-2] = found.scores
            row[-2:] = np.nan if found.known is None else found.known, found.latency_ms

    def warm(self) -> None:
        """Classify a grey picture, so that lazy initialization does not count."""
        self._own.classifier.warm()


class Child:
    """One model and its pool of threads, at the pipeline's service.

    Args:
        channel: Requests come from there.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        self._model: OpenModel | None = None

    def serve(self) -> None:
        """Answer requests until the pipeline closes the channel."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._channel, MESSAGE_LIMIT_BYTES, 1)
            if not data:
                return
            request = msgspec.json.decode(data, type=Request)
            memory = mmap.mmap(descriptors[0], request.size_bytes, mmap.MAP_SHARED | mmap.MAP_POPULATE)
            os.close(descriptors[0])
            self._attempt(request, functools.partial(self._act, request, memory))

    def _act(self, request: Request, memory: mmap.mmap) -> None:
        if request.act is Act.LOAD_FEATURES:
            self._load(request, Features(memory[: request.model_bytes]))
        elif request.act is Act.LOAD_CLASSIFIER:
            model, labels = memory[: request.model_bytes], [str(one) for one in range(request.outputs)]
            self._load(
                request, Scores(lambda: Classifier(model, labels, normalization=request.normalization))
            )
        elif request.act is Act.PARSE:
            self._parse(request, memory[: request.model_bytes])
        else:
            self._run(request, memory)

    def _parse(self, request: Request, model: bytes) -> None:
        """Read the file as the pipeline does to write a head into it, with little memory."""
        from ai_edge_litert import schema_py_generated as schema  # noqa: PLC0415 - 0.1 s, seldom needed

        most = resource.getrlimit(resource.RLIMIT_DATA)[0]
        resource.setrlimit(resource.RLIMIT_DATA, (min(most, _data_bytes() + request.memory_bytes), most))
        try:
            schema.ModelT.InitFromObj(schema.Model.GetRootAs(model, 0))
        finally:
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))
        self._reply(Reply(number=request.number))

    def _load(self, request: Request, model: OpenModel) -> None:
        self._model = model
        self._reply(Reply(number=request.number, loaded=model.loaded))

    def _run(self, request: Request, memory: mmap.mmap) -> None:
        model, count = self._model, request.pictures
        if model is None:
            raise InputError("no model is open")
        loaded = model.loaded
        given = (count, *loaded.given)
        pixels = np.frombuffer(memory, np.uint8, int(np.prod(given))).reshape(given)
        answers = np.frombuffer(memory, loaded.dtype, offset=answers_at(loaded, count))
        answers = answers[: count * int(np.prod(loaded.answer))].reshape(count, *loaded.answer)
        if request.act is Act.RUN_ALONE:
            if isinstance(model, Scores):
                model.warm()
            self._answer(request, model, pixels, answers)
            return
        for start in range(0, count, CHUNK):
            part = slice(start, min(start + CHUNK, count))
            act = functools.partial(self._answer, request, model, pixels[part], answers[part])
            self._pool.submit(self._attempt, request, act)

    def _answer(
        self, request: Request, model: OpenModel, pixels: NDArray[np.uint8], answers: NDArray[Any]
    ) -> None:
        model.answer(pixels, answers)
        self._reply(Reply(number=request.number, done=len(pixels)))

    def _attempt(self, request: Request, act: Callable[[], None]) -> None:
        """Do a part of a request; tell the pipeline if it fails."""
        try:
            act()
        except EdgeError as e:
            refused = not isinstance(e, DeviceError)
            self._reply(Reply(number=request.number, fault=str(e)[:4000], refused=refused))
        except MemoryError:
            self._reply(Reply(number=request.number, fault="out of memory"))
        except Exception as e:  # noqa: BLE001 - whatever a broken file makes of the runtime's answers
            fault = f"{type(e).__name__}: {e}"[:4000]
            self._reply(Reply(number=request.number, fault=fault, refused=True))

    def _reply(self, reply: Reply) -> None:
        self._channel.send(msgspec.json.encode(reply))


def _data_bytes() -> int:
    """Return the bytes that count against RLIMIT_DATA now, see proc(5)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5]) * resource.getpagesize()


def main(arguments: list[str]) -> int:
    """Serve until the pipeline is gone."""
    die_with_parent()
    confine()
    prefer_as_oom_victim()
    data_bytes = int(arguments[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes, data_bytes))
    resource.setrlimit(resource.RLIMIT_FSIZE, (ERRORS_LIMIT_BYTES, ERRORS_LIMIT_BYTES))
    Child(socket.socket(fileno=int(arguments[0]))).serve()
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stderr.flush()
    os._exit(code)  # threads may still run a model
