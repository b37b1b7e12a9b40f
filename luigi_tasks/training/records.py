"""Records of features, of the head's training and of fine-tuning."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

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


class TrainingRecord(Document, frozen=True, kw_only=True):
    """Record of a head's training; the head and its predictions are stored next to it.

    Attributes:
        history: Loss and accuracy of each epoch, of the head and of a tuned backbone before it.
        made_with: Package versions.
        seconds: Wall-clock time of the head's training.
        train_pictures: Pictures of the training split.
        float_drop_points: Accuracy lost against the float network on the hold-out, measured on features.
        class_drop_points: Largest drop of one class's recall; one picture of each class is forgiven.
    """

    history: dict[str, tuple[float, ...]]
    made_with: dict[str, str]
    seconds: float
    train_pictures: int
    float_drop_points: float
    class_drop_points: float


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
        record: What the training did.
    """

    scheme: str
    layers: tuple[Layer, ...]
    ranges: tuple[tuple[float, float], ...]
    float_scores: NDArray[np.float32]
    record: TrainingRecord
