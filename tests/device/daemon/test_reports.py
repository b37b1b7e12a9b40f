"""The reports of a device to its fleet: the real daemon, a real broker."""

from __future__ import annotations

import signal

import pytest
from paho.mqtt import publish

from edge_client import __version__
from edge_client.contract.names import report_request_topic
from edge_client.contract.report import PASSED, PROBATION, RUNNING, SENT_BACK
from edge_client.machine import boot_id, machine_fingerprint
from tests.fakes.device_daemon import DEVICE, answer_all

pytestmark = pytest.mark.slow


def ask_to_report(broker, fleet: str, times: int = 1) -> None:
    message = (report_request_topic(fleet), b"", 1, False)
    publish.multiple([message] * times, hostname=broker.host, port=broker.port)


@pytest.mark.runtime
def test_a_device_reports_its_releases_until_one_is_sent_back(
    daemon, watcher, repository, mqtt_broker, fleet
):
    daemon.settings["status"] |= {"report_interval_s": 0.5, "retain": True}
    daemon.settings["device"] |= {"site": "shop-7", "tags": ["outdoor", "line=3"]}
    document = repository.publish_tiny(0)
    first = document.release
    daemon.start()
    watcher.wait_release(first)
    answer_all(daemon, watcher, "red", 30)
    report = watcher.wait_report(
        lambda r: r.release == first and r.figures(first).frames == 30, "a heartbeat"
    )
    assert (report.fleet, report.device, report.channel) == (fleet, DEVICE, "stable")
    assert (report.site, report.tags, report.client) == ("shop-7", ("outdoor", "line=3"), __version__)
    assert (report.boot_id, report.machine.fingerprint) == (boot_id(), machine_fingerprint(fleet))
    assert (report.state, report.decision, report.stage) == ("serving", "serves", "")
    assert report.interval_s == 0.5
    assert "litert" in report.runtime or "tflite" in report.runtime
    assert report.operators == document.operators
    figures = report.figures(first)
    assert figures.probation == "", "the first release of a device has none"
    assert (figures.failed, figures.restarts, figures.labels) == (0, 0, {"red": 30})
    assert sum(figures.latency.values()) == sum(figures.confidence) == 30
    assert figures.latency_ms > 0
    assert figures.seconds > 0

    second = repository.publish_tiny(1).release
    watcher.announce(second)
    report = watcher.wait_report(lambda r: r.stage == PROBATION, "the probation")
    assert (report.release, report.previous, report.offered) == (second, first, second)
    assert report.figures(second).probation == RUNNING
    answer_all(daemon, watcher, "grey", 20)
    report = watcher.wait_report(lambda r: r.release == first and r.decision == "refused", "the way back")
    sent_back = report.figures(second)
    assert (sent_back.probation, sent_back.failed_stage) == (SENT_BACK, PROBATION)
    assert sent_back.reason_code == "worse"
    assert "unsure of 100% of the frames" in sent_back.reason
    assert sent_back.unsure >= 20
    assert report.figures(first).frames == 30, "what was counted before goes on"
    orders = [(one.start, one.sequence) for one in watcher.reports]
    assert orders == sorted(set(orders))


@pytest.mark.runtime
def test_figures_outlive_the_daemon(daemon, watcher, repository):
    daemon.settings["status"] |= {"report_interval_s": 0.3}
    daemon.settings["probation"] = {"frames": 25}
    first = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(first)
    answer_all(daemon, watcher, "red", 30)
    release = repository.publish_tiny(1).release
    watcher.announce(release)
    watcher.wait_release(release)
    answer_all(daemon, watcher, "green", 30)
    report = watcher.wait_report(
        lambda r: r.release == release and r.figures(release).probation == PASSED, "a probation that is over"
    )
    ended_at = report.figures(release).ended_at
    assert ended_at
    daemon.terminate()
    daemon.start()
    report = watcher.wait_report(lambda r: r.start > report.start, "the next start")
    assert report.figures(release).restarts == 0, "somebody asked for it"
    assert report.figures(release).frames + report.figures(first).frames == 60
    daemon.terminate(signal.SIGKILL)
    daemon.start()
    report = watcher.wait_report(lambda r: r.start > report.start, "the start after a kill")
    figures = report.figures(release)
    assert (figures.restarts, figures.probation, figures.ended_at) == (1, PASSED, ended_at)
    assert report.figures(first).restarts == 0


def test_a_flood_of_requests_makes_no_flood_of_reports(daemon, watcher, serving, mqtt_broker, fleet):
    daemon.terminate()
    daemon.settings["status"] |= {"report_interval_s": 30.0}
    before = len(watcher.reports)
    daemon.start()
    watcher.wait(lambda w: len(w.reports) > before, "the first report")
    ask_to_report(mqtt_broker, fleet, 2000)
    answer_all(daemon, watcher, "red", 5)
    assert len(watcher.reports) - before <= 5


def test_without_a_fleet_nothing_is_reported(daemon, watcher, repository):
    daemon.settings["status"] |= {"report_interval_s": 0.0}
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_release(release)
    answer_all(daemon, watcher, "red", 1)
    assert not watcher.reports
    assert not (daemon.state_dir / "figures.json").exists()
