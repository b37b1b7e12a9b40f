"""Glue of the two steps that see the whole candidate: its evaluation, and its release."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError
from edge_client.contract.names import CALIBRATION_FILE, MODEL_FILE, REPORT_FILE, release_target
from edge_client.contract.times import utc_now
from edge_client.inference.classifier import Classifier
from luigi_tasks.backbone.networks import architecture_name
from luigi_tasks.dataset.pixels import to_png
from luigi_tasks.dataset.records import HOLDOUT
from luigi_tasks.gate.champion import Champion
from luigi_tasks.gate.evaluate import evaluate
from luigi_tasks.gate.records import Evaluation
from luigi_tasks.gate.report import Past, render_report
from luigi_tasks.pipeline import (
    PipelineTask,
    QuantizeModel,
    TrainModel,
    TuneBackbone,
    load_snapshot,
    open_repository,
    tunes,
)
from luigi_tasks.provenance import flatten_settings
from luigi_tasks.quantization.candidate import load_float_scores
from luigi_tasks.quantization.records import Calibration, Candidate
from luigi_tasks.release.contents import build_release
from luigi_tasks.release.self_test import SelfTestPicture, choose_self_test
from luigi_tasks.training.records import TrainingRecord, TunedRecord

if TYPE_CHECKING:
    from luigi_tasks.pipeline import EvaluateModel

THUMBNAIL_PIXELS = 128


def judge_candidate(task: EvaluateModel) -> tuple[Evaluation, str]:
    """Measure, compare and judge; return the record and the report's HTML."""
    target = task.input()
    candidate = target.load(Candidate)
    state = open_repository(task.settings).load()
    snapshot = load_snapshot(task)
    evaluation = evaluate(
        candidate,
        task.store.read(target.folder + MODEL_FILE),
        load_float_scores(task, candidate.quantization.scheme),
        _load_champion(state, task.champion(candidate.release), task.settings.dataset.holdout_percent),
        snapshot.split(HOLDOUT),
        task.load_pixels,
        task.settings.gate,
        task.progress,
        utc_now(),
    )
    report = render_report(
        evaluation,
        snapshot=snapshot,
        training=_load_training(task, candidate.quantization.scheme),
        quantization=candidate.quantization,
        settings=flatten_settings(task.settings),
        thumbnails=_load_thumbnails(task, evaluation, snapshot),
        past=_past(state, evaluation.champion_release),
    )
    return evaluation, report


def assemble_release(task: PipelineTask) -> dict[str, bytes]:
    """Return the files of the release that the candidate becomes, by signed target path."""
    target = task.clone(QuantizeModel).output()
    candidate = target.load(Candidate)
    model = task.store.read(target.folder + MODEL_FILE)
    settings = task.settings
    return build_release(
        candidate,
        model,
        task.input().load(Evaluation),
        task.store.read(task.input().folder + REPORT_FILE),
        _self_test(task, candidate, model),
        settings,
        architecture_name(settings.model),
    )


def _self_test(task: PipelineTask, candidate: Candidate, model: bytes) -> list[SelfTestPicture]:
    size = candidate.preprocessing
    holdout = load_snapshot(task).split(HOLDOUT)
    pixels = task.load_pixels(holdout, size.height, size.width)
    classifier = Classifier(model, candidate.labels, normalization=size.normalization)
    known = _self_test_before(task)
    chosen = choose_self_test(classifier, holdout, pixels, task.settings.release.self_test_pictures, known)
    if not chosen:
        msg = (
            f"release {candidate.release}: not one hold-out picture is answered right, so no device could "
            "test it; raise [gate] min_accuracy above 0"
        )
        raise InputError(msg)
    return [
        SelfTestPicture(
            png=to_png(pixels[index]),
            label=answer.label,
            confidence=answer.confidence,
            picture=holdout[index].sha256,
        )
        for index, answer in chosen
    ]


def _self_test_before(task: PipelineTask) -> frozenset[str]:
    """Return the pictures that devices on the channel have."""
    state = open_repository(task.settings).load()
    pointer = state.channel(task.settings.release.channel)
    before = state.release(pointer.release) if pointer is not None else None
    return frozenset(case.picture for case in before.self_test) if before is not None else frozenset()


def _load_training(task: EvaluateModel, scheme: str) -> TrainingRecord:
    """Return what training did, with the curves of a tuned backbone before those of the head."""
    record: TrainingRecord = task.clone(TrainModel, scheme=scheme).output().load(TrainingRecord)
    if not tunes(task.settings):
        return record
    tuned = task.clone(TuneBackbone).output().load(TunedRecord)
    curves = {f"tuning {name}": values for name, values in tuned.history.items()}
    return msgspec.structs.replace(record, history=curves | record.history)


def _load_champion(state: Any, release: str | None, holdout_percent: float) -> Champion | None:  # noqa: ANN401 - RepositoryState
    document = state.release(release) if release is not None else None
    if document is None:
        return None
    trained_beside = float(document.settings.get("dataset.holdout_percent", holdout_percent))
    return Champion(
        document,
        state.read(release_target(document.release, MODEL_FILE)),
        saw_holdout=trained_beside < holdout_percent,
    )


def _load_thumbnails(task: PipelineTask, evaluation: Evaluation, snapshot: Any) -> dict[str, bytes]:  # noqa: ANN401
    wanted = {mistake.sha256 for mistake in evaluation.candidate.mistakes}
    pictures = [picture for picture in snapshot.split(HOLDOUT) if picture.sha256 in wanted]
    pixels = task.load_pixels(pictures, THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    return {picture.sha256: to_png(pixels[index]) for index, picture in enumerate(pictures)}


def _past(state: Any, release: str | None) -> list[Past]:  # noqa: ANN401
    """Accuracies of the releases before, oldest first."""
    found: list[Past] = []
    # As many as are signed still: [trust] keep_releases.
    while release is not None:
        document = state.release(release)
        if document is None:
            break
        found.append(Past(document.release, document.accuracy, document.created_at))
        release = document.parent
    return found[::-1]


CALIBRATION_LIMIT_BYTES = 16 << 20


def read_calibration(state: Any, release: str, backbone: str) -> tuple[str, ...]:  # noqa: ANN401 - RepositoryState
    """Return the content hashes that a signed release was calibrated on for this backbone, or none.

    Raises: TrustError if the bucket holds something else than what was signed.
    """
    path = release_target(release, CALIBRATION_FILE)
    if path not in state.files:
        return ()
    found = decode_document(Calibration, state.read(path), source=path, limit_bytes=CALIBRATION_LIMIT_BYTES)
    return next((one.pictures for one in found.sets if one.backbone == backbone), ())
