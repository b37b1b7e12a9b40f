"""A real disk that is full or read-only: the device starts, serves its release, and reports the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from local_services import wait_until

from tests.fakes.device_daemon import DEVICE, LIMIT_S, assert_answers
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


def system(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the system; skips where there is none."""
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"no {program} here")
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=False)


class SmallDisk:
    """4 MB that the kernel itself fills up or makes read-only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self) -> None:
        done = system("mount", "-t", "tmpfs", "-o", "size=4m", "edge-test", str(self.folder))
        if done.returncode:
            pytest.skip(f"no tmpfs may be mounted here: {done.stderr.strip()}")

    def make_read_only(self) -> None:
        system("mount", "-o", "remount,ro", str(self.folder)).check_returncode()

    def fill(self) -> None:
        with (self.folder / "filler").open("wb", buffering=0) as file:
            for size in (65536, 1):  # to the last byte of the last page
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * size)
        with pytest.raises(OSError, match="No space") as caught:
            (self.folder / "probe").write_bytes(b"x")
        assert caught.value.errno == errno.ENOSPC
        (self.folder / "probe").unlink(missing_ok=True)

    def make_room(self) -> None:
        (self.folder / "filler").unlink()


@pytest.fixture
def disk(daemon) -> Iterator[SmallDisk]:
    """The state folder of the daemon."""
    daemon.state_dir.mkdir()
    disk = SmallDisk(daemon.state_dir)
    disk.mount()
    yield disk
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()
    system("umount", "--lazy", str(daemon.state_dir)).check_returncode()


@pytest.fixture
def stopped(disk, daemon, watcher, serving):
    """The daemon took a release and ended; returns the release."""
    assert daemon.terminate() == 0
    watcher.wait(lambda w: w.online == "offline", "offline")
    watcher.status = None
    return serving


BAD = {
    "read-only": (SmallDisk.make_read_only, "Read-only file system"),
    "full": (SmallDisk.fill, "No space left on device"),
}
NOTES = {"with a lock file": True, "without": False}


@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("kind", BAD)
def test_a_device_starts_serves_and_reports_the_disk(daemon, watcher, stopped, disk, kind, note):
    spoil, words = BAD[kind]
    if not NOTES[note]:
        (daemon.state_dir / "lock").unlink()
    spoil(disk)
    daemon.start()
    assert_answers(daemon, watcher, stopped)
    status = watcher.wait_status(lambda s: s.last_error is not None and words in s.last_error, words)
    assert (status.release, status.state, status.device) == (stopped, "serving", DEVICE)
    told = daemon.ask("status")
    assert (told.returncode, stopped in told.stdout) == (0, True), told.stderr
    second = daemon.ask("run")
    assert second.returncode == 5
    assert "another edge-client" in second.stderr
    assert_answers(daemon, watcher, stopped)
    assert daemon.terminate() == 0
    assert "Traceback" not in daemon.log


def test_a_disk_that_fills_up_while_it_serves_keeps_the_release(daemon, watcher, disk, serving, repository):
    disk.fill()
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    words = BAD["full"][1]
    status = watcher.wait_status(lambda s: s.last_error is not None and words in s.last_error, words)
    assert status.release == serving
    assert_answers(daemon, watcher, serving)
    disk.make_room()
    assert daemon.ask("update").returncode == 0
    watcher.wait_release(release)
    assert_answers(daemon, watcher, release)


def test_a_new_device_with_a_read_only_disk_reports_it(daemon, disk, repository):
    repository.publish_tiny(0)
    disk.make_read_only()
    daemon.start()
    wait_until(lambda: BAD["read-only"][1] in daemon.log, "the reason", LIMIT_S)
    assert "Traceback" not in daemon.log


def test_a_channel_that_is_added_on_a_read_only_disk_leaves_the_other_alone(daemon, watcher, stopped, disk):
    disk.make_read_only()
    daemon.settings["device"]["more_channels"] = "doors"
    daemon.start()
    assert_answers(daemon, watcher, stopped)


def test_a_damaged_release_on_a_read_only_disk_gives_way_to_the_one_before(
    daemon, watcher, disk, serving, repository
):
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait_release(release)
    assert daemon.terminate() == 0
    (daemon.state_dir / "slots" / release / "model.tflite").write_bytes(b"damaged")
    disk.make_read_only()
    daemon.start()
    assert_answers(daemon, watcher, serving)


def test_results_are_counted_while_the_disk_of_their_file_is_full_and_written_again_afterwards(
    daemon, watcher, disk, repository, faults
):
    path = disk.folder / "results.jsonl"
    daemon.settings["sinks"]["json_lines"] = str(path)
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(release)
    with faults.injected(Kind.RESULTS, "file of JSON lines", "the disk is full"):
        assert_answers(daemon, watcher, release)
        disk.fill()
        # The last page of the file itself may have room left.
        for _ in range(30):
            assert_answers(daemon, watcher, release)
        status = watcher.wait_status(lambda s: s.sinks["json_lines"].dropped > 0, "dropped results")
        assert f"{path}: No space left on device; results are dropped meanwhile" in status.warning
        disk.make_room()
        assert_answers(daemon, watcher, release)
        status = watcher.wait_status(lambda s: s.warning is None, "the end of the fault")
        counted = status.sinks["json_lines"]
        assert counted.written + counted.dropped == 32
        lines = [json.loads(line)["source"] for line in path.read_text().splitlines()]
        assert len(lines) == counted.written
