"""Head: the classifier on a frozen backbone's features, softmax regression or with one hidden layer.

Plain NumPy: a head on 1,920 features of 5,000 pictures and copies trains in half a second, before TensorFlow
would have been imported.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

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
    """

    copies: Sequence[NDArray[Any]]
    targets: NDArray[np.int64]
    classes: int
    validation: NDArray[np.bool_]
    scale: float = 1.0
    zero_point: int = 0


@dataclasses.dataclass(frozen=True)
class FittedHead:
    """Layers of a head, and loss and accuracy by epoch."""

    layers: tuple[Layer, ...]
    history: dict[str, tuple[float, ...]]

    def probabilities(
        self, features: NDArray[Any], scale: float = 1.0, zero_point: int = 0
    ) -> NDArray[np.float32]:
        """Return (N, classes) of (N, F) features."""
        return _softmax(_forward(self.layers, _real(features, scale, zero_point))[-1])

    def ranges(
        self, features: NDArray[Any], scale: float = 1.0, zero_point: int = 0
    ) -> tuple[tuple[float, float], ...]:
        """Return the lowest and the highest output of each layer on (N, F) features."""
        outputs = _forward(self.layers, _real(features, scale, zero_point))[1:]
        return tuple((float(one.min()), float(one.max())) for one in outputs)


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
    epochs = training.epochs
    history: dict[str, tuple[float, ...]] = {}
    seen = ~data.validation
    if data.validation.any() and np.bincount(data.targets[seen], minlength=data.classes).min() > 0:
        trial = _Fit(data, seen, training, training.epochs)
        epochs = trial.run_until_worse(data, progress, f"{what}: when to stop")
        history = {f"validation {name}": tuple(values) for name, values in trial.history.items()}
    final = _Fit(data, np.ones(len(data.targets), bool), training, epochs)
    final.run(epochs, progress, what)
    history = {name: tuple(values) for name, values in final.history.items()} | history
    layers = [Layer(_coarsen(w), b) for w, b in zip(final.weights, final.biases, strict=True)]
    return FittedHead(tuple(layers), history)


class _Fit:
    """One run of gradient descent."""

    def __init__(
        self, data: HeadTrainingData, rows: NDArray[np.bool_], training: TrainingSettings, epochs: int
    ) -> None:
        self.training = training
        self.targets = np.tile(data.targets[rows], len(data.copies))
        self.features = np.concatenate([copy[rows] for copy in data.copies])
        self.scale, self.zero_point = data.scale, data.zero_point
        counts = np.bincount(data.targets[rows], minlength=data.classes)
        weights = rows.sum() / (data.classes * np.maximum(counts, 1))
        self.class_weights = weights.astype(np.float32)
        self.wanted = _smooth(data.classes, training.label_smoothing)
        self.steps = -(-len(self.targets) // training.batch_size) * epochs
        self.rng = np.random.default_rng(training.seed)
        hidden = [training.hidden_units] if training.hidden_units else []
        widths = [self.features.shape[1], *hidden, data.classes]
        self.weights = [
            self._initial(inputs, units, hidden=number < len(widths) - 2)
            for number, (inputs, units) in enumerate(itertools.pairwise(widths))
        ]
        self.biases = [np.zeros(units, np.float32) for units in widths[1:]]
        self._moments = [(np.zeros_like(one), np.zeros_like(one)) for one in self.weights + self.biases]
        self._step = 0
        self.history: dict[str, list[float]] = {"loss": [], "accuracy": []}

    def run(self, epochs: int, progress: Progress, what: str) -> None:
        """Train for so many epochs."""
        for epoch in range(epochs):
            self._note(*self._epoch())
            progress(what, epoch + 1, epochs)

    def run_until_worse(self, data: HeadTrainingData, progress: Progress, what: str) -> int:
        """Train until the validation pictures get worse; return the best number of epochs."""
        shown = _real(data.copies[0][data.validation], self.scale, self.zero_point)
        truths = data.targets[data.validation]
        best, epochs = (np.inf, 1), self.training.epochs
        for epoch in range(1, epochs + 1):
            self._epoch()
            layers = [Layer(w, b) for w, b in zip(self.weights, self.biases, strict=True)]
            predictions = _softmax(_forward(layers, shown)[-1])
            # With label smoothing, as in training: the plain loss calls every confident head overfitted.
            loss = float(-(self.wanted[truths] * np.log(np.maximum(predictions, TINY))).sum(1).mean())
            self._note(loss, float((predictions.argmax(1) == truths).mean()))
            best = min(best, (loss, epoch))
            progress(what, epoch, epochs)
            if epoch - best[1] >= PATIENCE:
                break
        progress(what, epochs, epochs)
        return best[1]

    def _initial(self, inputs: int, units: int, *, hidden: bool) -> NDArray[np.float32]:
        """Draw initial weights: zeros for a convex problem; else as He et al., arXiv:1502.01852."""
        if not hidden and not self.training.hidden_units:
            return np.zeros((inputs, units), np.float32)
        return self.rng.normal(0, np.sqrt((2 if hidden else 1) / inputs), (inputs, units)).astype(np.float32)

    def _epoch(self) -> tuple[float, float]:
        order = self.rng.permutation(len(self.targets))
        loss = right = 0.0
        size = self.training.batch_size
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            features = _real(self.features[chosen], self.scale, self.zero_point)
            batch_loss, batch_right = self._learn(features, self.targets[chosen])
            loss += batch_loss
            right += batch_right
        return loss / len(order), right / len(order)

    def _learn(self, features: NDArray[np.float32], targets: NDArray[np.int64]) -> tuple[float, float]:
        """Take one step; return the sums of loss and right answers over the batch."""
        keep = 1 - self.training.dropout
        layers = [Layer(w, b) for w, b in zip(self.weights, self.biases, strict=True)]
        masks = None
        if self.training.dropout:
            widths = [features.shape[1], *(len(bias) for bias in self.biases[:-1])]
            masks = [
                (self.rng.random((len(features), width), np.float32) < keep).astype(np.float32)
                / np.float32(keep)
                for width in widths
            ]
        inputs = _forward(layers, features, masks)
        answers = _softmax(inputs.pop())
        weights = self.class_weights[targets]
        wanted = self.wanted[targets]
        slope = (answers - wanted) * (weights / len(targets))[:, None]  # (batch, classes)
        gradients: list[NDArray[np.float32]] = []
        for number in reversed(range(len(layers))):
            decay = np.float32(self.training.weight_decay) * layers[number].weights
            gradients[:0] = [inputs[number].T @ slope + decay]
            gradients.append(slope.sum(0))  # biases come out last layer first
            if number:
                slope = (slope @ layers[number].weights.T) * (inputs[number] > 0)
                if masks is not None:
                    slope *= masks[number]
        count = len(layers)
        self._descend(gradients[:count] + gradients[count:][::-1])
        losses = -(wanted * np.log(np.maximum(answers, TINY))).sum(1)
        return float(losses.sum()), float((answers.argmax(1) == targets).sum())

    def _descend(self, gradients: list[NDArray[np.float32]]) -> None:
        rate = self.training.learning_rate * 0.5 * (1 + np.cos(np.pi * self._step / self.steps))
        self._step += 1
        first_scale = 1 - FIRST_DECAY**self._step
        second_scale = 1 - SECOND_DECAY**self._step
        for number, value in enumerate(self.weights + self.biases):
            gradient, (first, second) = gradients[number], self._moments[number]
            np.add(first, (1 - FIRST_DECAY) * (gradient - first), out=first)
            np.add(second, (1 - SECOND_DECAY) * (gradient * gradient - second), out=second)
            step = (first / first_scale) / (np.sqrt(second / second_scale) + TINY)
            np.subtract(value, (rate * step).astype(np.float32), out=value)

    def _note(self, loss: float, accuracy: float) -> None:
        self.history["loss"].append(round(loss, 6))
        self.history["accuracy"].append(round(accuracy, 6))


def _coarsen(weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round (inputs, units) weights to 63 levels a unit: the same accuracy, updates a quarter smaller."""
    steps = np.abs(weights).max(0) / LEVELS
    steps[steps == 0] = 1
    coarse: NDArray[np.float32] = (np.round(weights / steps) * steps).astype(np.float32)
    return coarse


def _forward(
    layers: Sequence[Layer],
    features: NDArray[np.float32],
    masks: Sequence[NDArray[np.float32]] | None = None,
) -> list[NDArray[np.float32]]:
    """Return each layer's input, and last the logits."""
    passed = [features if masks is None else features * masks[0]]
    for number, layer in enumerate(layers):
        answer = passed[-1] @ layer.weights + layer.bias
        if number < len(layers) - 1:
            answer = np.maximum(answer, 0)
            if masks is not None:
                answer *= masks[number + 1]
        passed.append(answer)
    return passed


def _real(features: NDArray[Any], scale: float, zero_point: int) -> NDArray[np.float32]:
    if (scale, zero_point) == (1.0, 0):
        return features.astype(np.float32)
    return (features.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    answers: NDArray[np.float32] = raised / raised.sum(1, keepdims=True)
    return answers


def _smooth(classes: int, smoothing: float) -> NDArray[np.float32]:
    """Return (classes, classes) targets with label smoothing, one row a class."""
    return (np.eye(classes) * (1 - smoothing) + smoothing / classes).astype(np.float32)
