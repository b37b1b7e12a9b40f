"""From a trained float network to the `.tflite` file that devices run."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.documents import Document
from luigi_tasks.backbones import build_network
from luigi_tasks.conversion import float_converter
from luigi_tasks.features import to_input
from luigi_tasks.operators import read_operators
from luigi_tasks.snapshot import TRAIN, Picture, Snapshot
from luigi_tasks.train import PixelLoader, package_versions, unpack_weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress
    from luigi_tasks.settings import ModelSettings, QuantizationSettings, TrainingSettings


class QuantizationRecord(Document, frozen=True, kw_only=True):
    """How the file was made.

    Attributes:
        scheme: `int8`, `float16` or `dynamic`.
        calibration: Content hashes of the pictures that set the int8 ranges.
        operators: Highest version of each operator in the file.
        made_with: Package versions.
    """

    scheme: str
    calibration: tuple[str, ...]
    operators: dict[str, int]
    made_with: dict[str, str]


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
    """Convert the trained network; same input, same bytes.

    Args:
        weights: As `train` packed them.
    """
    network, _ = build_network(model, training, len(snapshot.labels))
    unpack_weights(network, weights)
    progress("converting", 0, 2)
    float_model = bytes(float_converter(network).convert())
    progress("converting", 1, 2)
    calibration: tuple[Picture, ...] = ()
    converter = float_converter(network)
    if quantization.scheme == "int8":
        calibration = choose_calibration(snapshot.split(TRAIN), quantization.calibration_pictures)
        size = model.input_size
        _ask_for_int8(converter, pixels_of(calibration, size, size), progress)
    else:
        _ask_for_small_weights(converter, quantization.scheme)
    quantized = bytes(converter.convert())
    record = QuantizationRecord(
        scheme=quantization.scheme,
        calibration=tuple(picture.sha256 for picture in calibration),
        operators=read_operators(quantized),
        made_with=package_versions(),
    )
    return Quantized(quantized, float_model, record)


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


def _ask_for_int8(converter: Any, pixels: NDArray[np.uint8], progress: Progress) -> None:  # noqa: ANN401
    """Full integer quantization: int8 in, int8 out, per-channel weights."""
    import tensorflow as tf  # noqa: PLC0415 - loaded by build_network

    pixels = pixels.copy()
    # The input's range must be that of all pictures, also where the calibration set is dim.
    pixels[0, 0, 0] = 0
    pixels[0, 0, 1] = 255

    def samples() -> Iterator[list[NDArray[np.float32]]]:
        for number, picture in enumerate(pixels, start=1):
            progress("calibrating", number, len(pixels))
            yield [to_input(picture)[None]]  # (1, H, W, 3)

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.int8
    converter.inference_output_type = tf.int8


def _ask_for_small_weights(converter: Any, scheme: str) -> None:  # noqa: ANN401
    import tensorflow as tf  # noqa: PLC0415 - loaded by build_network

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if scheme == "float16":
        converter.target_spec.supported_types = [tf.float16]
