"""The gate and the publication of a candidate, on a real store and a real signed repository."""

from __future__ import annotations

import dataclasses
import hashlib
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from edge_client.contract.documents import decode_document, encode_compact
from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import CALIBRATION_FILE, GATE_FILE, release_target
from edge_client.contract.preprocessing import PREPROCESSING_ID, decode_picture
from edge_client.contract.release import Normalization, Preprocessing, release_id
from edge_client.inference.classifier import Classifier
from edge_client.releases import needed_files
from luigi_tasks import steps
from luigi_tasks.dataset.records import HOLDOUT, Picture, Snapshot
from luigi_tasks.gate.records import without_pictures
from luigi_tasks.quantization.records import (
    Calibration,
    CalibrationSet,
    Candidate,
    CandidateRecord,
    QuantizationRecord,
)
from luigi_tasks.release import retention
from luigi_tasks.release.history import load_champion
from luigi_tasks.release.kept_gate import SIGNED, load_gate
from luigi_tasks.release.published import object_key
from luigi_tasks.workspace import open_workspace
from tests.fakes.heads import head_with
from tests.fakes.tiny_model import plain_picture, tiny_labels, tiny_model
from tests.fakes.trust import settings_with_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.gate.records import Evaluated, Evaluation
    from luigi_tasks.settings.values import PipelineSettings


# The first scheme lost too much, the second was taken.
CALIBRATION = Calibration(
    sets=(
        CalibrationSet(backbone="b", scheme="int8", pictures=("c" * 64, "d" * 64)),
        CalibrationSet(backbone="w", scheme="int8_wide", pictures=("e" * 64,)),
    )
)


class Run:
    """The gate and the publication of one candidate, as the pipeline runs them."""

    def __init__(
        self, settings: PipelineSettings, bias: int, *, labels: tuple[str, ...] | None = None
    ) -> None:
        """Args: `labels` that differ from `tiny_labels(3, bias)` make a model that is always wrong."""
        self.workspace = open_workspace(settings)
        # Plain pictures of the label's colour: the dataset is the one part that is made up.
        self.workspace.pixel_loader = lambda *_: load_plain  # type: ignore[method-assign]
        words, model = labels or tiny_labels(3, bias), tiny_model(bias)
        preprocessing = Preprocessing(id=PREPROCESSING_ID, height=32, width=32, normalization=Normalization())
        record = CandidateRecord(
            release=release_id(model, words, preprocessing, settings.release.device_class),
            model_sha256=hashlib.sha256(model).hexdigest(),
            labels=words,
            preprocessing=preprocessing,
            snapshot="s",
            quantization=QuantizationRecord(
                scheme="int8_wide", calibration=CALIBRATION.sets, operators={}, made_with={}
            ),
        )
        self.candidate = Candidate(record, model)
        self.release = record.release
        pictures = tuple(
            Picture(
                path=f"{label}/{number}.png",
                sha256=f"{number}{ord(label[0]):063x}",
                label=label,
                split=HOLDOUT,
            )
            for label in sorted(words)
            for number in range(4)
        )
        self.snapshot = Snapshot(digest="s", labels=tuple(sorted(words)), pictures=pictures)
        self.heads = [head_with(np.repeat(np.eye(len(words), dtype=np.float32), 4, 0), "int8_wide")]

    def judge(self) -> Evaluated:
        return steps.evaluate(self.workspace, self.candidate, self.snapshot, self.heads)

    def publish(self) -> Evaluation:
        evaluated = self.judge()
        steps.publish_release(self.workspace, self.candidate, evaluated, self.snapshot)
        return evaluated.record

    def published(self) -> Any:
        return self.workspace.repository.load()


def load_plain(pictures: Sequence[Picture], height: int, width: int) -> NDArray[np.uint8]:
    pixels = [plain_picture(picture.label, height, width) for picture in pictures]
    return np.array(pixels, np.uint8).reshape(-1, height, width, 3)


@pytest.fixture
def settings(store_settings, tmp_path):
    return settings_with_keys(store_settings, tmp_path / "keys")


def test_first_candidate_meets_nothing_and_becomes_a_whole_release(settings):
    run = Run(settings, bias=0)
    evaluated = run.judge()
    evaluation, report = evaluated.record, evaluated.report
    assert evaluation.verdict.passed
    assert evaluation.champion is None
    assert run.release in report
    run.publish()
    state, release = run.published(), run.release
    document = state.release(release)
    assert document.accuracy == 1
    assert document.parent is None
    assert document.hold_out == evaluation.candidate.hold_out
    assert (document.hold_out.labels, sum(document.hold_out.confidence)) == ((4, 4, 4), 12)
    assert document.device_class == ""
    names = {path.rpartition("/")[2] for path in state.files if path.startswith(f"releases/{release}/")}
    assert names >= {"model.tflite", "labels.txt", "release.json", "evidence.intoto.jsonl"}
    assert not names & {"evaluation.json", "report.html"}, "they show pictures and file names of the hold-out"


def test_a_release_carries_what_the_gate_found_without_naming_a_picture_of_the_hold_out(settings):
    """Figures that people ask for stay as long as the release, also where `work/` is deleted."""
    run = Run(settings, bias=0, labels=("blue", "red", "green"))
    refused = run.judge().record
    assert refused.candidate.mistakes
    assert b".png" not in encode_compact(without_pictures(refused))
    run = Run(settings, bias=0)
    evaluation = run.publish()
    kept = load_gate(run.published(), run.release)
    assert (kept.origin, kept.evaluation) == (SIGNED, without_pictures(evaluation))
    assert GATE_FILE not in needed_files(run.published().release(run.release))


def test_a_release_carries_what_it_was_calibrated_on_and_devices_do_not_fetch_it(settings):
    run = Run(settings, bias=0)
    run.publish()
    state = run.published()
    path = release_target(run.release, CALIBRATION_FILE)
    found = decode_document(Calibration, state.read(path), source=path, limit_bytes=1 << 20)
    assert found == CALIBRATION
    document = state.release(run.release)
    assert document.calibration == hashlib.sha256(b"e" * 64).hexdigest()
    assert CALIBRATION_FILE not in needed_files(document)
    assert "quantization.calibration" not in document.settings


def test_a_release_for_one_class_of_devices_has_an_id_of_its_own(settings):
    """What is signed under an id never changes: the same model for others is another release."""
    special = dataclasses.replace(
        settings, release=dataclasses.replace(settings.release, device_class="hailo-8")
    )
    everybody, few = Run(settings, bias=0), Run(special, bias=0)
    everybody.publish()
    few.publish()
    assert few.candidate.record.model_sha256 == everybody.candidate.record.model_sha256
    state = everybody.published()
    assert state.channel("stable").release == few.release != everybody.release
    assert state.release(few.release).device_class == "hailo-8"
    assert state.release(everybody.release).device_class == ""


def test_the_id_of_a_release_for_all_is_what_it_was_before_there_were_classes():
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=32, width=32, normalization=Normalization())
    parts = (b"model", ("a", "b"), preprocessing)
    assert release_id(*parts) == release_id(*parts, "") == "54caabeca7e9244cc94d"
    assert len({release_id(*parts, one) for one in ("", "a", "b")}) == 3


def test_self_test_of_a_release_is_answered_as_signed(settings):
    run = Run(settings, bias=0)
    run.publish()
    state = run.published()
    document = state.release(run.release)
    assert len(document.self_test) == settings.release.self_test_pictures
    assert {case.label for case in document.self_test} == set(run.candidate.record.labels)
    model = state.read(release_target(document.release, "model.tflite"))
    classifier = Classifier(model, document.labels, normalization=document.preprocessing.normalization)
    for case in document.self_test:
        answer = classifier.classify(decode_picture(state.read(release_target(document.release, case.file))))
        assert (answer.label, round(answer.confidence, 6)) == (case.label, case.confidence)


def test_next_candidate_meets_the_deployed_one(settings):
    first, second, third = (Run(settings, bias) for bias in (0, 1, 2))
    first.publish()
    assert second.publish().champion_release == first.release
    evaluated = third.judge()
    evaluation, report = evaluated.record, evaluated.report
    assert evaluation.champion_release == second.release
    assert evaluation.champion is not None
    assert evaluation.champion.accuracy == 1
    assert second.published().release(second.release).parent == first.release
    assert all(f"{run.release}, " in report for run in (first, second)), "past releases are drawn"


def test_bursts_count_where_the_deployed_release_was_split_by_groups_too(settings):
    """A version without groups learned from some pictures of each burst, and says nothing of groups."""
    first, second = Run(settings, 0), Run(settings, 1)
    first.publish()
    pictures = second.snapshot.pictures
    burst = tuple(  # by their own hashes, they would be learned from
        msgspec.structs.replace(one, sha256=f"f{one.sha256[1:]}", group=pictures[0].sha256)
        for one in pictures[:4]
    )
    second.snapshot = msgspec.structs.replace(second.snapshot, pictures=(*burst, *pictures[4:]))
    met = second.judge().record.champion
    assert met is not None
    assert met.pictures == len(pictures)
    state = first.published()
    document = state.release(first.release)
    released = {name: value for name, value in document.settings.items() if name != "dataset.group"}
    before = SimpleNamespace(
        release={first.release: msgspec.structs.replace(document, settings=released)}.get, read=state.read
    )
    named = dataclasses.replace(settings, dataset=dataclasses.replace(settings.dataset, group="cam[0-9]"))
    assert was_split_by_groups(state, first.release, settings)
    assert not was_split_by_groups(before, first.release, settings)
    assert not was_split_by_groups(state, first.release, named), "by other groups"


def test_training_goes_on_from_a_release_that_learned_from_no_judge_alone(settings):
    first = Run(settings, 0)
    assert first.workspace.find_start() is None
    first.publish()
    assert open_workspace(settings).find_start() == first.release
    for rules in ({"group": "cam[0-9]"}, {"holdout_percent": 30.0}):
        other = dataclasses.replace(settings, dataset=dataclasses.replace(settings.dataset, **rules))
        assert open_workspace(other).find_start() is None
    fewer = dataclasses.replace(settings.dataset, holdout_percent=10.0)
    assert open_workspace(dataclasses.replace(settings, dataset=fewer)).find_start() == first.release


def was_split_by_groups(state: Any, release: str, settings: PipelineSettings) -> bool:
    champion = load_champion(state, release, settings)
    assert champion is not None
    return champion.split_groups


def test_candidate_that_is_deployed_already_meets_the_one_before(settings):
    first, second = Run(settings, 0), Run(settings, 1)
    first.publish()
    second.publish()
    assert second.judge().record.champion_release == first.release


def test_worse_candidate_is_refused_with_pictures_of_its_mistakes(settings):
    Run(settings, 0).publish()
    evaluated = Run(settings, 1, labels=tiny_labels()).judge()
    evaluation, report = evaluated.record, evaluated.report
    assert not evaluation.verdict.passed
    assert any("deployed model" in reason for reason in evaluation.verdict.reasons)
    assert report.count("data:image/png;base64,") == len(evaluation.candidate.mistakes) == 12


def test_a_verdict_that_does_not_stand_is_found_by_measuring_once_more(settings):
    """Whoever made the evaluation say so: the process that signs judges what it measured itself."""
    run = Run(settings, 1, labels=tiny_labels())
    found = run.judge()
    passed = msgspec.structs.replace(found.record.verdict, passed=True, outcome="passed", reasons=())
    record = msgspec.structs.replace(found.record, verdict=passed)
    with pytest.raises(InputError, match="not signed: measured once more, the gate refused"):
        steps.publish_release(
            run.workspace, run.candidate, dataclasses.replace(found, record=record), run.snapshot
        )
    assert run.published().channel("stable") is None


@pytest.mark.parametrize("differing", [1, 2])
def test_evidence_is_what_the_file_answers_to_the_process_that_signs(settings, differing):
    """A close call may go the other way on another processor; two of twelve answers may not."""
    run = Run(settings, bias=0)
    found = run.judge()
    scores = found.scores.copy()
    scores[:differing] = np.roll(scores[:differing], 1, axis=1)
    evaluated = dataclasses.replace(found, scores=scores)
    if differing == 1:
        steps.publish_release(run.workspace, run.candidate, evaluated, run.snapshot)
        assert run.published().channel("stable").release == run.release
        return
    with pytest.raises(InputError, match="2 of 12 answers on the hold-out are not those of the evaluation"):
        steps.publish_release(run.workspace, run.candidate, evaluated, run.snapshot)
    assert run.published().channel("stable") is None


def test_evidence_is_of_the_bytes_that_are_signed(settings):
    run = Run(settings, bias=0)
    other = Candidate(run.candidate.record, tiny_model(2))
    with pytest.raises(InputError, match=r"not the file that candidate\.json names"):
        steps.publish_release(run.workspace, other, run.judge(), run.snapshot)
    assert run.published().channel("stable") is None


def test_reports_that_an_earlier_version_published_are_taken_back(settings, monkeypatch):
    """They show pictures and file names of the hold-out to whoever has a device's key."""
    run = Run(settings, bias=0)
    run.publish()
    path = release_target(run.release, "report.html")
    with monkeypatch.context() as earlier:
        earlier.setattr(retention, "NOT_FOR_DEVICES", ())
        run.workspace.repository.publish({path: b"<p>pictures"})
    place = object_key(path, run.published().files[path].hashes["sha256"])
    assert run.workspace.store.read(place) == b"<p>pictures"
    run.publish()
    assert path not in run.published().files
    assert run.workspace.store.read(place) == b"", "older metadata names it still"


def test_champion_that_was_changed_in_the_bucket_is_not_measured(settings):
    first = Run(settings, 0)
    first.publish()
    path = release_target(first.release, "model.tflite")
    signed = first.published().files[path]
    first.workspace.store.put(object_key(path, signed.hashes["sha256"]), tiny_model(2))
    with pytest.raises(TrustError, match="not the signed content"):
        Run(settings, 1).judge()


@pytest.mark.parametrize(("now", "told"), [(20.0, True), (10.0, False), (5.0, False)])
def test_larger_holdout_than_the_champions_is_reported(settings, now, told):
    def with_holdout(percent):
        return dataclasses.replace(
            settings, dataset=dataclasses.replace(settings.dataset, holdout_percent=percent)
        )

    Run(with_holdout(10.0), 0).publish()
    evaluation = Run(with_holdout(now), 1).judge().record
    assert ("The deployed model may have learned from" in evaluation.champion_note) == told


def test_a_refused_candidate_cannot_be_published(settings):
    """Also by a program that does not check the verdict."""
    run = Run(settings, 1, labels=tiny_labels())
    evaluated = run.judge()
    assert not evaluated.record.verdict.passed
    with pytest.raises(InputError, match="not published, the gate refused: "):
        steps.publish_release(run.workspace, run.candidate, evaluated, run.snapshot)
    assert run.published().channel("stable") is None


def test_another_candidates_verdict_publishes_nothing(settings):
    passed, other = Run(settings, 0), Run(settings, 1)
    with pytest.raises(InputError, match=f"evaluation is of release {passed.release}"):
        steps.publish_release(other.workspace, other.candidate, passed.judge(), other.snapshot)
    assert other.published().channel("stable") is None


def test_without_keys_and_without_releases_there_is_nothing_to_meet(settings, tmp_path):
    """A notebook measures a candidate before anybody made keys."""
    trust = dataclasses.replace(settings.trust, root=tmp_path / "nowhere/root.json")
    evaluated = Run(dataclasses.replace(settings, trust=trust), 0).judge()
    assert evaluated.record.verdict.passed
    assert evaluated.record.champion_release is None
