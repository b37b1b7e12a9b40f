"""The two steps that see the whole candidate, on a real store and a real signed repository."""

from __future__ import annotations

import dataclasses
import hashlib
import io
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_client.contract.documents import decode_document
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import CALIBRATION_FILE, EVALUATION_FILE, REPORT_FILE, release_target
from edge_client.contract.preprocessing import PREPROCESSING_ID, decode_picture
from edge_client.contract.release import Normalization, Preprocessing, release_id
from edge_client.contract.times import utc_now
from edge_client.inference.classifier import Classifier
from edge_client.releases import needed_files
from luigi_tasks.dataset.records import HOLDOUT, Picture, Snapshot
from luigi_tasks.gate.records import Evaluation
from luigi_tasks.pipeline import (
    FLOAT_SCORES_FILE,
    QUANTIZATION_VERSION,
    EvaluateModel,
    QuantizeModel,
    open_repository,
)
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.records import Calibration, CalibrationSet, Candidate, QuantizationRecord
from luigi_tasks.release.channel import point_channel
from luigi_tasks.release.history import assemble_release, judge_candidate
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.published import object_key
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.storage.documents import DocumentTarget, content_key
from luigi_tasks.storage.s3_store import S3Store
from luigi_tasks.training.records import TrainingRecord
from tests.fakes.tiny_model import plain_picture, tiny_labels, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.settings.values import PipelineSettings


# The first scheme lost too much, the second was taken.
CALIBRATION = Calibration(
    sets=(
        CalibrationSet(backbone="b", scheme="int8", pictures=("c" * 64, "d" * 64)),
        CalibrationSet(backbone="w", scheme="int8_wide", pictures=("e" * 64,)),
    )
)


class Step:
    """Stands for EvaluateModel and PublishRelease on one candidate, whose earlier steps are done."""

    def __init__(
        self, settings: PipelineSettings, bias: int, *, labels: tuple[str, ...] | None = None
    ) -> None:
        """Args: `labels` that differ from `tiny_labels(3, bias)` make a model that is always wrong."""
        self.settings = settings
        self.store = S3Store(settings.store)
        self.progress = ignore_progress
        words = labels or tiny_labels(3, bias)
        model = tiny_model(bias)
        preprocessing = Preprocessing(id=PREPROCESSING_ID, height=32, width=32, normalization=Normalization())
        self.candidate = Candidate(
            release=release_id(model, words, preprocessing, settings.release.device_class),
            model_sha256=hashlib.sha256(model).hexdigest(),
            labels=words,
            preprocessing=preprocessing,
            snapshot="s",
            quantization=QuantizationRecord(
                scheme="int8", calibration=CALIBRATION.sets, operators={}, made_with={}
            ),
        )
        self._targets = {
            name: DocumentTarget(self.store, f"work/{name}/{self.candidate.release}/document.json")
            for name in ("DatasetSnapshot", "TrainModel", "QuantizeModel", "EvaluateModel")
        }
        self._input = self._targets["QuantizeModel"]
        self._finish_earlier_steps(model)

    def _finish_earlier_steps(self, model: bytes) -> None:
        pictures = tuple(
            Picture(
                path=f"{label}/{number}.png",
                sha256=f"{number}{ord(label[0]):063x}",
                label=label,
                split=HOLDOUT,
            )
            for label in sorted(self.candidate.labels)
            for number in range(4)
        )
        targets = self._targets
        snapshot = Snapshot(digest="s", labels=tuple(sorted(self.candidate.labels)), pictures=pictures)
        DocumentTarget(self.store, targets["DatasetSnapshot"].folder + "pictures.json").save(snapshot)
        targets["TrainModel"].save(
            TrainingRecord(
                history={"loss": (1.0, 0.5)},
                made_with={},
                seconds=1.0,
                train_pictures=9,
                class_drop_points=0.0,
                float_drop_points=0.0,
            )
        )
        self.store.put(targets["QuantizeModel"].folder + "model.tflite", model)
        scores = io.BytesIO()
        np.save(scores, np.repeat(np.eye(len(snapshot.labels), dtype=np.float32), 4, 0))
        self.store.put(targets["TrainModel"].folder + FLOAT_SCORES_FILE, scores.getvalue())
        targets["QuantizeModel"].save(self.candidate)

    def input(self) -> DocumentTarget:
        return self._input

    def clone(self, kind: type, scheme: str = "int8") -> SimpleNamespace:
        return SimpleNamespace(output=lambda: self._targets[kind.__name__])

    def champion(self, release: str) -> str | None:
        return EvaluateModel.champion(self, release)  # type: ignore[arg-type]

    def load_pixels(self, pictures: Sequence[Picture], height: int, width: int) -> NDArray[np.uint8]:
        pixels = [plain_picture(picture.label, height, width) for picture in pictures]
        return np.array(pixels, np.uint8).reshape(-1, height, width, 3)

    def judge(self) -> tuple[Evaluation, str]:
        return judge_candidate(self)  # type: ignore[arg-type]

    def publish(self) -> Evaluation:
        """Do what EvaluateModel and PublishRelease do."""
        evaluation, report = self.judge()
        self.store.put(self._targets["EvaluateModel"].folder + REPORT_FILE, report.encode())
        self._targets["EvaluateModel"].save(evaluation)
        self._input = self._targets["EvaluateModel"]
        files = assemble_release(self)  # type: ignore[arg-type]
        open_repository(self.settings).publish(
            files,
            lambda old: point_channel(old, "stable", evaluation.release, share_percent=100, at=utc_now()),
            "stable",
        )
        self._input = self._targets["QuantizeModel"]
        return evaluation

    def published(self) -> Any:
        return open_repository(self.settings).load()


@pytest.fixture
def settings(store_settings, tmp_path):
    make_keys(tmp_path / "keys")
    settings = load_settings()
    trust = dataclasses.replace(
        settings.trust, root=tmp_path / "keys/device/root.json", keys=str(tmp_path / "keys/pipeline")
    )
    return dataclasses.replace(settings, store=store_settings, trust=trust)


def test_first_candidate_meets_nothing_and_becomes_a_whole_release(settings):
    step = Step(settings, bias=0)
    evaluation, report = step.judge()
    assert evaluation.verdict.passed
    assert evaluation.champion is None
    assert step.candidate.release in report
    step.publish()
    state, release = step.published(), step.candidate.release
    document = state.release(release)
    assert document.accuracy == 1
    assert document.parent is None
    assert document.hold_out == evaluation.candidate.hold_out
    assert (document.hold_out.labels, sum(document.hold_out.confidence)) == ((4, 4, 4), 12)
    assert document.device_class == ""
    path = release_target(release, EVALUATION_FILE)
    decode_document(Evaluation, state.read(path), source=path, limit_bytes=1 << 20)


def test_a_release_carries_what_it_was_calibrated_on_and_devices_do_not_fetch_it(settings):
    step = Step(settings, bias=0)
    step.publish()
    state = step.published()
    path = release_target(step.candidate.release, CALIBRATION_FILE)
    found = decode_document(Calibration, state.read(path), source=path, limit_bytes=1 << 20)
    assert found == CALIBRATION
    document = state.release(step.candidate.release)
    assert document.calibration == hashlib.sha256(b"e" * 64).hexdigest()
    assert CALIBRATION_FILE not in needed_files(document)
    assert "quantization.calibration" not in document.settings


def test_a_release_for_one_class_of_devices_says_so_under_an_id_of_its_own(settings):
    """What is signed under an id never changes: the same model for others is another release."""
    special = dataclasses.replace(
        settings, release=dataclasses.replace(settings.release, device_class="hailo-8")
    )
    everybody, few = Step(settings, bias=0), Step(special, bias=0)
    everybody.publish()
    few.publish()
    assert few.candidate.model_sha256 == everybody.candidate.model_sha256
    state = everybody.published()
    assert state.channel("stable").release == few.candidate.release != everybody.candidate.release
    assert state.release(few.candidate.release).device_class == "hailo-8"
    assert state.release(everybody.candidate.release).device_class == ""


def test_another_class_of_devices_is_another_candidate(settings):
    def address(device_class: str) -> str:
        release = dataclasses.replace(settings.release, device_class=device_class)
        head = SimpleNamespace(complete=lambda: True, own_target=lambda: SimpleNamespace(key="head"))
        task = SimpleNamespace(
            settings=dataclasses.replace(settings, release=release), store=None, climb=lambda: (head,)
        )
        return str(QuantizeModel.output(task).key)  # type: ignore[union-attr]

    assert (
        address("")
        == f"work/candidates/{content_key('candidate', QUANTIZATION_VERSION, ['head'])}/candidate.json"
    )
    assert len({address(one) for one in ("", "a", "b")}) == 3


def test_the_id_of_a_release_for_all_is_what_it_was_before_there_were_classes():
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=32, width=32, normalization=Normalization())
    parts = (b"model", ("a", "b"), preprocessing)
    assert release_id(*parts) == release_id(*parts, "") == "54caabeca7e9244cc94d"
    assert len({release_id(*parts, one) for one in ("", "a", "b")}) == 3


def test_self_test_of_a_release_is_answered_as_signed(settings):
    step = Step(settings, bias=0)
    step.publish()
    state = step.published()
    document = state.release(step.candidate.release)
    assert len(document.self_test) == settings.release.self_test_pictures
    assert {case.label for case in document.self_test} == set(step.candidate.labels)
    model = state.read(release_target(document.release, "model.tflite"))
    classifier = Classifier(model, document.labels, normalization=document.preprocessing.normalization)
    for case in document.self_test:
        answer = classifier.classify(decode_picture(state.read(release_target(document.release, case.file))))
        assert (answer.label, round(answer.confidence, 6)) == (case.label, case.confidence)


def test_next_candidate_meets_the_deployed_one(settings):
    first, second, third = (Step(settings, bias) for bias in (0, 1, 2))
    first.publish()
    assert second.publish().champion_release == first.candidate.release
    evaluation, report = third.judge()
    assert evaluation.champion_release == second.candidate.release
    assert evaluation.champion is not None
    assert evaluation.champion.accuracy == 1
    assert second.published().release(second.candidate.release).parent == first.candidate.release
    assert all(f"{step.candidate.release}, " in report for step in (first, second)), "past releases are drawn"


def test_candidate_that_is_deployed_already_meets_the_one_before(settings):
    first, second = Step(settings, 0), Step(settings, 1)
    first.publish()
    second.publish()
    assert second.judge()[0].champion_release == first.candidate.release


def test_worse_candidate_is_refused_with_pictures_of_its_mistakes(settings):
    Step(settings, 0).publish()
    evaluation, report = Step(settings, 1, labels=tiny_labels()).judge()
    assert not evaluation.verdict.passed
    assert any("deployed model" in reason for reason in evaluation.verdict.reasons)
    assert report.count("data:image/png;base64,") == len(evaluation.candidate.mistakes) == 12


def test_candidate_without_one_right_answer_cannot_be_published(settings):
    """Not even with a gate that lets everything through: no device could test it."""
    step = Step(settings, 1, labels=tiny_labels())
    with pytest.raises(InputError, match="not one hold-out picture is answered right"):
        step.publish()
    assert step.published().channel("stable") is None


def test_champion_that_somebody_changed_in_the_bucket_is_not_measured(settings):
    first = Step(settings, 0)
    first.publish()
    path = release_target(first.candidate.release, "model.tflite")
    signed = first.published().files[path]
    first.store.put(object_key(path, signed.hashes["sha256"]), tiny_model(2))
    with pytest.raises(TrustError, match="not the signed content"):
        Step(settings, 1).judge()


@pytest.mark.parametrize(("now", "told"), [(30.0, True), (20.0, False), (10.0, False)])
def test_larger_holdout_than_the_champions_is_told(settings, now, told):
    def with_holdout(percent):
        return dataclasses.replace(
            settings, dataset=dataclasses.replace(settings.dataset, holdout_percent=percent)
        )

    Step(with_holdout(20.0), 0).publish()
    evaluation, _ = Step(with_holdout(now), 1).judge()
    assert ("was trained on some of them" in evaluation.champion_note) == told
