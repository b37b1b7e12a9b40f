"""`edge-client doctor` on the broker: each topic that the settings use, tried as the daemon will use it."""

from __future__ import annotations

import getpass
import os
import socket
import threading

import pytest
from local_services import PATIENCE, MqttBroker, wait_until

from edge_client.commands.doctor.broker import check_broker
from edge_client.contract.errors import DeviceError, SettingsError, TransportError
from edge_client.reporting import broker_trial
from edge_client.settings.file import load_settings
from tests.fakes import aws_iot
from tests.fakes.aws_iot import AwsIotBroker, load_policy, without
from tests.fakes.device_daemon import DEVICE, DaemonUnderTest


@pytest.fixture
def aws(fleet):
    with AwsIotBroker({"": load_policy("aws-iot-policy.json", fleet)}) as broker:
        yield broker


@pytest.fixture
def camera(tmp_path, repository, aws, fleet):
    daemon = DaemonUnderTest(tmp_path, repository, aws, fleet)
    daemon.settings["device"]["more_channels"] = "doors"
    daemon.settings["homeassistant"] = {"discovery": True}
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()


@pytest.fixture
def _quickly(monkeypatch):
    monkeypatch.setattr(aws_iot, "CONNECT_EVERY_S", 0.0)
    monkeypatch.setattr(aws_iot, "RETAINED_EVERY_S", 0.0)
    monkeypatch.setattr(broker_trial, "_BETWEEN_S", 0.02)
    monkeypatch.setattr(broker_trial, "ANSWER_S", 0.5)
    monkeypatch.setattr(broker_trial, "ECHO_S", 0.5)


@pytest.mark.usefixtures("_quickly")
def test_each_denied_topic_is_named_and_nothing_is_left_behind(camera, aws, fleet):
    settings, allowed = load_settings(camera.file), aws.policies[""]
    assert "accepts this device and its messages, tried on 14 topics" in check_broker(settings)
    assert {one[0] for one in aws.log} == {DEVICE}  # the policy goes by the client id
    base = f"edge/{fleet}/devices/{DEVICE}"
    cases = {
        "topicfilter/edge": [f"subscribe edge/{fleet}/channels/{name}" for name in ("stable", "doors")],
        f"/edge/{fleet}/report": [f"subscribe edge/{fleet}/report"],
        "/update*": [f"subscribe {base}/update", f"subscribe {base}/update/doors"],
        "/status*": [f"publish {base}/status", f"publish {base}/status/doors"],
        "/re*": [f"publish {base}/{name}" for name in ("report", "report/doors", "results", "results/doors")],
        "homeassistant": [
            f"publish homeassistant/sensor/{fleet}_{DEVICE}/{name}/config"
            for name in ("label", "doors_label")
        ],
    }
    for part, expected in cases.items():
        aws.policies[""] = without(allowed, part)
        with pytest.raises(DeviceError) as raised:
            check_broker(settings)
        told = str(raised.value)
        assert all(f"does not let {DEVICE} {one};" in told for one in expected), told
        if part != "topicfilter/edge":
            assert told.count("does not let") == len(expected)
    aws.policies[""] = without(allowed, "/online")
    with pytest.raises(TransportError, match=rf"iot:RetainPublish of the last will's topic {base}/online"):
        check_broker(settings)
    aws.policies[""] = without(allowed, "/doctor")
    assert f"cannot be shown without {base}/doctor" in check_broker(settings)
    assert aws.retained == {}


@pytest.mark.usefixtures("_quickly")
@pytest.mark.parametrize("answers", [False, True])
def test_a_broker_that_says_nothing_is_named_in_time(camera, answers):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        camera.settings["broker"]["port"] = silent.getsockname()[1]
        if not answers:
            silent.close()
        with pytest.raises(TransportError, match=r"start it, or correct|no answer within"):
            check_broker(load_settings(camera.file))


def test_a_name_server_that_hangs_is_given_up(camera, monkeypatch):
    monkeypatch.setattr(broker_trial, "TRIAL_S", 0.1)
    monkeypatch.setattr(broker_trial.BrokerTrial, "_run", lambda *_: threading.Event().wait(2.0))
    with pytest.raises(TransportError, match="no answer within"):
        check_broker(load_settings(camera.file))


def test_discovery_without_a_broker_is_named(camera):
    camera.settings["broker"]["host"] = ""
    with pytest.raises(SettingsError, match="discovery needs a broker"):
        check_broker(load_settings(camera.file))


class DroppingBroker(MqttBroker):
    """Mosquitto whose ACL lets a device write its status and the topic of the trial, and read all."""

    def command(self) -> list[str]:
        assert self.mosquitto is not None
        acl, file = self.folder / "acl", self.folder / "mosquitto.conf"
        acl.touch(mode=0o600)
        written = ("online", "status/#", "doctor")
        lines = [f"pattern write edge/+/devices/%u/{topic}" for topic in written]
        acl.write_text("\n".join(["pattern read edge/#", *lines]) + "\n")
        file.write_text(
            f"user {getpass.getuser()}\nlistener {self.port} {self.host}\nallow_anonymous true\nacl_file "
            f"{acl}\n"
        )
        return [self.mosquitto, "-c", str(file)]


@pytest.mark.usefixtures("_quickly")
def test_messages_that_a_broker_acknowledges_and_drops_are_named(camera, tmp_path, fleet):
    if MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto: the embedded broker has no rights to give")
    del camera.settings["homeassistant"]
    with DroppingBroker(tmp_path / "broker") as broker:
        camera.settings["broker"] = {"port": broker.port, "username": DEVICE}
        with pytest.raises(DeviceError) as raised:
            check_broker(load_settings(camera.file))
    told = str(raised.value)
    assert told.count("(it drops it in silence)") == 4
    assert f"publish edge/{fleet}/devices/{DEVICE}/results;" in told
    assert "/status;" not in told


@pytest.mark.slow
def test_beside_a_daemon_doctor_lets_the_daemon_speak(camera, aws, repository):
    repository.publish_tiny(0)
    settings = load_settings(camera.file)
    camera.start()
    wait_until(lambda: len(aws.retained) > 3, "the daemon's messages")

    said = check_broker(settings)
    assert f"tried as {DEVICE}-doctor, which cannot show what the broker allows {DEVICE}" in said
    allowed = aws.policies[""]
    aws.policies[""] = without(allowed, ":client/")
    assert f"{DEVICE}-doctor may not even connect" in check_broker(settings)
    os.utime(settings.file)  # as an editor does: the daemon's word is of older settings
    with pytest.raises(DeviceError, match=r"changed after the daemon started, .*systemctl restart"):
        check_broker(settings)
    assert aws.connections(DEVICE) == 1
    aws.policies[""] = without(allowed, "/re*")
    camera.drop("blue")
    # After several lost connections, each some seconds by chance after the one before: 10 s, now and then 40.
    wait_until(
        lambda: f"does not let {DEVICE} publish" in camera.log, "the daemon's conclusion", 180 * PATIENCE
    )
    with pytest.raises(
        DeviceError, match=f"the daemon, which runs, reports: .*does not let {DEVICE} publish"
    ):
        check_broker(settings)
