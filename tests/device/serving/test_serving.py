"""Serving of one channel: shadow mode, probation, restarts and disks that fail."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from edge_client.contract.errors import DeviceError
from edge_client.contract.messages import SureMetrics
from edge_client.contract.release import OperatingPoint
from edge_client.serving.probation import FAILURES, STOPPED
from edge_client.serving.serving import Serving
from edge_client.serving.watches import EVIDENCE_LIMIT
from edge_client.settings.file import load_settings
from edge_client.settings.serving import LEAST_FRAMES
from edge_client.update.slots import Slots
from tests.fakes.tiny_model import plain_picture

pytestmark = pytest.mark.runtime

RED, GREY = plain_picture("red"), plain_picture("red") // 2 + 64


class Clock:
    """Monotonic seconds that only the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class One:
    """The releases of one channel, checked for without a child process."""

    def __init__(self, device, repository, folder, clock) -> None:
        self.device = device
        self.clock = clock
        self.repository = repository
        file = folder / "device.toml"
        file.write_text(
            f'[device]\nid = "camera-1"\nstate_dir = "{device.state_dir}"\n'
            f'[store]\nbase_url = "{repository.url}"\n[source]\npath = "{folder}"\n'
            "[probation]\nframes = 40\n"
        )
        self.settings = load_settings(file)
        self.urgent: list[bool] = []
        self.start()

    def start(self, **shadow) -> None:
        """As after a restart of the daemon."""
        if shadow:
            new = dataclasses.replace(self.settings.shadow, **shadow)
            self.settings = dataclasses.replace(self.settings, shadow=new)
        self.serving = Serving(self.settings, "this software", self.urgent.append, self.clock)

    def install(self, bias: int, **options) -> str:
        """Publish a release and install it, as an update check does."""
        release: str = self.repository.publish_tiny(bias, **options).release
        self.check()
        return release

    def check(self) -> None:
        self.device.slots.reload()
        outcome = self.device.updater().check()
        self.serving.reload()
        self.serving.install(outcome, lambda _outcome: None)

    def predict(self, count: int = LEAST_FRAMES, pixels=RED) -> None:
        for _ in range(count):
            predicted = self.serving.predict(pixels)
            assert predicted is not None
            self.serving.compare(pixels, predicted[0])

    def fail(self, count: int) -> None:
        """Let frames come that no release can answer."""
        for _ in range(count):
            with pytest.raises(DeviceError, match="broken"):
                self.serving.predict(RED)

    def settle(self):
        return self.serving.settle(lambda _outcome: None)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def one(device, repository, tmp_path, clock):
    return One(device, repository, tmp_path, clock)


def break_serving(one) -> None:
    """From now on, the serving release fails on every frame."""

    def fail(_pixels):
        raise DeviceError("broken")

    one.serving._holder.current.classify = fail


def test_a_fix_follows_a_release_that_answers_nothing(one, clock):
    first = one.install(0)
    one.start(seconds=60.0)
    fix = one.install(1)
    assert one.serving.newest == fix
    break_serving(one)
    one.fail(LEAST_FRAMES)
    assert one.settle() is not None
    assert (one.serving.release, one.serving.previous) == (fix, first)


def test_a_shadow_release_serves_once_shadow_mode_is_switched_off(one):
    first = one.install(0)
    one.start(seconds=60.0)
    second = one.install(1)
    one.serving.close()
    one.start(seconds=0.0)
    one.check()
    assert (one.serving.release, one.serving.previous) == (second, first)
    assert one.serving._slots.shadow is None


def test_shadow_mode_continues_after_a_restart(one, clock):
    one.install(0)
    one.start(seconds=60.0)
    second = one.install(1)
    clock.now += 50
    one.serving.close()
    clock.now += 1e6
    one.start()
    one.check()
    assert one.serving.live_fields()["shadow"].seconds_left == pytest.approx(10, abs=0.2)
    clock.now += 11
    for _ in range(LEAST_FRAMES):
        clock.now += 1
        one.predict(1)
    one.settle()
    assert one.serving.release == second


def test_no_refusal_of_a_shadow_release_by_the_checks_meanwhile(one):
    one.install(0)
    one.start(seconds=60.0)
    second = one.install(1)
    for _ in range(6):
        before = (one.settings.device.state_dir / "slots.json").stat().st_ino
        one.check()
        assert one.serving.shadow_release == second
        assert (one.settings.device.state_dir / "slots.json").stat().st_ino == before, "nothing to write"
    assert one.serving._slots.failures.records == {}


def test_comparing_takes_half_of_the_time_at_most(one, clock):
    one.install(0)
    one.start(seconds=60.0)
    one.install(1)
    shadow = one.serving._shadow
    slow = shadow.classifier.classify

    def classify(pixels):
        clock.now += 0.02
        return slow(pixels)

    shadow.classifier.classify = classify
    started = clock.now
    for _ in range(100):
        clock.now += 0.01
        one.predict(1)
    compared = shadow.comparison.metrics().frames * 0.02
    assert 0.2 < compared / (clock.now - started) <= 0.5


def test_a_release_on_probation_is_no_way_back(one):
    first = one.install(0)
    one.predict()
    second = one.install(1)
    assert one.serving.previous == first
    third = one.install(2)
    assert (one.serving.release, one.serving.previous) == (third, first)
    # Compared with the one that has proven itself, not with the one in between.
    assert one.serving._slots.probation.latency_ms is not None
    assert not one.serving._slots.folder(second).exists()
    break_serving(one)
    one.fail(FAILURES)
    one.settle()
    assert one.serving.release == first


def test_a_release_that_has_passed_is_the_way_back(one):
    one.install(0)
    second = one.install(1)
    one.predict(40)
    assert one.settle() == {}
    assert one.serving._slots.probation is None
    one.install(2)
    assert one.serving.previous == second


def test_the_way_back_from_a_release_on_probation_keeps_it(one):
    first = one.install(0)
    second = one.install(1)
    one.repository.point("stable", first)
    one.check()
    assert (one.serving.release, one.serving.previous) == (first, second)


def test_a_disk_that_refuses_once_keeps_the_verdict_and_the_broken_release_from_answering(one, monkeypatch):
    first = one.install(0)
    second = one.install(1)
    break_serving(one)
    one.fail(FAILURES)
    assert one.urgent[-1] is True
    write = Slots._write

    def refuse(self, **changes):
        raise DeviceError("disk full")

    monkeypatch.setattr(Slots, "_write", refuse)
    with pytest.raises(DeviceError, match="disk full"):
        one.settle()
    assert one.serving.release == first
    one.predict(1)
    monkeypatch.setattr(Slots, "_write", write)
    changes = one.settle()
    assert changes["refused"] is None  # a runtime that fails is tried once more later
    assert second in Slots(one.settings.device.state_dir).failures.waiting()
    assert Slots(one.settings.device.state_dir).current == first
    assert one.settle() is None


def test_a_release_rolled_back_at_a_start_is_in_the_status(one):
    first = one.install(0)
    second = one.install(1)
    record = one.serving._slots.probation
    one.serving._slots.keep_probation(msgspec.structs.replace(record, model_crashes=2))
    one.start()
    assert one.serving.release == first
    assert one.serving.rolled_back["refused"] == second
    assert "crashed inside its model 2 times" in one.serving.rolled_back["last_error"]


def test_a_requested_stop_is_no_crash(one):
    one.install(0)
    second = one.install(1)
    for _ in range(10):
        one.serving.close()
        one.start()
    assert one.serving.release == second
    assert one.serving._slots.probation.crashes == STOPPED + 1


def test_drift_is_watched_on_the_release_that_serves(one):
    one.install(0)
    assert one.serving.live_fields() == {"shadow": None, "drift": None, "sure": None, "evidence": ""}
    one.predict(300, GREY)
    assert one.serving.live_fields()["drift"] is None  # this release says nothing of its hold-out


def test_sure_predictions_and_evidence_are_those_of_the_release_that_serves(one):
    point = OperatingPoint(precision=0.9, thresholds=(0.99, 0.99, 0.99), coverage=0.75)
    one.install(0, operating_point=point, evidence="x" * 100_000)
    counted = SureMetrics(precision=0.9, coverage=0.75)
    assert one.serving.live_fields()["sure"] == counted
    assert one.serving.live_fields()["evidence"] == "x" * EVIDENCE_LIMIT
    one.predict(LEAST_FRAMES)
    one.predict(20, GREY)
    counted = msgspec.structs.replace(counted, answers=40, share=0.5)
    assert one.serving.live_fields()["sure"] == counted
    one.install(1, evidence="thin")
    assert one.serving.live_fields()["sure"] is None
    assert one.serving.live_fields()["evidence"] == "thin"
    break_serving(one)
    one.fail(FAILURES)  # the release before serves again
    one.settle()
    assert one.serving.live_fields()["sure"] == msgspec.structs.replace(counted, answers=0, share=None)


def test_a_new_operating_point_is_no_reason_to_roll_a_release_back(one):
    first = one.install(0)
    one.predict(200)
    point = OperatingPoint(precision=0.9, thresholds=(None, None, None), coverage=0.0)
    second = one.install(0, operating_point=point)
    assert second != first
    one.predict(40)
    assert one.settle() is not None
    assert (one.serving.release, one.serving.on_probation) == (second, False)
