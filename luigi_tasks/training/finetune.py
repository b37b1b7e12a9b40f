"""Tuning a backbone: its upper part learns from activations at a cut that are computed once a view.

What lies below the cut stays as ImageNet taught it, so its activations are the same in every epoch:
they are computed by TFLite and memory-mapped, and an epoch costs a third of one through the whole
network. A backbone without weights is trained whole, from the pixels.

Batch-norm layers stay frozen, a measured choice: docs/decisions/0006-frozen-batch-norm.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import json
import logging
import math
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from edge_client.contract.errors import SettingsError
from luigi_tasks.backbone.converters import float_converter
from luigi_tasks.backbone.extractor import CHUNK, FeatureExtractor, to_input
from luigi_tasks.backbone.networks import STANDARD_SUFFIX, build_backbone, standardize, start_tensorflow_again
from luigi_tasks.backbone.weights import NO_WEIGHTS, load_tuned, pack_weights
from luigi_tasks.training.augmentation import distort_all
from luigi_tasks.training.cluster import cluster_size
from luigi_tasks.training.head import Lesson, train_head

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import ModelSettings, TrainingSettings
    from luigi_tasks.training.cluster import Cluster

# The last layer that stays frozen: two thirds up, before the last reduction of the map.
CUT_LAYERS = {
    "mobilenet_v1": "conv_pw_11_relu",
    "mobilenet_v2": "block_12_add",
    "mobilenet_v3_small": "expanded_conv_7/Add",
    "mobilenet_v3_large": "expanded_conv_11/Add",
}
# Keras' default of 0.99 needs hundreds of steps before the moving averages mean anything.
SCRATCH_BATCH_NORM_MOMENTUM = 0.9
WARM_UP_SHARE = 0.1
HEAD_EPOCHS = 15
# A large batch finds no fine detail: fine-tuning takes a quarter of the head's.
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
    """Where an unfinished course is kept."""

    def load(self) -> bytes | None:
        """Return what was saved last, or None."""

    def save(self, data: bytes) -> None:
        """Keep the course."""


@dataclasses.dataclass(frozen=True)
class Pupils:
    """The pictures to learn from.

    Attributes:
        read: Called with row numbers, (n,) int; returns (n, H, W, 3) uint8 RGB. Never asked for all at
            once: 100,000 pictures of 160 pixels are 7.7 GB.
        targets: (N,) class numbers.
        names: N content hashes.
        classes: How many classes there are.
    """

    read: Callable[[NDArray[np.intp]], NDArray[np.uint8]]
    targets: NDArray[np.int64]
    names: Sequence[str]
    classes: int

    def share(self, index: int, count: int) -> Pupils:
        """Return every `count`-th picture, from `index` on."""
        rows = np.arange(len(self.names))[index::count]
        return Pupils(
            lambda some: self.read(rows[some]), self.targets[rows], self.names[index::count], self.classes
        )


def tune_backbone(
    pupils: Pupils,
    model: ModelSettings,
    training: TrainingSettings,
    start: bytes | None,
    scratch: Path,
    checkpoints: CheckpointStore,
    progress: Progress,
    cluster: Cluster | None = None,
) -> Tuned:
    """Train the upper part of the backbone, or all of it where it has no weights.

    Same input, same bytes; also where the course was broken off and went on from a checkpoint.

    Args:
        pupils: What is learned from.
        model: Which backbone.
        training: How.
        start: Weights of an earlier release's backbone to go on from, or None for the initial ones.
        scratch: Folder on a disk with room for the activations (19 kB a picture and view for MobileNetV2
            1.0/160), or without weights for the pixels; nothing is left there, also by a killed process.
        checkpoints: Keep the course once an epoch.
        progress: Gets steps done.
        cluster: Other machines that train the same network; each learns from its share of the pictures.
    Raises: SettingsError, TransportError (see `build_backbone`), SettingsError where the disk has no room
        for the activations; InputError if `start` does not fit.
    """
    progress("starting TensorFlow", 0, 1)
    fingerprint = _fingerprint(pupils, model, training, start)
    index, count = (cluster.index, cluster.size) if cluster is not None else (0, 1)
    whole = model.weights == NO_WEIGHTS and start is None
    strategy = cluster.start() if cluster is not None else None
    with _scope(strategy):
        backbone = build_backbone(model, training.seed)
        if start is not None:
            load_tuned(backbone, start)
        if not whole:
            some = np.arange(0, len(pupils.names), max(1, len(pupils.names) // STANDARDIZE_PICTURES))
            standardize(backbone, pupils.read(some))
        inputs, network = _open_lesson(
            pupils.share(index, count), backbone, model, training, scratch, progress, whole=whole
        )
        course = _Course(network, len(pupils.names), training, strategy, count, whole=whole)
        course.resume(checkpoints.load(), fingerprint)
        targets = pupils.share(index, count).targets
        while course.epoch < course.epochs:
            course.learn_epoch(inputs, targets, pupils, progress)
            course.keep(checkpoints if index == 0 else None, fingerprint)
    return Tuned(pack_weights(backbone), {name: tuple(values) for name, values in course.history.items()})


def count_views(training: TrainingSettings) -> int:
    """Return how many views of each picture there are, the picture itself among them."""
    return math.ceil(training.augmented_views) + 1


def map_array(folder: Path, shape: tuple[int, ...], kind: type[np.generic] = np.float16) -> NDArray[Any]:
    """Return an array of zeros on disk, mapped into memory; its file has no name, so nothing stays behind.

    Raises: SettingsError if the disk has no room for all of it. Were room taken page by page, a disk that
        fills up would kill the process without a word (SIGBUS).
    """
    size_bytes = math.prod(shape) * np.dtype(kind).itemsize
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size_bytes)
            return np.memmap(file, kind, "r+", shape=shape)
    except OSError as e:
        msg = (
            f"{folder}: no room for {size_bytes / 1e6:.0f} MB of activations ({e.strerror or e}); free some "
            "space, or let [dataset] cache_dir name a folder that can be written"
        )
        raise SettingsError(msg) from e


class _Course:
    """Gradient descent that can be broken off after any epoch."""

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
        tf, keras = start_tensorflow_again()
        self._network, self._strategy, self._training = network, strategy, training
        self.epochs = training.epochs if whole else training.finetune_epochs
        self._views = count_views(training)
        self._batch = max(1, training.batch_size // (1 if whole else FINETUNE_BATCH_SHARE))
        self._own_batch = max(1, self._batch // workers)
        self._steps = -(-pictures // self._batch)
        rate = training.learning_rate if whole else training.finetune_rate
        self._optimizer = keras.optimizers.Adam(_schedule(keras, tf, rate, self._steps * self.epochs))
        self._optimizer.build(network.trainable_variables)
        loss = keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=training.label_smoothing, reduction="none"
        )
        self.epoch = 0
        self.history: dict[str, list[float]] = {"loss": [], "accuracy": []}
        self._kept_at = time.monotonic()

        def learn(shown: Any, wanted: Any, weights: Any) -> Any:  # noqa: ANN401
            with tf.GradientTape() as tape:
                logits = network(tf.cast(shown, tf.float32), training=True)
                losses = loss(wanted, logits) * weights
                # Workers add their gradients up.
                mean = tf.reduce_sum(losses) / (self._own_batch * workers)
            variables = network.trainable_variables
            self._optimizer.apply_gradients(zip(tape.gradient(mean, variables), variables, strict=True))
            right = tf.reduce_sum(tf.cast(tf.argmax(logits, 1) == tf.argmax(wanted, 1), tf.float32))
            return tf.stack([tf.reduce_sum(losses), right])

        if strategy is None:
            self._learn = tf.function(learn, reduce_retracing=True)
        else:
            self._learn = tf.function(lambda *batch: strategy.run(learn, args=batch), reduce_retracing=True)

    def learn_epoch(
        self,
        inputs: Any,  # noqa: ANN401 - an array in memory or on disk
        targets: NDArray[np.int64],
        pupils: Pupils,
        progress: Progress,
    ) -> None:
        """See each picture about once, each time in a view by chance.

        Args:
            inputs: (views, n, ...) of this worker's n pictures.
            targets: (n,) class numbers.
            pupils: All pictures, for the classes' weights.
            progress: Gets steps done.
        """
        tf, _ = start_tensorflow_again()
        rng = np.random.default_rng([self._training.seed, self.epoch])
        size = len(targets)
        # Whole batches of one size: the last one goes on with the next order.
        needed = self._steps * self._own_batch
        order = np.concatenate([rng.permutation(size) for _ in range(-(-needed // size))])[:needed]
        views = rng.integers(0, self._views, needed)
        counts = np.bincount(pupils.targets, minlength=pupils.classes)
        weights = (len(pupils.targets) / (pupils.classes * np.maximum(counts, 1))).astype(np.float32)
        sums = np.zeros(2)
        for step in range(self._steps):
            rows = order[step * self._own_batch : (step + 1) * self._own_batch]
            seen = views[step * self._own_batch : (step + 1) * self._own_batch]
            shown = inputs[seen, rows]
            batch = (
                tf.constant(to_input(shown) if shown.dtype == np.uint8 else shown),
                tf.one_hot(targets[rows], pupils.classes),
                tf.constant(weights[targets[rows]]),
            )
            sums += self._learn(*batch).numpy()
            progress(f"tuning, epoch {self.epoch + 1} of {self.epochs}", step + 1, self._steps)
        self.epoch += 1
        self.history["loss"].append(round(float(sums[0]) / needed, 6))
        self.history["accuracy"].append(round(float(sums[1]) / needed, 6))

    def keep(self, checkpoints: CheckpointStore | None, fingerprint: str) -> None:
        """Save the course, but not more often than it is worth.

        All workers of a cluster come here: some variables are averaged over them when they are read.
        """
        early = time.monotonic() - self._kept_at < CHECKPOINT_INTERVAL_S
        if self._strategy is None and self.epoch < self.epochs and early:
            return
        self._kept_at = time.monotonic()
        state = {"fingerprint": fingerprint, "epoch": self.epoch, "history": self.history}
        file = io.BytesIO()
        arrays = [one.numpy() for one in self._variables()]
        np.savez(file, *arrays, state=np.frombuffer(json.dumps(state).encode(), np.uint8))
        data = file.getvalue()
        if checkpoints is None:
            return
        checkpoints.save(hashlib.sha256(data).digest() + data)

    def resume(self, saved: bytes | None, fingerprint: str) -> None:
        """Go on from a checkpoint, if there is one of this very course."""
        if not saved:
            return
        digest, data = saved[:32], saved[32:]
        if hashlib.sha256(data).digest() != digest:
            logger.warning("Checkpoint of the tuning: broken; it begins anew")
            return
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            state = json.loads(arrays["state"].tobytes())
            if state["fingerprint"] != fingerprint:
                logger.warning("Checkpoint of the tuning: of other pictures or settings; it begins anew")
                return
            for number, variable in enumerate(self._variables()):
                variable.assign(arrays[f"arr_{number}"])
        self.epoch, self.history = state["epoch"], state["history"]
        logger.info("The tuning goes on after epoch %d", self.epoch)

    def _variables(self) -> list[Any]:
        return [*self._network.variables, *self._optimizer.variables]


def _open_lesson(
    pupils: Pupils,
    backbone: Any,  # noqa: ANN401
    model: ModelSettings,
    training: TrainingSettings,
    folder: Path,
    progress: Progress,
    *,
    whole: bool,
) -> tuple[Any, Any]:
    """Return (views, n, ...) inputs, on disk, and the network from them to (batch, classes) logits."""
    _, keras = start_tensorflow_again()
    classes = keras.layers.Dense(pupils.classes, name="classes")
    see = functools.partial(_see_all, pupils, training, folder, progress)
    if whole:
        for layer in backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = SCRATCH_BATCH_NORM_MOMENTUM
        inputs = see(None, (model.input_size, model.input_size, 3))
        return inputs, keras.Model(backbone.input, classes(backbone.output))
    cut = backbone.get_layer(CUT_LAYERS[model.architecture]).output
    lower = FeatureExtractor(bytes(float_converter(keras.Model(backbone.input, cut)).convert()))
    acts = see(lower, lower.shape)
    upper = keras.Model(cut, backbone.output)
    for layer in upper.layers:
        if isinstance(layer, keras.layers.BatchNormalization) or layer.name.endswith(STANDARD_SUFFIX):
            layer.trainable = False
    given = keras.Input(acts.shape[2:])
    network = keras.Model(given, classes(upper(given)))
    _begin_head(upper, classes, acts[0], pupils, training, progress)
    return acts, network


def _see_all(
    pupils: Pupils,
    training: TrainingSettings,
    folder: Path,
    progress: Progress,
    lower: FeatureExtractor | None,
    shape: tuple[int, ...],
) -> NDArray[Any]:
    """Return (views, n, *shape) of all views: pixels, or float16 activations of a network's lower part.

    Float16 halves the disk; activations behind a batch-norm stay far below its limit of 65,504.
    """
    views, size = count_views(training), len(pupils.names)
    seen = map_array(folder, (views, size, *shape), np.uint8 if lower is None else np.float16)
    for start in range(0, size, PICTURES_AT_ONCE):
        part = slice(start, min(start + PICTURES_AT_ONCE, size))
        rows, names = np.arange(size)[part], pupils.names[part]
        pixels = pupils.read(rows)
        for view in range(views):
            done = start * views + view * len(rows)
            shown = distort_all(pixels, names, view, flip=training.horizontal_flip)
            if lower is not None:
                shown = lower(shown, _continued(progress, done, size * views), "activations")
            seen[view, rows] = shown
    return seen


def _continued(progress: Progress, before: int, total: int) -> Progress:
    """Return the progress of one of many parts."""
    return lambda what, done, _: progress(what, before + done, total)


def _begin_head(
    upper: Any,  # noqa: ANN401
    classes: Any,  # noqa: ANN401
    acts: NDArray[np.float16],
    pupils: Pupils,
    training: TrainingSettings,
    progress: Progress,
) -> None:
    """Let the head know the classes before its slopes shake the backbone."""
    size = 128
    chunks = [
        upper.predict_on_batch(acts[n : n + size].astype(np.float32)) for n in range(0, len(acts), size)
    ]
    lesson = Lesson(
        [np.concatenate(chunks)], pupils.targets, pupils.classes, np.zeros(len(pupils.targets), bool)
    )
    linear = dataclasses.replace(training, hidden_units=0, dropout=0.0, epochs=HEAD_EPOCHS)
    [layer] = train_head(lesson, linear, progress, "training the head").layers
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
    pupils: Pupils, model: ModelSettings, training: TrainingSettings, start: bytes | None
) -> str:
    # How many machines tune together, not what they are called.
    nameless = dataclasses.replace(training, cluster=str(cluster_size(training.cluster)))
    digest = hashlib.sha256(repr((model, nameless, pupils.classes)).encode())
    for name, target in zip(pupils.names, pupils.targets, strict=True):
        digest.update(f"{name} {target}\n".encode())
    digest.update(start or b"")
    return digest.hexdigest()


def _scope(strategy: Any) -> Any:  # noqa: ANN401
    return contextlib.nullcontext() if strategy is None else strategy.scope()
