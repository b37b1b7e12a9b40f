"""The real daemon and faults that pass: no release is refused, and a person can have it tried again."""

from __future__ import annotations

import signal

import pytest

from tests.fakes.device_daemon import assert_answers
from tests.fakes.faulty_child import FaultyChild
from tests.fakes.tiny_model import tiny_model
from tests.fault_table import Kind


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    faulty = FaultyChild(tmp_path / "faulty")
    monkeypatch.setenv("PYTHONPATH", str(faulty.folder))
    return faulty


@pytest.mark.runtime
def test_no_refusal_for_a_self_test_that_was_killed_once(faulty, daemon, watcher, repository, serving):
    faulty.fail_next(signal.SIGKILL)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    status = watcher.wait_status(lambda s: s.decision == "postponed", "the failed try")
    assert (status.release, status.latest, status.refused) == (serving, release, None)
    assert status.retry_at is not None
    assert "killed (SIGKILL)" in status.last_error
    assert daemon.log.count("could not be tried") == 1
    assert status.retry_at in daemon.ask("status").stdout
    assert_answers(daemon, watcher, serving)
    assert daemon.ask("update").returncode == 0
    assert watcher.wait_release(release).retry_at is None
    # Wrong answers are proof: refused, unless a person insists.
    broken = repository.publish_tiny(2, model=tiny_model(3)).release
    watcher.announce(broken)
    status = watcher.wait_status(lambda s: s.refused == broken, "the refusal")
    assert "`edge-client update --retry` tries it again now" in status.last_error
    assert daemon.ask("update", "--retry").returncode == 0
    wanted = f"release {broken} is refused: self-test"
    watcher.wait(lambda _: daemon.log.count(wanted) == 2, "the second try")
    assert_answers(daemon, watcher, release)


@pytest.mark.slow
def test_no_refusal_for_a_daemon_that_is_killed_in_a_probation(daemon, watcher, repository, serving, faults):
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait_release(release)
    for _ in range(4):
        with faults.injected(Kind.REFUSALS, "daemon on probation", "SIGKILL"):
            daemon.terminate(signal.SIGKILL)
            daemon.start()
            assert_answers(daemon, watcher, release)


@pytest.mark.runtime
def test_a_refusal_takes_two_crashes_of_the_daemon_inside_the_model(
    faulty, daemon, watcher, repository, serving
):
    daemon.terminate()
    faulty.let_models_crash()
    daemon.start()
    release = repository.publish_tiny(1).release
    watcher.wait(lambda w: w.online == "online", "online")
    watcher.announce(release)
    watcher.wait_release(release)
    for number in range(1, 3):
        faulty.crash_next()
        daemon.drop("red")
        assert daemon.process.wait(60) == -signal.SIGSEGV
        daemon.start()
        assert_answers(daemon, watcher, release if number == 1 else serving)
    status = watcher.wait_status(lambda s: s.refused == release, "the rollback")
    assert "crashed inside its model 2 times" in status.last_error
    assert "Segmentation fault" in daemon.log
