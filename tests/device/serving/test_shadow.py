"""Shadow mode: what lets a release serve, and what refuses it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edge_client.inference.classifier import Prediction
from edge_client.serving.probation import FAILURES
from edge_client.serving.shadow import Shadow
from edge_client.settings.serving import LEAST_FRAMES, ProbationSettings, ShadowSettings

SETTINGS = ShadowSettings(seconds=60.0, min_agreement_percent=80.0)
LABELS = ("ripe", "rotten")


def predicted(label: str, confidence: float, latency_ms: float) -> Prediction:
    scores = np.array([confidence if one == label else 1 - confidence for one in LABELS], np.float32)
    return Prediction(label, LABELS.index(label), confidence, scores, latency_ms, LABELS)


BEFORE = predicted("ripe", 0.9, 10.0)


def begin(settings: ShadowSettings = SETTINGS) -> Shadow:
    return Shadow("new", settings, ProbationSettings(), started=100.0)


def compare(shadow: Shadow, count: int, new: Prediction = BEFORE, now: float = 161.0) -> bool:
    return [shadow.compare(BEFORE, new, now) for _ in range(count)][-1]


def test_nothing_is_decided_before_the_time_is_over():
    shadow = begin()
    assert not compare(shadow, 1000, now=159.9)
    assert compare(shadow, 1)
    assert (shadow.over, shadow.breach) == (True, None)


def test_nothing_is_decided_on_a_few_frames_however_long_it_takes():
    shadow = begin()
    assert not compare(shadow, LEAST_FRAMES - 1, now=1e6)
    assert compare(shadow, 1, now=1e6)


@pytest.mark.parametrize(
    ("new", "named"),
    [
        (dataclasses.replace(BEFORE, label="rotten"), "agreed with the serving release on 0% of 20 frames"),
        (dataclasses.replace(BEFORE, latency_ms=40.0), "40.0 ms a frame"),
        (dataclasses.replace(BEFORE, confidence=0.3), "unsure of 100%"),
    ],
)
def test_a_release_that_does_worse_is_refused_with_the_reason(new, named):
    shadow = begin()
    assert compare(shadow, LEAST_FRAMES, new)
    assert named in str(shadow.breach)


def test_agreement_at_the_limit_is_enough():
    shadow = begin()
    compare(shadow, 4, dataclasses.replace(BEFORE, label="rotten"), now=110.0)
    assert compare(shadow, 16)
    assert (shadow.over, shadow.breach) == (True, None)


def test_failing_frames_refuse_it_at_once():
    shadow = begin()
    assert not any(shadow.failed("broken") for _ in range(FAILURES - 1))
    assert shadow.failed("broken")
    assert "frames failed: broken" in str(shadow.breach)


def test_the_status_shows_the_comparison_so_far():
    shadow = begin()
    assert shadow.metrics().agreement is None
    compare(shadow, 3, now=110.0)
    shadow.compare(BEFORE, predicted("rotten", 0.5, 20.0), 120.0)
    metrics = shadow.metrics()
    assert (metrics.release, metrics.frames, metrics.agreement) == ("new", 4, 0.75)
    assert (metrics.latency_ms, metrics.latency_before_ms, metrics.seconds_left) == (10.0, 10.0, 40.0)


@pytest.mark.parametrize(
    "settings",
    [
        ShadowSettings(seconds=-1),
        ShadowSettings(seconds=float("nan")),
        ShadowSettings(min_agreement_percent=101),
    ],
)
def test_settings_that_cannot_be_are_named(settings):
    assert len(settings.faults()) == 1
    assert ShadowSettings().faults() == ()


def test_a_serving_release_that_fails_all_the_time_keeps_no_other_waiting():
    shadow = begin()
    assert not any(shadow.serving_failed() for _ in range(LEAST_FRAMES - 1))
    assert shadow.serving_failed()
    assert (shadow.over, shadow.breach) == (True, None)


def test_a_few_failures_of_the_serving_release_decide_nothing():
    shadow = begin()
    compare(shadow, 30, now=110.0)
    assert not any(shadow.serving_failed() for _ in range(LEAST_FRAMES))


def test_without_frames_shadow_mode_ends():
    shadow = begin()
    shadow.give_up_waiting(100.0 + 4 * 60 + 3599)
    assert not shadow.over
    shadow.give_up_waiting(100.0 + 4 * 60 + 3601)
    assert (shadow.over, shadow.breach) == (True, None)


def test_a_budget_holds_whatever_the_serving_release_takes():
    shadow = Shadow("new", SETTINGS, ProbationSettings(), started=100.0, budget_ms=8.0)
    assert compare(shadow, LEAST_FRAMES)
    assert "latency_budget_ms is 8" in str(shadow.breach)
