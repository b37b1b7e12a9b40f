"""TFLite converters of one network, in float and in int8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luigi_tasks.inference.features import to_input

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress


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
        progress: Gets pictures done.
    """
    import tensorflow as tf  # noqa: PLC0415 - as above

    pixels = pixels.copy()
    # The input's range must be 0-255, also where the calibration set is dim.
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
    # uint8: other tools feed pixels as they are (MediaPipe).
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.int8
    return converter
