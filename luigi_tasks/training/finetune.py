"""Fine-tuning of a backbone: its upper part is trained on activations computed once per augmented copy.

Layers below the cut stay frozen, so their activations are the same in every epoch: TFLite computes them once
into a memory-mapped file, and an epoch costs two thirds of one through the whole network. A backbone without
weights is trained whole, from the pixels. docs/decisions/0013-recipes.md has the measurements.

Batch-norm layers stay frozen, a measured choice: docs/decisions/0006-frozen-batch-norm.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import logging
import math
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from luigi_tasks.backbone.converters import float_converter
from luigi_tasks.backbone.networks import STANDARD_SUFFIX, build_backbone, standardize
from luigi_tasks.backbone.tensorflow_runtime import running_tensorflow
from luigi_tasks.backbone.weights import NO_WEIGHTS, load_tuned, pack_weights
from luigi_tasks.inference.features import CHUNK, FeatureExtractor, to_input
from luigi_tasks.training.augmentation import FOR_HEADS, FOR_TUNING, augment
from luigi_tasks.training.checkpoint import Checkpoint, pack_checkpoint, parse_checkpoint
from luigi_tasks.training.cluster import cluster_size
from luigi_tasks.training.head import HeadTrainingData, train_head
from luigi_tasks.training.mapped_array import map_array
from luigi_tasks.training.validation import choose_validation

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from luigi_tasks.dataset.records import Picture
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import ModelSettings, TrainingSettings
    from luigi_tasks.training.cluster import Cluster

# The last layer that stays frozen: the end of the blocks that work at 1/8 of the input's resolution. In V1,
# the first at 1/16, since the one before has activations four times as large.
CUT_LAYERS = {
    "mobilenet_v1": "conv_pw_6_relu",
    "mobilenet_v2": "block_5_add",
    "mobilenet_v3_small": "expanded_conv_2/Add",
    "mobilenet_v3_large": "expanded_conv_5/Add",
}
# Keras' default of 0.99 needs hundreds of steps before the moving averages mean anything.
SCRATCH_BATCH_NORM_MOMENTUM = 0.9
WARM_UP_SHARE = 0.1
HEAD_EPOCHS = 15
# Smaller batches fine-tune better: a quarter of the head's.
FINETUNE_BATCH_SHARE = 4
STANDARDIZE_PICTURES = 200
CHECKPOINT_INTERVAL_S = 10.0
# Pixels in memory: 80 MB at 160. A multiple of what an extractor's thread takes, so that the numbers do not
# depend on it.
PICTURES_AT_ONCE = 32 * CHUNK

logger = logging.getLogger("luigi-interface")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """All weights of a backbone, as `pack_weights` writes them, and loss and accuracy by epoch."""

    weights: bytes
    history: dict[str, tuple[float, ...]]


class CheckpointStore(Protocol):
    """Storage of the checkpoint of an unfinished training."""

    def load(self) -> bytes | None:
        """Return what was saved last, or None."""

    def save(self, data: bytes) -> None:
        """Save a checkpoint."""


class NoCheckpoint:
    """Keeps nothing: a training that is interrupted starts from the beginning."""

    def load(self) -> bytes | None:
        """Return None."""
        return None

    def save(self, data: bytes) -> None:
        """Ignore the checkpoint."""


@dataclasses.dataclass(frozen=True)
class TrainingImages:
    """Training pictures, read in parts.

    Attributes:
        read: Called with row numbers, (n,) int; returns (n, H, W, 3) uint8 RGB. Never asked for all at
            once: 100,000 pictures of 160 pixels are 7.7 GB.
        targets: (N,) class numbers.
        names: N content hashes.
        classes: Number of classes.
    """

    read: Callable[[NDArray[np.intp]], NDArray[np.uint8]]
    targets: NDArray[np.int64]
    names: Sequence[str]
    classes: int

    @classmethod
    def of(
        cls,
        pictures: Sequence[Picture],
        labels: Sequence[str],
        load: Callable[[Sequence[Picture]], NDArray[np.uint8]],
    ) -> TrainingImages:
        """Return the training pictures of a snapshot, without those for validation.

        Args:
            pictures: The training split.
            labels: The classes.
            load: Returns (n, H, W, 3) uint8 RGB of n pictures.
        """
        number = {label: index for index, label in enumerate(labels)}
        held = choose_validation(pictures)
        learned = [one for one, out in zip(pictures, held, strict=True) if not out]
        return cls(
            read=lambda rows: load([learned[row] for row in rows]),
            targets=np.array([number[one.label] for one in learned]),
            names=[one.sha256 for one in learned],
            classes=len(labels),
        )

    def share(self, index: int, count: int) -> TrainingImages:
        """Return every `count`-th picture, from `index` on."""
        rows = np.arange(len(self.names))[index::count]
        return TrainingImages(
            lambda some: self.read(rows[some]), self.targets[rows], self.names[index::count], self.classes
        )

    def class_weights(self) -> NDArray[np.float32]:
        """Return (classes,) class weights that balance class frequencies."""
        counts = np.bincount(self.targets, minlength=self.classes)
        return (len(self.targets) / (self.classes * np.maximum(counts, 1))).astype(np.float32)


def tune_backbone(
    images: TrainingImages,
    model: ModelSettings,
    training: TrainingSettings,
    start: bytes | None,
    scratch: Path,
    checkpoints: CheckpointStore,
    progress: Progress,
    cluster: Cluster | None = None,
) -> Tuned:
    """Train the upper part of the backbone, or all of it where it has no weights.

    Same input, same bytes; also where training was interrupted and resumed from a checkpoint.

    Args:
        images: The training pictures.
        model: The network.
        training: Hyperparameters.
        start: Weights of an earlier release's backbone to start from, or None for the initial ones.
        scratch: Folder on a disk with room for the activations (26 kB per copy for MobileNetV2
            1.0/160), or without weights for the pixels; nothing is left there, also by a killed process.
        checkpoints: Gets a checkpoint after each epoch.
        progress: Gets steps done.
        cluster: Other machines that train the same network; each trains on its share of the pictures.
    Raises: SettingsError, TransportError (see `build_backbone`), SettingsError where the disk has no room
        for the activations; InputError if `start` does not fit.
    """
    progress("starting TensorFlow", 0, 1)
    fingerprint = _fingerprint(images, model, training, start)
    index, count = (cluster.index, cluster.size) if cluster is not None else (0, 1)
    whole = model.weights == NO_WEIGHTS and start is None
    strategy = cluster.start() if cluster is not None else None
    with _scope(strategy):
        backbone = build_backbone(model, training.seed)
        if start is not None:
            load_tuned(backbone, start)
        if not whole:
            some = np.arange(0, len(images.names), max(1, len(images.names) // STANDARDIZE_PICTURES))
            standardize(backbone, images.read(some))
        copies = count_copies(training, len(images.names), whole=whole)
        inputs, network = _build_network(
            images.share(index, count), copies, backbone, model, training, scratch, progress, whole=whole
        )
        loop = FineTuningLoop(network, len(images.names), training, strategy, count, whole=whole)
        loop.resume(checkpoints.load(), fingerprint)
        targets = images.share(index, count).targets
        while loop.epoch < loop.epochs:
            loop.run_epoch(inputs, targets, images, progress)
            loop.keep(checkpoints if index == 0 else None, fingerprint)
    return Tuned(pack_weights(backbone), {name: tuple(values) for name, values in loop.history.items()})


def count_copies(training: TrainingSettings, pictures: int, *, whole: bool) -> int:
    """Return the number of copies of each of so many pictures; copy 0 is the picture itself.

    More copies gained where an initialized network is tuned; from scratch, in few epochs, they did not.
    """
    wanted = training.augmented_copies if whole else training.shown_copies(pictures)
    return math.ceil(wanted) + 1


class FineTuningLoop:
    """Training loop that can be stopped and resumed after any epoch."""

    def __init__(
        self,
        network: Any,  # noqa: ANN401 - Keras has no types
        pictures: int,
        training: TrainingSettings,
        strategy: Any,  # noqa: ANN401 - TensorFlow has no types
        workers: int,
        *,
        whole: bool,
    ) -> None:
        tf, keras = running_tensorflow()
        self._network, self._strategy, self._training = network, strategy, training
        self._copies = count_copies(training, pictures, whole=whole)
        self.epochs = training.epochs if whole else training.finetune_epochs
        batch = max(1, training.batch_size // (1 if whole else FINETUNE_BATCH_SHARE))
        self._own_batch = max(1, batch // workers)
        self._steps = -(-pictures // batch)
        rate = training.learning_rate if whole else training.finetune_rate
        self._optimizer = keras.optimizers.Adam(_schedule(keras, tf, rate, self._steps * self.epochs))
        self._optimizer.build(network.trainable_variables)
        step = _make_step(network, self._optimizer, training.label_smoothing, self._own_batch * workers)
        if strategy is None:
            self._train_step = tf.function(step, reduce_retracing=True)
        else:
            self._train_step = tf.function(
                lambda *batch: strategy.run(step, args=batch), reduce_retracing=True
            )
        self.epoch = 0
        self.history: dict[str, list[float]] = {"loss": [], "accuracy": []}
        self._saved_at = time.monotonic()

    def run_epoch(
        self,
        inputs: Any,  # noqa: ANN401 - an array in memory or on disk
        targets: NDArray[np.int64],
        images: TrainingImages,
        progress: Progress,
    ) -> None:
        """Train on each picture about once, in each epoch on another copy of it.

        Args:
            inputs: (copies, n, ...) of this worker's n pictures.
            targets: (n,) class numbers.
            images: All pictures, for the classes' weights.
            progress: Gets steps done.
        """
        tf, _ = running_tensorflow()
        order, copies = self._draw_order(len(targets))
        weights = images.class_weights()
        sums = np.zeros(2)
        for step in range(self._steps):
            part = slice(step * self._own_batch, (step + 1) * self._own_batch)
            rows = order[part]
            shown = inputs[copies[part], rows]
            batch = (
                tf.constant(to_input(shown) if shown.dtype == np.uint8 else shown),
                tf.one_hot(targets[rows], images.classes),
                tf.constant(weights[targets[rows]]),
            )
            sums += self._train_step(*batch).numpy()
            progress(f"tuning, epoch {self.epoch + 1} of {self.epochs}", step + 1, self._steps)
        self.epoch += 1
        self.history["loss"].append(round(float(sums[0]) / len(order), 6))
        self.history["accuracy"].append(round(float(sums[1]) / len(order), 6))

    def _draw_order(self, size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Draw the pictures of an epoch's batches, out of `size`, and which copy of each is shown.

        All batches have one size: where the pictures end, the last batch is filled up from another order.
        """
        rng = np.random.default_rng([self._training.seed, self.epoch])
        needed = self._steps * self._own_batch
        order = np.concatenate([rng.permutation(size) for _ in range(-(-needed // size))])[:needed]
        first = np.random.default_rng(self._training.seed).integers(0, self._copies, size)
        return order, (first[order] + self.epoch) % self._copies

    def keep(self, checkpoints: CheckpointStore | None, fingerprint: str) -> None:
        """Save a checkpoint, at most once in CHECKPOINT_INTERVAL_S.

        All workers of a cluster come here, also those without `checkpoints`: some variables are averaged over
        the workers when they are read.
        """
        early = time.monotonic() - self._saved_at < CHECKPOINT_INTERVAL_S
        if self._strategy is None and self.epoch < self.epochs and early:
            return
        self._saved_at = time.monotonic()
        arrays = [one.numpy() for one in self._variables()]
        if checkpoints is not None:
            checkpoints.save(pack_checkpoint(Checkpoint(self.epoch, self.history, arrays), fingerprint))

    def resume(self, saved: bytes | None, fingerprint: str) -> None:
        """Resume from a checkpoint, if it is of the same pictures and settings."""
        checkpoint = parse_checkpoint(saved, fingerprint)
        if checkpoint is None:
            return
        for variable, array in zip(self._variables(), checkpoint.arrays, strict=True):
            variable.assign(array)
        self.epoch, self.history = checkpoint.epoch, checkpoint.history
        logger.info("Fine-tuning resumes after epoch %d", self.epoch)

    def _variables(self) -> list[Any]:
        return [*self._network.variables, *self._optimizer.variables]


def _make_step(network: Any, optimizer: Any, label_smoothing: float, batch: int) -> Any:  # noqa: ANN401
    """Return a function that trains on one worker's share of a batch: (inputs, one-hot, weights) to sums.

    It returns the sum of the losses and the number of right predictions.
    """
    tf, keras = running_tensorflow()
    loss = keras.losses.CategoricalCrossentropy(
        from_logits=True, label_smoothing=label_smoothing, reduction="none"
    )

    def train(shown: Any, wanted: Any, weights: Any) -> Any:  # noqa: ANN401
        with tf.GradientTape() as tape:
            logits = network(tf.cast(shown, tf.float32), training=True)
            losses = loss(wanted, logits) * weights
            # Divided by the whole batch: workers add their gradients up.
            mean = tf.reduce_sum(losses) / batch
        variables = network.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(mean, variables), variables, strict=True))
        right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == tf.argmax(wanted, 1), tf.float32))
        return tf.stack([tf.reduce_sum(losses), right])

    return train


def _build_network(
    images: TrainingImages,
    copies: int,
    backbone: Any,  # noqa: ANN401
    model: ModelSettings,
    training: TrainingSettings,
    folder: Path,
    progress: Progress,
    *,
    whole: bool,
) -> tuple[Any, Any]:
    """Return (copies, n, ...) inputs, on disk, and the network from them to (batch, classes) logits."""
    _, keras = running_tensorflow()
    classes = keras.layers.Dense(images.classes, name="classes")
    compute = functools.partial(_compute_inputs, images, copies, training, folder, progress)
    if whole:
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = SCRATCH_BATCH_NORM_MOMENTUM
        inputs = compute(None, (model.input_size, model.input_size, 3))
        return inputs, keras.Model(backbone.input, classes(backbone.output))
    cut = backbone.get_layer(CUT_LAYERS[model.architecture]).output
    lower = FeatureExtractor(bytes(float_converter(keras.Model(backbone.input, cut)).convert()))
    acts = compute(lower, lower.shape)
    upper = keras.Model(cut, backbone.output)
    for layer in upper.layers:
        if isinstance(layer, keras.layers.BatchNormalization) or layer.name.endswith(STANDARD_SUFFIX):
            layer.trainable = False
    given = keras.Input(acts.shape[2:])
    network = keras.Model(given, classes(upper(given)))
    _warm_up_head(upper, classes, acts[0], images, training, progress)
    return acts, network


def _compute_inputs(
    images: TrainingImages,
    copies: int,
    training: TrainingSettings,
    folder: Path,
    progress: Progress,
    lower: FeatureExtractor | None,
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Return (copies, n, *shape) of all copies: pixels, or float16 activations of a network's lower part.

    Float16 halves the disk; activations behind a batch-norm stay far below its limit of 65,504.
    """
    size = len(images.names)
    seen = map_array(folder, (copies, size, *shape), np.uint8 if lower is None else np.float16)
    for start in range(0, size, PICTURES_AT_ONCE):
        part = slice(start, min(start + PICTURES_AT_ONCE, size))
        rows, names = np.arange(size)[part], images.names[part]
        pixels = images.read(rows)
        strength = FOR_HEADS if lower is None else FOR_TUNING
        for copy in range(copies):
            done = start * copies + copy * len(rows)
            shown = augment(pixels, names, copy, flip=training.horizontal_flip, strength=strength)
            if lower is not None:
                shown = lower(shown, _continued(progress, done, size * copies), "activations")
            seen[copy, rows] = shown
    return seen


def _continued(progress: Progress, before: int, total: int) -> Progress:
    """Return the progress of one of many parts."""
    return lambda what, done, _: progress(what, before + done, total)


def _warm_up_head(
    upper: Any,  # noqa: ANN401
    classes: Any,  # noqa: ANN401
    acts: NDArray[np.float16],
    images: TrainingImages,
    training: TrainingSettings,
    progress: Progress,
) -> None:
    """Warm up the head first: gradients of an untrained head would damage the pretrained weights."""
    size = 128
    chunks = [
        upper.predict_on_batch(acts[n : n + size].astype(np.float32)) for n in range(0, len(acts), size)
    ]
    data = HeadTrainingData(
        [np.concatenate(chunks)], images.targets, images.classes, np.zeros(len(images.targets), bool)
    )
    linear = dataclasses.replace(training, hidden_units=0, dropout=0.0, epochs=HEAD_EPOCHS)
    [layer] = train_head(data, linear, progress, "training the head").layers
    classes.set_weights([layer.weights, layer.bias])


def _schedule(keras: Any, tf: Any, peak: float, steps: int) -> Any:  # noqa: ANN401
    """Return a rate that warms up, then falls to 0 along a cosine."""
    warm = max(1, round(steps * WARM_UP_SHARE))

    class Schedule(keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
        def __call__(self, step: Any) -> Any:  # noqa: ANN401
            step = tf.cast(step, tf.float32)
            falling = 0.5 * (1 + tf.cos(math.pi * (step - warm) / max(1, steps - warm)))
            return peak * tf.where(step < warm, (step + 1) / warm, falling)

        def get_config(self) -> dict[str, float]:
            return {"peak": peak, "steps": steps}

    return Schedule()


def _fingerprint(
    images: TrainingImages, model: ModelSettings, training: TrainingSettings, start: bytes | None
) -> str:
    """Return a hex digest of everything that decides a training."""
    # How many machines train together, not their names.
    nameless = dataclasses.replace(training, cluster=str(cluster_size(training.cluster)))
    digest = hashlib.sha256(repr((model, nameless, images.classes)).encode())
    for name, target in zip(images.names, images.targets, strict=True):
        digest.update(f"{name} {target}\n".encode())
    digest.update(start or b"")
    return digest.hexdigest()


def _scope(strategy: Any) -> Any:  # noqa: ANN401
    return contextlib.nullcontext() if strategy is None else strategy.scope()
