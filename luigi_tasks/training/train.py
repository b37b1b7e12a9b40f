"""Training a head on the features of a snapshot's pictures, without TensorFlow."""

from __future__ import annotations

import dataclasses
import io
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.dataset.records import HOLDOUT, TRAIN, Snapshot
from luigi_tasks.dataset.snapshot import is_validation
from luigi_tasks.provenance import package_versions
from luigi_tasks.settings.values import FLOAT, SMALL_SET_PICTURES
from luigi_tasks.training.class_drop import ClassPair, find_worst_class
from luigi_tasks.training.features import _gather, in_float_share
from luigi_tasks.training.head import HeadTrainingData, Layer, TrainedHead, train_head
from luigi_tasks.training.records import TrainingRecord

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.backbone.extractor import QuantizationParameters
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import TrainingSettings
    from luigi_tasks.training.features import FeatureRows


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained head on the candidate's variant of the backbone, and its predictions.

    Attributes:
        head: The layers.
        ranges: Lowest and highest output of each layer (hidden ones after ReLU) on the training pictures.
        float_scores: (hold-out, classes) probabilities of the float network.
        record: What training did.
    """

    head: TrainedHead
    ranges: tuple[tuple[float, float], ...]
    float_scores: NDArray[np.float32]
    record: TrainingRecord


def train(
    snapshot: Snapshot,
    shards: Sequence[FeatureRows],
    scheme: str,
    parameters: QuantizationParameters,
    training: TrainingSettings,
    progress: Progress,
) -> Trained:
    """Train on the snapshot's training split; shards may hold more pictures than that.

    A head for int8 learns from the int8 backbone's features of all copies and from the float one's of
    some pictures. Those differ by 29% on average (MobileNetV2 1.0/160): on sign digits, in five
    folds, a head that knows only the float ones gets 0.960 in int8 and 0.970 in float, one that knows
    only the int8 ones 0.969 and 0.952, one that knows both 0.972 and 0.965.

    Args:
        snapshot: The pictures.
        shards: Their features.
        scheme: The candidate's quantization scheme.
        parameters: Scale and zero point of the features in that scheme.
        training: How.
        progress: Gets epochs done.
    """
    started = time.monotonic()
    pictures, holdout = snapshot.split(TRAIN), snapshot.split(HOLDOUT)
    names = sorted({name for shard in shards for name in shard.rows if name.rpartition("_")[0] == scheme})
    copies = [_gather(shards, name, pictures) for name in names]
    number = {label: index for index, label in enumerate(snapshot.labels)}
    targets = np.array([number[one.label] for one in pictures])
    # A handful of pictures cannot tell when to stop: a small set is learned from for all epochs.
    small = len(pictures) < SMALL_SET_PICTURES
    validation = np.array([not small and is_validation(one.sha256) for one in pictures])
    floats = {one: row for shard in shards for one, row in shard.find(f"{FLOAT}_0").items()}
    share = training.portions(len(pictures)).float_share
    known = [one.sha256 in floats and in_float_share(one.sha256, share) for one in pictures]
    rows = np.flatnonzero(known)
    in_float = np.stack([floats[pictures[row].sha256] for row in rows]) if len(rows) else None
    if copies[0].dtype == np.int8 and in_float is not None:
        mixed = [place for place, row in enumerate(rows) if in_float_share(pictures[row].sha256)]
        copies.append(copies[0].copy())
        copies[-1][rows[mixed]] = parameters.quantize(in_float[mixed])
    data = HeadTrainingData(copies, targets, len(number), validation, parameters.scale, parameters.zero_point)
    head = train_head(data, training, progress, "training the head")
    mine = head.probabilities(
        _gather(shards, f"{scheme}_0", holdout), parameters.scale, parameters.zero_point
    )
    shown = _gather(shards, f"{FLOAT}_0", holdout)
    float_scores = head.probabilities(shown)
    truths = np.array([number[one.label] for one in holdout])
    if in_float is not None:
        # A head that had to learn from features that int8 spoiled is bad in float too, and would hide
        # the loss. One that saw nothing else shows it; of a large set, it saw fewer pictures.
        pure = HeadTrainingData([in_float], targets[rows], len(number), np.zeros(len(rows), bool))
        scores = train_head(pure, training, progress, "training a head in float").probabilities(shown)
        float_scores = max(float_scores, scores, key=lambda one: (one.argmax(1) == truths).mean())
    right, right_in_float = mine.argmax(1) == truths, float_scores.argmax(1) == truths
    classes = [
        ClassPair(label, len(own), float(right[own].mean()), float(right_in_float[own].mean()))
        for label, index in number.items()
        if len(own := np.flatnonzero(truths == index))
    ]
    record = TrainingRecord(
        history=head.history,
        made_with=package_versions(),
        seconds=round(time.monotonic() - started, 3),
        train_pictures=len(pictures),
        float_drop_points=round(float(right_in_float.mean() - right.mean()) * 100, 3),
        class_drop_points=round(find_worst_class(classes)[0], 3),
    )
    return Trained(
        head, head.ranges(copies[0], parameters.scale, parameters.zero_point), float_scores, record
    )


def pack_head(layers: Sequence[Layer], ranges: Sequence[tuple[float, float]]) -> bytes:
    """Return a head as one npz, the same bytes for the same head."""
    file = io.BytesIO()
    arrays: dict[str, NDArray[Any]] = {"ranges": np.array(ranges, np.float64)}
    for number, layer in enumerate(layers):
        arrays[f"weights_{number}"], arrays[f"bias_{number}"] = layer.weights, layer.bias
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def unpack_head(packed: bytes) -> tuple[tuple[Layer, ...], tuple[tuple[float, float], ...]]:
    """Return what `pack_head` wrote: layers and ranges."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as arrays:
        ranges = tuple((float(low), float(high)) for low, high in arrays["ranges"])
        layers = tuple(Layer(arrays[f"weights_{n}"], arrays[f"bias_{n}"]) for n in range(len(ranges)))
    return layers, ranges
