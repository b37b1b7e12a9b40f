"""Features of a frozen backbone, from its TFLite variants under XNNPACK on all cores.

Not from Keras `predict`: 1,682 pictures of 160 pixels take 2.0 s in float and 1.0 s in int8 on two
cores, with Keras 12 s.
"""

from __future__ import annotations

import concurrent.futures
import os
import queue
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


def to_input(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Map pixels 0-255 to the network's [-1, 1]."""
    return np.asarray(pixels, np.float32) / np.float32(127.5) - np.float32(1)


class FeatureExtractor:
    """One TFLite variant of a backbone in this process, with an interpreter for each core.

    For a file that this process converted; what was read from a store is opened by
    `luigi_tasks.backbone.extractor`, in a child process.

    Args:
        backbone: (1, H, W, 3) to (1, ...): float in [-1, 1] to float, or uint8 pixels to int8.

    Attributes:
        given: Shape of one picture.
        shape: Shape of one picture's features.
        quantized: Whether features are int8, else float32.
        scale: Real value of one step of an int8 feature; 1 for float ones.
        zero_point: The int8 value of 0.0; 0 for float ones.
        workers: How many threads can extract at once.
    """

    def __init__(self, backbone: bytes) -> None:
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.workers = os.cpu_count() or 1
        for _ in range(self.workers):
            interpreter = load_interpreter(backbone, 1)
            given = interpreter.get_input_details()[0]
            self.quantized = given["dtype"] == np.uint8
            self._batch = 1 if self.quantized else FLOAT_BATCH
            if not self.quantized:
                interpreter.resize_tensor_input(given["index"], (FLOAT_BATCH, *given["shape"][1:]))
                interpreter.allocate_tensors()
            self._idle.put(interpreter)
        answer = interpreter.get_output_details()[0]
        self.given = tuple(int(side) for side in given["shape"][1:])
        self.shape = tuple(int(side) for side in answer["shape"][1:])
        scale, zero_point = answer["quantization"] if self.quantized else (1.0, 0)
        self.scale, self.zero_point = float(scale), int(zero_point)

    def __call__(self, pixels: NDArray[np.uint8], progress: Progress, what: str) -> NDArray[Any]:
        """Return (N, ...) features of (N, H, W, 3) RGB pictures: int8 as the file gives them, or float32."""
        features = np.empty((len(pixels), *self.shape), np.int8 if self.quantized else np.float32)

        def run(start: int) -> int:
            part = slice(start, min(start + CHUNK, len(pixels)))
            self.extract(pixels[part], features[part])
            return part.stop - part.start

        done = 0
        with concurrent.futures.ThreadPoolExecutor(self.workers) as pool:
            for count in pool.map(run, range(0, len(pixels), CHUNK)):
                done += count
                progress(what, done, len(pixels))
        return features

    def extract(self, pixels: NDArray[np.uint8], features: NDArray[Any]) -> None:
        """Write the features of (n, H, W, 3) pictures to (n, ...) `features`, in the calling thread."""
        interpreter = self._idle.get()
        try:
            for first in range(0, len(pixels), self._batch):
                self._run(interpreter, pixels[first:], features[first:])
        finally:
            self._idle.put(interpreter)

    def _run(self, interpreter: Any, pixels: NDArray[np.uint8], features: NDArray[Any]) -> None:  # noqa: ANN401
        batch = pixels[: self._batch]
        count = len(batch)
        if count < self._batch:
            batch = np.concatenate([batch, np.zeros((self._batch - count, *batch.shape[1:]), np.uint8)])
        given = interpreter.get_input_details()[0]["index"]
        interpreter.set_tensor(given, batch if self.quantized else to_input(batch))
        interpreter.invoke()
        features[:count] = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[:count]
