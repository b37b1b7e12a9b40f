"""From a trained float network to the `.tflite` file that devices run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from luigi_tasks.backbones import build_network
from luigi_tasks.conversion import choose_calibration, float_converter, int8_converter
from luigi_tasks.operators import read_operators
from luigi_tasks.records import TRAIN, Picture, QuantizationRecord, Snapshot
from luigi_tasks.train import package_versions, unpack_weights

if TYPE_CHECKING:
    from luigi_tasks.pictures import PixelLoader
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings import ModelSettings, QuantizationSettings, TrainingSettings


@dataclasses.dataclass(frozen=True)
class Quantized:
    """The candidate's file, the float network as a file, and the record."""

    model: bytes
    float_model: bytes
    record: QuantizationRecord


def quantize(
    weights: bytes,
    pixels_of: PixelLoader,
    snapshot: Snapshot,
    model: ModelSettings,
    training: TrainingSettings,
    quantization: QuantizationSettings,
    progress: Progress,
) -> Quantized:
    """Convert the trained network (`weights` as `train` packed them); same input, same bytes."""
    network, _ = build_network(model, training, len(snapshot.labels))
    unpack_weights(network, weights)
    progress("converting", 0, 2)
    float_model = bytes(float_converter(network).convert())
    progress("converting", 1, 2)
    calibration: tuple[Picture, ...] = ()
    if quantization.scheme == "int8":
        calibration = choose_calibration(snapshot.split(TRAIN), quantization.calibration_pictures)
        size = model.input_size
        converter = _int8_throughout(int8_converter(network, pixels_of(calibration, size, size), progress))
    else:
        converter = _small_weights(float_converter(network), quantization.scheme)
    quantized = bytes(converter.convert())
    record = QuantizationRecord(
        scheme=quantization.scheme,
        calibration=tuple(picture.sha256 for picture in calibration),
        operators=read_operators(quantized),
        made_with=package_versions(),
    )
    return Quantized(quantized, float_model, record)


def _int8_throughout(converter: Any) -> Any:  # noqa: ANN401 - TensorFlow has no types
    """int8 in and out, so that no step on the device is in floating point."""
    import tensorflow as tf  # noqa: PLC0415 - loaded by build_network

    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8
    return converter


def _small_weights(converter: Any, scheme: str) -> Any:  # noqa: ANN401
    import tensorflow as tf  # noqa: PLC0415 - loaded by build_network

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
    return converter
