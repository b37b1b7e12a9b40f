"""Glue of the steps that make a candidate: tune the backbone, train the head, put both into one file."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.preprocessing import PREPROCESSING_ID
from edge_client.contract.release import Normalization, Preprocessing, release_id
from luigi_tasks.backbones import architecture_name
from luigi_tasks.compose import Dense, compose_classifier
from luigi_tasks.feature_batches import open_extractor
from luigi_tasks.operators import read_operators
from luigi_tasks.pipeline import (
    FLOAT_SCORES_FILE,
    HEAD_FILE,
    BackboneFeatures,
    ConvertBackbone,
    PipelineTask,
    TrainModel,
    load_snapshot,
)
from luigi_tasks.records import Candidate, QuantizationRecord
from luigi_tasks.train import Form, pack_head, package_versions, train, unpack_head

if TYPE_CHECKING:
    from luigi_tasks.pipeline import QuantizeModel
    from luigi_tasks.targets import DocumentTarget


def train_on_features(task: TrainModel, target: DocumentTarget) -> None:
    """Train the head and save it, the record last."""
    settings = task.settings
    batches = [task.clone(BackboneFeatures, batch=batch).load() for batch in task.plan.batches]
    _, forms = task.clone(ConvertBackbone).load()
    scheme = settings.quantization.scheme
    extractor = open_extractor(forms[scheme])
    trained = train(
        load_snapshot(task),
        batches,
        scheme,
        Form(extractor.scale, extractor.zero_point),
        settings.training,
        task.progress,
    )
    scores = io.BytesIO()
    np.save(scores, trained.float_scores)
    task.store.put(target.folder + HEAD_FILE, pack_head(trained.head.layers, trained.ranges))
    task.store.put(target.folder + FLOAT_SCORES_FILE, scores.getvalue())
    target.save(trained.record)


def load_float_scores(task: PipelineTask) -> Any:  # noqa: ANN401 - (hold-out, classes) float32
    """Return what the float network answers to the hold-out, in the snapshot's order."""
    data = task.store.read(task.clone(TrainModel).output().folder + FLOAT_SCORES_FILE)
    return np.load(io.BytesIO(data), allow_pickle=False)


def assemble_candidate(task: QuantizeModel) -> tuple[bytes, Candidate]:
    """Return the candidate's file and its description."""
    settings = task.settings
    snapshot = load_snapshot(task)
    backbone, forms = task.clone(ConvertBackbone).load()
    layers, ranges = unpack_head(task.store.read(task.clone(TrainModel).output().folder + HEAD_FILE))
    size, scheme = settings.model.input_size, settings.quantization.scheme
    model = compose_classifier(
        forms[scheme],
        [
            Dense(layer.weights, layer.bias, low, high)
            for layer, (low, high) in zip(layers, ranges, strict=True)
        ],
        snapshot.labels,
        name=architecture_name(settings.model),
    )
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=size, width=size, normalization=Normalization())
    return model, Candidate(
        release=release_id(model, snapshot.labels, preprocessing),
        model_sha256=hashlib.sha256(model).hexdigest(),
        labels=snapshot.labels,
        preprocessing=preprocessing,
        snapshot=snapshot.digest,
        quantization=QuantizationRecord(
            scheme=scheme,
            calibration=backbone.calibration,
            operators=read_operators(model),
            made_with=package_versions(),
        ),
    )
