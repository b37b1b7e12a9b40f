"""Results on change, and not more than one in an interval: what was said last is soon up to date."""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from local_services import wait_until

from edge_client.contract.messages import SinkMetrics
from edge_client.settings.results import SinkSettings
from edge_client.sinks.sink import nothing
from edge_client.sinks.thinning import ThinnedSink
from tests.fakes.results import example_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.contract.messages import Result


class Published:
    """A sink that keeps what it gets; each result is safe at once."""

    name = "mqtt"
    keeps = True

    def __init__(self) -> None:
        self.results: list[Result] = []
        self.closed = False

    def write(
        self, result: Result, _prediction: object = None, safe: Callable[[], None] = nothing, /
    ) -> None:
        assert not self.closed
        self.results.append(result)
        safe()

    def metrics(self) -> SinkMetrics:
        return SinkMetrics(written=len(self.results))

    def reopen(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True


class Thinned:
    """A thinned sink under a clock that is set."""

    def __init__(self, **settings: Any) -> None:
        self.now = 0.0
        self.published = Published()
        self.sink = ThinnedSink(self.published, SinkSettings(**settings), clock=lambda: self.now)
        self.safe = 0
        self._changing = threading.Lock()

    def see(
        self, label: str, at: float, *, sure: bool = True, release: str = "r1", channel: str = ""
    ) -> None:
        self.now = at
        seen = example_result(label=label, sure=sure, release=release, channel=channel, frame=int(at * 10))
        self.sink.write(seen, None, self._count)

    def _count(self) -> None:
        with self._changing:
            self.safe += 1

    @property
    def labels(self) -> list[str]:
        return [one.label for one in self.published.results]


def test_only_changes_are_published_and_all_frames_are_safe():
    thinned = Thinned(on_change=True)
    for at, label in enumerate(("cat", "cat", "dog", "dog", "cat")):
        thinned.see(label, at)
    thinned.see("cat", 5, sure=False)
    thinned.see("cat", 6, sure=False, release="r2")
    thinned.see("cat", 7, sure=False, release="r2")
    assert thinned.labels == ["cat", "dog", "cat", "cat", "cat"]
    assert thinned.safe == 8
    assert thinned.sink.metrics() == SinkMetrics(written=5, skipped=3)


def test_channels_are_thinned_by_themselves():
    thinned = Thinned(on_change=True)
    for channel in ("", "doors", "", "doors"):
        thinned.see("cat", 0, channel=channel)
    assert [one.channel for one in thinned.published.results] == ["", "doors"]


def test_a_heartbeat_tells_a_listener_that_came_later():
    thinned = Thinned(on_change=True, heartbeat_s=60.0)
    for at in (0, 59, 60, 61, 119, 121):
        thinned.see("cat", at)
    assert [one.frame for one in thinned.published.results] == [0, 600, 1210]
    never = Thinned(on_change=True, heartbeat_s=0.0)
    for at in (0, 10_000):
        never.see("cat", at)
    assert never.labels == ["cat"]


@pytest.fixture
def thinned():
    """One result in 10 s; the interval's end comes once the clock is set."""
    made: list[Thinned] = []

    def make(**settings: Any) -> Thinned:
        made.append(Thinned(min_interval_s=10.0, **settings))
        return made[-1]

    yield make
    for one in made:
        one.sink.close()


def pass_time(thinned: Thinned, at: float) -> None:
    """Set the clock, and let the thread that waits look at it."""
    thinned.now = at
    with thinned.sink._changing:
        thinned.sink._changing.notify()


def test_the_newest_result_is_published_at_the_end_of_the_interval(thinned):
    one = thinned()
    for at, label in ((0, "cat"), (1, "dog"), (2, "cow"), (3, "cow")):
        one.see(label, at)
    assert (one.labels, one.safe) == (["cat"], 3)
    pass_time(one, 10)
    wait_until(lambda: len(one.labels) == 2, "the newest")
    assert one.published.results[-1].frame == 30
    assert one.safe == 4
    one.see("cat", 19)
    assert len(one.labels) == 2
    one.see("pig", 21)
    assert one.labels == ["cat", "cow", "pig"]


def test_a_change_within_the_interval_is_not_lost_and_a_flicker_is_none(thinned):
    one = thinned(on_change=True)
    for at, label in ((0, "cat"), (1, "dog"), (2, "cat"), (3, "dog"), (4, "dog")):
        one.see(label, at)
    pass_time(one, 10)
    wait_until(lambda: one.labels == ["cat", "dog"], "the change")
    for at, label in ((11, "cat"), (12, "dog")):
        one.see(label, at)
    pass_time(one, 30)
    one.see("dog", 31)
    assert one.labels == ["cat", "dog"]


def test_what_waits_is_published_at_the_stop(thinned):
    one = thinned(on_change=True)
    one.see("cat", 0)
    one.see("dog", 1)
    one.sink.close()
    assert one.labels == ["cat", "dog"]
    assert one.published.closed
    assert one.safe == 2


@given(
    seen=st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5)), min_size=1, max_size=30),
    on_change=st.booleans(),
    interval_s=st.sampled_from([0.0, 3.0]),
)
def test_however_results_come_the_last_state_is_published_and_every_frame_safe(seen, on_change, interval_s):
    one = Thinned(on_change=on_change, min_interval_s=interval_s)
    at = 0.0
    for label, pause_s in seen:
        at += pause_s
        one.see(label, at)
    one.sink.close()
    assert one.labels[-1] == seen[-1][0]
    assert one.safe == len(seen)
    assert one.sink.metrics().skipped + len(one.labels) == len(seen)
    times = [result.frame / 10 for result in one.published.results[:-1]]
    if on_change and interval_s == 0:
        assert all(one.labels[i] != one.labels[i + 1] for i in range(len(one.labels) - 1))
    assert msgspec.json.encode(one.published.results[0])
    assert times == sorted(times)


@pytest.mark.parametrize("wrong", [{"heartbeat_s": -1.0}, {"min_interval_s": -1.0}])
def test_impossible_settings_are_reported(wrong):
    assert len(SinkSettings(**wrong).faults()) == 1


def answered(lines: Path, name: str) -> bool:
    return lines.exists() and name in lines.read_text()


@pytest.mark.slow
def test_a_daemon_publishes_changes_and_is_done_with_every_picture(daemon, watcher, repository, tmp_path):
    lines = tmp_path / "results.jsonl"
    daemon.settings["sinks"] |= {"on_change": True, "min_interval_s": 0.2, "json_lines": str(lines)}
    watcher_release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(watcher_release)
    for label in ("red", "red", "red", "green"):
        name = daemon.drop(label)
        wait_until(functools.partial(answered, lines, name), "the answer in the file")
    watcher.wait(lambda w: w.results and w.results[-1].label == "green", "the change")
    assert [one.label for one in watcher.results] == ["red", "green"]
    wait_until(lambda: not any(daemon.camera.iterdir()), "the pictures to be done with")
    assert "2 skipped" in daemon.ask("status").stdout
    assert daemon.terminate() == 0
    daemon.settings["sinks"]["min_interval_s"] = 3600.0
    daemon.start()
    for label in ("blue", "red"):
        name = daemon.drop(label)
        wait_until(functools.partial(answered, lines, name), "the answer in the file")
    watcher.wait(lambda w: w.results[-1].label == "blue", "the first result")
    assert daemon.terminate() == 0
    watcher.wait(lambda w: w.results[-1].label == "red", "what waited for the end of the interval")
    assert not any(daemon.camera.iterdir())
