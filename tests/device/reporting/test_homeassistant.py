"""What Home Assistant is told: topics that exist, templates that fit the messages."""

from __future__ import annotations

import json

import msgspec
import pytest

from edge_client.contract.messages import DeviceStatus, Drift
from edge_client.contract.names import command_topic, online_topic, results_topic, status_topic
from edge_client.reporting.homeassistant import INSTALL, discovery_messages
from tests.fakes.results import example_result

jinja2 = pytest.importorskip("jinja2", reason="templates are Home Assistant's to render")

MESSAGES = {
    topic: json.loads(payload)
    for topic, payload in discovery_messages("homeassistant", "f.1", "pi-1").items()
}


def rendered(name: str, message: object, template: str = "value_template") -> str:
    value = json.loads(msgspec.json.encode(message))
    return rendered_json(name, value, template)


def rendered_json(name: str, value: object, template: str = "value_template") -> str:
    [config] = [config for topic, config in MESSAGES.items() if topic.endswith(f"/{name}/config")]
    environment = jinja2.Environment()
    environment.filters["to_json"] = json.dumps
    return str(environment.from_string(config[template]).render(value_json=value))


RESULT = example_result(confidence=0.876)


def status(**fields) -> DeviceStatus:
    return DeviceStatus(device="pi-1", channel="stable", **{"state": "serving", **fields})


def test_topics_are_those_of_the_device():
    topics = {config["state_topic"] for config in MESSAGES.values()}
    assert topics == {results_topic("f.1", "pi-1"), status_topic("f.1", "pi-1")}
    assert {config["availability_topic"] for config in MESSAGES.values()} == {online_topic("f.1", "pi-1")}
    assert all(topic.startswith("homeassistant/") and "." not in topic for topic in MESSAGES)
    assert len({config["unique_id"] for config in MESSAGES.values()}) == len(MESSAGES) == 5


@pytest.mark.parametrize(
    ("drift", "shown"),
    [
        (None, "OFF"),
        (Drift(answers=500, labels=0.1, confidence=0.1), "OFF"),
        (Drift(answers=500, labels=0.1, confidence=0.4, shift=0.3, alarm=True), "ON"),
    ],
)
def test_the_alarm_of_drift_is_a_problem(drift, shown):
    assert rendered("drift", status(drift=drift)) == shown
    assert rendered_json("drift", {"drift": {"answers": 500, "labels": 0.1, "confidence": 0.4}}) == "OFF"


def test_sensors_show_the_answer():
    assert rendered("label", RESULT) == "ripe"
    assert rendered("confidence", RESULT) == "87.6"


def test_a_class_that_is_named_none_has_a_state() -> None:
    """The text `None` would be no value to Home Assistant, as if there were no result (core#142662)."""
    none = msgspec.structs.replace(RESULT, label="None")
    assert rendered("label", none) == "none"
    assert json.loads(rendered("label", none, "json_attributes_template"))["label"] == "None"


@pytest.mark.parametrize("label", ["ripe", "unknown"])
def test_a_prediction_that_is_not_sure_is_unknown_and_its_best_label_an_attribute(label):
    unsure = msgspec.structs.replace(RESULT, sure=False, label=label)
    assert rendered("label", unsure) == "unknown"
    attributes = json.loads(rendered("label", unsure, "json_attributes_template"))
    assert attributes == {"label": label, "confidence": 0.876, "sure": False}
    assert rendered("confidence", unsure) == "87.6"


def test_results_of_a_client_that_does_not_say_sure_are_shown_as_before():
    said = json.loads(msgspec.json.encode(RESULT))
    del said["sure"]
    assert rendered_json("label", said) == "ripe"
    assert json.loads(rendered_json("label", said, "json_attributes_template"))["sure"] is True


@pytest.mark.parametrize(
    ("fields", "installed", "latest", "busy"),
    [
        ({"release": "a"}, "a", "a", False),
        ({"release": "a", "latest": "a", "state": "updating"}, "a", "a", True),
        ({"state": "waiting"}, "none", "none", False),
        ({"release": "a", "latest": "b", "decision": "refused", "refused": "b"}, "a", "a", False),
        ({"release": "a", "latest": "b", "decision": "not_in_share"}, "a", "a", False),
        ({"release": "a", "latest": "b", "decision": "held", "offered": "b"}, "a", "b", False),
        ({"release": "a", "offered": "b", "state": "updating"}, "a", "b", True),
        ({"release": "a", "latest": "b", "decision": "install"}, "a", "a", False),
    ],
)
def test_the_update_entity_shows_the_serving_and_the_offered_release(fields, installed, latest, busy):
    told = json.loads(rendered("model", status(**fields)))
    assert told == {"installed_version": installed, "latest_version": latest, "in_progress": busy}


def test_the_update_button_publishes_on_the_command_topic():
    [config] = [config for topic, config in MESSAGES.items() if "/update/" in topic]
    assert config["command_topic"] == command_topic("f.1", "pi-1")
    assert config["payload_install"].encode() == INSTALL


def test_an_extra_channel_has_entities_of_its_own():
    extra = {
        topic: json.loads(payload)
        for topic, payload in discovery_messages("homeassistant", "f.1", "pi-1", "doors").items()
    }
    assert not extra.keys() & MESSAGES.keys()
    known = {config["unique_id"] for config in MESSAGES.values()}
    assert not {config["unique_id"] for config in extra.values()} & known
    assert {config["state_topic"] for config in extra.values()} == {
        results_topic("f.1", "pi-1", "doors"),
        status_topic("f.1", "pi-1", "doors"),
    }
    [button] = [config["command_topic"] for config in extra.values() if "command_topic" in config]
    assert button == command_topic("f.1", "pi-1", "doors") == "edge/f.1/devices/pi-1/update/doors"
    assert {config["name"] for config in extra.values()} == {
        "doors Label",
        "doors Confidence",
        "doors Latency",
        "doors Drift",
        "doors Model",
    }
    devices = [config["device"]["identifiers"] for config in (*extra.values(), *MESSAGES.values())]
    assert all(device == devices[0] for device in devices)
