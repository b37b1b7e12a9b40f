"""Mixed precision: int8 where it is accurate, float elsewhere. The scheme between int8 and float16.

Some networks have operators whose outputs int8 cannot represent: a channel with values a hundred times those
of the others leaves them a step or two. Testing operators one by one does not find them, since an error shows
only together with the errors of its inputs. So operators are quantized cumulatively from the input on, and
one that adds too much noise to the features stays in float before the next is tried.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.backbone.converters import float_converter, int8_converter
from luigi_tasks.inference.features import FeatureExtractor, to_input

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress

# Pictures that the features are compared on: a scan of 69 operators takes 11 s with so many.
PROBE_PICTURES = 32
# Share of the features' variance that quantizing one more operator may turn into noise. MobileNetV2 with
# ImageNet weights: 64 of its 69 operators stay below 0.004, the worst two make half of all noise.
NOISE_SHARE = 0.05
# The same for all operators together.
TOTAL_NOISE_SHARE = 0.15
TINY = 1e-12


def convert_mixed(network: Any, pixels: NDArray[np.uint8], progress: Progress) -> bytes:  # noqa: ANN401
    """Convert to TFLite with float input and output, and in int8 every operator that stays accurate.

    Args:
        network: Keras model, as for `int8_converter`.
        pixels: (N, H, W, 3) RGB, the calibration set.
        progress: Gets operators done.
    Source: TensorFlow Lite's guide to selective quantization, `tf.lite.experimental.QuantizationDebugger`.
    """
    import tensorflow as tf  # noqa: PLC0415 - loaded by the step that trained

    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=int8_converter(network, pixels, progress), debug_dataset=lambda: [[to_input(pixels[:1])]]
    )
    debugger.run()
    statistics = io.StringIO(newline="")
    debugger.layer_statistics_dump(statistics)
    statistics.seek(0)
    # Operators by the name of their output, in the order of execution.
    operators = [row["tensor_name"] for row in csv.DictReader(statistics)]
    probe = pixels[:PROBE_PICTURES]
    wanted = _answer(bytes(float_converter(network).convert()), probe)
    variance = max(float(((wanted - wanted.mean(0)) ** 2).sum()), TINY)

    def convert(in_float: list[str]) -> bytes:
        debugger.options.denylisted_nodes = in_float
        return bytes(debugger.get_nondebug_quantized_model())

    in_float: list[str] = []
    noise = 0.0
    for number, operator in enumerate(operators, start=1):
        answer = _answer(convert(in_float + operators[number:]), probe)
        found = float(((answer - wanted) ** 2).sum()) / variance
        if found <= noise or (found <= noise + NOISE_SHARE and found <= TOTAL_NOISE_SHARE):
            noise = found
        else:
            in_float.append(operator)
        progress("finding operators that need float", number, len(operators))
    return convert(in_float)


def _answer(model: bytes, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    answer: NDArray[np.float64] = FeatureExtractor(model)(pixels, lambda *_: None, "").astype(np.float64)
    return answer
