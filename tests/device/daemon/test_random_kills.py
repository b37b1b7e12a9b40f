"""The real daemon is killed at random moments of updates under load; the next one serves and finishes."""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import time

import pytest

from tests.fakes.device_daemon import DaemonUnderTest, assert_answers
from tests.fault_table import Kind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

KILLS = 12
EVERY_KILL = 500
# From the announcement to some while after the first answer.
LONGEST_S = 0.8
PICTURES_PER_SECOND = 20


@contextlib.contextmanager
def load(device: DaemonUnderTest):
    """Let pictures arrive all the time."""
    stop = threading.Event()

    def drop() -> None:
        while not stop.wait(1 / PICTURES_PER_SECOND):
            device.drop("green")

    thread = threading.Thread(target=drop)
    thread.start()
    yield
    stop.set()
    thread.join()


def test_a_daemon_killed_in_an_update_serves_and_finishes_it(daemon, watcher, repository, serving, faults):
    moments = random.Random(4)
    with load(daemon):
        for number in range(1, (EVERY_KILL if faults.every else KILLS) + 1):
            release = repository.publish_tiny(number).release
            watcher.announce(release)
            time.sleep(moments.uniform(0, LONGEST_S))  # the moment is what this is about
            daemon.terminate(signal.SIGKILL)
            watcher.status = None
            with faults.injected(
                Kind.POWER, "random moment of an update, the real daemon under load", "killed"
            ):
                daemon.start()
                watcher.wait_release(release)
                assert_answers(daemon, watcher, release)
            watcher.results.clear()
    assert daemon.terminate() == 0
    left = {path.name for path in daemon.state_dir.iterdir()} - {"lock", "status.json", "figures.json"}
    known = {"slots", "slots.json", "slots.copy.json", "activated", "metadata", "incoming", "crash.txt"}
    assert left <= known
    assert len(list((daemon.state_dir / "slots").iterdir())) <= 2
