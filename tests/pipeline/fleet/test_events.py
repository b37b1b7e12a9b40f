"""Events of rollouts: every receiver is told, at least once, and none that misbehaves stops anything."""

from __future__ import annotations

import base64
import dataclasses
import json
import logging
import queue
from typing import TYPE_CHECKING

import msgspec
import pytest
from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edge_client.contract.errors import SettingsError
from edge_client.contract.names import events_topic, rollout_topic
from luigi_tasks.fleet import events as telling
from luigi_tasks.fleet import webhooks
from luigi_tasks.fleet.events import gate_event, tell_events, tell_gate
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.fleet.records import RolloutEvent, RolloutRecord
from luigi_tasks.fleet.webhooks import read_webhooks, sign_webhook
from luigi_tasks.release.broker import BrokerClient
from luigi_tasks.release.keys import make_keys
from luigi_tasks.release.repository import ReleaseRepository
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.settings.values import StoreSettings
from luigi_tasks.storage.folder_store import FolderStore
from tests.fakes.trust import trust_settings
from tests.fakes.webhook_receiver import WebhookReceiver

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def record(*what: str, rollout: str = "r1") -> RolloutRecord:
    events = tuple(
        RolloutEvent(at="2999-01-01T00:00:00+00:00", what=one, who="ann", why=f"because {one}")
        for one in what
    )
    return RolloutRecord(id=rollout, channel="stable", release="new", state="open", events=events)


class Telling:
    """Receivers, and the bucket that remembers what they were told."""

    def __init__(self, folder: Path, *receivers: WebhookReceiver) -> None:
        file = folder / "webhooks"
        file.write_text("# ours\n\n" + "".join(f"{one.url} {SECRET}\n" for one in receivers))
        store = StoreSettings((folder / "store").as_uri(), "", "", "when_required", conditional_writes=True)
        self.settings = dataclasses.replace(
            load_settings(broker={"host": ""}, fleet={"webhooks_file": str(file)}),
            store=store,
            trust=trust_settings(folder / "keys"),
        )
        make_keys(folder / "keys")
        self.repository = ReleaseRepository(FolderStore(store), self.settings.trust)
        self.documents = documents_of(self.repository)

    def tell(self, one: RolloutRecord | None) -> list[str]:
        if one is not None:
            key = f"fleet/rollouts/{one.channel}/{one.id}.json"
            found = self.documents.load(RolloutRecord, key, limit_bytes=1 << 20)
            self.documents.save(key, one, found.etag if found else None)
        return tell_events(self.settings, self.documents, "stable", one)


@pytest.fixture
def receiver():
    with WebhookReceiver() as one:
        yield one


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    monkeypatch.setattr(webhooks, "_PAUSE_S", 0.0)


def kinds(receiver: WebhookReceiver) -> list[str]:
    return [one["type"] for one in receiver.events]


def test_the_signature_is_that_of_the_specification():
    """The example of the specification's own libraries."""
    secret = base64.b64decode(SECRET.removeprefix("whsec_"))
    signature = sign_webhook(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_each_event_is_told_once_and_new_ones_later(tmp_path, receiver):
    telling = Telling(tmp_path, receiver)
    assert telling.tell(record("opened", "stage")) == []
    assert telling.tell(record("opened", "stage")) == []
    assert telling.tell(record("opened", "stage", "halted")) == []
    assert kinds(receiver) == ["rollout.opened", "rollout.stage", "rollout.halted"]
    headers, body = receiver.received[-1]
    told = json.loads(body)
    assert told["data"]["why"] == "because halted"
    assert headers["webhook-id"] == told["id"] == "r1-3"
    secret = base64.b64decode(SECRET.removeprefix("whsec_"))
    expected = sign_webhook(secret, "r1-3", int(headers["webhook-timestamp"]), body)
    assert headers["webhook-signature"] == expected


def test_what_a_receiver_did_not_take_is_told_at_the_next_look_in_order(tmp_path, receiver, caplog):
    with WebhookReceiver() as other:
        telling = Telling(tmp_path, receiver, other)
        receiver.refuse_after = 1
        caplog.set_level(logging.WARNING)
        faults = telling.tell(record("opened", "stage", "halted"))
        assert len(faults) == 1
        assert "answered 503" in faults[0]
        assert "T0KEN" not in faults[0] + caplog.text
        receiver.refuse_after = None
        receiver.received.clear()

        assert telling.tell(record("opened", rollout="r2")) == []

        assert [one["id"] for one in receiver.events] == ["r1-2", "r1-3", "r2-1"]
        assert [one["id"] for one in other.events] == ["r1-1", "r1-2", "r1-3", "r2-1"]


def test_a_receiver_that_answers_nothing_costs_a_bounded_time(tmp_path, receiver, monkeypatch):
    monkeypatch.setattr(telling, "LOOK_S", 0.3)
    told = Telling(tmp_path, receiver)
    receiver.hang()
    assert "no end within" in told.tell(record("opened"))[0]


def test_no_redirect_is_followed(tmp_path, receiver):
    with WebhookReceiver() as inside:
        receiver.status, receiver.location = 307, inside.url
        assert "answered 307" in Telling(tmp_path, receiver).tell(record("opened"))[0]
        assert inside.received == []


def test_an_event_of_last_week_is_told_no_more(tmp_path, receiver):
    told = Telling(tmp_path, receiver)
    old = msgspec.structs.replace(record("opened").events[0], at="2020-01-01T00:00:00+00:00")
    one = msgspec.structs.replace(record("opened", "done"), events=(old, record("done").events[0]))
    receiver.status = 500
    told.tell(one)
    receiver.received.clear()
    receiver.status = 200
    told.tell(one)
    assert kinds(receiver) == ["rollout.done"]


def test_a_refusal_of_the_gate_waits_for_a_receiver_that_is_away(tmp_path, receiver):
    told = Telling(tmp_path, receiver)
    event = gate_event(told.settings, "abc", "refused: accuracy 0.2\n\x1b[2J", is_refused=True)
    receiver.status = 500
    assert tell_gate(told.settings, told.repository, event)
    receiver.status = 200
    receiver.received.clear()
    assert tell_gate(told.settings, told.repository, event) == []
    assert tell_gate(told.settings, told.repository, event) == []
    assert told.tell(None) == []
    assert kinds(receiver) == ["release.refused"]
    assert receiver.events[0]["data"]["why"].isprintable()


def test_what_was_told_is_forged_and_events_are_told_again(tmp_path, receiver, caplog):
    """Whoever can write the bucket silences nobody."""
    told = Telling(tmp_path, receiver)
    assert told.tell(record("opened")) == []
    for forged in (b"{}", b"x" * (2 << 20)):
        told.documents.store.put("fleet/told/stable.json", forged)
        receiver.received.clear()
        told.tell(record("opened", "halted"))
        assert [one["id"] for one in receiver.events] == ["r1-1", "r1-2"]
        receiver.received.clear()
        assert told.tell(record("opened", "halted")) == []
        assert receiver.events == []
    assert "not signed by a trusted key" in caplog.text


def test_a_forged_record_of_the_last_rollout_keeps_no_event_of_this_one_back(tmp_path, receiver, caplog):
    telling = Telling(tmp_path, receiver)
    receiver.refuse_after = 0
    assert telling.tell(record("opened"))
    telling.documents.store.put("fleet/rollouts/stable/r1.json", b"{}")
    receiver.refuse_after = None
    receiver.received.clear()
    assert telling.tell(record("halted", rollout="r2")) == []
    assert [one["id"] for one in receiver.events] == ["r2-1"]
    assert "r1.json" in caplog.text


def test_a_machine_without_the_key_tells_and_says_so(tmp_path, receiver):
    """The event is worth more than the note that it was told."""
    told = Telling(tmp_path, receiver)
    next(tmp_path.glob("keys/**/rollouts.pem")).unlink()
    faults = tell_events(told.settings, told.documents, "stable", record("halted"))
    assert len(faults) == 1
    assert kinds(receiver) == ["rollout.halted"]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("https://hooks.example/T0KEN", "an address, a blank and its secret"),
        (f"http://hooks.example/T0KEN {SECRET}", "give https://"),
        (f"ftp://hooks.example/T0KEN {SECRET}", "give https://"),
        (f"https://user:pw@hooks.example/T0KEN {SECRET}", "without a user"),
        (f"https:///T0KEN {SECRET}", "with a host"),
        ("https://hooks.example/T0KEN whsec_short", "24 to 64 bytes"),
        ("https://hooks.example/T0KEN T0KEN0000000000000000000000000000000", "whsec_"),
        (f"https://hooks.example/T0KEN {SECRET}\nhttps://hooks.example/T0KEN {SECRET}", "each receiver once"),
    ],
)
def test_a_wrong_line_is_named_and_no_secret_is_shown(tmp_path, line, fault):
    (tmp_path / "webhooks").write_text(line)
    with pytest.raises(SettingsError) as caught:
        read_webhooks(str(tmp_path / "webhooks"))
    assert fault in str(caught.value)
    assert "T0KEN" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_the_broker_has_the_events_and_keeps_the_state(tmp_path, mqtt_broker):
    fleet = "telling"
    broker = {"host": mqtt_broker.host, "port": str(mqtt_broker.port), "fleet": fleet}
    told = Telling(tmp_path)
    told.settings = dataclasses.replace(load_settings(broker=broker), fleet=told.settings.fleet)
    heard: queue.Queue[tuple[str, bool]] = queue.Queue()
    listener = mqtt.Client(CallbackAPIVersion.VERSION2)
    listener.on_subscribe = lambda *_: heard.put(("subscribed", False))
    listener.on_message = lambda _c, _u, message: heard.put(
        (json.loads(message.payload)["type"], message.retain)
    )
    listener.connect(mqtt_broker.host, mqtt_broker.port)
    listener.subscribe(events_topic(fleet), qos=1)
    listener.loop_start()
    try:
        assert heard.get(timeout=60)[0] == "subscribed"
        assert told.tell(record("opened", "paused")) == []
        assert [heard.get(timeout=60) for _ in range(2)] == [
            ("rollout.opened", False),
            ("rollout.paused", False),
        ]
    finally:
        listener.loop_stop()
    kept = BrokerClient(told.settings.broker).read_retained(rollout_topic(fleet, "stable"))
    state = json.loads(kept or b"{}")
    assert (state["rollout"], state["state"], state["words"]) == ("r1", "open", "because paused")
