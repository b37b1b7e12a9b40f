"""Measurements of real TFLite files on pictures whose answers are known."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import PREPROCESSING_ID, decode_picture
from edge_client.contract.release import CONFIDENCE_BINS, Normalization, Preprocessing, release_id
from edge_client.inference.classifier import Classifier
from luigi_tasks.dataset.left_out import EMPTY_CLASS, SMALL_CLASS, UNDECODABLE
from luigi_tasks.dataset.pixels import LazyPixels, to_png
from luigi_tasks.dataset.records import HOLDOUT, LeftOut, Picture
from luigi_tasks.gate.champion import Champion
from luigi_tasks.gate.evaluate import evaluate_candidate
from luigi_tasks.gate.measure import MISTAKES_AT_MOST, Answers, count_answers, measure
from luigi_tasks.gate.records import Evaluation, Measurement
from luigi_tasks.inference.model_process import BLOCK_PICTURES, ModelFile
from luigi_tasks.progress import ignore_progress
from luigi_tasks.quantization.records import Candidate, CandidateRecord, QuantizationRecord
from luigi_tasks.release.self_test import choose_self_test, make_self_test
from tests.fakes.bad_models import crashing_model
from tests.fakes.gate_facts import LIMITS
from tests.fakes.heads import head_with
from tests.fakes.tiny_model import COLOURS, tiny_labels, tiny_model
from tests.fakes.tiny_release import tiny_release

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.settings.values import GateSettings


class Album:
    """Hold-out pictures of one colour each; a picture may lie in the folder of another colour."""

    def __init__(self, *shown: tuple[str, str, int]) -> None:
        """Args: (label, colour, how many) of each group; later pictures of a group are a bit paler."""
        self.colours: dict[str, tuple[int, ...]] = {}
        self.asked_for: list[tuple[int, int]] = []
        pictures = []
        for label, colour, count in shown:
            for number in range(count):
                path = f"{label}/{colour}-{number}.png"
                sha256 = hashlib.sha256(path.encode()).hexdigest()
                pictures.append(Picture(path=path, sha256=sha256, label=label, split=HOLDOUT))
                paler = 4 * number % 100
                self.colours[sha256] = tuple(abs(value - paler) for value in COLOURS[colour])
        self.pictures = tuple(pictures)

    def load(self, pictures: Sequence[Picture], height: int, width: int) -> NDArray[np.uint8]:
        self.asked_for.append((height, width))
        pixels = np.empty((len(pictures), height, width, 3), np.uint8)
        for index, picture in enumerate(pictures):
            pixels[index] = self.colours[picture.sha256]
        return pixels

    def measure(self, bias: int = 0, labels: int = 3):
        return self.run(bias, labels)[0]

    def scores(self) -> NDArray[np.float32]:
        return self.run(0, 3)[1].scores

    def run(self, bias: int, labels: int) -> tuple[Measurement, Answers]:
        words = tiny_labels(labels)
        return measure(
            file_of(tiny_model(bias, labels=labels), words),
            words,
            self.pictures,
            self.load(self.pictures, 32, 32),
            ignore_progress,
            "candidate",
        )


def file_of(model: bytes, labels: tuple[str, ...]) -> ModelFile:
    return ModelFile(model, "the candidate", labels=labels, normalization=Normalization())


def describe(model: bytes, labels: tuple[str, ...]) -> CandidateRecord:
    preprocessing = Preprocessing(id=PREPROCESSING_ID, height=32, width=32, normalization=Normalization())
    return CandidateRecord(
        release=release_id(model, labels, preprocessing),
        model_sha256=hashlib.sha256(model).hexdigest(),
        labels=labels,
        preprocessing=preprocessing,
        snapshot="s",
        quantization=QuantizationRecord(scheme="int8", calibration=(), operators={}, made_with={}),
    )


def champion(
    bias: int = 0, size: int = 32, labels: int = 3, *, percent: float = 20.0, split_groups: bool = True
) -> Champion:
    document, files = tiny_release(bias, size, labels)
    return Champion(document, files["model.tflite"], percent, split_groups)


def right_scores(album: Album, labels: tuple[str, ...]) -> NDArray[np.float32]:
    """Answers of a float network that is always right where it can be."""
    rows = [[float(one.label == label) for label in labels] for one in album.pictures]
    return np.array(rows, np.float32)


def judge_tiny(
    album: Album,
    deployed: Champion | None,
    *,
    labels: int = 3,
    bias: int = 0,
    limits: GateSettings = LIMITS,
    left_out: Sequence[LeftOut] = (),
    holdout_percent: float = 20.0,
) -> Evaluation:
    """Judge `tiny_model(bias)` as trained for the labels in order: right only with `bias` 0."""
    model = tiny_model(bias, labels=labels)
    words = tiny_labels(labels)
    evaluation, scores = evaluate_candidate(
        Candidate(describe(model, words), model),
        [head_with(right_scores(album, words))],
        deployed,
        album.pictures,
        album.load,
        limits,
        ignore_progress,
        "now",
        left_out=left_out,
        holdout_percent=holdout_percent,
    )
    assert scores.shape == (len(album.pictures), labels)
    return evaluation


def met(found: Evaluation) -> Measurement:
    """The champion's metrics, where there must be some."""
    assert found.champion is not None
    return found.champion


GOOD = (("red", "red", 5), ("green", "green", 5), ("blue", "blue", 5))


def test_all_right_is_accuracy_one_without_mistakes():
    found = Album(*GOOD).measure()
    assert found.accuracy == 1
    assert found.pictures == 15
    assert found.confusion == ((5, 0, 0), (0, 5, 0), (0, 0, 5))
    assert found.mistakes == ()


def test_a_device_can_compare_its_answers_with_those_on_the_holdout():
    """Every answer of the file counts, right or wrong, in the order of the release's labels."""
    album = Album(("red", "red", 5), ("red", "blue", 3), ("green", "red", 1), ("blue", "blue", 1))
    found = album.measure().hold_out
    assert found is not None
    assert found.labels == (6, 0, 4)
    assert sum(found.confidence) == 10
    assert len(found.confidence) == CONFIDENCE_BINS


def test_confidences_are_counted_in_equal_parts_of_which_the_last_has_one_itself():
    found = count_answers(("a", "b"), ["a", "b", "b", "other"], [0.0, 0.0999, 0.1, 1.0])
    assert found.labels == (1, 2)
    assert found.confidence == (2, 1, 0, 0, 0, 0, 0, 0, 0, 1)


def without(content: object, names: frozenset[str]) -> object:
    """The same JSON as a version that did not know these fields wrote it."""
    if isinstance(content, dict):
        return {key: without(value, names) for key, value in content.items() if key not in names}
    return [without(one, names) for one in content] if isinstance(content, list) else content


def test_an_evaluation_of_the_released_version_is_still_read():
    """It knows two outcomes, and neither groups nor intervals."""
    now = judge_tiny(Album(*GOOD), champion())
    new = frozenset({"outcome", "thin", "interval", "groups", "effective", "note", "error_rates"})
    data = json.dumps(without(json.loads(encode_document(now)), new)).encode()
    found = decode_document(Evaluation, data, source="evaluation.json", limit_bytes=1 << 20)
    assert (found.verdict.passed, found.verdict.outcome, found.verdict.in_words()) == (True, "", "passed")
    assert (found.candidate.interval, found.candidate.groups) == (None, 0)
    assert found.candidate.classes[0].recall == now.candidate.classes[0].recall


def test_an_evaluation_from_before_there_was_a_holdout_count_is_still_read():
    album = Album(*GOOD)
    now = judge_tiny(album, None)
    old = json.loads(encode_document(now))
    for measured in ("candidate", "float_model"):
        del old[measured]["hold_out"]
    data = json.dumps(old).encode()
    found = decode_document(Evaluation, data, source="evaluation.json", limit_bytes=1 << 20)
    assert found.candidate.hold_out is None
    assert now.candidate.hold_out is not None
    assert found.candidate.accuracy == now.candidate.accuracy


def test_metrics_match_those_counted_by_hand():
    """Three of the eight red ones show blue; green is never answered."""
    found = Album(("red", "red", 5), ("red", "blue", 3), ("green", "red", 1), ("blue", "blue", 1)).measure()
    assert found.labels == ("red", "green", "blue")
    assert found.confusion == ((5, 0, 3), (1, 0, 0), (0, 0, 1))
    assert found.accuracy == 6 / 10
    assert found.in_words() == "accuracy 0.6000 (0.3127 to 0.8318)"
    metrics = {one.label: (one.support, one.precision, one.recall) for one in found.classes}
    assert metrics["red"] == (8, pytest.approx(5 / 6, abs=1e-6), pytest.approx(5 / 8))
    assert metrics["green"] == (1, 0.0, 0.0)
    assert metrics["blue"] == (1, pytest.approx(1 / 4), 1.0)


def test_mistakes_are_the_most_confident_ones_and_not_more_than_fit():
    found = Album(("red", "green", 60)).measure()
    assert len(found.mistakes) == MISTAKES_AT_MOST
    confidences = [one.confidence for one in found.mistakes]
    assert confidences == sorted(confidences, reverse=True)
    assert {(one.truth, one.predicted) for one in found.mistakes} == {("red", "green")}


def test_order_of_pictures_changes_no_figure():
    album = Album(("red", "red", 20), ("red", "blue", 20), ("green", "green", 20))
    before = album.measure()
    album.pictures = album.pictures[::-1]
    after = album.measure()
    for name in ("accuracy", "confusion", "classes", "mistakes"):
        assert getattr(before, name) == getattr(after, name)


def test_latency_is_reported_in_order():
    found = Album(*GOOD).measure()
    assert 0 < found.latency_ms_p50 <= found.latency_ms_p90
    assert found.runtime


def test_progress_reaches_its_end():
    seen = []
    album = Album(*GOOD)
    measure(
        file_of(tiny_model(), tiny_labels()),
        tiny_labels(),
        album.pictures,
        album.load(album.pictures, 32, 32),
        lambda what, done, total: seen.append((what, done, total)),
        "candidate",
    )
    assert seen[-1] == ("measuring the candidate", 15, 15)


def test_large_hold_out_is_loaded_in_parts():
    album = Album(("red", "red", BLOCK_PICTURES), ("green", "green", 3))
    loaded = []

    def load(pictures: Sequence[Picture], height: int, width: int) -> NDArray[np.uint8]:
        loaded.append(len(pictures))
        return album.load(pictures, height, width)

    found, _ = measure(
        file_of(tiny_model(), tiny_labels()),
        tiny_labels(),
        album.pictures,
        LazyPixels(album.pictures, load, 32, 32),
        ignore_progress,
        "candidate",
    )
    assert (found.pictures, found.accuracy) == (BLOCK_PICTURES + 3, 1)
    assert loaded[:2] == [BLOCK_PICTURES, 3]
    assert max(loaded) == BLOCK_PICTURES


def test_first_candidate_has_nothing_to_meet():
    found = judge_tiny(Album(*GOOD), None)
    assert found.verdict.passed
    assert (found.champion, found.champion_release) == (None, None)
    assert "Nothing is deployed" in found.champion_note


@pytest.mark.parametrize("attacked", ["candidate", "champion"])
def test_a_file_that_crashes_the_runtime_is_an_error_that_names_it(attacked):
    """The review ended luigi by SIGSEGV with such a candidate; a deployed one may meet another runtime."""
    album, words = Album(*GOOD), tiny_labels()
    deployed = champion()
    made = Candidate(describe(tiny_model(), words), tiny_model())
    if attacked == "champion":
        deployed = dataclasses.replace(deployed, model=crashing_model())
    else:
        made = dataclasses.replace(made, model=crashing_model())
    heads = [head_with(right_scores(album, words))]
    with pytest.raises(InputError, match="SIGSEGV") as error:
        evaluate_candidate(made, heads, deployed, album.pictures, album.load, LIMITS, ignore_progress, "now")
    name = "the candidate" if attacked == "candidate" else f"the deployed release {deployed.document.release}"
    assert str(error.value).startswith(name)


def test_a_file_that_lost_what_its_float_network_knew_is_refused():
    found = judge_tiny(Album(*GOOD), None, bias=1)
    assert found.float_model.accuracy == 1
    assert found.candidate.accuracy == 0
    assert not found.verdict.passed
    assert any("float model" in reason for reason in found.verdict.reasons)


def test_champion_is_read_by_its_own_labels():
    deployed = champion(bias=1)
    found = judge_tiny(Album(*GOOD), deployed)
    assert met(found).accuracy == 1
    assert found.champion_release == deployed.document.release
    assert found.verdict.passed


def test_champion_is_shown_pictures_of_its_own_size():
    album = Album(*GOOD)
    found = judge_tiny(album, champion(size=48))
    assert (48, 48) in album.asked_for
    assert met(found).pictures == 15


def test_candidate_worse_than_the_champion_is_refused():
    found = judge_tiny(Album(*GOOD), champion(), bias=1)
    assert any("deployed model" in reason for reason in found.verdict.reasons)


def test_new_class_is_compared_on_the_classes_that_both_know():
    """The candidate fails on the new class only: the champion cannot know it and does not win by it."""
    album = Album(*GOOD, ("yellow", "black", 2))
    found = judge_tiny(album, champion(labels=3), labels=4)
    assert found.candidate.pictures == 17
    assert met(found).pictures == 15
    assert met(found).accuracy == 1
    assert "new: yellow" in found.champion_note
    assert "15 of 17" in found.champion_note
    [check] = [check for check in found.verdict.checks if check.name == "loss against the deployed model"]
    assert (check.measured, check.passed) == (0, True)
    [left] = [check for check in found.verdict.checks if "that are left" in check.name]
    assert (left.measured, left.passed) == (3, True)


def test_class_that_is_gone_is_named_and_an_answer_with_it_is_wrong():
    album = Album(("red", "red", 9), ("green", "yellow", 1))
    found = judge_tiny(album, champion(labels=4), labels=3)
    assert "gone: yellow" in found.champion_note
    assert met(found).accuracy == 0.9


@pytest.mark.parametrize(
    ("path", "reason", "outcome"),
    [
        ("yellow/1.png", SMALL_CLASS, "thin"),
        ("train/yellow/1.png", SMALL_CLASS, "thin"),
        ("yellow/", EMPTY_CLASS, "thin"),
        ("yellow/1.png", UNDECODABLE, "passed"),
        ("green/1.png", SMALL_CLASS, "passed"),
    ],
)
def test_a_deployed_class_that_fell_out_of_the_snapshot_is_not_dropped_unasked(path, reason, outcome):
    """Its folder is there; a person who wants the class to go removes the folder."""
    left_out = (LeftOut(path, reason, "'yellow' has 12 usable different pictures, 15 are needed"),)
    found = judge_tiny(Album(*GOOD), champion(labels=4), left_out=left_out)
    assert found.verdict.outcome == outcome
    if outcome == "thin":
        [said] = found.verdict.thin
        assert said.startswith("class 'yellow' of the deployed release is left out: 'yellow' has 12")
        meant = dataclasses.replace(LIMITS, replace_classes=True)
        assert judge_tiny(Album(*GOOD), champion(labels=4), left_out=left_out, limits=meant).verdict.passed


def test_class_that_was_renamed_is_reported():
    deployed = changed(champion(), labels=("crimson", "green", "blue"))
    found = judge_tiny(Album(*GOOD), deployed)
    assert "'red' looks like 'crimson' renamed" in found.champion_note
    assert "5 of its 5" in found.champion_note


def test_class_that_only_came_as_another_went_is_not_called_renamed():
    deployed = changed(champion(), labels=("crimson", "green", "blue"))
    found = judge_tiny(Album(("red", "green", 5), *GOOD[1:]), deployed)
    assert "new: red; gone: crimson" in found.champion_note
    assert "renamed" not in found.champion_note


def changed(deployed: Champion, **fields) -> Champion:
    return Champion(msgspec.structs.replace(deployed.document, **fields), deployed.model)


def test_champion_of_other_classes_cannot_be_compared_and_is_not_replaced_unless_that_is_meant():
    deployed = changed(champion(), labels=("a", "b", "c"))
    found = judge_tiny(Album(*GOOD), deployed)
    assert found.champion is None
    assert "knows none of these classes" in found.champion_note
    assert "none of the deployed release's classes is left" in found.verdict.reasons[0]
    limits = dataclasses.replace(LIMITS, replace_classes=True)
    assert judge_tiny(Album(*GOOD), deployed, limits=limits).verdict.passed


def test_champion_with_preprocessing_of_another_time_cannot_be_compared():
    deployed = champion()
    other = msgspec.structs.replace(deployed.document.preprocessing, id="lanczos-9")
    found = judge_tiny(Album(*GOOD), changed(deployed, preprocessing=other))
    assert found.champion is None
    assert "'lanczos-9'" in found.champion_note


def test_pictures_that_the_champion_may_have_learned_from_do_not_count():
    """Its hold-out was smaller: what it knows by heart would make it look better than any candidate."""
    album = Album(("red", "red", 30), ("green", "green", 30), ("blue", "blue", 30))
    found = judge_tiny(album, champion(percent=10.0), holdout_percent=40.0)
    known = [one for one in album.pictures if int(one.sha256[:8], 16) / 2**32 >= 0.1]
    assert 0 < len(known) < 90
    assert f"may have learned from {len(known)} of them" in found.champion_note
    assert met(found).pictures == 90 - len(known)
    assert (
        "may have learned"
        not in judge_tiny(album, champion(percent=40.0), holdout_percent=40.0).champion_note
    )


def test_bursts_that_an_earlier_version_divided_do_not_count():
    """Of each burst, the version without groups learned from some pictures."""
    album = Album(("red", "red", 30), ("green", "green", 30), ("blue", "blue", 30))
    burst = tuple(msgspec.structs.replace(one, group=album.pictures[0].sha256) for one in album.pictures[:5])
    album.pictures = (*burst, *album.pictures[5:])
    assert met(judge_tiny(album, champion(split_groups=False))).pictures == 85
    assert met(judge_tiny(album, champion())).pictures == 90


def test_a_picture_with_a_named_group_to_itself_does_not_count_where_its_own_hash_decided_before():
    album = Album(("red", "red", 30), ("green", "green", 30), ("blue", "blue", 30))
    album.pictures = tuple(
        msgspec.structs.replace(one, group=hashlib.sha256(b"cam" + one.sha256.encode()).hexdigest())
        for one in album.pictures
    )
    known = [one for one in album.pictures if int(one.sha256[:8], 16) / 2**32 >= 0.2]
    assert met(judge_tiny(album, champion(split_groups=False))).pictures == 90 - len(known)


def test_where_the_champion_may_know_all_pictures_nothing_shows_a_loss():
    album = Album(*GOOD)
    group = album.pictures[0].sha256
    album.pictures = tuple(msgspec.structs.replace(one, group=group) for one in album.pictures)
    found = judge_tiny(album, champion(split_groups=False))
    assert found.champion is None
    assert found.verdict.outcome == "thin"
    assert "may have learned from all hold-out pictures" in found.verdict.thin[-1]
    assert "[gate] thin_evidence = publish for one run" in found.verdict.thin[-1]


def test_evaluation_survives_its_way_through_the_store():
    found = judge_tiny(Album(*GOOD, ("red", "blue", 1)), champion())
    data = encode_document(found)
    assert decode_document(Evaluation, data, source="test", limit_bytes=1 << 20) == found


def chosen_paths(album: Album, count: int, known: frozenset[str] = frozenset()) -> list[str]:
    chosen = choose_self_test(album.pictures, tiny_labels(), album.scores(), count, known)
    return [album.pictures[index].path for index in chosen]


def test_self_test_takes_right_answers_of_every_class_in_turn():
    album = Album(*GOOD, ("red", "blue", 5))
    paths = chosen_paths(album, 6)
    assert sorted(path.split("/")[0] for path in paths[:3]) == ["blue", "green", "red"]
    assert len(paths) == len(set(paths)) == 6
    assert not any(path.startswith("red/blue") for path in paths)


def test_self_test_does_not_depend_on_the_order_of_pictures():
    album = Album(*GOOD)
    before = chosen_paths(album, 5)
    album.pictures = album.pictures[::-1]
    assert chosen_paths(album, 5) == before


def test_self_test_keeps_the_pictures_of_the_release_before():
    album = Album(*GOOD)
    last = {picture.label: picture.sha256 for picture in album.pictures}
    paths = chosen_paths(album, 3, frozenset(last.values()))
    by_path = {picture.path: picture.sha256 for picture in album.pictures}
    assert {by_path[path] for path in paths} == set(last.values())


def test_self_test_takes_what_there_is():
    assert len(chosen_paths(Album(("red", "red", 2)), 5)) == 2
    assert chosen_paths(Album(("red", "blue", 2)), 5) == []


def test_self_test_picture_gets_the_same_answer_on_a_device():
    album = Album(*GOOD)
    candidate = describe(tiny_model(), tiny_labels())
    cases = make_self_test(candidate, album.pictures, album.scores(), album.load, 5)
    assert len(cases) == 5
    for case in cases:
        classifier = Classifier(tiny_model(), tiny_labels(), normalization=Normalization())
        again = classifier.classify(decode_picture(case.png))
        assert (again.label, again.confidence) == (case.label, case.confidence)


def test_schemes_that_lost_too_much_are_measured_next_to_the_one_that_was_taken():
    album, words = Album(*GOOD), tiny_labels()
    candidate = Candidate(describe(tiny_model(), words), tiny_model(), tried=(tiny_model(1),))
    scores = right_scores(album, words)
    heads = [head_with(scores, "int8", 60.0, 90.0), head_with(scores, "float16", 0.5, 1.0)]
    found, _ = evaluate_candidate(
        candidate, heads, None, album.pictures, album.load, LIMITS, ignore_progress, "now"
    )
    first, taken = found.schemes
    assert (first.scheme, first.accuracy, first.float_drop_points) == ("int8", 0.0, 60.0)
    assert (taken.scheme, taken.accuracy, taken.class_drop_points) == ("float16", 1.0, 1.0)
    assert (taken.model_bytes, taken.latency_ms_p50) == (len(tiny_model()), found.candidate.latency_ms_p50)


def test_the_only_scheme_is_no_comparison():
    assert judge_tiny(Album(*GOOD), None).schemes == ()


def test_png_keeps_every_pixel():
    pixels = np.random.default_rng(1).integers(0, 256, (17, 31, 3), np.uint8)
    assert np.array_equal(decode_picture(to_png(pixels)), pixels)
