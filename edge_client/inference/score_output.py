"""Output of a model: scores in [0, 1], whatever the model gives.

What the values are is decided once for a model, from its graph, its metadata and the range that its
quantization can express, and never from the values of one picture.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.errors import DeviceError, InputError
from edge_client.inference.graph import Ending
from edge_client.inference.picture_input import BYTE_TYPES

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_ROUNDING = 1e-3
_BYTES = 256


class Scoring(enum.Enum):
    """How the values of an output become scores."""

    AS_IS = "scores"
    SOFTMAX = "logits, made scores by a softmax"
    # Of a model with one output: the score of its second label.
    ONE_AS_IS = "one score, that of the second label"
    ONE_SIGMOID = "one logit, made the score of the second label by a logistic function"


class ScoreOutput:
    """The output of a loaded model.

    Attributes:
        index: Index of its tensor.
    """

    def __init__(self, answer: dict[str, Any], scoring: Scoring, highest: float = 1.0) -> None:
        """Prepare an output.

        Args:
            answer: Details of the output tensor, of any shape with one value for each class.
            scoring: How its values become scores.
            highest: Value of the highest score: 100 where scores are percent.
        Raises: InputError for a type that is not supported.
        """
        self.index = int(answer["index"])
        self._scoring, self._highest = scoring, np.float32(highest)
        self._real_values = values = real_values(answer)
        if values is not None and scoring in {Scoring.AS_IS, Scoring.ONE_AS_IS}:
            self._real_values = np.clip(values / self._highest, 0.0, 1.0)

    def scores(self, raw: NDArray[np.generic]) -> NDArray[np.float32]:
        """Map the values of the output, in any shape, to (classes,) scores.

        Raises: DeviceError on NaN or infinity.
        """
        real = real_numbers(raw.reshape(-1), self._real_values)
        if self._real_values is None and not np.isfinite(real).all():
            msg = "the model answered NaN or infinity; it cannot be used, train or convert the model again"
            raise DeviceError(msg)
        if self._scoring is Scoring.SOFTMAX:
            return softmax(real)
        if self._scoring is Scoring.ONE_SIGMOID:
            return softmax(np.array([0, real[0]], np.float32))
        scores = real if self._real_values is not None else np.clip(real / self._highest, 0.0, 1.0)
        one = self._scoring is Scoring.ONE_AS_IS
        return np.array([1 - scores[0], scores[0]], np.float32) if one else np.asarray(scores, np.float32)


def find_scoring(answer: dict[str, Any], ending: Callable[[], Ending]) -> Scoring:
    """Return how the values of an output with several classes become scores.

    Args:
        answer: Details of the output tensor.
        ending: Reads what the graph ends in; for a float output, whose type expresses any value.
    Raises: InputError for a type that is not supported.
    """
    values = real_values(answer)
    scores = ending() is Ending.SCORES if values is None else may_be_scores(values)
    return Scoring.AS_IS if scores else Scoring.SOFTMAX


def real_numbers(raw: NDArray[np.generic], values: NDArray[np.float32] | None) -> NDArray[np.float32]:
    """Return the real numbers of an output; `values` are its `real_values`."""
    if values is None:
        return raw.astype(np.float32)
    patterns = raw.view(np.uint8 if values.size == _BYTES else np.uint16)
    return np.asarray(values[patterns], np.float32)


def real_values(answer: dict[str, Any]) -> NDArray[np.float32] | None:
    """Return the real value of each pattern of bits of a quantized output; None for a float output.

    Raises: InputError for another type.
    Source: TFLite 8-bit quantization specification, real = (q - zero_point) * scale.
    """
    dtype = np.dtype(answer["dtype"])
    if dtype in {np.dtype(np.float32), np.dtype(np.float16)}:
        return None
    if dtype not in {*BYTE_TYPES, np.dtype(np.int16)}:
        msg = f"model output of type {dtype}: float32, uint8 and int8 are supported"
        raise InputError(msg)
    scale, zero_point = answer["quantization"]
    if not scale > 0:
        msg = f"model output of type {dtype} without quantization; convert it again"
        raise InputError(msg)
    patterns = (
        np.arange(_BYTES, dtype=np.uint8) if dtype in BYTE_TYPES else np.arange(1 << 16, dtype=np.uint16)
    )
    quantized = patterns.view(dtype).astype(np.float64)
    return np.asarray((quantized - zero_point) * scale, np.float32)  # (256,), or (65536,)


def may_be_scores(values: NDArray[np.float32]) -> bool:
    """Whether all values that an 8-bit output can express lie in [0, 1], unlike those of logits."""
    return bool(values.min() >= -_ROUNDING and values.max() <= 1 + 1 / 128)


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return scores that sum to 1."""
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum(), np.float32)
