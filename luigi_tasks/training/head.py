"""Head: the classifier on a frozen backbone's features, softmax regression or with one hidden layer.

Plain NumPy: a head on 1,920 features of 5,000 pictures and copies trains in half a second, before TensorFlow
would have been imported.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import TrainingSettings

# Epochs without a better validation loss after which training stops.
PATIENCE = 6
# Steps of a weight to either side of 0. Sign digits, five folds: 0.9728 with 31, 0.9720 with 127, 0.9718 with
# 15.
LEVELS = 31
# Adam's, as in Kingma and Ba, arXiv:1412.6980.
FIRST_DECAY, SECOND_DECAY, TINY = 0.9, 0.999, 1e-7
NO_FOLD = -1
# Rows that are turned to float at once.
PART_ROWS = 4096


@dataclasses.dataclass(frozen=True)
class Layer:
    """One dense layer; all but a head's last are followed by ReLU.

    Attributes:
        weights: (inputs, units) float32.
        bias: (units,) float32.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class HeadTrainingData:
    """Features and classes that a head is trained on.

    Attributes:
        copies: Each (N, F): features of the pictures themselves, then of each augmented copy, of any type.
        targets: (N,) class numbers.
        classes: Number of classes.
        validation: (N,) bool: pictures that decide when to stop; the final head is trained on them too.
        scale: Real value of one step of a feature.
        zero_point: The feature value of 0.0.
        folds: (N,) number of the fold that a picture is in: another head, which does not learn from the fold,
            is trained to show what the final one would say of unseen pictures. `NO_FOLD`: in none.
    """

    copies: Sequence[NDArray[Any]]
    targets: NDArray[np.int64]
    classes: int
    validation: NDArray[np.bool_]
    scale: float = 1.0
    zero_point: int = 0
    folds: NDArray[np.int64] | None = None


@dataclasses.dataclass(frozen=True)
class Unseen:
    """Out-of-fold predictions: of heads trained as the final one, for pictures that they did not learn from.

    Attributes:
        rows: (M,) positions of the pictures in the training data.
        logits: (M, classes).
    """

    rows: NDArray[np.intp]
    logits: NDArray[np.float32]


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """A trained head.

    Attributes:
        layers: Its layers.
        history: Loss and accuracy by epoch.
        unseen: Out-of-fold predictions; none where no folds were given.
    """

    layers: tuple[Layer, ...]
    history: dict[str, tuple[float, ...]]
    unseen: Unseen

    def probabilities(
        self, features: NDArray[Any], scale: float = 1.0, zero_point: int = 0
    ) -> NDArray[np.float32]:
        """Return (N, classes) of (N, F) features."""
        parts = _forward_in_parts(self.layers, features, scale, zero_point)
        return np.concatenate([softmax(one[-1]) for one in parts])

    def ranges(
        self, features: NDArray[Any], scale: float = 1.0, zero_point: int = 0
    ) -> tuple[tuple[float, float], ...]:
        """Return the lowest and the highest output of each layer on (N, F) features."""
        parts = _forward_in_parts(self.layers, features, scale, zero_point)
        ends = np.array([[(one.min(), one.max()) for one in outputs] for outputs in parts])
        return tuple(
            (float(low), float(high))
            for low, high in zip(ends[..., 0].min(0), ends[..., 1].max(0), strict=True)
        )

    def divide_logits(self, temperature: float) -> FittedHead:
        """Return the head with its logits divided by a temperature: the same answers, with other scores."""
        *before, last = self.layers
        divisor = np.float32(temperature)
        layers = (*before, Layer(last.weights / divisor, last.bias / divisor))
        unseen = dataclasses.replace(self.unseen, logits=self.unseen.logits / divisor)
        return dataclasses.replace(self, layers=layers, unseen=unseen)


def train_head(
    data: HeadTrainingData, training: TrainingSettings, progress: Progress, what: str
) -> FittedHead:
    """Train twice: to find the best number of epochs on the validation pictures, then on all pictures.

    Adam with cosine decay; all classes have the same weight, however many pictures they have. Same input,
    same head.

    Args:
        data: Features and classes.
        training: Hyperparameters.
        progress: Gets epochs done.
        what: Name of the work in progress messages.
    """
    epochs, history = _count_epochs(data, training, progress, f"{what}: when to stop")
    held = _list_folds(data)
    final = _Fit(data, [np.ones(len(data.targets), bool), *(~fold for fold in held)], training, epochs)
    final.run(epochs, progress, what)
    history = {name: tuple(values) for name, values in final.history.items()} | history
    return FittedHead(final.layers_of(0), history, _predict_unseen(data, final, held))


def _count_epochs(
    data: HeadTrainingData, training: TrainingSettings, progress: Progress, what: str
) -> tuple[int, dict[str, tuple[float, ...]]]:
    """Return the best number of epochs on the validation pictures, and the trial's history."""
    if not data.validation.any() or not _has_all_classes(data, ~data.validation):
        return training.epochs, {}
    trial = _Fit(data, [~data.validation], training, training.epochs)
    epochs = trial.run_until_worse(data, progress, what)
    return epochs, {f"validation {name}": tuple(values) for name, values in trial.history.items()}


def predict_out_of_fold(
    data: HeadTrainingData,
    learned: NDArray[np.bool_],
    training: TrainingSettings,
    progress: Progress,
    what: str,
) -> NDArray[np.float32]:
    """Return (N, classes) logits for each picture, of a head that did not learn from the picture's fold.

    Args:
        data: Features and classes, with a fold for each picture.
        learned: (N,) bool: pictures that any head may learn from.
        training: Hyperparameters.
        progress: Gets epochs done.
        what: Name of the work in progress messages.
    """
    folds = [data.folds == number for number in np.unique(data.folds)] if data.folds is not None else []
    fit = _Fit(data, [learned & ~fold for fold in folds], training, training.epochs)
    fit.run(training.epochs, progress, what)
    logits = np.zeros((len(data.targets), data.classes), np.float32)
    for number, fold in enumerate(folds):
        shown = _forward_in_parts(fit.layers_of(number), data.copies[0][fold], data.scale, data.zero_point)
        logits[fold] = np.concatenate([one[-1] for one in shown])
    return logits


def _has_all_classes(data: HeadTrainingData, rows: NDArray[np.bool_]) -> bool:
    return bool(np.bincount(data.targets[rows], minlength=data.classes).min() > 0)


def _list_folds(data: HeadTrainingData) -> list[NDArray[np.bool_]]:
    """Return (N,) bool for each fold: the pictures in it. A fold that has a class to itself is left out."""
    if data.folds is None:
        return []
    folds = [data.folds == number for number in np.unique(data.folds) if number != NO_FOLD]
    return [fold for fold in folds if _has_all_classes(data, ~fold)]


def _predict_unseen(data: HeadTrainingData, fit: _Fit, folds: Sequence[NDArray[np.bool_]]) -> Unseen:
    """Return what the heads that follow the final one in `fit` say of their folds."""
    rows, logits = [np.empty(0, np.intp)], [np.empty((0, data.classes), np.float32)]
    for number, fold in enumerate(folds, start=1):
        rows.append(np.flatnonzero(fold))
        parts = _forward_in_parts(fit.layers_of(number), data.copies[0][fold], data.scale, data.zero_point)
        logits += [one[-1] for one in parts]
    return Unseen(np.concatenate(rows), np.concatenate(logits))


class _Fit:
    """One run of gradient descent: of one head, or of several that each learn from some of the pictures.

    All heads are shown the same pictures in the same order; those that a head must not learn from weigh
    nothing. Reading the features takes most of a step, so six heads take 2.5 times as long as one.

    Args:
        data: Features and classes.
        heads: (N,) bool for each head: what it learns from.
        training: Hyperparameters.
        epochs: Epochs until the rate is 0.
    """

    def __init__(
        self,
        data: HeadTrainingData,
        heads: Sequence[NDArray[np.bool_]],
        training: TrainingSettings,
        epochs: int,
    ) -> None:
        self.training, self.heads = training, len(heads)
        rows = np.any(heads, 0)
        self.targets = np.tile(data.targets[rows], len(data.copies))
        self.features = np.concatenate([copy[rows] for copy in data.copies])
        self.scale, self.zero_point = data.scale, data.zero_point
        self.row_weights = np.stack([_weigh(data, own)[rows] for own in heads])  # (heads, N)
        self.wanted = _smooth(data.classes, training.label_smoothing)
        self.steps = -(-len(self.targets) // training.batch_size) * epochs
        self.rng = np.random.default_rng(training.seed)
        hidden = [training.hidden_units] if training.hidden_units else []
        widths = [self.features.shape[1], *hidden, data.classes]
        drawn = [
            self._draw(inputs, units, hidden=number < len(widths) - 2)
            for number, (inputs, units) in enumerate(itertools.pairwise(widths))
        ]
        # One product serves the first layer of all heads: they lie side by side.
        self.weights = [np.tile(drawn[0], (1, self.heads))]  # (inputs, heads * units)
        self.weights += [np.repeat(one[None], self.heads, 0) for one in drawn[1:]]  # (heads, inputs, units)
        self.biases = [np.zeros((self.heads, 1, units), np.float32) for units in widths[1:]]
        self._moments = [(np.zeros_like(one), np.zeros_like(one)) for one in self.weights + self.biases]
        self._steps = [np.empty_like(one) for one in self.weights + self.biases]
        self._step = 0
        self.history: dict[str, list[float]] = {"loss": [], "accuracy": []}

    def layers_of(self, head: int) -> tuple[Layer, ...]:
        """Return one head as it goes into the file."""
        first = self.weights[0].reshape(len(self.weights[0]), self.heads, -1)[:, head]
        weights = [first, *(one[head] for one in self.weights[1:])]
        return tuple(Layer(_coarsen(w), b[head, 0]) for w, b in zip(weights, self.biases, strict=True))

    def run(self, epochs: int, progress: Progress, what: str) -> None:
        """Train for so many epochs."""
        for epoch in range(epochs):
            self._note(*self._epoch())
            progress(what, epoch + 1, epochs)

    def run_until_worse(self, data: HeadTrainingData, progress: Progress, what: str) -> int:
        """Train until the validation pictures get worse; return the best number of epochs."""
        shown = real_features(data.copies[0][data.validation], self.scale, self.zero_point)
        truths = data.targets[data.validation]
        best, epochs = (np.inf, 1), self.training.epochs
        for epoch in range(1, epochs + 1):
            self._epoch()
            predictions = softmax(self._forward(shown)[-1][0])
            # With label smoothing, as in training: the plain loss calls every confident head overfitted.
            loss = float(-(self.wanted[truths] * np.log(np.maximum(predictions, TINY))).sum(1).mean())
            self._note(loss, float((predictions.argmax(1) == truths).mean()))
            best = min(best, (loss, epoch))
            progress(what, epoch, epochs)
            if epoch - best[1] >= PATIENCE:
                break
        progress(what, epochs, epochs)
        return best[1]

    def _draw(self, inputs: int, units: int, *, hidden: bool) -> NDArray[np.float32]:
        """Draw initial weights: zeros for a convex problem; else as He et al., arXiv:1502.01852."""
        if not hidden and not self.training.hidden_units:
            return np.zeros((inputs, units), np.float32)
        return self.rng.normal(0, np.sqrt((2 if hidden else 1) / inputs), (inputs, units)).astype(np.float32)

    def _epoch(self) -> tuple[float, float]:
        order = self.rng.permutation(len(self.targets))
        loss = right = 0.0
        size = self.training.batch_size
        # A step's products are too small to share: OpenBLAS's threads would mostly wait for each other, at
        # full load. Where other processes run, too, two threads took 13 times the processor time of one.
        with threadpool_limits(1, "blas"):
            for start in range(0, len(order), size):
                batch_loss, batch_right = self._learn(order[start : start + size])
                loss += batch_loss
                right += batch_right
        return loss / len(order), right / len(order)

    def _learn(self, rows: NDArray[np.intp]) -> tuple[float, float]:
        """Take one step; return the sums of loss and right answers over the batch, of the first head."""
        targets = self.targets[rows]
        weights = self.row_weights[:, rows % self.row_weights.shape[1]]  # (heads, batch)
        masks = self._draw_masks(len(rows))
        inputs = self._forward(real_features(self.features[rows], self.scale, self.zero_point), masks)
        answers = softmax(inputs.pop())  # (heads, batch, classes)
        wanted = self.wanted[targets]
        shown = np.maximum((weights > 0).sum(1, dtype=np.float32), 1)  # a head's batch is what it may see
        slope = (answers - wanted) * (weights / shown[:, None])[:, :, None]
        gradients: list[NDArray[np.float32]] = []
        bias_gradients: list[NDArray[np.float32]] = []
        decay = np.float32(self.training.weight_decay)
        for number in reversed(range(1, len(self.weights))):
            bias_gradients.insert(0, slope.sum(1, keepdims=True))
            gradients.insert(0, inputs[number].transpose(0, 2, 1) @ slope + decay * self.weights[number])
            slope = (slope @ self.weights[number].transpose(0, 2, 1)) * (inputs[number] > 0)
            if masks is not None:
                slope *= masks[number]
        bias_gradients.insert(0, slope.sum(1, keepdims=True))
        side_by_side = slope.transpose(1, 0, 2).reshape(len(rows), -1)
        gradients.insert(0, inputs[0].T @ side_by_side + decay * self.weights[0])
        self._descend(gradients + bias_gradients)
        losses = -(wanted * np.log(np.maximum(answers[0], TINY))).sum(1)
        return float(losses.sum()), float((answers[0].argmax(1) == targets).sum())

    def _draw_masks(self, count: int) -> list[NDArray[np.float32]] | None:
        """Return dropout's mask of each layer's input, the same for all heads; None without dropout."""
        if not self.training.dropout:
            return None
        keep = 1 - self.training.dropout
        widths = [self.features.shape[1], *(one.shape[2] for one in self.biases[:-1])]
        return [
            (self.rng.random((count, width), np.float32) < keep).astype(np.float32) / np.float32(keep)
            for width in widths
        ]

    def _forward(
        self, features: NDArray[np.float32], masks: Sequence[NDArray[np.float32]] | None = None
    ) -> list[NDArray[np.float32]]:
        """Return the features, then each later layer's input and the logits: (heads, batch, units)."""
        passed = [features if masks is None else features * masks[0]]
        answer: NDArray[Any] = passed[0] @ self.weights[0]
        answer = answer.reshape(len(features), self.heads, -1).transpose(1, 0, 2) + self.biases[0]
        for number in range(1, len(self.weights)):
            hidden = np.maximum(answer, 0)
            passed.append(hidden if masks is None else hidden * masks[number])
            answer = passed[number] @ self.weights[number] + self.biases[number]
        passed.append(answer)
        return passed

    def _descend(self, gradients: list[NDArray[np.float32]]) -> None:
        rate = self.training.learning_rate * 0.5 * (1 + math.cos(math.pi * self._step / self.steps))
        self._step += 1
        first_scale = 1 - FIRST_DECAY**self._step
        second_scale = 1 - SECOND_DECAY**self._step
        # In place, and in float32 throughout: with several heads, copies would take most of a step.
        for number, value in enumerate(self.weights + self.biases):
            gradient, (first, second), step = gradients[number], self._moments[number], self._steps[number]
            first *= FIRST_DECAY
            first += np.multiply(gradient, 1 - FIRST_DECAY, out=step)
            second *= SECOND_DECAY
            np.multiply(gradient, gradient, out=step)
            second += np.multiply(step, 1 - SECOND_DECAY, out=step)
            np.sqrt(np.multiply(second, 1 / second_scale, out=step), out=step)
            step += TINY
            np.divide(first, step, out=step)
            np.subtract(value, np.multiply(step, rate / first_scale, out=step), out=value)

    def _note(self, loss: float, accuracy: float) -> None:
        self.history["loss"].append(round(loss, 6))
        self.history["accuracy"].append(round(accuracy, 6))


def _weigh(data: HeadTrainingData, rows: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return (N,) weights with which all classes of these rows weigh alike; 0 for other rows."""
    counts = np.bincount(data.targets[rows], minlength=data.classes)
    weights = rows.sum() / (data.classes * np.maximum(counts, 1))
    found: NDArray[np.float32] = (weights[data.targets] * rows).astype(np.float32)
    return found


def _coarsen(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round (inputs, units) weights to 63 levels a unit: the same accuracy, updates a quarter smaller."""
    steps = np.abs(weights).max(0) / LEVELS
    steps[steps == 0] = 1
    coarse: NDArray[np.float32] = (np.round(weights / steps) * steps).astype(np.float32)
    return coarse


def _forward_in_parts(
    layers: Sequence[Layer], features: NDArray[Any], scale: float, zero_point: int
) -> Iterator[list[NDArray[np.float32]]]:
    """Yield each layer's output, last the logits, of some of the (N, F) features at a time, at least once.

    In float, the features of 80,000 pictures take 600 MB, and as much again where they are scaled.
    """
    for start in range(0, max(len(features), 1), PART_ROWS):
        passed = real_features(features[start : start + PART_ROWS], scale, zero_point)
        outputs = []
        for number, layer in enumerate(layers, start=1):
            answer = passed @ layer.weights + layer.bias
            passed = np.maximum(answer, 0) if number < len(layers) else answer
            outputs.append(passed)
        yield outputs


def real_features(features: NDArray[Any], scale: float, zero_point: int) -> NDArray[np.float32]:
    """Return the real values of features of any type."""
    real: NDArray[np.float32] = features.astype(np.float32)
    if (scale, zero_point) != (1.0, 0):
        real -= np.float32(zero_point)
        real *= np.float32(scale)
    return real


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return probabilities over the last axis."""
    raised = np.exp(logits - logits.max(-1, keepdims=True))
    answers: NDArray[np.float32] = raised / raised.sum(-1, keepdims=True)
    return answers


def _smooth(classes: int, smoothing: float) -> NDArray[np.float32]:
    """Return (classes, classes) targets with label smoothing, one row a class."""
    return (np.eye(classes) * (1 - smoothing) + smoothing / classes).astype(np.float32)
