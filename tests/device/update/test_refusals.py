"""What a failed try of a release costs: a fault that passes costs time, a proof costs the release."""

from __future__ import annotations

import dataclasses
import datetime
import signal

import pytest

from edge_client import children
from edge_client.contract.times import parse_time
from edge_client.settings.update import DeviceSettings, UpdateSettings
from edge_client.update import check as updater
from edge_client.update.decision import Decision
from edge_client.update.endings import Blame, Ending, Retry, find_ending
from edge_client.update.failures import (
    A_WHILE_S,
    REFUSED_S,
    RETRY_WAITS_S,
    FailureRecord,
    Failures,
    add_failure,
    is_due,
    next_try,
)
from edge_client.update.refusals import PostponedError, RefusedError, this_software
from edge_client.update.selftest import SelfTestError
from edge_client.update.slots import Slots
from tests.device.conftest import PassedSelfTest
from tests.fakes.faulty_child import FaultyChild
from tests.fakes.memory_group import memory_group
from tests.fakes.tiny_model import tiny_model
from tests.fault_table import Kind

START = "2026-01-01T00:00:00.000+00:00"


class WallClock:
    """System clock that only the test moves."""

    def __init__(self) -> None:
        self.time = parse_time(START)

    def __call__(self) -> str:
        return self.time.isoformat(timespec="milliseconds")

    def pass_s(self, seconds: float) -> None:
        self.time += datetime.timedelta(seconds=seconds)


@pytest.fixture
def clock():
    return WallClock()


def fail_when_due(ending: Ending, clock: WallClock, count: int):
    """Let a release fail `count` times, each as soon as it is due; returns the last record."""
    record = None
    for _ in range(count):
        record = add_failure(record, ending, "why", clock())
        if (due := next_try(record)) is not None:
            assert not is_due(record, clock())
            clock.time = parse_time(due)
            assert is_due(record, clock())
    return record


def seconds_to_next(record: FailureRecord, now: datetime.datetime) -> float:
    due = next_try(record)
    assert due is not None
    return (parse_time(due) - now).total_seconds()


# Ending -> failures, each when the next try is due, after which it is refused; None: never. And for how long.
TABLE = {
    Ending.WRONG_ANSWERS: (1, None),
    Ending.TOO_SLOW: (1, None),
    Ending.UNUSABLE: (1, None),
    Ending.WORSE: (1, None),
    Ending.CRASHED_SERVING: (1, None),
    Ending.CRASHED: (2, None),
    Ending.FRAMES_FAILED: (2, None),
    Ending.SLOWER: (4, REFUSED_S),
    Ending.KILLED: (4, REFUSED_S),
    Ending.TIMED_OUT: (4, REFUSED_S),
    Ending.OUT_OF_MEMORY: (4, REFUSED_S),
    Ending.NO_VERDICT: (4, REFUSED_S),
    Ending.INTERRUPTED: (4, REFUSED_S),
    Ending.DAEMON_ENDED: (4, REFUSED_S),
    Ending.DISK: (None, None),
    Ending.NO_PROCESS: (None, None),
    Ending.NO_RUNTIME: (None, None),
}


@pytest.mark.parametrize("ending", Ending)
def test_refusal_table(ending, clock):
    refused_at, refused_s = TABLE[ending]
    for count in range(1, refused_at or 20):
        assert not fail_when_due(ending, clock, count).final
    if refused_at is None:
        return
    record = fail_when_due(ending, clock, refused_at)
    assert record.final
    if refused_s is None:
        assert next_try(record) is None
    else:
        assert seconds_to_next(record, parse_time(record.at)) == refused_s


def test_refusal_waits_grow_over_hours(clock):
    record, waits = None, []
    for _ in RETRY_WAITS_S:
        record = add_failure(record, Ending.KILLED, "why", clock())
        waits.append(seconds_to_next(record, clock.time))
    assert tuple(waits) == RETRY_WAITS_S


def test_a_refusal_needs_a_second_crash_after_a_while(clock):
    once = add_failure(None, Ending.CRASHED, "why", clock())
    clock.pass_s(A_WHILE_S / 2)  # a restart tried it again
    soon = add_failure(once, Ending.CRASHED, "why", clock())
    clock.pass_s(A_WHILE_S)
    assert (once.final, soon.final) == (False, False)
    assert add_failure(soon, Ending.CRASHED, "why", clock()).final
    # Killed in between: the crash before is not forgotten.
    killed = add_failure(once, Ending.KILLED, "why", clock())
    assert add_failure(killed, Ending.CRASHED, "why", clock()).final


def test_no_refusal_by_tries_on_request_however_many(clock):
    record = add_failure(None, Ending.KILLED, "why", clock())
    for _ in range(100):  # a broker may request without an end
        record = add_failure(record, Ending.KILLED, "why", clock(), counts=False)
    assert (record.tries, record.final) == (1, False)


def test_no_refusal_by_a_clock_that_goes_back(clock):
    record = add_failure(None, Ending.KILLED, "why", clock())
    clock.pass_s(-10 * 365 * 86400)
    assert is_due(record, clock())


def test_a_release_is_not_refused_for_a_disk_that_failed_before(clock):
    record = fail_when_due(Ending.DISK, clock, 10)
    assert not add_failure(record, Ending.KILLED, "why", clock()).final


def test_refusals_in_damaged_records_are_read():
    record = add_failure(None, Ending.KILLED, "why", "not a time")
    assert is_due(record, START)
    assert Failures({}, {"r": record}).retry_at is not None


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (MemoryError(), Ending.OUT_OF_MEMORY),
        (RuntimeError("std::bad_alloc"), Ending.OUT_OF_MEMORY),
        (OSError(5, "Input/output error"), Ending.DISK),
        (OSError("image file is truncated"), Ending.UNUSABLE),  # Pillow's, without a number
        (ImportError("libgomp.so.1"), Ending.NO_RUNTIME),
        (SystemError("NumPy"), Ending.NO_RUNTIME),
        (RuntimeError("can't start new thread"), Ending.NO_PROCESS),
        (RuntimeError("Didn't find op for builtin opcode"), Ending.UNUSABLE),
    ],
)
def test_a_refusal_is_judged_by_the_cause_of_an_error(error, ending):
    wrapped = ValueError("it cannot be used")
    wrapped.__cause__ = error
    assert find_ending(wrapped) is ending


# Devices


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    faulty = FaultyChild(tmp_path / "faulty")
    monkeypatch.setenv("PYTHONPATH", str(faulty.folder))
    return faulty


@pytest.fixture
def tried(device, repository, monkeypatch, clock):
    """A device with a clock of the test, which serves release 0."""
    device.slots = Slots(device.state_dir, clock)
    repository.publish_tiny(0)
    with monkeypatch.context() as patch:
        patch.setattr(updater, "SelfTest", PassedSelfTest)
        device.check()
    device.settings = dataclasses.replace(device.settings, self_test_timeout_s=60.0)
    return device


def check(device, retry: Retry = Retry.DUE):
    one = device.updater()
    one._retry = retry
    return one.check()


PASSING = {
    signal.SIGKILL: Ending.KILLED,
    signal.SIGTERM: Ending.KILLED,
    signal.SIGSTOP: Ending.TIMED_OUT,
    signal.SIGSEGV: Ending.CRASHED,
    "EIO": Ending.DISK,
    "memory": Ending.OUT_OF_MEMORY,
    "thread": Ending.NO_PROCESS,
    "runtime": Ending.NO_RUNTIME,
    "ends": Ending.NO_VERDICT,
}


def test_no_refusal_for_a_fault_that_passes(tried, repository, faulty, clock, caplog, faults):
    """Each real fault once, for one release; it is downloaded once, and serves at the first good try."""
    release = repository.publish_tiny(1).release
    for fault, ending in PASSING.items():
        faulty.fail_next(fault)
        stopped = fault == signal.SIGSTOP
        tried.settings = dataclasses.replace(tried.settings, self_test_timeout_s=0.5 if stopped else 60.0)
        with pytest.raises(PostponedError, match="the next one is at"):
            check(tried, Retry.REQUESTED)
        record = Slots(tried.state_dir).failures.records[release]
        assert (record.ending, record.final) == (ending.name.lower(), False), fault
        assert Slots(tried.state_dir).refused == {}
        tried.assert_serves(tried.slots.current)
    assert caplog.text.count("could not be tried") == len(PASSING)
    asked = len(repository.requests)
    outcome = check(tried)
    assert (outcome.decision, len(caplog.records)) == (Decision.POSTPONED, len(PASSING))
    assert "`edge-client update`" in outcome.reason
    clock.time = parse_time(tried.slots.failures.retry_at)
    assert tried.check().decision is Decision.INSTALL
    tried.assert_serves(release)
    assert tried.slots.failures == Failures({}, {})
    assert not any("model" in path for path in repository.requests[asked:])
    for fault in PASSING:
        name = fault.name if isinstance(fault, signal.Signals) else fault
        faults.record("self-test", name, kind=Kind.REFUSALS)


def test_no_refusal_where_the_kernel_ran_out_of_memory(tried, repository, monkeypatch, faults):
    """A real memory group: the kernel kills the child that tries the release, for what others took."""
    release = repository.publish_tiny(1).release
    started = children.start

    def start_within(command: list[str]):
        return started([*words, *command])

    with faults.injected(Kind.REFUSALS, "self-test in a memory group of 15 MB", "out of memory"):
        with memory_group(15_000_000) as words, monkeypatch.context() as patch:
            patch.setattr("edge_client.update.selftest.start", start_within)
            with pytest.raises(PostponedError, match="SIGKILL"):
                tried.check()
        assert tried.slots.failures.records[release].ending == "killed"
        check(tried, Retry.REQUESTED)
        assert tried.slots.folder(release).is_dir()


def fail_by(fault: str):
    """A self-test in this process, for faults whose real process another test has."""

    class Failed(PassedSelfTest):
        def run(self, folder):
            raise SelfTestError("it was killed", Ending[fault])

    return Failed


def test_a_refusal_ends_by_itself_by_request_or_by_the_signed_word(tried, repository, clock, monkeypatch):
    release = repository.publish_tiny(1).release
    monkeypatch.setattr(updater, "SelfTest", fail_by("KILLED"))
    for _ in range(len(RETRY_WAITS_S)):
        with pytest.raises(PostponedError):
            check(tried, Retry.RESTART)  # a restart tries at once, and counts
    with pytest.raises(RefusedError, match="edge-client update --retry"):
        check(tried, Retry.RESTART)
    for retry in (Retry.DUE, Retry.RESTART, Retry.REQUESTED):
        assert check(tried, retry).decision is Decision.REFUSED
    with pytest.raises(PostponedError):
        check(tried, Retry.FORGIVE)
    clock.pass_s(REFUSED_S)
    monkeypatch.setattr(updater, "SelfTest", fail_by("WRONG_ANSWERS"))
    with pytest.raises(RefusedError):
        check(tried)
    clock.pass_s(2 * REFUSED_S)
    assert check(tried).decision is Decision.REFUSED  # a proof does not pass
    repository.point("stable", release, retry_since="2026-02-01T00:00:00.000+00:00")
    with pytest.raises(RefusedError):
        check(tried)
    assert check(tried).decision is Decision.REFUSED  # one word is one more try
    monkeypatch.setattr(updater, "SelfTest", PassedSelfTest)
    repository.point("stable", release, retry_since="2026-02-02T00:00:00.000+00:00")
    tried.check()
    tried.assert_serves(release)


def test_a_refusal_for_a_time_passes_after_it(tried, repository, clock, monkeypatch):
    release = repository.publish_tiny(1).release
    monkeypatch.setattr(updater, "SelfTest", fail_by("TIMED_OUT"))
    for _ in range(len(RETRY_WAITS_S)):
        with pytest.raises(PostponedError):
            check(tried)
        clock.time = parse_time(tried.slots.failures.retry_at)
    with pytest.raises(RefusedError, match="refused until"):
        check(tried)
    clock.pass_s(REFUSED_S)
    monkeypatch.setattr(updater, "SelfTest", PassedSelfTest)
    tried.check()
    tried.assert_serves(release)


def test_a_model_that_takes_the_machine_down_is_refused_after_four_starts(
    tried, repository, clock, monkeypatch
):
    class PowerCut(BaseException):
        pass

    class Fatal(PassedSelfTest):
        def run(self, folder):
            raise PowerCut

    release = repository.publish_tiny(1).release
    monkeypatch.setattr(updater, "SelfTest", Fatal)
    for _ in range(len(RETRY_WAITS_S) + 1):
        with pytest.raises(PowerCut):
            check(tried, Retry.RESTART)
        tried.slots = Slots(tried.state_dir, clock)
    assert check(tried, Retry.RESTART).decision is Decision.REFUSED
    assert "went down during the self-test" in tried.slots.refused[release]


def test_a_memory_limit_that_a_model_hits_is_no_refusal_at_once(tried, repository):
    release = repository.publish_tiny(1, model=tiny_model(1, size=4096), size=4096).release
    tried.settings = dataclasses.replace(tried.settings, self_test_memory_bytes=150_000_000)
    with pytest.raises(PostponedError):
        tried.check()
    assert tried.slots.failures.records[release].ending in {"out_of_memory", "crashed"}


def test_refusal_blame_is_known_for_each_ending():
    assert {ending.blame for ending in Ending} == set(Blame)


def test_a_refusal_ends_with_the_limit_that_it_names():
    device = DeviceSettings(latency_budget_ms=20.0)
    raised = this_software(dataclasses.replace(device, latency_budget_ms=40.0))
    assert len({this_software(), this_software(device), raised}) == 3
    assert this_software(None, UpdateSettings(max_release_bytes=1)) != this_software(None, UpdateSettings())
