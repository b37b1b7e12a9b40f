"""Figures of the releases of a device: counted, told, and kept over restarts."""

from __future__ import annotations

import dataclasses

import pytest

from edge_client.contract.report import (
    FETCHING,
    LABELS_AT_MOST,
    PASSED,
    PROBATION,
    RUNNING,
    SENT_BACK,
    SHADOW,
    ReleaseFigures,
    latency_bin,
    latency_of_bin,
)
from edge_client.reporting.figures import FIGURES_FILE, FIRST_KEEP_S, KEEP_EVERY_S, Failed, Figures, Held

pytestmark = pytest.mark.runtime

WORSE = Failed("unsure of 100% of the frames", "worse", "2026-01-01T00:00:00+00:00")


class Disk:
    """The figures' file, and a clock."""

    def __init__(self, folder) -> None:
        self.file = folder / FIGURES_FILE
        self.now = 0.0
        self.unix_s = 1000.0

    def start(self) -> Figures:
        return Figures(self.file, clock=lambda: self.now, unix_time=lambda: self.unix_s)


@pytest.fixture
def disk(tmp_path) -> Disk:
    return Disk(tmp_path)


def count(figures: Figures, release: str, frames: int, label: str = "cat", confidence: float = 0.9) -> None:
    for _ in range(frames):
        figures.count(release, 4.0, confidence, label, unsure=confidence < 0.5)


def told(figures: Figures, release: str) -> ReleaseFigures:
    return next(one for one in figures.report() if one.release == release)


def test_what_is_counted_is_told(disk):
    figures = disk.start()
    figures.show(Held(serving="a", since="2026-01-02T00:00:00+00:00"))
    count(figures, "a", 8)
    count(figures, "a", 2, "dog", 0.05)
    figures.count_failed("a")
    disk.now = 60.0
    one = told(figures, "a")
    assert (one.frames, one.failed, one.unsure, one.seconds) == (10, 1, 2, 60.0)
    assert one.activated_at == "2026-01-02T00:00:00+00:00"
    assert one.labels == {"cat": 8, "dog": 2}
    assert one.confidence == (2, 0, 0, 0, 0, 0, 0, 0, 0, 8)
    assert one.latency == {str(latency_bin(4.0)): 10}
    assert one.latency_ms == 40.0


def test_a_latency_is_told_to_a_tenth():
    for milliseconds in (0.08, 1.0, 4.0, 33.0, 5000.0):
        assert latency_of_bin(latency_bin(milliseconds)) == pytest.approx(milliseconds, rel=0.1)
    assert {latency_bin(one) for one in (0.0, -1.0, float("nan"))} == {0}
    assert latency_bin(float("inf")) == 159


def test_labels_are_bounded(disk):
    figures = disk.start()
    figures.show(Held(serving="a"))
    for number in range(1000):
        figures.count("a", 1.0, 0.9, f"label {number}", unsure=False)
    figures.count("a", 1.0, 0.9, "x" * 1000, unsure=False)
    labels = told(figures, "a").labels
    assert len(labels) == LABELS_AT_MOST
    assert sum(labels.values()) == 1001
    assert labels[""] == 1001 - (LABELS_AT_MOST - 1)


STEADY = Held(serving="a")
ON_PROBATION = Held(serving="b", previous="a", probation="b")
BACK = Held(serving="a", refused="b", failures={"b": WORSE})


@dataclasses.dataclass(frozen=True)
class Story:
    """What a channel went through, and what is told of release `b` then."""

    name: str
    held: tuple[Held, ...]
    verdict: str
    code: str = ""
    stage: str = ""


STORIES = (
    Story("passes", (STEADY, ON_PROBATION, Held(serving="b", previous="a")), PASSED),
    Story("goes on", (STEADY, ON_PROBATION), RUNNING),
    Story("is sent back", (STEADY, ON_PROBATION, BACK), SENT_BACK, "worse", PROBATION),
    Story("is tried again", (STEADY, ON_PROBATION, BACK, ON_PROBATION), RUNNING),
    Story(
        "cannot be opened for a while, and passes",
        (ON_PROBATION, Held(serving="a", previous="a", probation="b"), Held(serving="b", previous="a")),
        PASSED,
    ),
    Story(
        "fails in shadow mode",
        (STEADY, Held(serving="a", shadow="b"), BACK),
        "",
        "worse",
        SHADOW,
    ),
    Story("fails its self-test", (STEADY, BACK), "", "worse", FETCHING),
    Story("is the first", (Held(serving="b"),), ""),
)


@pytest.mark.parametrize("restarted", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize("story", STORIES, ids=lambda one: one.name)
def test_what_became_of_a_release_is_told(disk, story, restarted):
    figures = disk.start()
    for held in story.held:
        if restarted:
            figures.close()
            figures = disk.start()
        figures.show(held)
    one = told(figures, "b")
    assert (one.probation, one.reason_code, one.failed_stage) == (story.verdict, story.code, story.stage)
    assert bool(one.ended_at) == (story.verdict == PASSED or bool(story.code))
    assert one.reason == (WORSE.reason if story.code else "")


def test_totals_go_on_on_the_way_back_and_begin_anew_with_another_try(disk):
    figures = disk.start()
    figures.show(Held(serving="a", since="2026-01-01T00:00:00+00:00"))
    count(figures, "a", 10)
    figures.show(ON_PROBATION)
    count(figures, "b", 7)
    began = told(figures, "b").activated_at
    figures.show(dataclasses.replace(BACK, since="2026-01-02T00:00:00+00:00"))
    count(figures, "a", 1)
    assert (told(figures, "a").frames, told(figures, "a").activated_at) == (11, "2026-01-01T00:00:00+00:00")
    assert (told(figures, "b").frames, told(figures, "b").activated_at) == (7, began)
    figures.show(dataclasses.replace(ON_PROBATION, since="2026-01-03T00:00:00+00:00", failures=BACK.failures))
    count(figures, "b", 2)
    figures.show(dataclasses.replace(ON_PROBATION, failures=BACK.failures))
    again = told(figures, "b")
    assert (again.frames, again.activated_at) == (2, "2026-01-03T00:00:00+00:00")
    assert (again.probation, again.reason, again.reason_code, again.failed_stage) == (RUNNING, "", "", "")


def test_a_stop_loses_nothing_and_a_kill_some_minutes(disk):
    figures = disk.start()
    figures.show(STEADY)
    count(figures, "a", 10)
    figures.close()
    figures = disk.start()
    figures.show(STEADY)
    assert (told(figures, "a").frames, told(figures, "a").restarts) == (10, 0)
    count(figures, "a", 10)
    disk.now += KEEP_EVERY_S
    figures.keep_if_due()
    count(figures, "a", 5)
    figures.keep_if_due()
    before = figures.start
    figures = disk.start()  # after a kill
    figures.show(STEADY)
    assert (told(figures, "a").frames, told(figures, "a").restarts) == (20, 1)
    assert figures.start > before, "a reader knows by it that totals may have fallen"


def test_writes_come_soon_after_a_start_and_then_seldom(disk):
    figures = disk.start()
    figures.show(STEADY)
    written, last = [], disk.file.read_bytes()
    for second in range(3600):
        disk.now = float(second)
        count(figures, "a", 1)
        figures.keep_if_due()
        if (now := disk.file.read_bytes()) != last:
            written.append(second)
            last = now
    assert written[0] == FIRST_KEEP_S
    assert len(written) <= 3600 / KEEP_EVERY_S + 4


def test_a_kill_counts_for_what_served_then(disk):
    figures = disk.start()
    figures.show(STEADY)
    figures.show(ON_PROBATION)
    figures = disk.start()
    figures.show(BACK)
    assert (told(figures, "b").restarts, told(figures, "a").restarts) == (1, 0)
    assert told(figures, "b").probation == SENT_BACK


def test_a_model_that_answers_nonsense_is_counted(disk):
    figures = disk.start()
    figures.show(STEADY)
    for confidence in (float("nan"), float("inf"), -1.0, 1.0, 2.0):
        figures.count("a", float("nan"), confidence, "cat", unsure=False)
    assert told(figures, "a").confidence == (2, 0, 0, 0, 0, 0, 0, 0, 0, 3)


@pytest.mark.parametrize("content", [b"", b"{", b'{"start": "x"}', b'{"schema": 9}', b"\xff" * 300_000])
def test_a_damaged_file_begins_anew_above_the_starts_before(disk, content):
    disk.file.write_bytes(content)
    figures = disk.start()
    figures.show(STEADY)
    assert figures.start == 1000
    assert told(figures, "a").frames == 0


def test_starts_only_grow_whatever_clock_and_disk_do(disk):
    starts = [disk.start().start]
    disk.unix_s = 5.0  # a board without a battery, before it asks for the time
    starts.append(disk.start().start)
    disk.unix_s = 2000.0
    starts.append(disk.start().start)
    disk.file.unlink()
    disk.unix_s = 3000.0
    starts.append(disk.start().start)
    assert starts == sorted(set(starts)) == [1000, 1001, 2000, 3000]


def test_without_a_change_nothing_is_written(disk):
    figures = disk.start()
    figures.show(STEADY)
    written = disk.file.stat().st_mtime_ns, disk.file.stat().st_ino
    for _ in range(100):
        disk.now += KEEP_EVERY_S
        figures.show(STEADY)
        figures.keep_if_due()
    count(figures, "a", 1)
    disk.now += KEEP_EVERY_S / 2
    assert (disk.file.stat().st_mtime_ns, disk.file.stat().st_ino) == written


def test_releases_that_are_gone_are_forgotten(disk):
    figures = disk.start()
    for number in range(50):
        figures.show(Held(serving=f"r{number}", previous=f"r{number - 1}"))
        count(figures, f"r{number}", 1)
    assert [one.release for one in figures.report()] == ["r49", "r48"]
    figures.close()
    assert disk.file.stat().st_size < 2000


def test_operators_of_another_runtime_are_forgotten(disk):
    figures = disk.start()
    figures.show(Held(serving="a", runtime="litert 1", operators={"CONV_2D": 3, "ADD": 1}))
    figures.show(Held(serving="b", previous="a", runtime="litert 1", operators={"CONV_2D": 2, "MUL": 1}))
    assert figures.operators == {"CONV_2D": 3, "ADD": 1, "MUL": 1}
    figures.close()
    figures = disk.start()
    figures.show(Held(serving="b", runtime="litert 2", operators={"CONV_2D": 2}))
    assert figures.operators == {"CONV_2D": 2}
