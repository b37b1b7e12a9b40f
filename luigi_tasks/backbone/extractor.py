"""Features of a converted backbone, from a child process that has its TFLite file open."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import os
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.inference.model_process import ModelFile, ModelProcess

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress

OPEN_AT_MOST = 4


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


class Extractor:
    """One TFLite variant of a backbone, open in a child process.

    Args:
        backbone: (1, H, W, 3) to (1, ...): float in [-1, 1] to float, or uint8 pixels to int8.
    Raises: InputError if the file is no backbone, or crashes the runtime; DeviceError if the runtime cannot
        run it.

    Attributes:
        quantized: Whether features are int8, else float32.
        quantization: Scale and zero point of int8 features; 1 and 0 where they are float.
    """

    def __init__(self, backbone: bytes) -> None:
        remedy = "remove its folder below work/backbones in the store, and run again to convert it"
        self._process = ModelProcess(ModelFile(backbone, "a converted backbone", remedy))
        loaded = self._process.loaded
        self.quantized = loaded.dtype == "int8"
        self.quantization = QuantizationParameters(loaded.scale, loaded.zero_point)

    def __call__(self, pixels: NDArray[np.uint8], progress: Progress, what: str) -> NDArray[Any]:
        """Return (N, ...) features of (N, H, W, 3) RGB pictures: int8 as the file gives them, or float32.

        Raises: as the constructor.
        """
        return self._process.run(pixels, progress, what)

    def close(self) -> None:
        """End the child."""
        self._process.close()


class _OpenExtractors:
    """Extractors that are open in this process, by the SHA-256 of their file; the last ones used stay.

    A worker needs the same two for each of its shards, and opening one takes as long as many pictures.
    """

    def __init__(self) -> None:
        self._by_sha256: collections.OrderedDict[str, Extractor] = collections.OrderedDict()
        self._lock = threading.Lock()
        # `luigi --workers 2` forks: two processes must not talk to one child, nor wait for a lost lock.
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        self._by_sha256, self._lock = collections.OrderedDict(), threading.Lock()

    def open(self, backbone: bytes) -> Extractor:
        sha256 = hashlib.sha256(backbone).hexdigest()
        with self._lock:
            extractor = self._by_sha256.pop(sha256, None) or Extractor(backbone)
            self._by_sha256[sha256] = extractor
            while len(self._by_sha256) > OPEN_AT_MOST:
                self._by_sha256.popitem(last=False)[1].close()
        return extractor


open_extractor = _OpenExtractors().open


def quantization_of(backbone: bytes) -> QuantizationParameters:
    """Return the scale and zero point of a backbone variant's features; 1 and 0 where they are float.

    Raises: InputError; DeviceError if the runtime cannot open the file.
    """
    return open_extractor(backbone).quantization
