"""What a release consists of, and how a channel moves. Values in, values out: no store, no clock."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from edge_client.contract.documents import encode_compact, encode_document
from edge_client.contract.names import (
    CALIBRATION_FILE,
    EVALUATION_FILE,
    LABELS_FILE,
    MODEL_FILE,
    RELEASE_FILE,
    REPORT_FILE,
    release_target,
)
from edge_client.contract.release import ReleaseDocument, SelfTestCase
from luigi_tasks.provenance import flatten_settings
from luigi_tasks.quantization.records import Calibration

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.gate.records import Evaluation
    from luigi_tasks.quantization.records import CalibrationSet, Candidate
    from luigi_tasks.release.self_test import SelfTestPicture
    from luigi_tasks.settings.values import PipelineSettings


def build_release(
    candidate: Candidate,
    model: bytes,
    evaluation: Evaluation,
    report: bytes,
    self_test: Sequence[SelfTestPicture],
    settings: PipelineSettings,
    architecture: str,
) -> dict[str, bytes]:
    """Return the files of a release by signed target path."""
    names = [f"selftest-{number}.png" for number in range(1, len(self_test) + 1)]
    document = ReleaseDocument(
        release=candidate.release,
        model_sha256=candidate.model_sha256,
        model_bytes=len(model),
        labels=candidate.labels,
        preprocessing=candidate.preprocessing,
        quantization=candidate.quantization.scheme,
        operators=candidate.quantization.operators,
        self_test=tuple(
            SelfTestCase(
                file=name, label=case.label, confidence=round(case.confidence, 6), picture=case.picture
            )
            for name, case in zip(names, self_test, strict=True)
        ),
        parent=evaluation.champion_release,
        snapshot=candidate.snapshot,
        architecture=architecture,
        accuracy=evaluation.candidate.accuracy,
        hold_out=evaluation.candidate.hold_out,
        device_class=settings.release.device_class,
        calibration=digest_calibration(candidate.quantization.calibration),
        made_with=candidate.quantization.made_with,
        settings=flatten_settings(settings),
        created_at=evaluation.at,
    )
    files = {
        MODEL_FILE: model,
        LABELS_FILE: "".join(f"{label}\n" for label in candidate.labels).encode(),
        RELEASE_FILE: encode_document(document),
        EVALUATION_FILE: encode_document(evaluation),
        CALIBRATION_FILE: encode_compact(Calibration(sets=candidate.quantization.calibration)),
        REPORT_FILE: report,
        **{name: case.png for name, case in zip(names, self_test, strict=True)},
    }
    return {release_target(candidate.release, name): data for name, data in files.items()}


def digest_calibration(sets: Sequence[CalibrationSet]) -> str:
    """Hex SHA-256 over the content hashes that calibrated the scheme that was taken."""
    pictures = sets[-1].pictures if sets else ()
    return hashlib.sha256("".join(pictures).encode()).hexdigest()
