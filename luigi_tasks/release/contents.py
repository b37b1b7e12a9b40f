"""Contents of a release. Pure: values in, values out."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.documents import encode_compact, encode_document
from edge_client.contract.names import (
    CALIBRATION_FILE,
    GATE_FILE,
    LABELS_FILE,
    MODEL_FILE,
    RELEASE_FILE,
    release_target,
)
from edge_client.contract.release import TWO_OUTPUTS_SCHEMA, ReleaseDocument, SelfTestCase
from luigi_tasks.backbone.networks import architecture_name
from luigi_tasks.gate.records import without_pictures
from luigi_tasks.provenance import flatten_settings
from luigi_tasks.quantization.records import Calibration, write_labels

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.gate.records import Evaluated, Evaluation
    from luigi_tasks.quantization.records import CalibrationSet, Candidate
    from luigi_tasks.release.self_test import SelfTestPicture
    from luigi_tasks.settings.values import PipelineSettings


def build_release(
    candidate: Candidate,
    evaluated: Evaluated,
    self_test: Sequence[SelfTestPicture],
    settings: PipelineSettings,
) -> dict[str, bytes]:
    """Return the files of a release by signed target path."""
    record = candidate.record
    pictures = {f"selftest-{number}.png": one for number, one in enumerate(self_test, start=1)}
    files = {
        MODEL_FILE: candidate.model,
        LABELS_FILE: write_labels(record.labels),
        RELEASE_FILE: encode_document(_describe(candidate, evaluated.record, pictures, settings)),
        GATE_FILE: encode_compact(without_pictures(evaluated.record)),
        CALIBRATION_FILE: encode_compact(Calibration(sets=record.quantization.calibration)),
        **{name: one.png for name, one in pictures.items()},
    }
    return {release_target(record.release, name): data for name, data in files.items()}


def _describe(
    candidate: Candidate,
    evaluation: Evaluation,
    pictures: Mapping[str, SelfTestPicture],
    settings: PipelineSettings,
) -> ReleaseDocument:
    """Return `release.json`; the pictures of the self-test come with their file names."""
    record = candidate.record
    return ReleaseDocument(
        schema=TWO_OUTPUTS_SCHEMA if record.tells_strangers else 1,
        release=record.release,
        model_sha256=record.model_sha256,
        model_bytes=len(candidate.model),
        labels=record.labels,
        preprocessing=record.preprocessing,
        quantization=record.quantization.scheme,
        operators=record.quantization.operators,
        self_test=tuple(
            SelfTestCase(
                file=name, label=case.label, confidence=round(case.confidence, 6), picture=case.picture
            )
            for name, case in pictures.items()
        ),
        parent=evaluation.champion_release,
        snapshot=record.snapshot,
        architecture=architecture_name(settings.model),
        accuracy=evaluation.candidate.accuracy,
        hold_out=evaluation.candidate.hold_out,
        holdout_percent=settings.dataset.holdout_percent,
        device_class=settings.release.device_class,
        calibration=digest_calibration(record.quantization.calibration),
        operating_point=record.operating_point,
        made_with=record.quantization.made_with,
        settings=flatten_settings(settings),
        created_at=evaluation.at,
        evidence="; ".join(evaluation.verdict.thin),
    )


def digest_calibration(sets: Sequence[CalibrationSet]) -> str:
    """Return the hex SHA-256 over the content hashes of the chosen scheme's calibration set."""
    pictures = sets[-1].pictures if sets else ()
    return hashlib.sha256("".join(pictures).encode()).hexdigest()
