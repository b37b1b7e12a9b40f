"""Home Assistant's MQTT discovery: label, confidence, latency, drift, and the release with an update button.

Source: Home Assistant's MQTT integration, discovery messages `<prefix>/<component>/<id>/config`.
"""

from __future__ import annotations

from typing import Any

import msgspec

from edge_client import __version__
from edge_client.contract.messages import UNKNOWN
from edge_client.contract.names import command_topic, online_topic, results_topic, status_topic

INSTALL = b"install"
# Home Assistant shows the text `unknown` as it shows any state that it does not know; the attributes keep the
# best label and its score. An earlier client, to which a device may go back, does not publish `sure`.
# The text `None` means no value to Home Assistant (core#142662): a class of that name is shown as `none`.
_LABEL = (
    "{{ ('none' if value_json.label == 'None' else value_json.label) "
    f"if value_json.sure | default(true) else '{UNKNOWN}' }}}}"
)
_ATTRIBUTES = (
    "{{ {'label': value_json.label, 'confidence': value_json.confidence, "
    "'sure': value_json.sure | default(true)} | to_json }}"
)
# Only a release that the button would install is shown as an update.
_MODEL = (
    "{% set installed = value_json.release or 'none' %}"
    "{{ {'installed_version': installed, 'latest_version': value_json.offered or installed, "
    "'in_progress': value_json.state == 'updating'} | to_json }}"
)


def discovery_messages(prefix: str, fleet: str, device_id: str, channel: str = "") -> dict[str, bytes]:
    """Return retained payloads by topic; an empty payload under the same topic removes an entity.

    Args:
        prefix: First part of the discovery topics.
        fleet: Fleet of the device.
        device_id: Device id.
        channel: An extra channel, whose entities carry its name; empty: the main channel.
    """
    results, status = results_topic(fleet, device_id, channel), status_topic(fleet, device_id, channel)
    entities = {
        **_sensors(results, status),
        **_drift(status),
        **_update_entity(status, command_topic(fleet, device_id, channel)),
    }
    return _messages(entities, prefix, fleet, device_id, channel)


def sensor_messages(prefix: str, fleet: str, device_id: str, channel: str = "") -> dict[str, bytes]:
    """Return the payloads of a device that serves a model file: no drift from a hold-out, no updates."""
    sensors = _sensors(results_topic(fleet, device_id, channel), status_topic(fleet, device_id, channel))
    return _messages(sensors, prefix, fleet, device_id, channel)


def _messages(
    entities: dict[str, tuple[str, dict[str, Any]]], prefix: str, fleet: str, device_id: str, channel: str
) -> dict[str, bytes]:
    node = f"{fleet}_{device_id}".replace(".", "_")  # Home Assistant's ids have no dots
    extra = f"{channel.replace('.', '_')}_" if channel else ""
    common = {
        "availability_topic": online_topic(fleet, device_id),
        "device": {"identifiers": [f"edge-client_{node}"], "name": device_id, "sw_version": __version__},
        "origin": {"name": "edge-client", "sw_version": __version__},
    }
    return {
        f"{prefix}/{component}/{node}/{extra}{key}/config": msgspec.json.encode(
            {
                **common,
                **entity,
                "name": f"{channel} {entity['name']}".strip(),
                "unique_id": f"edge-client_{node}_{extra}{key}",
            }
        )
        for key, (component, entity) in entities.items()
    }


def _sensors(results: str, status: str) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return component and configuration of each sensor, by key."""
    confidence = {
        "name": "Confidence",
        "state_topic": results,
        "value_template": "{{ (value_json.confidence * 100) | round(1) }}",
        "unit_of_measurement": "%",
        "state_class": "measurement",
    }
    latency = {
        "name": "Latency",
        "state_topic": status,
        "value_template": _field("latency_ms"),
        "unit_of_measurement": "ms",
        "state_class": "measurement",
        "entity_category": "diagnostic",
    }
    label = {
        "name": "Label",
        "state_topic": results,
        "value_template": _LABEL,
        "json_attributes_topic": results,
        "json_attributes_template": _ATTRIBUTES,
    }
    return {
        "label": ("sensor", label),
        "confidence": ("sensor", confidence),
        "latency": ("sensor", latency),
    }


def _drift(status: str) -> dict[str, tuple[str, dict[str, Any]]]:
    drift = {
        "name": "Drift",
        "state_topic": status,
        "value_template": "{{ 'ON' if value_json.drift and value_json.drift.alarm else 'OFF' }}",
        "device_class": "problem",
        "entity_category": "diagnostic",
    }
    return {"drift": ("binary_sensor", drift)}


def _update_entity(status: str, command: str) -> dict[str, tuple[str, dict[str, Any]]]:
    entity = {
        "name": "Model",
        "state_topic": status,
        "value_template": _MODEL,
        "command_topic": command,
        "payload_install": INSTALL.decode(),
        "entity_category": "config",
    }
    return {"model": ("update", entity)}


def _field(name: str) -> str:
    return f"{{{{ value_json.{name} }}}}"
