"""The reports of a device to its fleet: the real daemon, a real broker."""

from __future__ import annotations

import signal

import pytest
from paho.mqtt import publish
from securesystemslib.signer import CryptoSigner

from edge_client import __version__
from edge_client.contract.errors import TrustError
from edge_client.contract.names import report_request_topic, report_topic
from edge_client.contract.report import PASSED, PROBATION, RUNNING, SENT_BACK
from edge_client.contract.signed_report import open_report
from edge_client.machine import boot_id, machine_fingerprint
from tests.fakes.device_daemon import DEVICE, Watcher, answer_all
from tests.fakes.tiny_model import tiny_labels, tiny_model

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


def test_a_flood_of_requests_makes_no_flood_of_reports(daemon, watcher, repository, mqtt_broker, fleet):
    # Long, so that on a busy machine heartbeats are no flood either.
    daemon.settings["status"] |= {"report_interval_s": 300.0}
    release = repository.publish_tiny(0).release
    daemon.start()
    watcher.wait_report(lambda r: r.release == release, "the first release")
    before = len(watcher.reports)
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


@pytest.mark.runtime
def test_reports_are_signed_once_the_key_is_there(daemon, watcher, repository, fleet):
    daemon.settings["status"] |= {"report_interval_s": 0.3}
    daemon.settings["device"] |= {"key_file": "device.pem"}
    repository.publish_tiny(0)
    daemon.start()
    report = watcher.wait_report(lambda r: "device.pem" in r.warning, "a report without a signature")
    assert "edge-fleet enroll" in report.warning
    assert not open_report(watcher.payloads[0], "a topic", None).is_signed
    signer = CryptoSigner.generate_ed25519()
    file = daemon.folder / "device.pem"
    file.write_bytes(signer.private_bytes)
    file.chmod(0o644)
    report = watcher.wait_report(lambda r: "every user of this machine may read" in r.warning, "a signature")
    topic = report_topic(fleet, DEVICE)
    assert open_report(watcher.payloads[-1], topic, signer.public_key).is_signed
    with pytest.raises(TrustError, match="not signed by the key"):
        open_report(watcher.payloads[-1], topic, CryptoSigner.generate_ed25519().public_key)
    asked = daemon.ask("doctor")
    assert (
        f"FAIL reports        [device] key_file {file}: every user of this machine may read it"
        in asked.stdout
    )
    file.chmod(0o600)
    asked = daemon.ask("doctor")
    assert f"signed with key {signer.public_key.keyid[:12]}" in asked.stdout


@pytest.mark.runtime
def test_each_channel_has_a_report_of_its_own_and_no_status_stays_at_the_broker(
    daemon, watcher, repository, mqtt_broker, fleet
):
    daemon.settings["status"] |= {"report_interval_s": 0.3, "retain": False}
    daemon.settings["device"] |= {"more_channels": ["doors"]}
    first = repository.publish_tiny(0).release
    second = repository.publish_tiny(1, "doors").release
    doors = Watcher(mqtt_broker, fleet, "doors")
    try:
        daemon.start()
        watcher.wait_report(lambda r: r.release == first, "the main channel's report")
        doors.wait_report(lambda r: r.release == second, "the extra channel's report")
        answer_all(daemon, watcher, "red", 2)
        report = doors.wait_report(
            lambda r: r.release == second and r.figures(second).frames == 2, "the extra channel's figures"
        )
        assert (report.channel, report.device) == ("doors", DEVICE)
        assert watcher.status is None
        assert doors.status is None
        assert watcher.online == "online"
    finally:
        doors.close()
    assert "serving" in daemon.ask("status").stdout


@pytest.mark.runtime
def test_a_model_file_is_reported_as_one(daemon, watcher, tmp_path):
    daemon.settings["status"] |= {"report_interval_s": 0.3}
    model = tmp_path / "own.tflite"
    model.write_bytes(tiny_model(kind="float32", softmax=False))
    daemon.settings["device"] |= {"model": str(model), "labels": list(tiny_labels())}
    for section in ("store", "trust"):
        del daemon.settings[section]
    daemon.start()
    daemon.drop("red")
    report = watcher.wait_report(lambda r: r.releases and r.releases[0].frames == 1, "a report")
    assert report.release.startswith("model-")
    assert (report.channel, report.decision, report.offered, report.stage) == ("", "", "", "")
    assert report.state == "serving"


@pytest.mark.runtime
def test_a_device_outside_the_rollout_says_what_it_saw_at_the_interval_that_the_fleet_asks_for(
    daemon, watcher, repository
):
    first = repository.publish_tiny(0).release
    repository.delegate()
    rollout = {"id": "r-1", "release": "b" * 20, "from_release": first, "threshold": 0, "heartbeat_s": 0.5}
    repository.roll_out(**rollout)
    daemon.start()
    report = watcher.wait_report(lambda r: r.interval_s == 0.5, "a report at the fleet's pace")
    assert (report.rollout, report.steady, report.offered) == ("r-1", first, first)
    watcher.wait(lambda w: len([one for one in w.reports if one.interval_s == 0.5]) > 3, "heartbeats")
    repository.roll_out(**{**rollout, "heartbeat_s": 0.0, "id": "", "release": ""})
    daemon.process.send_signal(signal.SIGHUP)
    report = watcher.wait_report(lambda r: r.sequence > report.sequence and not r.rollout, "the end of it")
    assert report.interval_s == 30.0
