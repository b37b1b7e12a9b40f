"""What ends a probation: enough good answers, or answers that are worse than those of the release before."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from edge_client.serving.probation import (
    FAILURES,
    STOPPED,
    LastEnd,
    Probation,
    RecentPredictions,
    count_restart,
    find_loop,
)
from edge_client.settings.serving import LEAST_FRAMES, ProbationSettings
from edge_client.update.endings import Blame, Ending
from edge_client.update.slots_document import ProbationRecord

SETTINGS = ProbationSettings(frames=60)
BEFORE = ProbationRecord(release="a", latency_ms=10.0, unsure_share=0.1)


def watch(record: ProbationRecord = BEFORE, settings: ProbationSettings = SETTINGS) -> Probation:
    return Probation(record, settings, started=0.0)


def predict(probation: Probation, count: int, *, latency_ms: float = 10.0, confidence: float = 0.9) -> bool:
    return [probation.predicted(latency_ms, confidence, now=1.0) for _ in range(count)][-1]


def breach(probation: Probation) -> str:
    assert probation.verdict is not None
    return probation.verdict.breach.reason if probation.verdict.breach is not None else ""


def test_enough_good_answers_pass():
    probation = watch()
    assert not predict(probation, 59)
    assert predict(probation, 1)
    assert breach(probation) == ""


def test_time_alone_passes_it_once_it_predicted():
    probation = watch()
    assert probation.predicted(10.0, 0.9, now=600.0)
    assert breach(probation) == ""


@pytest.mark.parametrize(
    ("worse", "named"),
    [({"latency_ms": 40.0}, "40.0 ms a frame"), ({"confidence": 0.3}, "unsure of 100%")],
)
def test_worse_predictions_roll_back_before_all_frames_are_in(worse, named):
    probation = watch()
    assert predict(probation, LEAST_FRAMES, **worse)
    assert named in breach(probation)


@pytest.mark.parametrize("better", [{"latency_ms": 21.9}, {"confidence": 0.5}, {"latency_ms": 1.0}])
def test_what_is_within_the_limits_passes(better):
    probation = watch()
    assert predict(probation, 60, **better)
    assert breach(probation) == ""


def test_no_refusal_at_once_for_what_a_busy_machine_does_too():
    slow, unsure = watch(), watch()
    predict(slow, LEAST_FRAMES, latency_ms=100.0)
    predict(unsure, LEAST_FRAMES, confidence=0.1)
    assert slow.verdict is not None
    assert slow.verdict.breach is not None
    assert slow.verdict.breach.ending.blame is Blame.LIMITED
    assert unsure.verdict is not None
    assert unsure.verdict.breach is not None
    assert unsure.verdict.breach.ending.blame is Blame.PROOF


def test_failing_frames_roll_back():
    probation = watch()
    predict(probation, 10)
    assert not any(probation.failed("broken") for _ in range(FAILURES - 1))
    assert probation.failed("broken")
    assert "5 of 15 frames failed: broken" in breach(probation)


def test_a_few_failures_among_many_frames_are_forgiven():
    probation = watch(settings=dataclasses.replace(SETTINGS, frames=1000))
    predict(probation, 200)
    assert not any(probation.failed("now and then") for _ in range(10))


def test_without_answers_of_the_release_before_only_failures_count():
    recent = RecentPredictions(0.5)
    for _ in range(LEAST_FRAMES - 1):
        recent.add(10.0, 0.9)
    probation = watch(recent.as_record("b"))
    assert predict(probation, 60, latency_ms=1e6, confidence=0.0)
    assert breach(probation) == ""


def test_what_is_compared_with_is_the_median_and_the_share_of_the_last_answers():
    recent = RecentPredictions(0.5)
    for number in range(1000):
        recent.add(5.0 if number >= 800 else 50.0, 0.4 if number % 4 == 0 else 0.9)
    record = recent.as_record("b")
    assert (record.release, record.latency_ms, record.unsure_share) == ("b", 5.0, 0.25)


def test_a_verdict_stays():
    probation = watch()
    predict(probation, LEAST_FRAMES, latency_ms=100.0)
    said = breach(probation)
    assert predict(probation, 100)
    assert breach(probation) == said


def test_a_budget_holds_without_a_release_to_compare_with():
    probation = Probation(ProbationRecord(release="b"), SETTINGS, started=0.0, budget_ms=8.0)
    assert predict(probation, LEAST_FRAMES)
    assert "latency_budget_ms is 8" in breach(probation)


def starts(*boots: str, clean: bool = False) -> ProbationRecord:
    record = ProbationRecord(release="b", boot="1")
    for boot in boots:
        if clean:
            record = msgspec.structs.replace(record, crashes=STOPPED)
        record = count_restart(record, boot)
    return record


def loop_of(record: ProbationRecord) -> tuple[Ending, str]:
    loop = find_loop(record)
    assert loop is not None
    return loop


def test_no_refusal_for_ends_of_the_daemon_that_nobody_explains():
    """Another program's lack of memory, a person, the watchdog of a source that hung: SIGKILL is mute."""
    assert not find_loop(starts(*"1" * 9))
    ending, reason = loop_of(starts(*"1" * 10))
    assert ending.blame is Blame.LIMITED  # the release before serves, and this one is tried again later
    assert "ended 10 times in a row" in reason


def crashes(*ends: LastEnd, own: LastEnd = LastEnd.SERVING_MODEL) -> ProbationRecord:
    record = ProbationRecord(release="b", boot="1")
    for end in ends:
        record = count_restart(record, "1", end, own)
    return record


def test_a_refusal_takes_two_crashes_inside_the_model_whatever_comes_between():
    model, shadow = LastEnd.SERVING_MODEL, LastEnd.SHADOW_MODEL
    assert not find_loop(crashes(model))
    assert loop_of(crashes(model, model))[0].blame is Blame.PROOF
    assert loop_of(crashes(model, LastEnd.UNKNOWN, LastEnd.PICTURE, model))[0].blame is Blame.PROOF
    stopped = count_restart(msgspec.structs.replace(crashes(model), crashes=STOPPED), "1", model)
    assert find_loop(stopped)
    assert loop_of(crashes(shadow, shadow, own=shadow))[0].blame is Blame.PROOF
    assert not find_loop(crashes(*[shadow] * 20))
    assert not find_loop(crashes(*[model] * 20, own=shadow))


def test_no_refusal_for_a_picture():
    assert not find_loop(crashes(*[LastEnd.PICTURE] * 50))


def test_a_power_cut_is_no_crash_until_there_are_too_many():
    assert not find_loop(starts(*"23456789"))
    ending, reason = loop_of(starts(*"23456789ab"))
    assert ending.blame is Blame.LIMITED
    assert "lost power or rebooted 10 times" in reason


def test_requested_stops_are_not_counted():
    assert not find_loop(starts(*"1" * 50, clean=True))
    assert not find_loop(starts(*"23456789abcdef", clean=True))


def test_where_boots_are_unknown_every_restart_counts():
    assert find_loop(starts(*[""] * 10))
