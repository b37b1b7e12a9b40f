"""Glue of the steps that make a candidate: tune the backbone, train the head, put both into one file."""

from __future__ import annotations

import functools
import hashlib
import io
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.preprocessing import PREPROCESSING_ID
from edge_client.contract.release import Normalization, Preprocessing, release_id
from edge_client.inference.classifier import Classifier
from luigi_tasks.backbone.extractor import QuantizationParameters, open_extractor
from luigi_tasks.backbone.networks import architecture_name
from luigi_tasks.backbone.records import BackboneRecord
from luigi_tasks.dataset.records import HOLDOUT, TRAIN
from luigi_tasks.gate.measure import measure
from luigi_tasks.pipeline import (
    CHECKPOINT_FILE,
    FLOAT_SCORES_FILE,
    HEAD_FILE,
    WEIGHTS_FILE,
    BackboneFeatures,
    ConvertBackbone,
    PipelineTask,
    TrainModel,
    TuneBackbone,
    lineage_key,
    load_snapshot,
    open_repository,
    tunes,
)
from luigi_tasks.provenance import package_versions
from luigi_tasks.quantization.calibration import choose_calibration, demand_calibration, recall_calibration
from luigi_tasks.quantization.compose import Dense, compose_classifier
from luigi_tasks.quantization.operators import read_operators
from luigi_tasks.quantization.records import CalibrationSet, Candidate, QuantizationRecord, SchemeResult
from luigi_tasks.storage.documents import DocumentTarget
from luigi_tasks.training.cluster import parse_cluster
from luigi_tasks.training.records import Lineage, TrainingRecord, TunedRecord
from luigi_tasks.training.train import pack_head, train, unpack_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.dataset.records import Picture, Snapshot
    from luigi_tasks.pipeline import QuantizeModel
    from luigi_tasks.storage.store import Store


class _StoredCheckpoint:
    """A checkpoint beside the target that it leads to: any machine may go on from it."""

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key

    def load(self) -> bytes | None:
        found = self._store.get(self._key)
        return found.data if found is not None else None

    def save(self, data: bytes) -> None:
        self._store.put(self._key, data)


def tune_on_snapshot(task: TuneBackbone, target: DocumentTarget, index: int = 0) -> tuple[bytes, TunedRecord]:
    """Tune the backbone on the snapshot's training pictures.

    Args:
        task: The step.
        target: Where its result will lie.
        index: Which machine of `[training] cluster` this is.
    """
    from luigi_tasks.training.finetune import TrainingImages, tune_backbone  # noqa: PLC0415 - TensorFlow

    started = time.monotonic()
    settings, snapshot = task.settings, load_snapshot(task)
    pictures = snapshot.split(TRAIN)
    number = {label: index for index, label in enumerate(snapshot.labels)}
    size = settings.model.input_size
    images = TrainingImages(
        read=lambda rows: task.load_pixels([pictures[row] for row in rows], size, size),
        targets=np.array([number[one.label] for one in pictures]),
        names=[one.sha256 for one in pictures],
        classes=len(snapshot.labels),
    )
    parent, weights = _find_parent(task) if settings.training.warm_start else ("", None)
    checkpoint = _StoredCheckpoint(task.store, target.folder + CHECKPOINT_FILE)
    tuned = tune_backbone(
        images,
        settings.model,
        settings.training,
        weights,
        settings.dataset.cache_dir / "activations",
        checkpoint,
        task.progress,
        parse_cluster(settings.training.cluster, index),
    )
    if index == 0:
        checkpoint.save(b"")
    return tuned.weights, TunedRecord(
        history=tuned.history,
        parent=parent,
        made_with=package_versions(),
        seconds=round(time.monotonic() - started, 3),
    )


def _find_parent(task: TuneBackbone) -> tuple[str, bytes | None]:
    """Return the deployed release and its backbone's weights, if it was tuned and they are still there."""
    pointer = open_repository(task.settings).load().channel(task.settings.release.channel)
    if pointer is None:
        return "", None
    lineage = DocumentTarget(task.store, lineage_key(pointer.release))
    if not lineage.exists():
        return "", None
    found = task.store.get(lineage.load(Lineage).tuned + WEIGHTS_FILE)
    return (pointer.release, found.data) if found is not None else ("", None)


def convert_on_snapshot(task: ConvertBackbone) -> tuple[dict[str, bytes], BackboneRecord]:
    """Calibrate on pictures of the snapshot and convert; return the variants and what they are."""
    from luigi_tasks.quantization.variants import convert_backbone  # noqa: PLC0415 - TensorFlow

    settings, size = task.settings, task.settings.model.input_size
    chosen = _calibrate(task)
    pixels = task.load_pixels(chosen, size, size)
    tuned = task.store.read(task.input().folder + WEIGHTS_FILE) if tunes(settings) else None
    variants, width = convert_backbone(
        settings.model, str(task.scheme), pixels, tuned, task.progress, settings.training.seed
    )
    return variants, BackboneRecord(
        variants={variant: hashlib.sha256(file).hexdigest() for variant, file in variants.items()},
        width=width,
        calibration=tuple(one.sha256 for one in chosen),
        made_with=package_versions(),
    )


def _calibrate(task: ConvertBackbone) -> tuple[Picture, ...]:
    """Return the calibration set: an earlier one where the backbone is that of an earlier release."""
    pictures = load_snapshot(task).split(TRAIN)
    # What was tuned is new with each snapshot, and so is its set: the snapshot alone decides it.
    if not tunes(task.settings):
        state, named = open_repository(task.settings).load(), task.settings.quantization.calibration
        if named:
            return demand_calibration(state, named, task.backbone, pictures)
        kept = recall_calibration(state, task.settings.release.channel, task.backbone, pictures)
        if kept:
            return kept
    return choose_calibration(pictures, task.calibrated_on)


def train_on_features(task: TrainModel, target: DocumentTarget) -> None:
    """Train the head and save it, the record last."""
    settings = task.settings
    shards = [task.clone(BackboneFeatures, shard=shard).load() for shard in task.plan.shards]
    _, variants = task.clone(ConvertBackbone).load()
    scheme = str(task.scheme)
    extractor = open_extractor(variants[scheme])
    trained = train(
        load_snapshot(task),
        shards,
        scheme,
        QuantizationParameters(extractor.scale, extractor.zero_point),
        settings.training,
        task.progress,
    )
    scores = io.BytesIO()
    np.save(scores, trained.float_scores)
    task.store.put(target.folder + HEAD_FILE, pack_head(trained.head.layers, trained.ranges))
    task.store.put(target.folder + FLOAT_SCORES_FILE, scores.getvalue())
    target.save(trained.record)


def load_float_scores(task: PipelineTask, scheme: str) -> Any:  # noqa: ANN401 - (hold-out, classes) float32
    """Return what the float network beside a scheme answers to the hold-out, in the snapshot's order."""
    data = task.store.read(task.clone(TrainModel, scheme=scheme).output().folder + FLOAT_SCORES_FILE)
    return np.load(io.BytesIO(data), allow_pickle=False)


def assemble_candidate(task: QuantizeModel) -> tuple[bytes, Candidate]:
    """Return the candidate's file and its description."""
    settings = task.settings
    snapshot = load_snapshot(task)
    tried = task.climb()
    models = [_compose(one, snapshot.labels) for one in tried]
    model, scheme, size = models[-1], str(tried[-1].scheme), settings.model.input_size
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=size, width=size, normalization=Normalization())
    release = release_id(model, snapshot.labels, preprocessing, settings.release.device_class)
    if tunes(settings):
        folder = task.clone(TuneBackbone).output().folder
        DocumentTarget(task.store, lineage_key(release)).save(Lineage(tuned=folder))
    return model, Candidate(
        release=release,
        model_sha256=hashlib.sha256(model).hexdigest(),
        labels=snapshot.labels,
        preprocessing=preprocessing,
        snapshot=snapshot.digest,
        quantization=QuantizationRecord(
            scheme=scheme,
            calibration=tuple(map(_describe_calibration, tried)),
            operators=read_operators(model),
            made_with=package_versions(),
            rungs=_measure_rungs(task, snapshot, tried, models) if len(tried) > 1 else (),
        ),
    )


def _describe_calibration(trained: TrainModel) -> CalibrationSet:
    converted = trained.clone(ConvertBackbone)
    pictures = converted.output().load(BackboneRecord).calibration
    return CalibrationSet(backbone=converted.backbone, scheme=str(trained.scheme), pictures=pictures)


def _compose(trained: TrainModel, labels: Sequence[str]) -> bytes:
    _, variants = trained.clone(ConvertBackbone).load()
    layers, ranges = unpack_head(trained.store.read(trained.own_target().folder + HEAD_FILE))
    return compose_classifier(
        variants[str(trained.scheme)],
        [
            Dense(layer.weights, layer.bias, low, high)
            for layer, (low, high) in zip(layers, ranges, strict=True)
        ],
        labels,
        name=architecture_name(trained.settings.model),
    )


def _measure_rungs(
    task: QuantizeModel, snapshot: Snapshot, tried: Sequence[TrainModel], models: Sequence[bytes]
) -> tuple[SchemeResult, ...]:
    """Show the hold-out to every scheme's file: what each of them would have cost and given."""
    size, holdout = task.settings.model.input_size, snapshot.split(HOLDOUT)
    pixels = task.load_pixels(holdout, size, size)
    rungs = []
    for trained, model in zip(tried, models, strict=True):
        found = measure(
            functools.partial(Classifier, model, snapshot.labels, normalization=Normalization()),
            snapshot.labels,
            holdout,
            pixels,
            task.progress,
            f"candidate in {trained.scheme}",
        )
        record = trained.own_target().load(TrainingRecord)
        rungs.append(
            SchemeResult(
                scheme=str(trained.scheme),
                accuracy=found.accuracy,
                float_drop_points=record.float_drop_points,
                class_drop_points=record.class_drop_points,
                model_bytes=len(model),
                latency_ms_p50=found.latency_ms_p50,
            )
        )
    return tuple(rungs)
