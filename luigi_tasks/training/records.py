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
    """What fine-tuning did to the backbone; its weights lie beside.

    Attributes:
        history: Loss and accuracy of each epoch.
        parent: Release whose weights it started from; empty: the backbone's own.
        made_with: Package versions.
        seconds: Wall-clock time.
    """

    history: dict[str, tuple[float, ...]]
    parent: str
    made_with: dict[str, str]
    seconds: float


class Lineage(Document, frozen=True, kw_only=True):
    """What a release was made from, for a warm start.

    Attributes:
        tuned: Folder of the tuned backbone's weights.
    """

    tuned: str


class FeaturesRecord(Document, frozen=True, kw_only=True):
    """Features of one shard, which lie beside as `<sha256>.npz`.

    Attributes:
        pictures: Content hashes of the rows, by name: `<variant>_<copy>`.
        sha256: Hex digest of the file.
        computed: Rows that were computed and not taken from an earlier shard.
    """

    pictures: dict[str, tuple[str, ...]]
    sha256: str
    computed: int


class TrainingRecord(Document, frozen=True, kw_only=True):
    """What training did; the head and its answers lie beside.

    Attributes:
        history: Loss and accuracy of each epoch, of the head and of a tuned backbone before it.
        made_with: Package versions.
        seconds: Wall-clock time of the head's training.
        train_pictures: Pictures of the training split.
        float_drop_points: What the candidate's variant loses against float on the hold-out, by features.
        class_drop_points: What the class loses that loses most, one picture forgiven.
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
