"""What becomes of results while the broker is away, over a restart, and of the pictures that they are of."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from local_services import MqttBroker, wait_until

from tests.fakes.device_daemon import DaemonUnderTest, Watcher

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURES = 300


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


def counts(device: DaemonUnderTest) -> dict[str, int]:
    """The counts of the sink `mqtt`, as `edge-client status` shows them."""
    sinks = json.loads(device.ask("status", "--json").stdout)["sinks"]
    return {name: sinks["mqtt"][name] for name in ("written", "unsent", "kept", "dropped")}


def test_results_of_an_outage_and_a_restart_arrive_once_in_order_and_no_picture_goes_before(
    device, own_broker, repository, fleet
):
    release = repository.publish_tiny(0).release
    watcher = Watcher(own_broker, fleet)
    device.start()
    watcher.wait_release(release)
    first = device.drop("blue")
    watcher.wait(lambda w: [one.source for one in w.results] == [first], "the first result")
    wait_until(lambda: not list(device.camera.iterdir()), "the picture to go")
    watcher.close()

    own_broker.stop()
    names = [device.drop("red") for _ in range(PICTURES)]
    wait_until(lambda: counts(device)["unsent"] == PICTURES, "the results")
    assert {path.name for path in device.camera.iterdir()} == set(names)  # in memory alone
    assert device.terminate() == 0
    assert f"{PICTURES} results are not sent; they are kept for the next start" in device.log
    assert not list(device.camera.iterdir())
    assert counts(device) == {"written": 1, "unsent": PICTURES, "kept": PICTURES, "dropped": 0}
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
