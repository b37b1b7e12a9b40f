"""Wrong labels: how likely each picture stands in the wrong class, from its features and those of the others.

Two witnesses are asked that know neither the picture's own label nor those of its group: a head on the
features, by out-of-fold predictions, and the nearest other pictures. How many labels are wrong is estimated
from the same answers, so a clean set is not blamed for what is merely hard to tell.
docs/decisions/0011-confidence.md has the measurements.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.training.confidence import fit_temperature
from luigi_tasks.training.head import HeadTrainingData, predict_out_of_fold, softmax
from luigi_tasks.training.records import DoubtedLabel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.backbone.extractor import QuantizationParameters
    from luigi_tasks.dataset.records import Picture, Snapshot
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import TrainingSettings

FOLDS = 5
# Each round learns only from labels that the round before did not doubt. Flowers, 10% flipped: 0.73 of the
# flipped are found in one round, 0.88 in two, as many in three.
ROUNDS = 3
DOUBTED = 0.5  # chance from which on a label is doubted: at least so many of those listed should be wrong

# Epochs of the heads that judge; more for small sets, or they would take too few steps, fewer for large ones.
EPOCHS, FEWEST_STEPS, FULL_EPOCHS_PICTURES, FEWEST_EPOCHS = 30, 300, 10_000, 4

# Neighbours that are asked, and components of the features in which they are near: with 64 as many of the
# flipped flowers are found as with all 1,920, and 100,000 pictures are compared in a minute.
NEIGHBOURS, COMPONENTS, FITTED_ON = 15, 64, 5000
REFERENCES = 20_000  # of a larger set, a sample is compared with
BLOCK = 512

FIRST_SHARE, ESTIMATES = 0.02, 50
REPORTED_AT_MOST = 12


@dataclasses.dataclass(frozen=True)
class LabelledFeatures:
    """Features of pictures with their labels.

    Attributes:
        features: (N, F), int8 or float.
        targets: (N,) class numbers.
        classes: Number of classes.
        groups: N ids of groups; pictures of one group do not vouch for each other.
        parameters: Scale and zero point of the features.
    """

    features: NDArray[Any]
    targets: NDArray[np.int64]
    classes: int
    groups: Sequence[str]
    parameters: QuantizationParameters


@dataclasses.dataclass(frozen=True)
class LabelDoubts:
    """What speaks against the labels.

    Attributes:
        chances: (N,) probability that the label is wrong.
        probable: (N,) the most probable other class.
        probabilities: (N, classes) of the head, out-of-fold.
        neighbours: (N, classes) how many of the nearest pictures have each label.
        wrong_share: Estimated share of wrong labels.
    """

    chances: NDArray[np.float64]
    probable: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    neighbours: NDArray[np.int64]
    wrong_share: float


def doubt_labels(
    snapshot: Snapshot,
    features: NDArray[Any],
    parameters: QuantizationParameters,
    training: TrainingSettings,
    progress: Progress,
) -> LabelDoubts:
    """Estimate how likely each label of a snapshot is wrong.

    Args:
        snapshot: The pictures.
        features: (N, F) of its pictures, by a network that did not learn from their labels.
        parameters: Scale and zero point of the features.
        training: Batch size, rate and regularization of the heads that judge.
        progress: Gets epochs and pictures done.
    """
    number = {label: index for index, label in enumerate(snapshot.labels)}
    targets = np.array([number[one.label] for one in snapshot.pictures], np.int64)
    ids = [one.group_id for one in snapshot.pictures]
    given = LabelledFeatures(features, targets, len(number), ids, parameters)
    return ask_witnesses(given, training, progress)


def ask_witnesses(given: LabelledFeatures, training: TrainingSettings, progress: Progress) -> LabelDoubts:
    """Estimate how likely each label is wrong.

    Args:
        given: Features and labels of all pictures.
        training: Batch size, rate and regularization of the heads that judge.
        progress: Gets epochs and pictures done.
    """
    numbers = {group: number for number, group in enumerate(dict.fromkeys(given.groups))}
    groups = np.array([numbers[one] for one in given.groups], np.int64)
    neighbours = count_neighbours(given.features, given.targets, groups, given.classes, progress)
    vouched = (neighbours + 1) / (neighbours.sum(1, keepdims=True) + given.classes)
    trusted = np.ones(len(given.targets), bool)
    found: list[NDArray[np.float32]] = []
    for number in range(ROUNDS):
        what = f"looking for wrong labels, {number + 1} of {ROUNDS}"
        found.append(_predict(given, trusted, training, progress, number, what))
        probabilities = np.mean(found[-2:] if number > 1 else found[-1:], 0)
        both = probabilities * vouched
        both /= both.sum(1, keepdims=True)
        chances, share = estimate_wrong(both, given.targets)
        trusted = _trust(chances, given.targets, given.classes)
    others = both.copy()
    others[np.arange(len(both)), given.targets] = -1
    return LabelDoubts(chances, others.argmax(1), probabilities.astype(np.float32), neighbours, share)


def _predict(
    given: LabelledFeatures,
    trusted: NDArray[np.bool_],
    training: TrainingSettings,
    progress: Progress,
    number: int,
    what: str,
) -> NDArray[np.float32]:
    """Return (N, classes) calibrated out-of-fold probabilities; each round has folds of its own."""
    folds = np.array([zlib.crc32(f"{number} {one}".encode()) % FOLDS for one in given.groups], np.int64)
    epochs = _count_epochs(len(folds), training.batch_size)
    plain = dataclasses.replace(training, epochs=epochs, hidden_units=0, dropout=0.0)
    data = HeadTrainingData(
        [given.features],
        given.targets,
        given.classes,
        np.zeros(len(folds), bool),
        given.parameters.scale,
        given.parameters.zero_point,
        folds,
    )
    logits = predict_out_of_fold(data, trusted, plain, progress, what)
    # Labels that are doubted would make every prediction look too sure.
    return softmax(logits / np.float32(fit_temperature(logits[trusted], given.targets[trusted])))


def list_doubted(
    pictures: Sequence[Picture], labels: Sequence[str], probabilities: NDArray[np.floating[Any]]
) -> tuple[DoubtedLabel, ...]:
    """Return the pictures that most probably stand in the wrong class, by one witness alone.

    Args:
        pictures: M pictures.
        labels: Classes by number.
        probabilities: (M, classes) calibrated, by heads that did not learn from the pictures.
    """
    number = {label: index for index, label in enumerate(labels)}
    targets = np.array([number[one.label] for one in pictures], np.int64)
    chances, _ = estimate_wrong(probabilities, targets)
    others = probabilities.copy()
    others[np.arange(len(targets)), targets] = -1
    worst = np.argsort(-chances, kind="stable")[:REPORTED_AT_MOST]
    return tuple(
        DoubtedLabel(
            sha256=pictures[row].sha256,
            label=pictures[row].label,
            probable=labels[int(others[row].argmax())],
            chance=round(float(chances[row]), 4),
        )
        for row in worst.tolist()
        if chances[row] >= DOUBTED
    )


def _count_epochs(pictures: int, batch_size: int) -> int:
    if pictures > FULL_EPOCHS_PICTURES:
        return max(FEWEST_EPOCHS, round(EPOCHS * FULL_EPOCHS_PICTURES / pictures))
    return max(EPOCHS, -(-FEWEST_STEPS // -(-pictures // batch_size)))


def _trust(chances: NDArray[np.float64], targets: NDArray[np.int64], classes: int) -> NDArray[np.bool_]:
    """Return (N,) bool: labels to learn from. A class of which most is doubted is learned from as it is."""
    trusted = chances < DOUBTED
    counts = np.bincount(targets, minlength=classes)
    most = np.bincount(targets[trusted], minlength=classes) * 2 > counts
    return trusted | ~most[targets]


def estimate_wrong(
    probabilities: NDArray[np.floating[Any]], targets: NDArray[np.int64]
) -> tuple[NDArray[np.float64], float]:
    """Return how likely each label is wrong, and the share of wrong labels, by expectation maximization.

    A label is taken to be wrong with the same chance everywhere, and then to be any other class. Source:
    Dempster, Laird and Rubin 1977; the question is that of Northcutt et al., arXiv:1911.00068, whose counting
    of confident errors finds 0.74 of 5% flipped flowers at a precision of 0.56.

    Args:
        probabilities: (N, classes) of the true class, by who does not know the label.
        targets: (N,) labels.
    """
    if not len(targets):
        return np.empty(0), 0.0
    own = probabilities[np.arange(len(targets)), targets].astype(np.float64)
    others = np.maximum(1 - own, 0) / max(probabilities.shape[1] - 1, 1)
    share = FIRST_SHARE
    for _ in range(ESTIMATES):
        wrong = others * share
        chances: NDArray[np.float64] = wrong / np.maximum(wrong + own * (1 - share), np.finfo(float).tiny)
        share = float(chances.mean())
    return chances, share


def count_neighbours(
    features: NDArray[Any],
    targets: NDArray[np.int64],
    groups: NDArray[np.int64],
    classes: int,
    progress: Progress,
) -> NDArray[np.int64]:
    """Return (N, classes): labels of the nearest pictures of other groups, by cosine.

    Args:
        features: (N, F), of any type and scale.
        targets: (N,) labels.
        groups: (N,) numbers of groups.
        classes: Number of classes.
        progress: Gets pictures done.
    """
    placed = _project(features)
    asked = np.flatnonzero(_sample(len(targets), REFERENCES))
    count = min(NEIGHBOURS, max(len(asked) - 1, 1))
    found = np.zeros((len(targets), classes), np.int64)
    for start in range(0, len(targets), BLOCK):
        block = slice(start, start + BLOCK)
        likeness = placed[block] @ placed[asked].T
        likeness[groups[block, None] == groups[asked]] = -np.inf
        nearest = np.argpartition(-likeness, count - 1, 1)[:, :count]
        known = np.isfinite(np.take_along_axis(likeness, nearest, 1))
        rows = np.arange(len(nearest))[:, None] + start
        np.add.at(found, (np.broadcast_to(rows, nearest.shape)[known], targets[asked[nearest]][known]), 1)
        progress("comparing pictures", min(start + BLOCK, len(targets)), len(targets))
    return found


def _project(features: NDArray[Any]) -> NDArray[np.float32]:
    """Return (N, COMPONENTS) unit vectors: the principal components of standardized, normalized features."""
    some = features[_sample(len(features), FITTED_ON)].astype(np.float32)
    middle, spread = some.mean(0), some.std(0)
    spread[spread == 0] = 1
    some = _normalize((some - middle) / spread)
    centre = some.mean(0)
    _, vectors = np.linalg.eigh((some - centre).T @ (some - centre))
    axes = vectors[:, -COMPONENTS:]
    parts = [
        (_normalize((features[start : start + BLOCK].astype(np.float32) - middle) / spread) - centre) @ axes
        for start in range(0, len(features), BLOCK)
    ]
    return _normalize(np.concatenate(parts))


def _normalize(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    unit: NDArray[np.float32] = (rows / lengths).astype(np.float32)
    return unit


def _sample(count: int, most: int) -> NDArray[np.bool_]:
    """Return (count,) bool: `most` of them, evenly spread; all where there are no more."""
    chosen = np.zeros(count, bool)
    chosen[np.linspace(0, count - 1, min(count, most)).astype(int)] = True
    return chosen
