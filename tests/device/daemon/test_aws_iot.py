"""Daemon, `doctor` and the pipeline's announcement under the policies of `configs/`, at a strict broker."""

from __future__ import annotations

import json
import re
import ssl
from typing import Any

import pytest
from local_services import wait_until

from edge_client.contract.errors import TransportError
from edge_client.contract.messages import DeviceStatus, InboxMetrics, SinkMetrics
from edge_client.contract.names import (
    announcement_topic,
    command_topic,
    online_topic,
    probe_topic,
    report_request_topic,
    report_topic,
    results_topic,
    status_topic,
)
from edge_client.reporting.homeassistant import discovery_messages
from edge_client.reporting.status import STATUS_FILE, StatusBoard
from tests.fakes.aws_iot import (
    ACCOUNT,
    CONFIGS,
    PAYLOAD_BYTES,
    POLICY_CHARACTERS,
    REGION,
    SLASHES,
    TOPIC_BYTES,
    AwsIotBroker,
    allows,
    load_policy,
)
from tests.fakes.certificates import CertificateAuthority
from tests.fakes.device_daemon import DEVICE, DaemonUnderTest

MORE = ("doors", "night", "yard", "gate")
ALPN = "x-amzn-mqtt-ca"


@pytest.fixture
def authority(tmp_path) -> CertificateAuthority:
    return CertificateAuthority(tmp_path / "authority")


@pytest.fixture
def aws(authority, fleet):
    """The broker with TLS, certificates and ALPN, as AWS IoT Core has it on port 443."""
    pair = authority.issue("server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols([ALPN])
    policies = {
        DEVICE: load_policy("aws-iot-policy.json", fleet),
        "pipeline": load_policy("aws-iot-policy-pipeline.json", fleet),
    }
    with AwsIotBroker(policies, context) as broker:
        yield broker


def access(broker, authority, name: str) -> dict[str, Any]:
    """What `[broker]` says of host and certificates; the same words on both sides."""
    pair = authority.issue(name)
    return {
        "host": broker.host,
        "port": broker.port,
        "tls": True,
        "ca_file": str(authority.certificate),
        "certificate_file": str(pair.certificate),
        "key_file": str(pair.key),
        "alpn": ALPN,
    }


@pytest.fixture
def camera(tmp_path, repository, aws, authority, fleet):
    daemon = DaemonUnderTest(tmp_path, repository, aws, fleet)
    daemon.settings["broker"] = access(aws, authority, DEVICE)
    daemon.settings["device"]["more_channels"] = ", ".join(MORE)
    daemon.settings["homeassistant"] = {"discovery": True}
    yield daemon
    if daemon.process is not None and daemon.process.poll() is None:
        daemon.process.kill()
        daemon.process.wait()


def topics(fleet: str) -> dict[str, set[str]]:
    """All topics of a device with these channels, by what is done with them."""
    extras = ("", *MORE)
    return {
        "heard": {announcement_topic(fleet, name) for name in ("stable", *MORE)}
        | {command_topic(fleet, DEVICE, extra) for extra in extras}
        | {report_request_topic(fleet)},
        "retained": {online_topic(fleet, DEVICE), *(status_topic(fleet, DEVICE, extra) for extra in extras)}
        | {topic for extra in extras for topic in discovery_messages("homeassistant", fleet, DEVICE, extra)},
        "sent": {topic(fleet, DEVICE, extra) for topic in (results_topic, report_topic) for extra in extras},
    }


@pytest.mark.slow
def test_daemon_doctor_and_announcement_work_under_the_policies(camera, aws, authority, fleet, repository):
    from luigi_tasks.release.announcement import announce, announced_release  # noqa: PLC0415 - not on a device
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415
    from luigi_tasks.settings.values import BrokerSettings  # noqa: PLC0415

    first = repository.publish_tiny(0).release
    found = camera.ask("doctor", "--json")
    [checked] = [one for one in json.loads(found.stdout)["checks"] if one["name"] == "broker"]
    assert checked["passed"], checked
    assert aws.refusals == []
    assert aws.retained == {}  # a device that never ran leaves nothing behind

    camera.start()
    wait_until(lambda: aws.retained.keys() >= topics(fleet)["retained"], "all states and entities")
    camera.drop("blue")
    wait_until(lambda: aws.count(DEVICE, "publish", "ok") > 0, "messages")
    wait_until(lambda: any(one[2] == results_topic(fleet, DEVICE) for one in aws.log), "a result")
    for extra in ("", *MORE):
        topic = report_topic(fleet, DEVICE, extra)
        wait_until(lambda: any(one[2] == topic for one in aws.log), f"a report on {topic}")  # noqa: B023
    assert {one[2] for one in aws.log if one[1] == "subscribe" and "doctor" not in one[2]} == topics(fleet)[
        "heard"
    ]

    # The pipeline announces the next release, and the daemon installs it: it polls once an hour.
    second = repository.publish_tiny(1).release
    broker = BrokerClient(
        BrokerSettings(
            fleet=fleet, username="", password_file="", timeout_s=5.0, **access(aws, authority, "pipeline")
        ),
        retained_wait_s=0.3,
    )
    announce(broker, "stable", second)
    assert announced_release(broker, "stable") == second
    assert first != second

    def status() -> DeviceStatus:
        return DeviceStatus(**json.loads((camera.state_dir / STATUS_FILE).read_text()))

    wait_until(lambda: status().release == second, "the update")
    assert aws.connections(DEVICE) == 2  # doctor's, and the daemon's: nobody was thrown off
    # Rates are limits that pass: the daemon may come within a second of doctor.
    rates = {"throttled", "more than one CONNECT a second"}
    assert [one for one in aws.refusals if one[3] not in rates] == []
    assert camera.terminate() == 0
    wait_until(lambda: aws.retained[online_topic(fleet, DEVICE)] == b"offline", "offline")


def test_the_policy_allows_a_device_its_own_topics_alone(fleet):
    policy = load_policy("aws-iot-policy.json", fleet)
    device = {
        "iot:ClientId": DEVICE,
        "iot:Connection.Thing.ThingName": DEVICE,
        "iot:Connection.Thing.IsAttached": "true",
        "iot:ConnectAttributes": ["LastWill"],
    }

    def may(action: str, name: str, kind: str = "topic", **changes: object) -> bool:
        return allows(
            policy, f"iot:{action}", f"arn:aws:iot:{REGION}:{ACCOUNT}:{kind}/{name}", device | changes
        )

    own = topics(fleet)
    assert all(may("Subscribe", one, "topicfilter") and may("Receive", one) for one in own["heard"])
    assert all(may("Publish", one) and may("RetainPublish", one) for one in own["retained"])
    assert all(may("Publish", one) for one in own["sent"])
    assert may("Connect", DEVICE, "client")

    assert not may("Connect", "camera-2", "client")
    assert not may("Connect", DEVICE, "client", **{"iot:Connection.Thing.IsAttached": "false"})
    assert not may("Connect", DEVICE, "client", **{"iot:ConnectAttributes": ["PersistentConnect"]})
    forbidden = {
        announcement_topic(fleet, "stable"),
        online_topic(fleet, "camera-2"),
        online_topic(fleet, f"{DEVICE}2"),
        online_topic("other", DEVICE),
        command_topic(fleet, DEVICE),
        report_topic(fleet, "camera-2"),
        report_request_topic(fleet),
        *discovery_messages("homeassistant", fleet, "camera-2"),
    }
    assert not any(may("Publish", one) or may("RetainPublish", one) for one in forbidden)
    assert not any(may("RetainPublish", one) for one in (*own["sent"], probe_topic(fleet, DEVICE)))
    wide = ("#", "edge/#", f"edge/{fleet}/#", f"edge/{fleet}/devices/#", f"edge/{fleet}/devices/+/update")
    assert not any(may("Subscribe", one, "topicfilter") for one in wide)
    assert not any(may("Receive", one) for one in (*own["retained"], *own["sent"]))


def test_the_pipelines_policy_allows_announcements_alone(fleet):
    policy = load_policy("aws-iot-policy-pipeline.json", fleet)

    def may(action: str, name: str, kind: str = "topic") -> bool:
        context = {"iot:ClientId": "pipeline-0123456789ab"}
        return allows(policy, f"iot:{action}", f"arn:aws:iot:{REGION}:{ACCOUNT}:{kind}/{name}", context)

    topic = announcement_topic(fleet, "stable")
    assert may("Connect", "pipeline-0123456789ab", "client")
    assert may("Publish", topic)
    assert may("RetainPublish", topic)
    assert may("Subscribe", topic, "topicfilter")
    assert may("Receive", topic)
    assert not may("Connect", DEVICE, "client")
    own = topics(fleet)
    assert not any(
        may("Publish", one) for one in (*own["retained"], *own["sent"], command_topic(fleet, DEVICE))
    )
    assert not any(may("Subscribe", one, "topicfilter") for one in ("#", f"edge/{fleet}/devices/#"))


@pytest.mark.parametrize("file", sorted(path.name for path in CONFIGS.glob("aws-iot-policy*.json")))
def test_a_policy_is_not_longer_than_aws_takes(file):
    text = (CONFIGS / file).read_text().replace("REGION", "ap-southeast-2").replace("ACCOUNT", ACCOUNT)
    assert len(re.sub(r"\s", "", text.replace("FLEET", "f" * 20))) <= POLICY_CHARACTERS


def test_no_topic_is_deeper_or_longer_than_aws_takes():
    long = "n" * 64
    found = {
        announcement_topic(long, long),
        status_topic(long, long, long),
        results_topic(long, long, long),
        report_topic(long, long, long),
        command_topic(long, long, long),
        online_topic(long, long),
        probe_topic(long, long),
    }
    entities = set(discovery_messages("homeassistant", "f" * 40, "d" * 60, "c" * 60))
    assert max(one.count("/") for one in found | entities) <= SLASHES
    assert max(len(one) for one in found | entities) <= TOPIC_BYTES


def test_no_status_is_larger_than_aws_takes(tmp_path):
    long = '\N{PILE OF POO}"' * 5000
    texts = ("why", "runtime", "last_error", "warning", "evidence", "passed_over")
    status = DeviceStatus(
        device="d" * 64,
        channel="c" * 64,
        state="serving",
        sinks={name: SinkMetrics(error=long) for name in ("mqtt", "json_lines", "standard_output", "action")},
        inbox=InboxMetrics(waiting=1, error=long),
    )
    published: list[bytes] = []

    def publish(payload: bytes) -> bool:
        published.append(payload)
        return True

    board = StatusBoard(status, file=tmp_path / STATUS_FILE, publish=publish, interval_s=0.01)
    board.change(**dict.fromkeys(texts, long))
    board.step()
    assert 10_000 < len(published[0]) <= PAYLOAD_BYTES


def test_the_pipeline_names_the_policy_that_forbids_it(aws, authority, fleet):
    from luigi_tasks.release import broker as pipeline_broker  # noqa: PLC0415
    from luigi_tasks.release.announcement import announce  # noqa: PLC0415
    from luigi_tasks.settings.values import BrokerSettings  # noqa: PLC0415

    settings = BrokerSettings(
        fleet="other", username="", password_file="", timeout_s=5.0, **access(aws, authority, "pipeline")
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline_broker, "_PAUSE_S", 0.01)
        client = pipeline_broker.BrokerClient(settings, retained_wait_s=0.1)
        with pytest.raises(
            TransportError, match=r"policy or an ACL forbids it.*iot:Publish and iot:RetainPublish"
        ):
            announce(client, "stable", "r1")
    stranger = BrokerSettings(
        fleet=fleet, username="", password_file="", timeout_s=5.0, **access(aws, authority, "stranger")
    )
    with pytest.raises(TransportError, match=r"iot:Connect on client/pipeline-"):
        announce(pipeline_broker.BrokerClient(stranger), "stable", "r1")
