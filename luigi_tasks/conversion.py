"""From a Keras network to a TFLite converter, and the pictures that set int8 ranges.

The concrete function goes to the converter as a graph: through a saved model, its default, the same
conversion takes 13 s instead of 0.7 s (measured on MobileNetV2 1.0/160).
"""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from luigi_tasks.features import to_input

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress
    from luigi_tasks.records import Picture


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
    """Return a converter for full integer quantization with per-channel weights, float at both ends.

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
    return converter


def choose_calibration(pictures: tuple[Picture, ...], count: int) -> tuple[Picture, ...]:
    """Return up to `count` pictures, as many of each class as there are, lowest hashes first.

    By hash, so that new pictures seldom change the choice.
    """
    by_class: dict[str, list[Picture]] = collections.defaultdict(list)
    for picture in sorted(pictures, key=lambda one: one.sha256):
        by_class[picture.label].append(picture)
    chosen: list[Picture] = []
    for rank in range(max(map(len, by_class.values()))):
        for label in sorted(by_class):
            if rank < len(by_class[label]) and len(chosen) < count:
                chosen.append(by_class[label][rank])
    return tuple(chosen)
