"""The real daemon in a memory group of 450 MB, which is what a Pi Zero 2 has: no picture ends it.

Each picture is answered, or refused by name and set aside; the daemon and the release serve on. One that does
end the daemon is set aside by the next start, and held against no release.
"""

from __future__ import annotations

import functools
import os
import signal
from typing import TYPE_CHECKING

import pytest

from edge_client.last_picture import places_of_note
from tests.device.sources.reader import listing, until
from tests.fakes.device_daemon import LIMIT_S, assert_answers
from tests.fakes.large_pictures import EVERY, SAMPLE, png
from tests.fakes.memory_group import memory_group
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.fakes.device_daemon import DaemonUnderTest

pytestmark = pytest.mark.slow

LIMIT_BYTES = 450_000_000
SCENARIO = "the daemon in a memory group of 450 MB"
# Even these must be answered: they are what phones and cameras write.
ANSWERED = {"phone-48-megapixels.jpg", "cmyk.jpg", "grey.jpg", "progressive.jpg"}


@pytest.fixture
def small_daemon(daemon, watcher, repository) -> Iterator[DaemonUnderTest]:
    """A daemon in the group that serves release 0; region and inbox make copies of each frame."""
    daemon.settings["source"] |= {"after": "move", "region": "0, 0, 1, 0.9"}
    daemon.settings["inbox"] = {"unsure_below": 1.0, "per_hour": 1e6}
    release = repository.publish_tiny(0).release
    with memory_group(LIMIT_BYTES) as before:
        daemon.before = before
        daemon.start()
        watcher.wait_release(release)
        yield daemon
        if daemon.process.poll() is None:
            assert daemon.terminate() == 0


def put(daemon: DaemonUnderTest, name: str, content: bytes) -> None:
    temporary = daemon.folder / name
    temporary.write_bytes(content)
    temporary.rename(daemon.camera / name)


def is_over(daemon: DaemonUnderTest, name: str) -> bool:
    """Whether a picture was answered, refused by name or set aside, or the daemon died."""
    assert daemon.process is not None
    if daemon.process.poll() is not None or not (daemon.camera / name).exists():
        return True
    return f"/{name}: " in daemon.log  # for lack of memory; tried once more after a minute


def test_the_largest_picture_of_each_format_ends_no_daemon(small_daemon, watcher, faults):
    pictures = EVERY if faults.every else SAMPLE
    process = small_daemon.process
    for name, make in pictures.items():
        with faults.injected(Kind.PICTURES, SCENARIO, "largest picture of a format"):
            put(small_daemon, name, make())
            until(functools.partial(is_over, small_daemon, name), LIMIT_S)
            assert process.poll() is None, f"{name} ended the daemon"
            answered = f"done/{name}" in listing(small_daemon.camera)
            assert answered or name not in ANSWERED, small_daemon.log[-500:]
            assert answered or f"/{name}: " in small_daemon.log
    assert_answers(small_daemon, watcher, watcher.status.release)
    assert {one.source for one in watcher.results} >= ANSWERED & set(pictures)
    assert "MB are free; scale it down, or save it as a JPEG" in small_daemon.log


HANGING_DISK = """
import os, time
real_open = os.open
def open_or_hang(path, *arguments, **options):
    if str(path).endswith("slow.png"):
        time.sleep(1000)
    return real_open(path, *arguments, **options)
os.open = open_or_hang
"""


def test_a_read_that_hangs_is_named_and_given_up_at_the_next_start(
    daemon, watcher, repository, faults, monkeypatch
):
    """As on a network share that does not answer, or in a decoder that does not return."""
    if not faults.every:
        pytest.skip("waits 15 s until a read counts as hanging: --every-fault")
    release = repository.publish_tiny(0).release
    (daemon.folder / "sitecustomize.py").write_text(HANGING_DISK)
    monkeypatch.setenv("PYTHONPATH", str(daemon.folder))
    daemon.settings["source"]["after"] = "move"
    daemon.start()
    watcher.wait_release(release)
    assert_answers(daemon, watcher, release)
    with faults.injected(Kind.PICTURES, "the daemon", "a read or a decoder that hangs"):
        put(daemon, "slow.png", png(0, 8))
        until(lambda: "slow.png: reading it takes over 15 s" in daemon.log, 40)
        watcher.wait_status(lambda s: "slow.png" in (s.last_error or ""), "the name in the status")
        assert daemon.terminate() == 0
        monkeypatch.delenv("PYTHONPATH")
        watcher.status = None
        daemon.start()
        assert_answers(daemon, watcher, release)
        assert "broken/slow.png" in listing(daemon.camera)


def wait_until_decoding(daemon: DaemonUnderTest, name: str) -> None:
    """Wait until the daemon has noted that it decodes this picture."""
    note = places_of_note(daemon.state_dir)[0]

    def decodes() -> bool:
        noted = note.read_bytes() if note.exists() else b""
        return noted[:2] > b"\0\0" and os.fsencode(name) in noted

    until(decodes, LIMIT_S)


def test_a_picture_that_ends_the_daemon_is_set_aside_and_held_against_no_release(
    daemon, watcher, repository, faults
):
    """Once for each `after`, in the probation of a release; with --every-fault more often than it allows."""
    daemon.settings["source"]["after"] = "keep"
    daemon.settings["probation"] = {"frames": 100_000}
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    probed = repository.publish_tiny(1).release
    watcher.announce(probed)
    watcher.wait_status(lambda s: s.release == probed and s.probation, "the release on probation")
    picture = png(2, 16)
    for after in ["keep", "move", "delete"] * 2 if faults.every else ["keep"]:
        if after != daemon.settings["source"]["after"]:
            daemon.settings["source"]["after"] = after
            daemon.terminate()
            daemon.start()
        name = f"door-{after}-{len(daemon.log)}.png"
        with faults.injected(Kind.PICTURES, "a release on probation", "the daemon dies at a picture"):
            put(daemon, name, picture)
            wait_until_decoding(daemon, name)
            daemon.terminate(signal.SIGKILL)
            watcher.status = None
            daemon.start()
            status = watcher.wait_status(lambda s: s.state == "serving" and s.warning, "the warning")
            assert (status.release, status.probation) == (probed, True)
            assert f"{name}: the last run died of this picture" in status.warning
            assert_answers(daemon, watcher, probed)
            assert f"{name}: an earlier run died while it decoded this picture" in daemon.log
            assert (f"broken/{name}" if after != "keep" else name) in listing(daemon.camera)
    daemon.terminate()
    watcher.status = None
    daemon.start()
    assert_answers(daemon, watcher, probed)  # also after one more start it is not decoded again
    assert not any(one.source.startswith("door-") for one in watcher.results)
    assert not watcher.wait_status(lambda s: s.state == "serving", "the status").warning
