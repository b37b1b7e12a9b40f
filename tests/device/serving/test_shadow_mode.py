"""The daemon with a new release in shadow mode."""

from __future__ import annotations

import functools
import signal

import pytest
from local_services import wait_until

from edge_client.settings.serving import LEAST_FRAMES
from tests.fakes.device_daemon import assert_answers

pytestmark = pytest.mark.slow

SECONDS = 3.0


@pytest.fixture
def begin_shadow(daemon, watcher, repository):
    """Start the daemon on release 0; the function publishes releases, which come into shadow mode."""
    daemon.settings["shadow"] = {"seconds": SECONDS}
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)

    def publish(**options) -> str:
        release: str = repository.publish_tiny(**options).release
        watcher.announce(release)
        watcher.wait_status(lambda s: s.shadow is not None and s.shadow.release == release, "the shadow")
        return release

    return publish


def feed_until(daemon, watcher, condition, what: str, label: str = "red"):
    """Let pictures arrive until the status meets a condition."""
    for _ in range(400):
        name = daemon.drop(label)
        watcher.wait(lambda w, name=name: any(r.source == name for r in w.results), f"the answer to {name}")
        if watcher.status is not None and condition(watcher.status):
            return watcher.status
    pytest.fail(f"waited for {what}: {watcher.status}")


def counts(daemon, said: str, number: int) -> bool:
    return bool(daemon.log.count(said) == number)


@pytest.mark.runtime
def test_a_release_that_agrees_serves_after_its_time(daemon, watcher, begin_shadow):
    first = watcher.status.release
    release = begin_shadow(bias=1)
    assert (watcher.status.release, watcher.status.decision) == (first, "install")
    assert "compared with it first" in watcher.status.why
    assert_answers(daemon, watcher, first)
    seen = feed_until(daemon, watcher, lambda s: s.shadow is not None and s.shadow.frames > 0, "frames")
    assert seen.shadow.agreement == 1.0
    assert seen.shadow.latency_ms > 0
    status = feed_until(daemon, watcher, lambda s: s.release == release, "the release to serve")
    assert (status.previous, status.decision) == (first, "serves")
    assert status.shadow is None
    assert status.last_error is None
    assert "agreed with the release before on 100% of" in status.why
    assert_answers(daemon, watcher, release)


@pytest.mark.runtime
def test_a_release_that_disagrees_is_refused_and_never_answers(daemon, watcher, repository, begin_shadow):
    first = watcher.status.release
    other = begin_shadow(bias=1)
    assert watcher.status.decision == "install"
    # On grey, each release predicts its first label.
    status = feed_until(daemon, watcher, lambda s: s.refused == other, "the refusal", label="grey")
    assert (status.release, status.latest, status.decision) == (first, other, "refused")
    assert status.shadow is None
    assert "agreed with the serving release on 0% of" in status.last_error
    assert {result.release for result in watcher.results} == {first}
    assert not (daemon.state_dir / "slots" / other).exists()
    # Not tried again until the channel moves.
    watcher.announce(other)
    daemon.terminate()
    daemon.start()
    watcher.wait_status(lambda s: s.refused == other and s.state == "serving", "still refused")


def test_a_restart_resumes_shadow_mode_and_downloads_nothing_again(daemon, watcher, repository, begin_shadow):
    release = begin_shadow(bias=1)
    before = [path for path in repository.requests if release in path]
    assert before
    assert daemon.terminate() == 0
    daemon.start()
    watcher.wait(lambda w: w.online == "online", "online")
    watcher.wait_status(lambda s: s.shadow is not None and s.shadow.release == release, "the shadow again")
    assert [path for path in repository.requests if release in path] == before
    feed_until(daemon, watcher, lambda s: s.release == release, "the release to serve")


def test_no_refusal_of_a_shadow_release_for_a_daemon_that_was_killed(daemon, watcher, begin_shadow):
    first = watcher.status.release
    release = begin_shadow(bias=1)
    said = f"release {release} runs in shadow mode, compared with {first}"
    for number in range(1, 4):
        wait_until(functools.partial(counts, daemon, said, number), "shadow mode")
        daemon.terminate(signal.SIGKILL)
        daemon.start()
    wait_until(functools.partial(counts, daemon, said, 4), "shadow mode")
    assert_answers(daemon, watcher, first)


def test_a_channel_that_moves_on_ends_shadow_mode(daemon, watcher, repository, begin_shadow):
    first = watcher.status.release
    second = begin_shadow(bias=1)
    third = begin_shadow(bias=2)
    assert not (daemon.state_dir / "slots" / second).exists()
    repository.point("stable", first)
    watcher.announce(first)
    watcher.wait_status(lambda s: s.latest == first and s.shadow is None, "no shadow")
    assert not (daemon.state_dir / "slots" / third).exists()
    for _ in range(LEAST_FRAMES):
        daemon.drop("red")
    assert_answers(daemon, watcher, first)


def test_going_back_needs_no_shadow_mode(daemon, watcher, repository, begin_shadow):
    first = watcher.status.release
    release = begin_shadow(bias=1)
    feed_until(daemon, watcher, lambda s: s.release == release, "the release to serve")
    repository.point("stable", first)
    watcher.announce(first)
    watcher.wait_release(first)
