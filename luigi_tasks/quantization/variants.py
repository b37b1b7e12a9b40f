"""Conversion of a backbone to its TFLite variants: float, and the candidate's scheme.

The converter gets the concrete function as a graph: through a saved model, its default, the same conversion
takes 13 s instead of 0.7 s (measured on MobileNetV2 1.0/160).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luigi_tasks.backbone.converters import float_converter, int8_converter
from luigi_tasks.backbone.networks import build_backbone, standardize
from luigi_tasks.settings.values import FLOAT

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import ModelSettings


def convert_backbone(
    model: ModelSettings,
    scheme: str,
    calibration: NDArray[np.uint8],
    tuned: bytes | None,
    progress: Progress,
    seed: int,
) -> tuple[dict[str, bytes], int]:
    """Return the TFLite variants of a backbone, and its number of features.

    `float` takes [-1, 1] and gives float; `int8` and `int8_wide` take uint8 pixels and give int8; the
    others are float at both ends. Same input, same bytes.

    Args:
        model: The network.
        scheme: The candidate's quantization scheme; `float` is always converted too.
        calibration: (N, H, W, 3) RGB, sets the features' scale and the int8 ranges.
        tuned: Fine-tuned weights, or None for the initial ones.
        progress: Gets steps and pictures done.
        seed: Seed of random initial weights.
    Raises: SettingsError, TransportError (see `build_backbone`).
    """
    progress("starting TensorFlow", 0, 1)
    backbone = build_backbone(model, seed)
    if tuned is not None:
        from luigi_tasks.backbone.weights import load_tuned  # noqa: PLC0415 - only where something was tuned

        load_tuned(backbone, tuned)
    standardize(backbone, calibration)
    variants = {FLOAT: bytes(float_converter(backbone).convert())}
    if scheme in {"int8", "int8_wide"}:
        variants[scheme] = bytes(int8_converter(backbone, calibration, progress).convert())
    elif scheme == "mixed":
        from luigi_tasks.quantization.mixed_precision import convert_mixed  # noqa: PLC0415 - seldom needed

        variants[scheme] = convert_mixed(backbone, calibration, progress)
    else:
        variants[scheme] = bytes(_small_weights(float_converter(backbone), scheme).convert())
    return variants, int(backbone.output_shape[-1])


def _small_weights(converter: Any, scheme: str) -> Any:  # noqa: ANN401
    import tensorflow as tf  # noqa: PLC0415 - loaded by build_backbone

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter
