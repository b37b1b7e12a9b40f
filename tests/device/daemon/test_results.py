"""What becomes of results while the broker is away, over a restart, and of the pictures that they are of."""

from __future__ import annotations

import json
import os
import shutil
import signal
from typing import TYPE_CHECKING

import pytest
from local_services import MqttBroker, wait_until

from edge_client.reporting.status import STATUS_FILE, read_status
from edge_client.sources.folder_scan import BROKEN_FOLDER
from edge_client.state_folder import daemon_runs, refresh_status
from tests.fakes.device_daemon import DaemonUnderTest, Watcher
from tests.fakes.rude_proxy import FAULTS, RudeProxy
from tests.fault_table import Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PICTURES = 100


@pytest.fixture
def own_broker(tmp_path) -> Iterator[MqttBroker]:
    with MqttBroker(tmp_path / "broker") as broker:
        yield broker


@pytest.fixture
def device(tmp_path, repository, own_broker, fleet) -> Iterator[DaemonUnderTest]:
    daemon = DaemonUnderTest(tmp_path / "device", repository, own_broker, fleet)
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()


def counts(device: DaemonUnderTest, sink: str = "mqtt") -> dict[str, int]:
    """The counts of a sink that `edge-client status` shows; empty while a daemon does not refresh them."""
    file = device.state_dir / STATUS_FILE
    if daemon_runs(device.state_dir) and not refresh_status(device.state_dir, [file]):
        return {}
    shown = read_status(device.state_dir).sinks[sink]
    return {"written": shown.written, "unsent": shown.unsent, "kept": shown.kept, "dropped": shown.dropped}


def runs(device: DaemonUnderTest) -> bool:
    return daemon_runs(device.state_dir)


def pictures(device: DaemonUnderTest) -> set[str]:
    return {path.name for path in device.camera.iterdir() if path.is_file()}


def set_aside(device: DaemonUnderTest) -> set[str]:
    return {path.name for path in device.camera.glob(f"{BROKEN_FOLDER}/*")}


def test_results_of_an_outage_and_a_restart_arrive_once_in_order_and_no_picture_goes_before(
    device, own_broker, repository, fleet, faults
):
    release = repository.publish_tiny(0).release
    watcher = Watcher(own_broker, fleet)
    device.start()
    watcher.wait_release(release)
    first = device.drop("blue")
    watcher.wait(lambda w: [one.source for one in w.results] == [first], "the first result")
    wait_until(lambda: not pictures(device), "the picture to go")
    watcher.close()

    own_broker.stop()
    with faults.injected(Kind.RESULTS, "broker away", "the daemon is killed: the pictures are there again"):
        names = [device.drop("red") for _ in range(PICTURES)]
        wait_until(lambda: counts(device).get("unsent") == PICTURES, "the results")
        assert pictures(device) == set(names)  # their results are in memory alone
        device.process.kill()
        device.process.wait()
        device.start()
        wait_until(lambda: runs(device) and counts(device).get("unsent") == PICTURES, "the results once more")
    with faults.injected(Kind.RESULTS, "broker away", "SIGTERM, start"):
        assert device.terminate() == 0
        assert f"{PICTURES} results are not sent; they are kept for the next start" in device.log
        assert not pictures(device)
        assert counts(device) == {"written": 0, "unsent": PICTURES, "kept": PICTURES, "dropped": 0}
        assert [path.stat().st_mode & 0o777 for path in (device.state_dir / "unsent").iterdir()] == [0o600]
        own_broker.start()
        watcher = Watcher(own_broker, fleet)
        device.start()
        watcher.wait(lambda w: len(w.results) >= PICTURES, "the results")
        last = device.drop("blue")
        watcher.wait(lambda w: w.results[-1].source == last, "a new result")
        assert [one.source for one in watcher.results] == [*names, last]
        wait_until(lambda: not list((device.state_dir / "unsent").iterdir()), "the kept results to go")
        watcher.close()
        assert device.terminate() == 0


CHANGES: dict[str, Callable[[Path], object]] = {
    "moved": lambda path: path.rename(path.with_name("moved.jsonl")),
    "removed": lambda path: path.unlink(),
    "truncated": lambda path: os.truncate(path, 0),
    "replaced": lambda path: (path.with_name("new").write_bytes(b""), path.with_name("new").replace(path)),
    "its folder removed": lambda path: shutil.rmtree(path.parent),
}


def test_the_file_of_results_may_be_moved_removed_truncated_and_replaced(
    device, own_broker, repository, fleet, faults
):
    path = device.folder / "results" / "results.jsonl"
    device.settings["sinks"] = {"mqtt": False, "json_lines": str(path)}
    release = repository.publish_tiny(0).release
    watcher = Watcher(own_broker, fleet)
    device.start()
    watcher.wait_release(release)
    for fault, change in CHANGES.items():
        with faults.injected(Kind.RESULTS, "file of JSON lines", fault):
            device.drop("red")
            wait_until(lambda: not pictures(device), "the picture before")
            change(path)
            names = [device.drop("red") for _ in range(5)]
            wait_until(lambda: not pictures(device), "the pictures to go")
            lines = [json.loads(line)["source"] for line in path.read_text().splitlines()]
            assert lines == names, fault
    watcher.close()
    assert counts(device, "json_lines") == {"written": 30, "unsent": 0, "kept": 0, "dropped": 0}
    assert device.terminate() == 0


@pytest.mark.slow
def test_no_result_is_missing_whatever_the_network_and_the_daemon_do(
    device, own_broker, repository, fleet, faults
):
    release = repository.publish_tiny(0).release
    watcher = Watcher(own_broker, fleet)
    with RudeProxy(own_broker.host, own_broker.port) as proxy:
        device.settings["broker"]["port"] = proxy.port
        device.start()
        watcher.wait_release(release)
        names: list[str] = []
        cases = [(network, end) for network in FAULTS for end in (signal.SIGTERM, signal.SIGKILL)]
        for network, end in faults.sample(cases, by_default=2):
            with faults.injected(Kind.RESULTS, f"network to the broker: {network}", f"{end.name}, start"):
                proxy.fault = network
                names.extend(device.drop("red") for _ in range(20))
                wait_until(lambda: runs(device), "the daemon to handle signals")
                device.process.send_signal(end)
                device.process.wait()
                names.extend(device.drop("blue") for _ in range(20))
                proxy.fault = None
                device.start()
                watcher.wait(
                    lambda w: set(names) - set_aside(device) <= {one.source for one in w.results},
                    "all results",
                )
        wait_until(lambda: not pictures(device), "the pictures to go")
    # A kill in the middle of a decoding looks like a picture that ended the daemon; it is kept, and told.
    assert len(set_aside(device)) <= len([end for _, end in cases if end == signal.SIGKILL])
    watcher.close()
