"""Assembly of the candidate: the head written into the TFLite file of its backbone, and its description."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.preprocessing import PREPROCESSING_ID
from edge_client.contract.release import Normalization, Preprocessing, release_id
from luigi_tasks.backbone.extractor import open_extractor
from luigi_tasks.backbone.networks import architecture_name
from luigi_tasks.provenance import package_versions
from luigi_tasks.quantization.compose import Dense, compose_classifier
from luigi_tasks.quantization.operators import read_operators
from luigi_tasks.quantization.records import CalibrationSet, Candidate, CandidateRecord, QuantizationRecord
from luigi_tasks.training.confidence import choose_operating_point

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.backbone.records import Backbone
    from luigi_tasks.settings.values import ModelSettings, ReleaseSettings
    from luigi_tasks.training.records import TrainedHead


def make_candidate(
    snapshot: str,
    labels: tuple[str, ...],
    backbones: Sequence[Backbone],
    heads: Sequence[TrainedHead],
    model: ModelSettings,
    release: ReleaseSettings,
) -> Candidate:
    """Return the candidate in the last of the schemes that were tried.

    Args:
        snapshot: Digest of the pictures.
        labels: Label of each output.
        backbones: The converted backbone of each scheme.
        heads: The head of each scheme.
        model: Which network.
        release: Class of devices that the release is for, precision of its sure predictions, strangers.
    """
    if not release.strangers:
        heads = [_without_known(one) for one in heads]
    models = [
        _compose(backbone, head, labels, model) for backbone, head in zip(backbones, heads, strict=True)
    ]
    size = model.input_size
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=size, width=size, normalization=Normalization())
    operating_point = choose_operating_point(heads[-1].unseen, release.precision)
    record = CandidateRecord(
        release=release_id(models[-1], labels, preprocessing, release.device_class, operating_point),
        model_sha256=hashlib.sha256(models[-1]).hexdigest(),
        labels=labels,
        preprocessing=preprocessing,
        snapshot=snapshot,
        quantization=QuantizationRecord(
            scheme=heads[-1].scheme,
            calibration=tuple(
                CalibrationSet(backbone=one.key, scheme=one.scheme, pictures=one.record.calibration)
                for one in backbones
            ),
            operators=read_operators(models[-1]),
            made_with=package_versions(),
        ),
        operating_point=operating_point,
        tells_strangers=heads[-1].record.familiarity is not None,
    )
    return Candidate(record, models[-1], tuple(models[:-1]))


def _without_known(head: TrainedHead) -> TrainedHead:
    """Return a head that does not tell strangers."""
    return dataclasses.replace(
        head,
        unseen=dataclasses.replace(head.unseen, known=None),
        record=msgspec.structs.replace(head.record, familiarity=None),
    )


def _compose(backbone: Backbone, head: TrainedHead, labels: Sequence[str], model: ModelSettings) -> bytes:
    open_extractor(backbone.files[head.scheme]).process.check_parsing()  # it may have been read from a store
    layers = [
        Dense(layer.weights, layer.bias, low, high)
        for layer, (low, high) in zip(head.layers, head.ranges, strict=True)
    ]
    return compose_classifier(
        backbone.files[head.scheme],
        layers,
        labels,
        name=architecture_name(model),
        familiarity=head.record.familiarity,
    )
