"""Records of features, of the head's training and of fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.training.head import Layer


class TunedRecord(Document, frozen=True, kw_only=True):
    """Record of fine-tuning; the weights are stored next to it.

    Attributes:
        history: Loss and accuracy of each epoch.
        parent: Release whose weights the training started from; empty: the initial weights.
        made_with: Package versions.
        seconds: Wall-clock time.
    """

    history: dict[str, tuple[float, ...]]
    parent: str
    made_with: dict[str, str]
    seconds: float


class Lineage(Document, frozen=True, kw_only=True):
    """Origin of a release, for a warm start.

    Attributes:
        tuned: Folder of the tuned backbone's weights.
    """

    tuned: str


class FeaturesRecord(Document, frozen=True, kw_only=True):
    """Record of one shard's features, which are stored next to it as `<sha256>.npz`.

    Attributes:
        pictures: Content hashes of the rows, by name: `<variant>_<copy>`.
        sha256: Hex digest of the file.
        computed: Number of rows that were computed; the others were found in earlier shards.
    """

    pictures: dict[str, tuple[str, ...]]
    sha256: str
    computed: int


class ReliabilityBin(Document, frozen=True, kw_only=True):
    """Predictions of similar confidence: their mean score, the share of right ones, and their number."""

    confidence: float
    accuracy: float
    pictures: int


class Reliability(Document, frozen=True, kw_only=True):
    """Reliability diagram: bins of equal mass, from the least sure predictions to the surest.

    Attributes:
        bins: The bins.
        error: Expected calibration error, in [0, 1].
    """

    bins: tuple[ReliabilityBin, ...]
    error: float


class Familiarity(msgspec.Struct, frozen=True, kw_only=True):
    """How a model tells strangers: known = sigmoid(margin * m - length * f + bias).

    m is how far the highest logit lies above the mean of all, f the Euclidean length of the features.

    Attributes:
        margin: Log-odds for each unit of m.
        length: Log-odds lost for each unit of f; 0 where long features are no sign of a stranger.
        bias: Log-odds of neither.
    """

    margin: float
    length: float
    bias: float


class DoubtedLabel(Document, frozen=True, kw_only=True):
    """A picture whose label is probably wrong.

    Attributes:
        sha256: Its content hash.
        label: Its class.
        probable: The class that it probably belongs to.
        chance: Probability that the label is wrong.
    """

    sha256: str
    label: str
    probable: str
    chance: float


class TrainingRecord(Document, frozen=True, kw_only=True):
    """Record of a head's training; the head and its predictions are stored next to it.

    Attributes:
        history: Loss and accuracy of each epoch, of the head and of a tuned backbone before it.
        made_with: Package versions.
        seconds: Wall-clock time of the head's training.
        train_pictures: Pictures of the training split.
        float_drop_points: Accuracy lost against the float network on the hold-out, measured on features.
        class_drop_points: Largest drop of one class's recall; one picture of each class is forgiven.
        temperature: What the logits were divided by.
        uncalibrated: Reliability on the hold-out before that; None in records from before there was one.
        familiarity: How the head tells strangers; None: it does not.
        doubted: Pictures that most probably stand in the wrong class, worst first: the first of those that
            heads without them contradict.
    """

    history: dict[str, tuple[float, ...]]
    made_with: dict[str, str]
    seconds: float
    train_pictures: int
    float_drop_points: float
    class_drop_points: float
    temperature: float = 1.0
    uncalibrated: Reliability | None = None
    familiarity: Familiarity | None = None
    doubted: tuple[DoubtedLabel, ...] = ()


@dataclasses.dataclass(frozen=True)
class UnseenScores:
    """Out-of-fold predictions: scores for training pictures by heads that did not learn from them.

    Attributes:
        scores: (M, classes) calibrated scores, in the steps of the file.
        truths: (M,) class numbers.
        known: (M,) values of the model's output `known`; None: it has none.
    """

    scores: NDArray[np.float32]
    truths: NDArray[np.int64]
    known: NDArray[np.float32] | None = None


@dataclasses.dataclass(frozen=True)
class TunedBackbone:
    """A backbone that was fine-tuned, or trained from scratch.

    Attributes:
        record: What the training did.
        weights: All weights, as `backbone.weights.pack_weights` writes them.
    """

    record: TunedRecord
    weights: bytes


@dataclasses.dataclass(frozen=True)
class TrainedHead:
    """A head on one scheme's variant of the backbone, and the float network's scores next to it.

    Attributes:
        scheme: The scheme.
        layers: Dense layers.
        ranges: Lowest and highest output of each layer (hidden ones after ReLU) on the training pictures.
        float_scores: (hold-out, classes) probabilities of the float network, in the snapshot's order.
        unseen: Out-of-fold predictions; of no picture where none could be made.
        record: What the training did.
    """

    scheme: str
    layers: tuple[Layer, ...]
    ranges: tuple[tuple[float, float], ...]
    float_scores: NDArray[np.float32]
    unseen: UnseenScores
    record: TrainingRecord
