"""How far what a camera sees is from what its release was proven on."""

from __future__ import annotations

import math
import random

import msgspec
import pytest

from edge_client.contract.documents import encode_document
from edge_client.contract.release import CONFIDENCE_BINS, HoldOut
from edge_client.serving.drift import (
    DRIFT_FILE,
    LEAST_ANSWERS,
    WINDOW,
    DriftWatch,
    keep_record,
    read_record,
    stability_index,
)
from edge_client.serving.drift_alarm import student_quantile
from edge_client.settings.serving import DriftSettings

pytestmark = pytest.mark.runtime

HOLD_OUT = HoldOut(labels=(50, 50), confidence=(0,) * 8 + (20, 80))


def watch(answers: list[tuple[int, float]]) -> DriftWatch:
    drift = DriftWatch("r", HOLD_OUT)
    for index, confidence in answers:
        drift.add(index, confidence)
    return drift


def alike(count: int, seed: int = 4) -> list[tuple[int, float]]:
    """Answers drawn as those of the hold-out."""
    moments = random.Random(seed)
    return [(moments.randrange(2), 0.95 if moments.random() < 0.8 else 0.85) for _ in range(count)]


def test_few_answers_give_no_metrics():
    assert watch(alike(LEAST_ANSWERS - 1)).metrics() is None
    assert watch(alike(LEAST_ANSWERS)).metrics() is not None


@pytest.mark.parametrize("seed", range(10))
def test_answers_like_those_of_the_hold_out_are_stable(seed):
    metrics = watch(alike(WINDOW, seed)).metrics()
    assert metrics is not None
    assert metrics.answers == WINDOW
    assert metrics.labels < 0.1
    assert metrics.confidence < 0.1


def test_other_labels_are_a_shift_of_labels_alone():
    metrics = watch([(0, confidence) for _, confidence in alike(WINDOW)]).metrics()
    assert metrics is not None
    assert metrics.labels > 0.25
    assert metrics.confidence < 0.1


def test_less_sure_answers_are_a_shift_of_confidence_alone():
    metrics = watch([(index, confidence - 0.4) for index, confidence in alike(WINDOW)]).metrics()
    assert metrics is not None
    assert metrics.confidence > 0.25
    assert metrics.labels < 0.1


def test_only_the_last_answers_count():
    drift = watch([(0, 0.1)] * WINDOW + alike(WINDOW))
    metrics = drift.metrics()
    assert metrics is not None
    assert metrics.answers == WINDOW
    assert max(metrics.labels, metrics.confidence) < 0.1


@pytest.mark.parametrize("confidence", [-0.1, 0.0, 1.0, 1.5])
def test_a_confidence_at_or_beyond_the_ends_is_counted_there(confidence):
    assert watch([(0, confidence)] * LEAST_ANSWERS).metrics() is not None


def test_the_index_is_the_published_formula():
    # Shares of 0.5, 0.5 and 0.9, 0.1, the halves counted in addition being few among many.
    wanted = (0.9 - 0.5) * math.log(0.9 / 0.5) + (0.1 - 0.5) * math.log(0.1 / 0.5)
    assert stability_index((500_000, 500_000), (900_000, 100_000)) == pytest.approx(wanted, rel=1e-4)
    assert stability_index((3, 4), (3, 4)) == 0
    assert len(HOLD_OUT.confidence) == CONFIDENCE_BINS


def draw(count: int, seed: int, sure_share: float) -> list[float]:
    """Confidences like those of the hold-out (a share of 0.8 in the last bin), or less sure."""
    moments = random.Random(seed)
    return [0.95 if moments.random() < sure_share else 0.85 for _ in range(count)]


def alarmed(
    confidences: list[float], *, false_alarm_percent: float = 0.1, least_shift_points: float = 10.0
) -> DriftWatch:
    settings = DriftSettings(false_alarm_percent=false_alarm_percent, least_shift_points=least_shift_points)
    drift = DriftWatch("r", HOLD_OUT, settings)
    for confidence in confidences:
        drift.add(0, confidence)
    return drift


def test_false_alarms_are_at_most_as_frequent_as_the_settings_say():
    windows = 300
    alarms = sum(
        alarmed(draw(WINDOW, seed, 0.8), false_alarm_percent=10.0, least_shift_points=0.0).record().since
        is not None
        for seed in range(windows)
    )
    assert alarms / windows < 0.1


def test_scenes_of_many_frames_that_show_the_same_raise_no_alarm():
    scenes = 20
    alarms = 0
    for seed in range(100):
        frames = [one for one in draw(WINDOW // scenes, seed, 0.8) for _ in range(scenes)]
        alarms += alarmed(frames, false_alarm_percent=10.0, least_shift_points=0.0).record().since is not None
    assert alarms < 10


def test_an_alarm_is_raised_once_and_ends_once_the_pictures_are_as_before(caplog):
    drift = alarmed(draw(WINDOW, 1, 0.8))
    assert drift.record().since is None
    for confidence in draw(WINDOW, 2, 0.3):
        drift.add(0, confidence)
    metrics = drift.metrics()
    assert metrics is not None
    assert metrics.alarm
    assert metrics.since is not None
    assert metrics.shift == pytest.approx((0.8 - 0.3) / 2, abs=0.05)
    for confidence in draw(WINDOW, 3, 0.8):
        drift.add(0, confidence)
    assert drift.record().since is None
    assert [message.partition(" here")[0].partition(" as sure")[0] for message in caplog.messages] == [
        "drift: release r is less sure",
        "drift: release r is",
    ]


def test_a_camera_that_the_release_is_surer_of_raises_no_alarm():
    assert alarmed([0.99] * WINDOW).record().since is None


def test_a_small_shift_is_no_alarm_however_significant():
    drift = alarmed(draw(WINDOW, 1, 0.7))
    assert drift.record().since is None
    assert alarmed(draw(WINDOW, 1, 0.5), least_shift_points=0.0).record().since is not None


def test_without_the_alarm_the_indices_are_as_before():
    drift = watch(alike(WINDOW))
    metrics = drift.metrics()
    assert metrics is not None
    assert (metrics.alarm, metrics.since, metrics.shift) == (False, None, None)


def test_successive_frames_of_a_stream_count_once_in_a_while():
    drift = DriftWatch("r", HOLD_OUT, DriftSettings(), every_s=10.0)
    for frame in range(30 * 60):
        drift.add(0, 0.1, frame / 30)  # a minute of a dull scene
    assert len(drift.record().spaced) == 6
    assert drift.record().since is None


def test_a_restart_goes_on_where_the_watch_ended(tmp_path):
    before = alarmed(draw(700, 5, 0.3))
    keep_record(tmp_path / DRIFT_FILE, before.record())
    record = read_record(tmp_path / DRIFT_FILE)
    after = DriftWatch("r", HOLD_OUT, DriftSettings(), record=record)
    for drift in (before, after):
        for confidence in draw(500, 6, 0.8):
            drift.add(0, confidence)
    assert after.record() == before.record()
    assert after.metrics() == before.metrics()
    assert (tmp_path / DRIFT_FILE).stat().st_size < 20_000
    other = DriftWatch("another", HOLD_OUT, DriftSettings(), record=record)
    assert other.record().answers == ()


def test_a_record_that_does_not_fit_begins_anew(tmp_path):
    good = alarmed(draw(300, 5, 0.3)).record()
    for bad in (
        msgspec.structs.replace(good, answers=((7, 0),) * 300),
        msgspec.structs.replace(good, answers=((0, -1),) * 300),
        msgspec.structs.replace(good, spaced=(10,) * 300),
    ):
        resumed = DriftWatch("r", HOLD_OUT, DriftSettings(), record=bad)
        for confidence in draw(WINDOW, 6, 0.8):
            resumed.add(0, confidence)
        assert resumed.metrics() is not None
    file = tmp_path / DRIFT_FILE
    content = encode_document(good)
    for bit in range(0, len(content) * 8, 531):
        broken = bytearray(content)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        DriftWatch("r", HOLD_OUT, DriftSettings(), record=read_record(file)).metrics()


def test_the_quantile_is_that_of_student():
    # Of any table of Student's t.
    assert student_quantile(0.025, 10) == pytest.approx(2.228, rel=2e-3)
    assert student_quantile(0.001, 19) == pytest.approx(3.579, rel=2e-3)
    assert student_quantile(0.0005, 7) == pytest.approx(5.408, rel=1e-2)
