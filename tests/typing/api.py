"""Types of the Python API: checked by mypy, never run.

A change here that mypy refuses breaks programs of users: raise the version, and say so in the changelog.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edge_client.contract.errors import EdgeError
from edge_client.inference import Classifier, Prediction, classifier_from_release
from luigi_tasks import steps
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.workspace import Workspace, open_workspace

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.backbone.records import Backbone
    from luigi_tasks.dataset.records import Snapshot
    from luigi_tasks.gate.records import Evaluated
    from luigi_tasks.labelling.records import DoubtfulRecord
    from luigi_tasks.quantization.records import Candidate
    from luigi_tasks.settings.values import PipelineSettings
    from luigi_tasks.training.features import FeatureRows
    from luigi_tasks.training.records import TrainedHead, TunedBackbone


def report_progress(what: str, done: int, total: int) -> None:
    """Any function of this shape gets the progress of a step."""


def train() -> str:
    settings: PipelineSettings = load_settings("preset:digits", store={"url": "file:///srv/edge-models"})
    workspace: Workspace = open_workspace(settings)
    snapshot: Snapshot = steps.take_snapshot(workspace, progress=report_progress)
    tuned: TunedBackbone = steps.tune_backbone(workspace, snapshot, progress=report_progress)
    backbone: Backbone = steps.convert_backbone(workspace, snapshot, "int8", tuned, report_progress)
    features: FeatureRows = steps.extract_features(
        workspace, snapshot.pictures, backbone, "int8", progress=report_progress
    )
    doubtful: DoubtfulRecord = steps.find_doubtful(
        settings.training, snapshot, backbone, [features], "int8", report_progress
    )
    worst: list[tuple[str, str, float]] = [(one.path, one.probable, one.score) for one in doubtful.doubtful]
    head: TrainedHead = steps.train_head(
        settings.training, snapshot, backbone, [features], "int8", report_progress
    )
    candidate: Candidate = steps.assemble_candidate(settings, snapshot, [backbone], [head])
    evaluated: Evaluated = steps.evaluate(
        workspace, candidate, snapshot, [head], tuned=tuned.record, progress=report_progress
    )
    accuracy: float = evaluated.record.candidate.accuracy
    verdict: str = evaluated.record.verdict.in_words()
    if evaluated.record.verdict.passed:
        steps.publish_release(workspace, candidate, evaluated, snapshot, report_progress)
        release: str = steps.announce(workspace)
        steps.roll_back(workspace, release)
    renewed: bool = steps.renew_signatures(workspace)
    current: str | None = steps.current_release(workspace)
    classifier: Classifier = candidate.open_classifier()
    return f"{classifier} {verdict} {accuracy} {renewed} {current} {worst}"


def classify(folder: Path) -> str:
    try:
        classifier: Classifier = classifier_from_release(folder, threads=2)
        prediction: Prediction = classifier.classify(np.zeros((480, 640, 3), np.uint8))
    except EdgeError as e:
        return str(e)
    best: dict[str, float] = prediction.top(3)
    label: str = prediction.label
    confidence: float = prediction.confidence
    sure: bool = prediction.sure
    return f"{label} {confidence} {sure} {best}"
