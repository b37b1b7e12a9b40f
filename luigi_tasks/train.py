"""Training a head on the features of a snapshot's pictures, without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import math
import platform
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract import preprocessing
from luigi_tasks.feature_batches import FLOAT
from luigi_tasks.gate import ClassPair, find_worst_class
from luigi_tasks.head import Layer, Lesson, TrainedHead, train_head
from luigi_tasks.records import HOLDOUT, TRAIN, Picture, Snapshot, TrainingRecord
from luigi_tasks.settings import FLOAT_SHARE, SMALL_SET_PICTURES
from luigi_tasks.snapshot import is_validation, position

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.feature_batches import FeatureRows
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings import Portions, TrainingSettings


@dataclasses.dataclass(frozen=True)
class Form:
    """What the features of one form stand for: real = (feature - zero_point) * scale."""

    scale: float = 1.0
    zero_point: int = 0

    def quantize(self, features: NDArray[np.float16]) -> NDArray[np.int8]:
        """Return float features as this form would write them: a quarter of the memory."""
        steps = np.round(features.astype(np.float32) / np.float32(self.scale)) + self.zero_point
        quantized: NDArray[np.int8] = np.clip(steps, -128, 127).astype(np.int8)
        return quantized


@dataclasses.dataclass(frozen=True)
class Trained:
    """A head on the candidate's form of the backbone, and what it answers.

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


def choose_rows(
    pictures: Sequence[str], scheme: str, portions: Portions, holdout_percent: float
) -> dict[str, tuple[str, ...]]:
    """Return which features of which pictures, by content hash, training and the gate need.

    The candidate's form sees all pictures, and the other views of those that are learned from. Of the
    float form, the hold-out tells what the candidate loses, and a part of the rest is learned from.

    Args:
        pictures: Content hashes.
        scheme: The candidate's form.
        portions: How many other views, and in how many float features.
        holdout_percent: Share of the hold-out.
    """
    learned = tuple(one for one in pictures if position(one) * 100 >= holdout_percent)
    wanted = {f"{scheme}_0": tuple(pictures)}
    for view in range(1, math.ceil(portions.views) + 1):
        # The last view may be one of some pictures only.
        share = portions.views - (view - 1)
        wanted[f"{scheme}_{view}"] = tuple(one for one in learned if _in_share(one, 24, share))
    unlearned = set(pictures).difference(learned)
    floats = [one for one in pictures if one in unlearned or in_float_share(one, portions.float_share)]
    return wanted | {f"{FLOAT}_0": tuple(floats)}


def in_float_share(sha256: str, share: float = FLOAT_SHARE) -> bool:
    """Whether a picture is in the share whose float features are computed."""
    return _in_share(sha256, 16, share)


def _in_share(sha256: str, digit: int, share: float) -> bool:
    """Whether a picture is in a share of all, by hex digits of its hash that no split uses."""
    return int(sha256[digit : digit + 8], 16) / 2**32 < share


def train(
    snapshot: Snapshot,
    batches: Sequence[FeatureRows],
    scheme: str,
    form: Form,
    training: TrainingSettings,
    progress: Progress,
) -> Trained:
    """Train on the snapshot's training split; batches may hold more pictures than that.

    A head for int8 learns from the int8 backbone's features of all views and from the float one's of
    some pictures. Those differ by 29% on average (MobileNetV2 1.0/160): on sign digits, in five
    folds, a head that knows only the float ones gets 0.960 in int8 and 0.970 in float, one that knows
    only the int8 ones 0.969 and 0.952, one that knows both 0.972 and 0.965.

    Args:
        snapshot: The pictures.
        batches: Their features.
        scheme: The form that the candidate will have.
        form: What its features stand for.
        training: How.
        progress: Gets epochs done.
    """
    started = time.monotonic()
    pictures, holdout = snapshot.split(TRAIN), snapshot.split(HOLDOUT)
    names = sorted({name for batch in batches for name in batch.rows if name.rpartition("_")[0] == scheme})
    views = [_gather(batches, name, pictures) for name in names]
    number = {label: index for index, label in enumerate(snapshot.labels)}
    targets = np.array([number[one.label] for one in pictures])
    # A handful of pictures cannot tell when to stop: a small set is learned from for all epochs.
    small = len(pictures) < SMALL_SET_PICTURES
    validation = np.array([not small and is_validation(one.sha256) for one in pictures])
    floats = {one: row for batch in batches for one, row in batch.find(f"{FLOAT}_0").items()}
    share = training.portions(len(pictures)).float_share
    known = [one.sha256 in floats and in_float_share(one.sha256, share) for one in pictures]
    rows = np.flatnonzero(known)
    in_float = np.stack([floats[pictures[row].sha256] for row in rows]) if len(rows) else None
    if views[0].dtype == np.int8 and in_float is not None:
        mixed = [place for place, row in enumerate(rows) if in_float_share(pictures[row].sha256)]
        views.append(views[0].copy())
        views[-1][rows[mixed]] = form.quantize(in_float[mixed])
    lesson = Lesson(views, targets, len(number), validation, form.scale, form.zero_point)
    head = train_head(lesson, training, progress, "training the head")
    mine = head.probabilities(_gather(batches, f"{scheme}_0", holdout), form.scale, form.zero_point)
    shown = _gather(batches, f"{FLOAT}_0", holdout)
    float_scores = head.probabilities(shown)
    truths = np.array([number[one.label] for one in holdout])
    if in_float is not None:
        # A head that had to learn from features that int8 spoiled is bad in float too, and would hide
        # the loss. One that saw nothing else shows it; of a large set, it saw fewer pictures.
        pure = Lesson([in_float], targets[rows], len(number), np.zeros(len(rows), bool))
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
    return Trained(head, head.ranges(views[0], form.scale, form.zero_point), float_scores, record)


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


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions that decide the bytes of a model."""
    from importlib import metadata  # noqa: PLC0415 - reads the file system

    # The runtime too: a head learns from features that it computed; OpenCV draws the distorted views.
    names = (
        "tensorflow",
        "tf_keras",
        "ai-edge-litert",
        "numpy",
        "pillow",
        "opencv-python-headless",
        "flatbuffers",
        "edge-fleet",
    )
    versions = {"python": platform.python_version(), "machine": platform.machine(), "code": _code_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _code_version() -> str:
    """12 hex digits over the source that makes a model: it changes between two versions with one number."""
    digest = hashlib.sha256()
    # The contract too: pictures are decoded and fitted there.
    for folder in (Path(__file__).parent, Path(preprocessing.__file__).parent):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _gather(batches: Sequence[FeatureRows], name: str, pictures: Sequence[Picture]) -> NDArray[Any]:
    """Return (N, F) rows of these pictures; in the snapshot's order, however they were batched.

    A picture that was for the hold-out when its batch was made has no other view: it shows itself.
    """
    found: dict[str, NDArray[Any]] = {}
    for batch in batches:
        found |= batch.find(f"{name.rpartition('_')[0]}_0") | batch.find(name)
    return np.stack([found[one.sha256] for one in pictures])
