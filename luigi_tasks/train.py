"""Training: the head on frozen features, or the backbone too."""

from __future__ import annotations

import dataclasses
import io
import platform
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.backbones import (
    NO_WEIGHTS,
    SCRATCH_BATCH_NORM_MOMENTUM,
    build_network,
    start_tensorflow_again,
)
from luigi_tasks.conversion import choose_calibration, float_converter, int8_converter
from luigi_tasks.features import distort_all, extract_features, to_input
from luigi_tasks.records import TRAIN, Snapshot, TrainingRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.pictures import PixelLoader
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings import ModelSettings, QuantizationSettings, TrainingSettings

# Where the candidate will be int8, so many views are seen in float too: twice the time of int8 each.
FLOAT_VIEWS = 2

# With ImageNet weights, the top third of the layers learns the new classes, the rest sees as before.
FINETUNE_FROM_SHARE = 0.65
FINETUNE_RATE_SHARE = 0.1
FINETUNE_EPOCH_SHARE = 0.25


@dataclasses.dataclass(frozen=True)
class Trained:
    """A float network: its weights as `pack_weights` writes them, and the record."""

    weights: bytes
    record: TrainingRecord


def train(
    pixels_of: PixelLoader,
    snapshot: Snapshot,
    model: ModelSettings,
    training: TrainingSettings,
    quantization: QuantizationSettings,
    progress: Progress,
) -> Trained:
    """Train on the snapshot's training split.

    `quantization` matters for a frozen backbone: the head learns on what its int8 form will see.

    Returns: Weights of the whole network, which `build_network` makes again.
    Raises: SettingsError, InputError, TransportError (see `build_backbone`).
    """
    started = time.monotonic()
    pictures = snapshot.split(TRAIN)
    pixels = pixels_of(pictures, model.input_size, model.input_size)
    targets = np.array([snapshot.labels.index(picture.label) for picture in pictures])
    progress("starting TensorFlow", 0, 1)
    network, head = build_network(model, training, len(snapshot.labels))
    lesson = Lesson(pixels, targets, [picture.sha256 for picture in pictures], training, progress)
    calibration: NDArray[np.uint8] | None = None
    if quantization.scheme == "int8":
        chosen = choose_calibration(pictures, quantization.calibration_pictures)
        rows = {picture.sha256: row for row, picture in enumerate(pictures)}
        calibration = pixels[[rows[picture.sha256] for picture in chosen]]
    if model.weights == NO_WEIGHTS:
        history = _train_from_scratch(network, lesson)
    else:
        history = _train_head(network, head, lesson, calibration)
        if training.mode == "finetune":
            history = _join(history, _train_top(network, lesson))
    record = TrainingRecord(
        history=history,
        made_with=package_versions(),
        seconds=round(time.monotonic() - started, 3),
        train_pictures=len(pictures),
    )
    return Trained(pack_weights(network), record)


@dataclasses.dataclass(frozen=True)
class Lesson:
    """What is learned from, and how.

    Attributes:
        pixels: (N, H, W, 3) uint8 RGB.
        targets: (N,) class numbers.
        names: N content hashes.
    """

    pixels: NDArray[np.uint8]
    targets: NDArray[np.int64]
    names: list[str]
    training: TrainingSettings
    progress: Progress

    def views(self) -> Sequence[int]:
        """Numbers of the views to train on, the picture itself first."""
        return range(self.training.augmented_views + 1)

    def view(self, number: int) -> NDArray[np.uint8]:
        """Return (N, H, W, 3) uint8, distorted."""
        return distort_all(self.pixels, self.names, number, flip=self.training.horizontal_flip)


def pack_weights(network: Any) -> bytes:  # noqa: ANN401 - Keras has no types
    """Return all weights as one npz, the same bytes for the same weights."""
    file = io.BytesIO()
    np.savez(file, *network.get_weights())
    return file.getvalue()


def unpack_weights(network: Any, packed: bytes) -> None:  # noqa: ANN401
    """Load what `pack_weights` wrote into an equal network."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        network.set_weights([arrays[f"arr_{number}"] for number in range(len(arrays.files))])


def package_versions() -> dict[str, str]:
    """Return the versions that decide the bytes of a model."""
    from importlib import metadata  # noqa: PLC0415 - reads the file system

    # The runtime too: a head learns from features that it computed.
    names = ("tensorflow", "tf_keras", "ai-edge-litert", "numpy", "pillow", "edge-fleet")
    versions = {"python": platform.python_version(), "machine": platform.machine()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _train_head(
    network: Any,  # noqa: ANN401
    head: Any,  # noqa: ANN401
    lesson: Lesson,
    calibration: NDArray[np.uint8] | None,
) -> dict[str, tuple[float, ...]]:
    """Train the head alone, on features that the frozen backbone gives once a view.

    Where the candidate will be int8, on the features of the int8 backbone too: those of
    MobileNetV2 1.0/160 differ from the float ones by 29% on average, and a head that knows only
    the float ones loses 2.6 points (sign digits: 0.918 in int8; with both 0.942).
    """
    _, keras = start_tensorflow_again()
    backbone = keras.Model(network.input, network.layers[-2].output)
    forms = {"float": bytes(float_converter(backbone).convert())}
    if calibration is not None:
        forms["int8"] = bytes(int8_converter(backbone, calibration, lesson.progress).convert())
    features = []
    for number in lesson.views():
        view = lesson.view(number)
        for name, form in forms.items():
            if name == "float" and calibration is not None and number >= FLOAT_VIEWS:
                continue
            what = f"{name} features, view {number + 1}"
            features.append(extract_features(form, view, lesson.progress, what))
    targets = np.tile(lesson.targets, len(features))
    return _fit(head, np.concatenate(features), targets, lesson, "training the head")


def _train_top(network: Any, lesson: Lesson) -> dict[str, tuple[float, ...]]:  # noqa: ANN401
    """Train the backbone's top and the head; batch-norm layers keep what ImageNet taught them."""
    _, keras = start_tensorflow_again()
    from_layer = int(len(network.layers) * FINETUNE_FROM_SHARE)
    for number, layer in enumerate(network.layers[:-1]):
        layer.trainable = number >= from_layer and not isinstance(layer, keras.layers.BatchNormalization)
    training = dataclasses.replace(
        lesson.training,
        epochs=max(1, round(lesson.training.epochs * FINETUNE_EPOCH_SHARE)),
        learning_rate=lesson.training.learning_rate * FINETUNE_RATE_SHARE,
    )
    return _fit_pixels(network, dataclasses.replace(lesson, training=training), "fine-tuning the top")


def _train_from_scratch(network: Any, lesson: Lesson) -> dict[str, tuple[float, ...]]:  # noqa: ANN401
    _, keras = start_tensorflow_again()
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = SCRATCH_BATCH_NORM_MOMENTUM
    return _fit_pixels(network, lesson, "training from scratch")


def _fit_pixels(network: Any, lesson: Lesson, what: str) -> dict[str, tuple[float, ...]]:  # noqa: ANN401
    inputs = np.concatenate([lesson.view(view) for view in lesson.views()])
    targets = np.tile(lesson.targets, len(lesson.views()))
    return _fit(network, inputs, targets, lesson, what)


def _fit(
    network: Any,  # noqa: ANN401
    inputs: NDArray[Any],
    targets: NDArray[np.int64],
    lesson: Lesson,
    what: str,
) -> dict[str, tuple[float, ...]]:
    """Train with Adam and cosine decay; classes weigh alike, however many pictures they have."""
    tf, keras = start_tensorflow_again()
    training = lesson.training
    classes = int(network.output_shape[-1])
    counts = np.bincount(lesson.targets, minlength=classes)
    weights = (len(lesson.targets) / (classes * np.maximum(counts, 1))).astype(np.float32)
    steps = -(-len(inputs) // training.batch_size)
    network.compile(
        optimizer=keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(training.learning_rate, steps * training.epochs)
        ),
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=training.label_smoothing),
        metrics=["accuracy"],
    )
    rng = np.random.default_rng(training.seed)

    def batches() -> Any:  # noqa: ANN401 - a generator that Keras draws from for ever
        while True:
            order = rng.permutation(len(inputs))
            for start in range(0, len(order), training.batch_size):
                chosen = order[start : start + training.batch_size]
                batch = inputs[chosen]
                yield (
                    to_input(batch) if batch.dtype == np.uint8 else batch,
                    np.eye(classes, dtype=np.float32)[targets[chosen]],
                    weights[targets[chosen]],
                )

    signature = (
        tf.TensorSpec((None, *inputs.shape[1:]), tf.float32),
        tf.TensorSpec((None, classes), tf.float32),
        tf.TensorSpec((None,), tf.float32),
    )
    data = tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(4)
    report = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: lesson.progress(what, epoch + 1, training.epochs)
    )
    history = network.fit(
        data, epochs=training.epochs, steps_per_epoch=steps, verbose=0, callbacks=[report]
    ).history
    return {name: tuple(round(float(value), 6) for value in values) for name, values in history.items()}


def _join(
    first: dict[str, tuple[float, ...]], second: dict[str, tuple[float, ...]]
) -> dict[str, tuple[float, ...]]:
    return {name: first[name] + second[name] for name in first}
