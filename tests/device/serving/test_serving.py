"""What serves on one channel, whatever becomes of the one beside it, of its probation, and of the disk."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from edge_client.contract.errors import DeviceError
from edge_client.serving import activation
from edge_client.serving.activation import open_best_slot
from edge_client.serving.probation import FAILURES, STOPPED
from edge_client.serving.serving import Serving
from edge_client.settings.file import load_settings
from edge_client.settings.serving import LEAST_FRAMES
from edge_client.update.slots import Slots
from tests.fakes.tiny_model import plain_picture

pytestmark = pytest.mark.runtime

RED, GREY = plain_picture("red"), plain_picture("red") // 2 + 64


class Clock:
    """Stands for `time` in `serving`."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class One:
    """A channel's releases, looked for without a child process."""

    def __init__(self, device, repository, folder) -> None:
        self.device = device
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
        self.serving = Serving(self.settings, "this software", self.urgent.append)

    def take(self, bias: int) -> str:
        """Publish a release and take it, as a look does."""
        release: str = self.repository.publish_tiny(bias).release
        self.look()
        return release

    def look(self) -> None:
        self.device.slots.reload()
        outcome = self.device.updater().look()
        self.serving.slots.reload()
        self.serving.take(outcome, lambda _outcome: None)

    def answer(self, count: int = LEAST_FRAMES, pixels=RED) -> None:
        for _ in range(count):
            answered = self.serving.answer(pixels)
            assert answered is not None
            self.serving.compare(pixels, answered[0])

    def fail(self, count: int) -> None:
        """Let frames come that no release can answer."""
        for _ in range(count):
            with pytest.raises(DeviceError, match="broken"):
                self.serving.answer(RED)

    def settle(self):
        return self.serving.settle(lambda _outcome: None)


@pytest.fixture
def one(device, repository, tmp_path):
    return One(device, repository, tmp_path)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("edge_client.serving.serving.time", clock)
    return clock


def break_serving(one) -> None:
    """From now on, the serving release fails on every frame."""

    def fail(_pixels):
        raise DeviceError("broken")

    one.serving._holder.current.classify = fail


def test_a_fix_follows_a_release_that_answers_nothing(one, clock):
    first = one.take(0)
    one.start(seconds=60.0)
    fix = one.take(1)
    assert one.serving.newest == fix
    break_serving(one)
    one.fail(LEAST_FRAMES)
    assert one.settle() is not None
    assert (one.serving.release, one.serving.slots.previous) == (fix, first)


def test_shadow_mode_that_was_switched_off_lets_the_one_beside_serve(one):
    first = one.take(0)
    one.start(seconds=60.0)
    second = one.take(1)
    one.serving.close()
    one.start(seconds=0.0)
    one.look()
    assert (one.serving.release, one.serving.slots.previous) == (second, first)
    assert one.serving.slots.shadow is None


def test_time_beside_goes_on_after_a_restart(one, clock):
    one.take(0)
    one.start(seconds=60.0)
    second = one.take(1)
    clock.now += 50
    one.serving.close()
    clock.now += 1e6
    one.start()
    one.look()
    assert one.serving.moment()["shadow"].seconds_left == pytest.approx(10, abs=0.2)
    clock.now += 11
    for _ in range(LEAST_FRAMES):
        clock.now += 1
        one.answer(1)
    one.settle()
    assert one.serving.release == second


def test_comparing_takes_half_of_the_time_at_most(one, clock):
    one.take(0)
    one.start(seconds=60.0)
    one.take(1)
    beside = one.serving._beside
    slow = beside.classifier.classify

    def classify(pixels):
        clock.now += 0.02
        return slow(pixels)

    beside.classifier.classify = classify
    started = clock.now
    for _ in range(100):
        clock.now += 0.01
        one.answer(1)
    compared = beside.shadow.figures().frames * 0.02
    assert 0.2 < compared / (clock.now - started) <= 0.5


def test_a_release_on_probation_is_no_way_back(one):
    first = one.take(0)
    one.answer()
    second = one.take(1)
    assert one.serving.slots.previous == first
    third = one.take(2)
    assert (one.serving.release, one.serving.slots.previous) == (third, first)
    # Compared with the one that has proven itself, not with the one in between.
    assert one.serving.slots.probation.latency_ms is not None
    assert not one.serving.slots.folder(second).exists()
    break_serving(one)
    one.fail(FAILURES)
    one.settle()
    assert one.serving.release == first


def test_a_release_that_has_passed_is_the_way_back(one):
    one.take(0)
    second = one.take(1)
    one.answer(40)
    assert one.settle() == {}
    assert one.serving.slots.probation is None
    one.take(2)
    assert one.serving.slots.previous == second


def test_the_way_back_from_a_release_on_probation_keeps_it(one):
    first = one.take(0)
    second = one.take(1)
    one.repository.point("stable", first)
    one.look()
    assert (one.serving.release, one.serving.slots.previous) == (first, second)


def test_a_disk_that_refuses_once_keeps_the_verdict_and_the_broken_release_from_answering(one, monkeypatch):
    first = one.take(0)
    second = one.take(1)
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
    one.answer(1)
    monkeypatch.setattr(Slots, "_write", write)
    changes = one.settle()
    assert changes["refused"] == second
    assert Slots(one.settings.device.state_dir).current == first
    assert one.settle() is None


def test_what_was_sent_back_at_a_start_is_told(one):
    first = one.take(0)
    second = one.take(1)
    record = one.serving.slots.probation
    one.serving.slots.keep_probation(msgspec.structs.replace(record, crashes=2))
    one.start()
    assert one.serving.release == first
    assert one.serving.sent_back["refused"] == second
    assert "3 times without warning" in one.serving.sent_back["last_error"]


def test_a_clean_end_is_no_crash(one):
    one.take(0)
    second = one.take(1)
    for _ in range(10):
        one.serving.close()
        one.start()
    assert one.serving.release == second
    assert one.serving.slots.probation.crashes == STOPPED + 1


@pytest.mark.parametrize("fails", [1, 2, 3])
def test_a_disk_that_cannot_be_read_for_a_moment_costs_no_release(one, monkeypatch, fails):
    first = one.take(0)
    open_slot = activation.open_slot
    tries: list[object] = []
    slept: list[float] = []

    def tired(folder, threads):
        tries.append(folder)
        if len(tries) <= fails:
            raise DeviceError("Input/output error") from OSError(5, "Input/output error")
        return open_slot(folder, threads)

    monkeypatch.setattr(activation, "open_slot", tired)
    found = open_best_slot(one.serving.slots, 1, slept.append)
    assert found is not None
    assert found.release == first
    assert len(slept) == fails


def test_a_disk_that_stays_unreadable_is_given_up(one, monkeypatch):
    one.take(0)

    def dead(folder, threads):
        raise DeviceError("Input/output error") from OSError(5, "Input/output error")

    monkeypatch.setattr(activation, "open_slot", dead)
    assert open_best_slot(one.serving.slots, 1, lambda _seconds: None) is None
    assert one.serving.slots.current is None


def test_drift_is_watched_on_the_release_that_serves(one):
    one.take(0)
    assert one.serving.moment() == {"shadow": None, "drift": None}
    one.answer(300, GREY)
    assert one.serving.moment()["drift"] is None  # this release says nothing of its hold-out
