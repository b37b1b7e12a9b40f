"""What the gate lets through, and its reasons for a refusal."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luigi_tasks.gate.verdict import judge
from luigi_tasks.settings.values import GateSettings
from luigi_tasks.training.class_drop import ClassPair

LIMITS = GateSettings(
    min_accuracy=0.8,
    max_float_drop_points=2.0,
    max_class_drop_points=10.0,
    max_champion_drop_points=0.5,
    max_model_bytes=1000,
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A candidate and what becomes of it; `refused_for` is one part of each reason."""

    name: str
    accuracy: float = 0.9
    float_accuracy: float = 0.9
    champion: tuple[float, float] | None = (0.9, 0.9)
    model_bytes: int = 500
    refused_for: tuple[str, ...] = ()


CASES = [
    Case("all good"),
    Case("first release has no champion to meet", champion=None),
    Case("accuracy at its limit", accuracy=0.8, float_accuracy=0.8, champion=(0.8, 0.8)),
    Case(
        "accuracy below its limit",
        accuracy=0.71,
        float_accuracy=0.71,
        champion=None,
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
    Case("champion loss at its limit", champion=(0.895, 0.9)),
    Case(
        "champion loss over its limit",
        champion=(0.89, 0.9),
        refused_for=(
            "loss against the deployed model 1.00 points is above [gate] max_champion_drop_points 0.5",
        ),
    ),
    Case(
        "only the shared pictures count against the champion",
        accuracy=0.85,
        float_accuracy=0.85,
        champion=(0.97, 0.97),
    ),
    Case("size at its limit", model_bytes=1000),
    Case(
        "size over its limit",
        model_bytes=1001,
        refused_for=("model size 1001 bytes is above [gate] max_model_bytes 1000",),
    ),
    Case(
        "everything is wrong and everything is named",
        accuracy=0.5,
        float_accuracy=0.9,
        champion=(0.5, 0.9),
        model_bytes=2000,
        refused_for=("min_accuracy", "max_float_drop_points", "max_model_bytes", "max_champion_drop_points"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_limit_that_is_missed_is_a_reason_and_nothing_else(case):
    verdict = judge(
        accuracy=case.accuracy,
        float_accuracy=case.float_accuracy,
        classes=(),
        champion=case.champion,
        model_bytes=case.model_bytes,
        settings=LIMITS,
    )
    assert len(verdict.reasons) == len(case.refused_for)
    assert all(part in reason for part, reason in zip(case.refused_for, verdict.reasons, strict=True))
    assert verdict.passed == (not case.refused_for)
    assert len(verdict.checks) == (4 if case.champion is None else 5)


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
    pairs = [
        ClassPair("good", 100, 0.99, 0.99),
        ClassPair("weak", support, recall, 1.0 if support == 5 else 0.99),
    ]
    verdict = judge(
        accuracy=0.95, float_accuracy=0.96, classes=pairs, champion=None, model_bytes=1, settings=LIMITS
    )
    assert verdict.passed == passes
    assert all("'weak': loss of a class" in reason for reason in verdict.reasons)


def test_byte_limits_are_written_out():
    limits = dataclasses.replace(LIMITS, max_model_bytes=8_000_000)
    verdict = judge(
        accuracy=0.9, float_accuracy=0.9, classes=(), champion=None, model_bytes=9_000_000, settings=limits
    )
    assert verdict.reasons == ("model size 9000000 bytes is above [gate] max_model_bytes 8000000",)


def test_a_near_miss_does_not_read_like_the_limit():
    accuracy = 0.79999
    verdict = judge(
        accuracy=accuracy,
        float_accuracy=accuracy,
        classes=(),
        champion=None,
        model_bytes=1,
        settings=LIMITS,
    )
    assert verdict.reasons == ("hold-out accuracy 0.79999 is below [gate] min_accuracy 0.8",)


SHARES = st.integers(0, 400).map(lambda right: right / 400)


@given(SHARES, SHARES, st.none() | st.tuples(SHARES, SHARES), st.integers(0, 2000))
def test_passed_is_all_checks_and_reasons_are_the_failed_ones(accuracy, float_accuracy, champion, size):
    verdict = judge(
        accuracy=accuracy,
        float_accuracy=float_accuracy,
        classes=(),
        champion=champion,
        model_bytes=size,
        settings=LIMITS,
    )
    assert verdict.passed == all(check.passed for check in verdict.checks) == (not verdict.reasons)
    assert verdict.reasons == tuple(check.reason for check in verdict.checks if check.reason)


@given(SHARES, SHARES, st.tuples(SHARES, SHARES))
def test_a_better_candidate_is_never_refused_where_a_worse_one_passes(worse, better, rest):
    worse, better = sorted((worse, better))
    float_accuracy, champion = rest

    def passes(accuracy: float) -> bool:
        pair = (accuracy, champion)
        return judge(
            accuracy=accuracy,
            float_accuracy=float_accuracy,
            classes=(),
            champion=pair,
            model_bytes=1,
            settings=LIMITS,
        ).passed

    assert passes(better) or not passes(worse)
