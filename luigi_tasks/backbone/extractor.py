"""Features of a frozen backbone, from its TFLite variants under XNNPACK on all cores.

Not from Keras `predict`: 1,682 pictures of 160 pixels take 2.0 s in float and 1.0 s in int8 on two
cores, with Keras 12 s.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import os
import queue
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.inference.runtime import load_interpreter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress

# Float convolutions are a third faster with four pictures in a batch; int8 convolutions are not.
FLOAT_BATCH = 4
# Pictures in one job of a thread; progress is reported after each job.
CHUNK = 32
OPEN_AT_MOST = 4


def to_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map pixels 0-255 to the network's [-1, 1]."""
    return np.asarray(pixels, np.float32) / np.float32(127.5) - np.float32(1)


class FeatureExtractor:
    """One TFLite variant of a backbone, with an interpreter for each core.

    Args:
        backbone: (1, H, W, 3) to (1, ...): float in [-1, 1] to float, or uint8 pixels to int8.

    Attributes:
        shape: Shape of one picture's features.
        scale: Real value of one step of an int8 feature; 1 for float ones.
        zero_point: The int8 value of 0.0; 0 for float ones.
    """

    def __init__(self, backbone: bytes) -> None:
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._workers = os.cpu_count() or 1
        for _ in range(self._workers):
            interpreter = load_interpreter(backbone, 1)
            given = interpreter.get_input_details()[0]
            self.quantized = given["dtype"] == np.uint8
            self._batch = 1 if self.quantized else FLOAT_BATCH
            if not self.quantized:
                interpreter.resize_tensor_input(given["index"], (FLOAT_BATCH, *given["shape"][1:]))
                interpreter.allocate_tensors()
            self._idle.put(interpreter)
        answer = interpreter.get_output_details()[0]
        self.shape = tuple(int(side) for side in answer["shape"][1:])
        scale, zero_point = answer["quantization"] if self.quantized else (1.0, 0)
        self.scale, self.zero_point = float(scale), int(zero_point)

    def __call__(self, pixels: NDArray[np.uint8], progress: Progress, what: str) -> NDArray[Any]:
        """Return (N, ...) features of (N, H, W, 3) RGB pictures: int8 as the file gives them, or float32."""
        features = np.empty((len(pixels), *self.shape), np.int8 if self.quantized else np.float32)

        def run(start: int) -> int:
            interpreter = self._idle.get()
            try:
                end = min(start + CHUNK, len(pixels))
                for first in range(start, end, self._batch):
                    self._run(interpreter, pixels[first:end], features[first:end])
            finally:
                self._idle.put(interpreter)
            return end - start

        done = 0
        with concurrent.futures.ThreadPoolExecutor(self._workers) as pool:
            for count in pool.map(run, range(0, len(pixels), CHUNK)):
                done += count
                progress(what, done, len(pixels))
        return features

    def _run(self, interpreter: Any, pixels: NDArray[np.uint8], features: NDArray[Any]) -> None:  # noqa: ANN401
        batch = pixels[: self._batch]
        count = len(batch)
        if count < self._batch:
            batch = np.concatenate([batch, np.zeros((self._batch - count, *batch.shape[1:]), np.uint8)])
        given = interpreter.get_input_details()[0]["index"]
        interpreter.set_tensor(given, batch if self.quantized else to_input(batch))
        interpreter.invoke()
        features[:count] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[:count]


@dataclasses.dataclass(frozen=True)
class QuantizationParameters:
    """Scale and zero point of quantized features: real = (q - zero_point) * scale."""

    scale: float = 1.0
    zero_point: int = 0

    def quantize(self, features: NDArray[np.float16]) -> NDArray[np.int8]:
        """Quantize float features as the int8 backbone would: a quarter of the memory."""
        steps = np.round(features.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        quantized: NDArray[np.int8] = np.clip(steps, -128, 127).astype(np.int8)
        return quantized


class _OpenExtractors:
    """Extractors that are open in this process, by the SHA-256 of their file; the last ones used stay.

    A worker needs the same two for each of its shards, and opening one takes as long as many pictures.
    """

    def __init__(self) -> None:
        self._by_sha256: collections.OrderedDict[str, FeatureExtractor] = collections.OrderedDict()
        self._lock = threading.Lock()

    def open(self, backbone: bytes) -> FeatureExtractor:
        sha256 = hashlib.sha256(backbone).hexdigest()
        with self._lock:
            extractor = self._by_sha256.pop(sha256, None) or FeatureExtractor(backbone)
            self._by_sha256[sha256] = extractor
            while len(self._by_sha256) > OPEN_AT_MOST:
                self._by_sha256.popitem(last=False)
        return extractor


open_extractor = _OpenExtractors().open


def quantization_of(backbone: bytes) -> QuantizationParameters:
    """Return the scale and zero point of a backbone variant's features; 1 and 0 where they are float.

    Raises: DeviceError if the runtime cannot open the file.
    """
    extractor = open_extractor(backbone)
    return QuantizationParameters(extractor.scale, extractor.zero_point)
