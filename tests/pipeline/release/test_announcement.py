"""Announcements on a real broker."""

from __future__ import annotations

import concurrent.futures
import getpass
import logging
import uuid
from pathlib import Path

import pytest
from local_services import MqttBroker, free_ports
from paho.mqtt import publish

from edge_client.contract.errors import SettingsError, TransportError
from edge_client.contract.names import announcement_topic
from luigi_tasks.release import announcement
from luigi_tasks.release.announcement import announce, announced_release, is_announced
from luigi_tasks.release.broker import BrokerClient
from luigi_tasks.settings.values import BrokerSettings
from tests.fakes.aws_iot import SUBACK, AwsIotBroker, load_policy

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


def settings_for(broker, **changes) -> BrokerSettings:
    values = {
        "host": broker.host,
        "port": broker.port,
        "fleet": uuid.uuid4().hex,
        "username": "",
        "password_file": "",
        "tls": False,
        "ca_file": "",
        "timeout_s": 5.0,
    }
    return BrokerSettings(**{**values, **changes})


@pytest.fixture(params=["installed", "embedded"])
def broker(request, mqtt_broker, tmp_path):
    """Both brokers keep the promises, or the tests say which does not."""
    if request.param == "installed":
        yield mqtt_broker
        return
    with MqttBroker(tmp_path, mosquitto=False) as embedded:
        yield embedded


def test_what_is_announced_is_retained(broker):
    settings = settings_for(broker)
    client, impatient = BrokerClient(settings), BrokerClient(settings, retained_wait_s=0.2)
    assert announced_release(impatient, "stable") is None
    announce(client, "stable", "r1")
    announce(client, "stable", "r2")
    assert announced_release(client, "stable") == "r2"
    assert announced_release(impatient, "canary") is None


@pytest.mark.parametrize("payload", [b"not json", b"{}", b'{"release": 5}', b"\xff", b"x" * 10_000])
def test_a_broken_announcement_counts_as_missing_and_is_overwritten(mqtt_broker, payload):
    settings = settings_for(mqtt_broker)
    publish.single(
        announcement_topic(settings.fleet, "stable"),
        payload,
        qos=1,
        retain=True,
        hostname=mqtt_broker.host,
        port=mqtt_broker.port,
    )
    client = BrokerClient(settings)
    assert announced_release(client, "stable") is None
    announce(client, "stable", "r1")
    assert announced_release(client, "stable") == "r1"


def test_broker_down_is_named_with_the_way_out(mqtt_broker):
    client = BrokerClient(settings_for(mqtt_broker, port=free_ports(1)[0]))
    with pytest.raises(TransportError, match=r"MQTT broker 127\.0\.0\.1:\d+.*the next run continues"):
        announce(client, "stable", "r1")


def test_password_file_that_is_missing_is_named(mqtt_broker):
    client = BrokerClient(settings_for(mqtt_broker, username="pipeline", password_file="/nonexistent"))
    with pytest.raises(SettingsError, match="password_file /nonexistent"):
        announce(client, "stable", "r1")


def test_a_password_that_goes_out_in_the_clear_is_warned_of_once(mqtt_broker, tmp_path, caplog):
    (tmp_path / "password").write_text("secret\n")
    # The broker of this machine, under an address that is not one of loopback.
    there = settings_for(
        mqtt_broker,
        host="0.0.0.0",  # noqa: S104
        username="pipeline",
        password_file=str(tmp_path / "password"),
    )
    here = settings_for(mqtt_broker, username="pipeline", password_file=str(tmp_path / "password"))
    for settings in (here, there, there):
        assert announced_release(BrokerClient(settings, retained_wait_s=0.1), "stable") is None
    assert [message for message in caplog.messages if "in the clear" in message] == [
        f"[broker] tls = false: the password goes to 0.0.0.0:{mqtt_broker.port} in the clear; set tls = true"
    ]


class OneConnectionForEachName(MqttBroker):
    """Mosquitto that ends a connection for another one of the same user, as with configs/mosquitto.conf."""

    def command(self) -> list[str]:
        *command, file = super().command()
        with open(file, "a") as configuration:  # noqa: PTH123
            configuration.write("use_username_as_clientid true\n")
        return [*command, file]


def test_machines_of_one_name_that_announce_at_once_all_succeed(tmp_path):
    if MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto: the embedded broker lets each name have any number of connections")
    with OneConnectionForEachName(tmp_path) as broker:
        settings = settings_for(broker, username="pipeline")
        with concurrent.futures.ThreadPoolExecutor() as pool:
            done = [
                pool.submit(announce, BrokerClient(settings, retained_wait_s=0.5), f"channel-{number}", "r1")
                for number in range(3)
            ]
        for one in done:
            one.result()
        for number in range(3):
            assert announced_release(BrokerClient(settings), f"channel-{number}") == "r1"


def test_without_a_broker_nothing_is_announced_and_one_line_says_so(mqtt_broker, caplog):
    caplog.set_level(logging.INFO, "luigi-interface")
    announcement._tell_of_none.cache_clear()
    client = BrokerClient(settings_for(mqtt_broker, host=""))
    announce(client, "stable", "r1")
    assert is_announced(client, "stable", "r1")
    assert [message for message in caplog.messages if "broker" in message] == [
        "[broker] host is empty: nothing is announced, and devices find releases by polling"
    ]


class BrokerWithRights(MqttBroker):
    """Mosquitto with configs/mosquitto.acl, which drops what it denies, and acknowledges it."""

    def command(self) -> list[str]:
        *command, file = super().command()
        acl = self.folder / "acl"
        acl.touch(mode=0o600)
        acl.write_text((CONFIGS / "mosquitto.acl").read_text())
        with open(file, "a") as configuration:  # noqa: PTH123
            configuration.write(f"user {getpass.getuser()}\nacl_file {acl}\n")
        return [*command, file]


def test_an_announcement_that_the_broker_drops_in_silence_is_no_success(tmp_path, monkeypatch):
    if MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto: the embedded broker has no rights to give")
    monkeypatch.setattr(announcement, "_PAUSE_S", 0.01)
    with BrokerWithRights(tmp_path) as broker:
        stranger = BrokerClient(settings_for(broker, username="kiosk"), retained_wait_s=0.1)
        with pytest.raises(
            TransportError, match="does not hold the announcement of r1 after it was accepted"
        ):
            announce(stranger, "stable", "r1")
        pipeline = BrokerClient(settings_for(broker, username="pipeline"))
        announce(pipeline, "stable", "r1")
        assert announced_release(pipeline, "stable") == "r1"


class RefusingBroker(AwsIotBroker):
    """Refuses each subscription in the SUBACK."""

    def _subscribe(self, client, body: bytes) -> None:
        client.send(SUBACK, body[:2] + b"\x80")


def test_a_refused_subscription_is_told_from_a_missing_announcement():
    with RefusingBroker({"": load_policy("aws-iot-policy-pipeline.json", "f")}) as broker:
        client = BrokerClient(settings_for(broker, fleet="f"))
        with pytest.raises(SettingsError, match=r"does not let pipeline-\w+ read edge/f/channels/stable"):
            announced_release(client, "stable")
