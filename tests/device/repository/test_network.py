"""The daemon behind networks that drop, reset, truncate, blackhole and delay; services that restart."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import pytest
from local_services import MqttBroker, wait_until

from tests.fakes.device_daemon import Watcher, assert_answers
from tests.fakes.rude_proxy import FAULTS, RudeProxy
from tests.fault_table import Kind

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def answered(path) -> list[str]:
    """Pictures that were classified, whatever the broker does."""
    return [json.loads(line)["source"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_network_delays_an_update_and_no_picture(
    daemon,
    watcher,
    repository,
    mqtt_broker,
    tmp_path,
    fault,
    faults,
):
    log = tmp_path / "results.jsonl"
    url = urlsplit(repository.url)
    with (
        RudeProxy("127.0.0.1", url.port or 0) as store,
        RudeProxy(mqtt_broker.host, mqtt_broker.port) as broker,
    ):
        daemon.settings["store"] |= {
            "base_url": f"http://127.0.0.1:{store.port}{url.path}",
            "timeout_s": 1.0,
        }
        daemon.settings["broker"]["port"] = broker.port
        daemon.settings["sinks"]["json_lines"] = str(log)
        first = repository.publish_tiny(0).release
        daemon.start()
        watcher.wait_release(first)
        store.fault = broker.fault = fault
        release = repository.publish_tiny(1).release
        watcher.announce(release)
        names = {daemon.drop(label) for label in ("red", "green", "blue")}
        wait_until(lambda: names <= set(answered(log)), "the answers, on the disk")
        wait_until(lambda: broker.spoilt > 0, "the fault to be met")
        store.fault = broker.fault = None
        with faults.injected(Kind.POWER, "newer release, network between device, store and broker", fault):
            watcher.wait_release(release)
            assert_answers(daemon, watcher, release)
            assert "Traceback" not in daemon.log


def test_store_and_broker_that_restart_in_an_update_are_waited_for(
    daemon, repository, tmp_path, fleet, faults
):
    with MqttBroker(tmp_path / "broker") as own:
        watcher = Watcher(own, fleet)
        daemon.settings["broker"]["port"] = own.port
        first = repository.publish_tiny(0).release
        daemon.start()
        watcher.wait_release(first)
        document = repository.publish_tiny(1)
        [model] = [path for path in repository.objects if document.release in path and "tflite" in path]
        repository.break_off_after[model] = 100
        watcher.announce(document.release)
        wait_until(lambda: model in repository.requests, "the download to break")
        repository.stop()
        own.stop()
        own.start()
        repository.break_off_after.clear()
        repository.start()
        with faults.injected(Kind.POWER, "newer release", "store and broker restarted"):
            watcher.wait_release(document.release)
            assert_answers(daemon, watcher, document.release)
        assert repository.ranges[model] == [100]
        watcher.close()
