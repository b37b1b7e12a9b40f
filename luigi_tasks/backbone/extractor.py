"""Features of a converted backbone, from a child process that has its TFLite file open."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.inference.model_process import ModelFile, open_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luigi_tasks.inference.model_process import ModelProcess
    from luigi_tasks.progress import Progress


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

    Attributes:
        process: The child.
        quantized: Whether features are int8, else float32.
        quantization: Scale and zero point of int8 features; 1 and 0 where they are float.
    """

    def __init__(self, process: ModelProcess) -> None:
        """Raises: as `open_extractor`."""
        self.process = process
        loaded = process.loaded
        self.quantized = loaded.dtype == "int8"
        self.quantization = QuantizationParameters(loaded.scale, loaded.zero_point)

    def __call__(self, pixels: NDArray[np.uint8], progress: Progress, what: str) -> NDArray[Any]:
        """Return (N, ...) features of (N, H, W, 3) RGB pictures: int8 as the file gives them, or float32.

        Raises: as `open_extractor`.
        """
        return self.process.run(pixels, progress, what)


def open_extractor(backbone: bytes) -> Extractor:
    """Open a backbone, in the child that has it open already where there is one.

    Args:
        backbone: (1, H, W, 3) to (1, ...): float in [-1, 1] to float, or uint8 pixels to int8.
    Raises: InputError if the file is no backbone, or crashes the runtime, or does not answer; DeviceError if
        the runtime cannot run it.
    """
    remedy = "remove its folder below work/backbones in the store, and run again to convert it"
    return Extractor(open_model(ModelFile(backbone, "a converted backbone", remedy)))


def quantization_of(backbone: bytes) -> QuantizationParameters:
    """Return the scale and zero point of a backbone variant's features; 1 and 0 where they are float.

    Raises: InputError; DeviceError if the runtime cannot open the file.
    """
    return open_extractor(backbone).quantization
