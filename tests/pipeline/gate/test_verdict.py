"""What the gate lets through, what it refuses, and what it holds for want of evidence."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luigi_tasks.gate.records import ClassMetrics, Measurement
from luigi_tasks.gate.verdict import judge
from tests.fakes.gate_facts import LIMITS, facts, found, measured, rival

EQUAL = rival(5, 5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A candidate and what becomes of it; `refused_for` is one part of each reason."""

    name: str
    accuracy: float = 0.9
    float_accuracy: float = 0.9
    first: bool = False
    lost: int = 5
    gained: int = 5
    model_bytes: int = 500
    refused_for: tuple[str, ...] = ()


CASES = [
    Case("all good"),
    Case("first release has no champion to meet", first=True),
    Case("accuracy at its limit", accuracy=0.8, float_accuracy=0.8),
    Case(
        "accuracy below its limit",
        accuracy=0.71,
        float_accuracy=0.71,
        refused_for=("hold-out accuracy 0.7100 is below [gate] min_accuracy 0.8",),
    ),
    Case("float loss at its limit, float noise and all", accuracy=0.9, float_accuracy=0.92),
    Case(
        "float loss over its limit",
        accuracy=0.9,
        float_accuracy=0.93,
        refused_for=("loss against the float model 3.00 points is above [gate] max_float_drop_points 2",),
    ),
    Case("quantization that gains", accuracy=0.95, float_accuracy=0.9),
    Case("a loss of two points that is no chance", lost=11, gained=3, refused_for=("loses 11 pictures",)),
    Case("a loss of one point that is chance", lost=9, gained=5),
    Case(
        "worse than the champion by more than chance",
        lost=20,
        gained=4,
        refused_for=(" 4.00 points is more than chance: it loses 20 pictures to it and gains 4 of 400;",),
    ),
    Case("size at its limit", model_bytes=1_000_000),
    Case(
        "size over its limit",
        model_bytes=1_000_001,
        refused_for=("model size 1000001 bytes is above [gate] max_model_bytes 1000000",),
    ),
    Case(
        "everything is wrong and everything is named",
        accuracy=0.5,
        float_accuracy=0.9,
        lost=160,
        gained=0,
        model_bytes=2_000_000,
        refused_for=("min_accuracy", "max_float_drop_points", "max_model_bytes", "max_champion_drop_points"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_limit_that_is_missed_is_a_reason_and_nothing_else(case):
    candidate = measured(case.accuracy, found("cat", 200, 0.9), found("dog", 200, 0.9))
    verdict = judge(
        facts(
            candidate,
            measured(case.float_accuracy, *candidate.classes),
            None if case.first else rival(case.lost, case.gained),
            model_bytes=case.model_bytes,
        ),
        LIMITS,
    )
    assert len(verdict.reasons) == len(case.refused_for)
    assert all(part in reason for part, reason in zip(case.refused_for, verdict.reasons, strict=True))
    assert verdict.passed == (not case.refused_for)
    assert verdict.outcome == ("refused" if case.refused_for else "passed")


@pytest.mark.parametrize(
    ("support", "recall", "passes"),
    [
        (100, 0.90, True),  # 9 points: within the limit of 10
        (100, 0.87, False),
        (5, 0.80, True),  # one picture of five
        (5, 0.60, False),
    ],
)
def test_one_class_may_not_collapse_behind_a_good_mean(support, recall, passes):
    good = found("good", 100, 0.99)
    weak = found("weak", support, recall)
    exact = found("weak", support, 1.0 if support == 5 else 0.99)
    verdict = judge(facts(measured(0.95, good, weak), measured(0.96, good, exact)), LIMITS)
    assert verdict.passed == passes
    assert all("'weak': loss of a class" in reason for reason in verdict.reasons)


def test_a_near_miss_does_not_read_like_the_limit():
    verdict = judge(facts(measured(0.79999)), LIMITS)
    assert verdict.reasons == ("hold-out accuracy 0.79999 is below [gate] min_accuracy 0.8",)


# Better than a constant answer


def test_a_model_that_is_no_better_than_a_constant_answer_is_refused():
    """Labels at random, 90/10: 0.842, where always answering the larger class has 0.891."""
    random_labels = rival(47, 10, 750, label="cat", accuracy=0.891)
    candidate = measured(0.842, found("cat", 668, 0.93), found("dog", 82, 0.09), pictures=750)
    verdict = judge(facts(candidate, constant=random_labels), LIMITS)
    assert verdict.outcome == "refused"
    assert "is no better than always answering 'cat' (0.8910)" in verdict.reasons[0]
    assert "'dog' is found in 7 of its 82 hold-out pictures" in verdict.reasons[1]


def test_a_holdout_of_one_class_refuses_nothing_and_shows_nothing():
    """The other class is one burst, which is learned from: always answering the first is right."""
    candidate = measured(0.975, found("cat", 40, 0.975), found("dog", 0, 0.0), pictures=40)
    constant = rival(1, 0, units=40, label="cat", accuracy=1.0)
    verdict = judge(facts(candidate, constant=constant), LIMITS)
    assert (verdict.outcome, verdict.passed) == ("thin", True)
    assert "the hold-out has pictures of 'cat' only" in verdict.thin[0]


def test_better_than_a_constant_answer_by_chance_is_not_enough_evidence():
    verdict = judge(facts(measured(0.9), constant=rival(1, 4, 20, label="cat", accuracy=0.75)), LIMITS)
    assert (verdict.passed, verdict.outcome) == (True, "thin")
    [thin] = verdict.thin
    assert "so much may be chance: about 110 more pictures (22 of them in the hold-out) would do" in thin


# Classes


def judged(*classes: ClassMetrics, replaces: bool = False, **settings):
    candidate = measured(0.9, *classes)
    champion, deployed = (EQUAL, candidate.labels) if replaces else (None, ())
    known = facts(candidate, champion=champion, deployed=deployed)
    return judge(known, dataclasses.replace(LIMITS, **settings))


@pytest.mark.parametrize(
    ("support", "recall", "outcome"),
    [
        (200, 0.31, "passed"),
        (200, 0.29, "refused"),
        (30, 0.20, "refused"),
        (10, 0.0, "refused"),
        (5, 0.0, "refused"),
        (4, 0.25, "thin"),  # one of four: so few of a class that is found in two of three are no wonder
        (4, 0.5, "passed"),
    ],
)
def test_a_class_that_is_hardly_found_is_refused_where_it_is_no_chance(support, recall, outcome):
    verdict = judged(found("good", 100, 0.95), found("weak", support, recall))
    assert verdict.outcome == outcome
    assert all("'weak' is found in" in reason for reason in verdict.thin + verdict.reasons)


def test_a_hundred_small_classes_are_not_refused_for_an_unlucky_one():
    classes = [found(f"class {number}", 4, 0.75) for number in range(99)]
    assert judged(*classes, found("unlucky", 4, 0.0)).outcome == "thin"
    assert judged(*classes[:1], found("dead", 4, 0.0)).outcome == "refused"


def test_a_class_with_few_holdout_pictures_is_named_with_how_many_more_would_do():
    verdict = judged(found("good", 100, 0.95), found("rare", 1, 1.0))
    assert verdict.outcome == "thin"
    [reason] = verdict.thin
    assert reason == (
        "'rare' has 1 in the hold-out: about 15 more pictures of 'rare' (3 of them in the hold-out) would do "
        "([gate] min_class_holdout 4)"
    )


def test_a_class_without_any_holdout_picture_is_thin_and_not_a_recall_of_zero():
    verdict = judged(found("good", 100, 0.95), found("none", 0, 0.0))
    assert verdict.outcome == "thin"
    assert "'none' has 0 in the hold-out: about 20 more pictures" in verdict.thin[0]


def test_where_pictures_belong_together_groups_are_asked_for():
    candidate = measured(0.9, found("good", 390, 0.95, 60), found("rare", 10, 1.0, 2), groups=62)
    [reason] = judge(facts(candidate), LIMITS).thin
    assert "about 10 more groups of pictures of 'rare' (2 of them in the hold-out) would do" in reason


def test_many_classes_are_counted_rather_than_listed():
    verdict = judged(found("good", 100, 0.95), *(found(f"c{number:02}", 1, 1.0) for number in range(30)))
    assert verdict.thin[0].count("more pictures") == 10
    assert "; and 20 more" in verdict.thin[0]


# What becomes of thin evidence


@pytest.mark.parametrize(
    ("setting", "first", "replacement"),
    [("hold_replacement", True, False), ("publish", True, True), ("hold", False, False)],
)
def test_thin_evidence_publishes_a_first_release_and_holds_a_replacement(setting, first, replacement):
    classes = (found("good", 100, 0.95), found("rare", 1, 1.0))
    verdict = judged(*classes, thin_evidence=setting)
    assert (verdict.outcome, verdict.passed) == ("thin", first)
    other = judged(*classes, replaces=True, thin_evidence=setting)
    assert (other.outcome, other.passed) == ("thin", replacement)
    for one in (verdict, other):
        assert one.reasons == (() if one.passed else one.thin)
        words = "passed on thin evidence:" if one.passed else "held: not enough evidence:"
        assert one.in_words().startswith(f"{words} 'rare' has 1 in the hold-out")


def test_a_refusal_outweighs_thin_evidence_and_both_are_kept():
    verdict = judge(facts(measured(0.7, found("good", 100, 0.8), found("rare", 1, 1.0))), LIMITS)
    assert (verdict.outcome, verdict.passed) == ("refused", False)
    assert len(verdict.reasons) == len(verdict.thin) == 1


def test_a_comparison_that_tells_nothing_says_how_many_pictures_would():
    verdict = judge(facts(measured(0.9), champion=rival(24, 16)), LIMITS)
    assert (verdict.outcome, verdict.passed) == ("thin", False)
    [reason] = verdict.thin
    assert "cannot be told: it loses 24 pictures to it and gains 16 of 400; about" in reason
    more = int(reason.split(" of them in the hold-out")[0].rsplit("(", 1)[1])
    grown = rival(24 * (1 + more / 400), 16 * (1 + more / 400), 400 + more)
    assert judge(facts(measured(0.9), champion=grown), LIMITS).outcome != "thin"


# Classes of the deployed release


def test_no_class_of_the_deployed_release_left_is_refused_unless_that_is_meant():
    known = facts(measured(0.9), deployed=("rose", "tulip"))
    verdict = judge(known, LIMITS)
    assert verdict.outcome == "refused"
    assert "none of the deployed release's classes is left ('rose', 'tulip')" in verdict.reasons[0]
    assert "--replace-classes" in verdict.reasons[0]
    assert judge(known, dataclasses.replace(LIMITS, replace_classes=True)).passed


def test_one_class_left_is_a_comparison_and_no_refusal():
    assert judge(facts(measured(0.9), champion=EQUAL, deployed=("cat", "tulip")), LIMITS).passed


# Always


SHARES = st.integers(0, 400).map(lambda right: right / 400)


@given(
    SHARES, SHARES, st.none() | st.tuples(st.integers(0, 40), st.integers(0, 40)), st.integers(0, 2_000_000)
)
def test_reasons_are_those_of_the_checks_that_did_not_pass(accuracy, float_accuracy, champion, size):
    known = facts(
        measured(accuracy), measured(float_accuracy), rival(*champion) if champion else None, model_bytes=size
    )
    verdict = judge(known, LIMITS)
    refused = tuple(one.reason for one in verdict.checks if one.outcome == "refused")
    assert verdict.passed == (not verdict.reasons)
    assert verdict.reasons == (refused or (verdict.thin if champion else ()))
    assert verdict.thin == tuple(one.reason for one in verdict.checks if one.outcome == "thin")
    assert all(one.passed == (one.outcome == "passed") == (not one.reason) for one in verdict.checks)


RANK = {"refused": 0, "thin": 1, "passed": 2}


@given(SHARES, SHARES, SHARES)
def test_a_better_candidate_is_never_refused_where_a_worse_one_passes(worse, better, float_accuracy):
    def rank(accuracy: float) -> int:
        return RANK[judge(facts(measured(accuracy), measured(float_accuracy)), LIMITS).outcome]

    worse, better = sorted((worse, better))
    assert rank(better) >= rank(worse)


def test_a_measurement_of_the_released_version_can_still_be_judged():
    """Its records know neither groups nor intervals."""
    old = Measurement(
        accuracy=0.9,
        pictures=400,
        labels=("cat",),
        classes=(ClassMetrics(label="cat", support=400, precision=1.0, recall=0.9),),
        confusion=((360,),),
        latency_ms_p50=None,
        latency_ms_p90=None,
        runtime="",
        mistakes=(),
    )
    assert judge(facts(old), LIMITS).passed
