"""The daemon with several things at once: verdicts during a check, consent over restarts, bad settings."""

from __future__ import annotations

import functools
import signal

import pytest
from local_services import wait_until

from tests.fakes.device_daemon import answer_all, assert_answers

pytestmark = pytest.mark.slow


def test_a_release_is_rolled_back_while_the_next_one_trickles_in(daemon, watcher, repository, serving):
    answer_all(daemon, watcher, "red", 30)
    second = repository.publish_tiny(1).release
    watcher.announce(second)
    watcher.wait_release(second)
    document = repository.publish_tiny(2)
    model = repository.find(document.model_sha256)
    repository.trickle.add(model)
    watcher.announce(document.release)
    watcher.wait_status(lambda s: s.state == "updating", "the check")
    answer_all(daemon, watcher, "grey", 20)
    status = watcher.wait_status(lambda s: s.refused == second, "the way back")
    assert status.release == serving
    assert model in repository.requests
    repository.trickle.clear()
    watcher.wait_release(document.release)
    assert_answers(daemon, watcher, document.release)


def test_consent_to_a_shadow_release_outlives_a_restart_and_is_for_no_other(daemon, watcher, repository):
    daemon.settings["shadow"] = {"seconds": 600.0}
    daemon.settings["update"] |= {"automatic": False}
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    second = repository.publish_tiny(1).release
    watcher.announce(second)
    watcher.wait_status(lambda s: s.latest == second, "it to be known")
    assert daemon.ask("update").returncode == 0
    watcher.wait_status(lambda s: s.shadow is not None and s.shadow.release == second, "shadow mode")
    assert daemon.terminate() == 0
    watcher.status = None
    daemon.start()
    watcher.wait_status(lambda s: s.shadow is not None and s.shadow.release == second, "shadow mode again")
    third = repository.publish_tiny(2).release
    watcher.announce(third)
    status = watcher.wait_status(lambda s: s.latest == third, "the next one to be known")
    assert "waits for `edge-client update`" in status.why
    assert status.release == first


def serves_again(daemon, starts: int) -> bool:
    return bool(daemon.log.count("serving release") >= starts)


def test_faulty_settings_are_no_fault_of_the_release_on_probation(daemon, watcher, repository, serving):
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    assert watcher.wait_release(release).probation
    assert daemon.terminate() == 0
    daemon.settings["broker"]["password_file"] = "no-such-file"
    daemon.settings["broker"]["username"] = "camera-1"
    before = daemon.log.count("serving release")
    for number in range(1, 5):  # the broker is missing, and the daemon ends by SIGKILL each time
        daemon.start()
        wait_until(functools.partial(serves_again, daemon, before + number), "the daemon to serve")
        daemon.terminate(signal.SIGKILL)
    daemon.settings["broker"] |= {"password_file": "", "username": ""}
    daemon.start()
    assert_answers(daemon, watcher, release)


def test_a_broken_camera_is_shown_until_it_works(daemon, watcher, repository, serving):
    away = daemon.camera.with_name("away")
    assert daemon.terminate() == 0
    daemon.camera.rename(away)
    daemon.start()
    watcher.wait_status(lambda s: s.last_error is not None and "no such folder" in s.last_error, "the fault")
    away.rename(daemon.camera)
    assert_answers(daemon, watcher, serving)
    watcher.wait_status(lambda s: s.last_error is None, "the end of the fault")
