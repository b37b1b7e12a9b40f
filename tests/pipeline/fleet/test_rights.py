"""Who may do what, by the shipped ACL and policies: at Mosquitto, in a bucket, at AWS IoT Core."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import TYPE_CHECKING

import pytest
from local_services import MqttBroker
from securesystemslib.signer import CryptoSigner

from edge_client.contract.errors import SettingsError
from edge_client.contract.names import (
    announcement_topic,
    command_topic,
    events_topic,
    online_topic,
    probe_topic,
    report_request_topic,
    report_topic,
    results_topic,
    rollout_topic,
    status_topic,
)
from luigi_tasks.fleet.collector import subscriptions
from luigi_tasks.fleet.credentials import make_password, password_line
from luigi_tasks.fleet.documents import FleetKeys, SignedDocuments
from luigi_tasks.fleet.handover import change_passwords
from luigi_tasks.fleet.records import EnrolledDevice, SnapshotHead
from luigi_tasks.fleet.registry import RegistryChange, change_registry, load_registry
from luigi_tasks.fleet.retained import clear_retained
from luigi_tasks.fleet.snapshots import write_snapshot
from luigi_tasks.release.broker import BrokerClient, Message
from luigi_tasks.settings.values import BrokerSettings, FleetSettings
from luigi_tasks.storage.opening import open_store
from tests.fakes.aws_iot import ACCOUNT, REGION, allows, load_policy
from tests.fakes.broker_with_rights import AUDITOR, BrokerWithRights, Client
from tests.fakes.store_roles import PREFIX, access_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from local_services import ObjectStore

    from luigi_tasks.settings.values import StoreSettings
    from luigi_tasks.storage.store import Store

SIGNER = CryptoSigner.generate_ed25519()
FLEET_KEYS = FleetKeys(lambda: {SIGNER.public_key.keyid: SIGNER.public_key}, lambda: SIGNER)

FLEET, A, B = "f", "camera-1", "camera-2"
USERS = (A, B, "pipeline", "collector", "operator", AUDITOR)


def own(device: str) -> dict[str, set[str]]:
    """Topics of a device by what happens there."""
    both = ("", "doors")
    return {
        "said": {
            online_topic(FLEET, device),
            probe_topic(FLEET, device),
            *(status_topic(FLEET, device, one) for one in both),
            *(results_topic(FLEET, device, one) for one in both),
        },
        "report": {report_topic(FLEET, device, one) for one in both},
        "asked": {command_topic(FLEET, device, one) for one in both},
    }


def all_of(device: str) -> set[str]:
    """All topics of a device."""
    return set().union(*own(device).values())


CHANNELS = {announcement_topic(FLEET, "stable")}
REQUEST, EVENTS, ROLLOUTS = (
    {report_request_topic(FLEET)},
    {events_topic(FLEET)},
    {rollout_topic(FLEET, "stable")},
)
ENTITIES = {f"homeassistant/sensor/{FLEET}_{A}/label/config"}
ELSEWHERE = {f"edge/{FLEET}/other", "other"}
TOPICS = all_of(A) | all_of(B) | CHANNELS | REQUEST | EVENTS | ROLLOUTS | ENTITIES | ELSEWHERE
REPORTS = own(A)["report"] | own(B)["report"]
ONLINE = {online_topic(FLEET, A), online_topic(FLEET, B)}
STATUSES = {topic for topic in all_of(A) | all_of(B) if "/status" in topic}

WRITES = {
    A: all_of(A),
    B: all_of(B),
    "collector": REQUEST,
    "pipeline": CHANNELS | EVENTS | ROLLOUTS,
    "operator": CHANNELS | EVENTS | ROLLOUTS | REQUEST | STATUSES | ONLINE | ENTITIES,
}
READS = {
    A: all_of(A) | CHANNELS | REQUEST,
    B: all_of(B) | CHANNELS | REQUEST,
    # Patterns of devices hold for every user, with its own name in them.
    "collector": REPORTS | STATUSES | ONLINE | CHANNELS | REQUEST,
    "pipeline": all_of(A) | all_of(B) | CHANNELS | ROLLOUTS | REQUEST,
    "operator": {topic for topic in TOPICS if topic.startswith("edge/")} | ENTITIES,
}
LAST = {report_topic(FLEET, "last"), announcement_topic(FLEET, "last")}


@pytest.fixture(scope="module")
def passwords() -> dict[str, str]:
    """A password of each user."""
    return {user: make_password() for user in USERS}


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory, passwords: dict[str, str]) -> Iterator[MqttBroker]:
    """Mosquitto with the shipped ACL, and a line of `edge-fleet enroll` for each user."""
    if MqttBroker().mosquitto is None:
        pytest.skip("no mosquitto: the embedded broker has no rights to give")
    folder = tmp_path_factory.mktemp("broker")
    change_passwords(folder / "passwords", {user: password_line(user, passwords[user]) for user in USERS})
    with BrokerWithRights(folder, folder / "passwords") as running:
        yield running


@pytest.mark.parametrize("user", WRITES)
def test_each_user_writes_its_own_topics_and_no_others(broker, passwords, user):
    with (
        Client(broker, AUDITOR, passwords[AUDITOR], "#") as auditor,
        Client(broker, user, passwords[user]) as writer,
    ):
        writer.publish(TOPICS)
        auditor.publish(LAST)
        assert auditor.received_until(LAST) == WRITES[user]


@pytest.mark.parametrize("user", READS)
def test_each_user_reads_what_it_needs_and_nothing_else(broker, passwords, user):
    with (
        Client(broker, AUDITOR, passwords[AUDITOR]) as auditor,
        Client(broker, user, passwords[user], "#", f"edge/{FLEET}/devices/{B}/#", "edge/+/report") as reader,
    ):
        auditor.publish(TOPICS)
        auditor.publish(LAST)
        assert reader.received_until(LAST) == READS[user]


def test_a_device_takes_no_report_away_from_collectors_whose_group_it_does_not_know(broker, passwords):
    """Mosquitto asks nobody who joins a group of `$share`: its name is a secret, see docs/brokers.md."""
    topic = f"edge/{FLEET}/devices/+/report"
    group = make_password()
    collector = Client(broker, "collector", passwords["collector"], f"$share/{group}/{topic}")
    thief = Client(
        broker, B, passwords[B], *(f"$share/{name}/{topic}" for name in ("collectors", "collector"))
    )
    with collector, thief, Client(broker, AUDITOR, passwords[AUDITOR]) as auditor:
        reports = [report_topic(FLEET, f"camera-{number}") for number in range(8)]
        auditor.publish([*reports, report_topic(FLEET, "last")])
        assert collector.received_until(LAST) == set(reports)


def settings_of(broker: MqttBroker, user: str, password: str, folder: Path) -> BrokerSettings:
    """Settings of a user."""
    file = folder / "password"
    file.write_text(f"{password}\n")
    return BrokerSettings(
        broker.host, broker.port, FLEET, user, str(file), tls=False, ca_file="", timeout_s=5.0
    )


def test_a_password_is_good_for_its_device_alone(broker, passwords, tmp_path):
    BrokerClient(settings_of(broker, A, passwords[A], tmp_path)).check()
    with pytest.raises(SettingsError):
        BrokerClient(settings_of(broker, B, passwords[A], tmp_path)).check()


def test_what_a_device_left_at_the_broker_is_removed_by_who_may(broker, passwords, tmp_path):
    device = EnrolledDevice(device=A, channels=("stable", "doors"))
    client = {
        user: BrokerClient(settings_of(broker, user, passwords[user], tmp_path), retained_wait_s=0.1)
        for user in ("operator", "pipeline")
    }
    auditor = BrokerClient(settings_of(broker, AUDITOR, passwords[AUDITOR], tmp_path), retained_wait_s=0.1)
    entity = f"homeassistant/sensor/{FLEET}_{A}/label/config"
    alike = f"homeassistant/sensor/{FLEET}_{A}/other/config"
    known = {
        online_topic(FLEET, A): b"offline",
        status_topic(FLEET, A): b"{}",
        status_topic(FLEET, A, "doors"): b"{}",
        status_topic(FLEET, A, "gone"): b"{}",
        entity: f'{{"availability_topic":"{online_topic(FLEET, A)}"}}'.encode(),
    }
    others = {status_topic(FLEET, B): b"{}", alike: f'{{"t":"{online_topic(FLEET, "camera.1")}"}}'.encode()}
    messages = [Message(topic, data, is_retained=True) for topic, data in (known | others).items()]
    (tmp_path / "password").write_text(passwords[AUDITOR])
    auditor.publish(*messages)
    (tmp_path / "password").write_text(passwords["pipeline"])
    with pytest.raises(SettingsError, match=r"is still there.*user operator"):
        clear_retained(client["pipeline"], device)
    (tmp_path / "password").write_text(passwords["operator"])
    cleared = clear_retained(client["operator"], device, "homeassistant")
    assert set(cleared.topics) == known.keys()
    assert not cleared.was_online
    assert client["operator"].find_retained("#") == others


# AWS IoT Core

POLICIES = {
    A: "aws-iot-policy.json",
    "pipeline": "aws-iot-policy-pipeline.json",
    "collector": "aws-iot-policy-collector.json",
    "operator": "aws-iot-policy-operator.json",
}


@pytest.mark.parametrize("user", POLICIES)
def test_the_policies_of_aws_say_the_same(user):
    policy = load_policy(POLICIES[user], FLEET)
    thing = (
        {"iot:Connection.Thing.ThingName": A, "iot:Connection.Thing.IsAttached": "true"} if user == A else {}
    )

    def may(action: str, name: str, kind: str = "topic") -> bool:
        return allows(policy, f"iot:{action}", f"arn:aws:iot:{REGION}:{ACCOUNT}:{kind}/{name}", thing)

    # Narrower than Mosquitto's ACL in what nobody needs: a device does not ask itself, nor hear itself.
    asked = own(A)["asked"] if user == A else set()
    entities = ENTITIES if user == A else set()  # Mosquitto's line for them is commented out
    assert {one for one in TOPICS if may("Publish", one)} == (WRITES[user] - asked) | entities
    read = {one for one in TOPICS if may("Receive", one)}
    assert read <= READS[user] | own(A)["asked"]
    needed = {
        A: CHANNELS | REQUEST | own(A)["asked"],
        "pipeline": CHANNELS | ROLLOUTS,
        "collector": REPORTS | ONLINE,
        "operator": CHANNELS | ROLLOUTS | STATUSES | ONLINE,
    }
    assert needed[user] <= read
    assert may("Subscribe", f"edge/{FLEET}/devices/+/report", "topicfilter") == (
        user in {"collector", "operator"}
    )
    shared = f"$share/secret/edge/{FLEET}/devices/+/report"
    assert may("Subscribe", shared, "topicfilter") == (user == "collector")
    for group in ("", "secret"):
        heard = subscriptions(FLEET, FleetSettings(share_group=group))
        assert user != "collector" or all(may("Subscribe", one, "topicfilter") for one in heard)
    assert not any(may("RetainPublish", one) for one in REPORTS | REQUEST | EVENTS), (
        "an event is not retained"
    )
    assert not may("Connect", B, "client")


# The bucket

TAKEN = {
    "metadata/timestamp.json",
    "metadata/3.snapshot.json",
    "metadata/3.rollouts.json",
    "metadata/3.targets.json",
    "metadata/3.root.json",
    "targets/channels/1.stable.json",
    "targets/rollouts/1.stable.json",
    "targets/releases/r/1.model.tflite",
    "fleet/registry/index.json",
    "fleet/registry/shards/1.json",
    "fleet/snapshots/1.json",
    "fleet/rollouts/stable/current.json",
    "fleet/verdicts/stable/r/1.json",
    "fleet/told/stable.json",
    "inbox/camera-1/1.jpg",
    "inbox/camera-2/1.jpg",
    "work/plans/1.json",
}


def keys(*parts: str) -> set[str]:
    """Keys that begin with one of these texts."""
    return {key for key in TAKEN if key.startswith(parts)}


MOVES = keys(
    "metadata/timestamp", "metadata/3.snapshot", "metadata/3.rollouts", "targets/channels", "targets/rollouts"
)
MAY = {
    # role: what it may read, write and remove
    "pipeline": (
        TAKEN,
        TAKEN,
        keys("inbox/", "fleet/registry/shards/", "fleet/snapshots/", "targets/")
        | keys("metadata/3.snapshot", "metadata/3.rollouts", "metadata/3.targets"),
    ),
    "device": (keys("metadata/", "targets/"), {"inbox/camera-1/1.jpg"}, set()),
    "collector": (keys("metadata/", "targets/", "fleet/"), *[keys("fleet/snapshots/")] * 2),
    "board": (TAKEN, set(), set()),
    "approver": (
        keys("metadata/", "targets/", "fleet/"),
        MOVES | keys("fleet/rollouts/", "fleet/verdicts/", "fleet/told/", "fleet/registry/"),
        keys("fleet/registry/"),
    ),
}


def store_of(
    settings: StoreSettings, role: str, object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> Store:
    """The store as a role sees it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", access_key(role))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_of(access_key(role)))
    return open_store(settings)


@pytest.fixture
def shared_prefix(store_settings: StoreSettings, object_store: ObjectStore) -> StoreSettings:
    """The prefix that the roles have rights for, with an object at each key."""
    settings = dataclasses.replace(store_settings, url=f"s3://{object_store.bucket}/{PREFIX}")
    store = open_store(settings)
    for key in TAKEN:
        store.put(key, b"{}")
    return settings


@pytest.mark.parametrize("role", MAY)
def test_each_role_reads_writes_and_removes_what_it_needs_and_nothing_else(
    shared_prefix, object_store, monkeypatch, role
):
    store = store_of(shared_prefix, role, object_store, monkeypatch)

    def allowed(act: Callable[[str], object]) -> set[str]:
        found = set()
        for key in sorted(TAKEN):
            with contextlib.suppress(SettingsError):
                act(key)
                found.add(key)
        return found

    read, written, removed = MAY[role]
    assert allowed(store.get) == read
    assert allowed(lambda key: store.put(key, b"{}")) == written
    assert allowed(store.delete) == removed
    listed = {one for one in ("metadata/", "fleet/", "inbox/", "work/") if allowed_to_list(store, one)}
    assert (
        listed
        == {
            "pipeline": {"metadata/", "fleet/", "inbox/", "work/"},
            "device": {"metadata/"},
            "collector": {"metadata/", "fleet/"},
            "approver": {"metadata/", "fleet/"},
            "board": {"metadata/", "fleet/", "inbox/", "work/"},
        }[role]
    )


def allowed_to_list(store: Store, folder: str) -> bool:
    """Whether a listing is allowed."""
    try:
        store.list_folder(folder)
    except SettingsError:
        return False
    return True


def same(change: RegistryChange, _known: object) -> RegistryChange:
    """A change that does not ask what was there."""
    return change


def test_a_role_does_its_work_with_its_rights(shared_prefix, object_store, monkeypatch):
    store = open_store(shared_prefix)
    for key in TAKEN:
        store.delete(key)
    documents = SignedDocuments(store_of(shared_prefix, "approver", object_store, monkeypatch), FLEET_KEYS)
    for number in range(3):
        change = RegistryChange((EnrolledDevice(device=f"camera-{number}"),))
        ids = [row.device for row in change.devices]
        change_registry(documents, ids, functools.partial(same, change), who="ann", begin=True)
    for role in ("collector", "pipeline"):
        reading = SignedDocuments(store_of(shared_prefix, role, object_store, monkeypatch), FLEET_KEYS)
        assert len(load_registry(reading).devices) == 3
    collector = store_of(shared_prefix, "collector", object_store, monkeypatch)
    key = write_snapshot(collector, SnapshotHead(fleet=FLEET, taken_at=1e9, collector="c"), [], SIGNER)
    assert collector.get(key) is not None
    assert len(store.list_folder("fleet/registry/shards/")) == 2, "older shards were removed"
    device = SignedDocuments(store_of(shared_prefix, "device", object_store, monkeypatch), FLEET_KEYS)
    with pytest.raises(SettingsError):
        load_registry(device)
