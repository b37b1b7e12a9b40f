"""From a Keras network to TFLite: the converters, the frozen backbone's forms.

The concrete function goes to the converter as a graph: through a saved model, its default, the same
conversion takes 13 s instead of 0.7 s (measured on MobileNetV2 1.0/160).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luigi_tasks.backbones import build_backbone, standardize
from luigi_tasks.feature_batches import FLOAT
from luigi_tasks.features import to_input

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress
    from luigi_tasks.settings import ModelSettings


def float_converter(network: Any) -> Any:  # noqa: ANN401 - TensorFlow has no types
    """Return a TFLite converter of the network for one picture, without optimizations.

    Args:
        network: Keras model, (N, H, W, 3) to (N, outputs); converted as it infers (dropout off,
            batch-norm with its moving averages).
    """
    import tensorflow as tf  # noqa: PLC0415 - loaded by the step that trained

    shape = (1, *network.input_shape[1:])
    signature = [tf.TensorSpec(shape, tf.float32, name="picture")]
    function = tf.function(lambda picture: network(picture, training=False), input_signature=signature)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()], network)
    converter.experimental_lower_to_saved_model = False
    return converter


def int8_converter(network: Any, pixels: NDArray[np.uint8], progress: Progress) -> Any:  # noqa: ANN401
    """Return a converter for full integer quantization: per-channel weights, pixels in, int8 out.

    Args:
        network: As for `float_converter`.
        pixels: (N, H, W, 3) RGB, the calibration set.
        progress: Gets the number of pictures done.
    """
    import tensorflow as tf  # noqa: PLC0415 - as above

    pixels = pixels.copy()
    # The input's range must be that of all pictures, also where the calibration set is dim.
    pixels[0, 0, 0] = 0
    pixels[0, 0, 1] = 255

    def samples() -> Iterator[list[NDArray[np.float32]]]:
        for number, picture in enumerate(pixels, start=1):
            progress("calibrating", number, len(pixels))
            yield [to_input(picture)[None]]  # (1, H, W, 3)

    converter = float_converter(network)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    # uint8: an input that takes the pixel itself, which is what other tools feed (MediaPipe).
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.int8
    return converter


def convert_backbone(
    model: ModelSettings,
    scheme: str,
    calibration: NDArray[np.uint8],
    tuned: bytes | None,
    progress: Progress,
    seed: int,
) -> tuple[dict[str, bytes], int]:
    """Return the TFLite forms of a backbone, and its number of features.

    `float` takes [-1, 1] and gives float; `int8` and `int8_wide` take uint8 pixels and give int8; the
    others are float at both ends. Same input, same bytes.

    Args:
        model: Which backbone.
        scheme: The candidate's; `float` is always there.
        calibration: (N, H, W, 3) RGB, sets the features' scale and the int8 ranges.
        tuned: Weights that fine-tuning made, or None for the initial ones.
        progress: Gets steps and pictures done.
        seed: For weights that are drawn.
    Raises: SettingsError, TransportError (see `build_backbone`).
    """
    progress("starting TensorFlow", 0, 1)
    backbone = build_backbone(model, seed)
    if tuned is not None:
        from luigi_tasks.tune import load_tuned  # noqa: PLC0415 - only where something was tuned

        load_tuned(backbone, tuned)
    standardize(backbone, calibration)
    forms = {FLOAT: bytes(float_converter(backbone).convert())}
    if scheme in {"int8", "int8_wide"}:
        forms[scheme] = bytes(int8_converter(backbone, calibration, progress).convert())
    elif scheme == "mixed":
        from luigi_tasks.mixed_precision import convert_mixed  # noqa: PLC0415 - seldom needed

        forms[scheme] = convert_mixed(backbone, calibration, progress)
    else:
        forms[scheme] = bytes(_small_weights(float_converter(backbone), scheme).convert())
    return forms, int(backbone.output_shape[-1])


def _small_weights(converter: Any, scheme: str) -> Any:  # noqa: ANN401
    import tensorflow as tf  # noqa: PLC0415 - loaded by build_backbone

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter
