"""Home Assistant finds the device by itself: its answer, its confidence, its release with an update button.

Source: Home Assistant's MQTT integration, discovery messages `<prefix>/<component>/<id>/config`.
"""

from __future__ import annotations

import msgspec

from edge_client import __version__
from edge_client.contract.names import command_topic, online_topic, results_topic, status_topic

INSTALL = b"install"
# As `follower.explain_outcome` words it: the status has no other sign of a release for other devices only.
_FOR_OTHERS = "this one is not among them"
# A release that the button would not bring is not shown as an update.
_MODEL = (
    "{% set installed = value_json.release or 'none' %}"
    "{% set offered = value_json.latest and value_json.latest != value_json.refused"
    f" and '{_FOR_OTHERS}' not in value_json.why %}}"
    "{{ {'installed_version': installed, "
    "'latest_version': value_json.latest if offered else installed, "
    "'in_progress': value_json.state == 'updating'} | to_json }}"
)


def discovery_messages(prefix: str, fleet: str, device_id: str, channel: str = "") -> dict[str, bytes]:
    """Return retained payloads by topic; an empty payload under the same topic takes an entity away.

    Args:
        prefix: First part of the discovery topics.
        fleet: The device's.
        device_id: The device's.
        channel: One beside its main channel: its entities carry its name; empty: the main one.
    """
    node = f"{fleet}_{device_id}".replace(".", "_")  # their ids have no dots
    results, status = results_topic(fleet, device_id, channel), status_topic(fleet, device_id, channel)
    beside = f"{channel.replace('.', '_')}_" if channel else ""
    common = {
        "availability_topic": online_topic(fleet, device_id),
        "device": {"identifiers": [f"edge-client_{node}"], "name": device_id, "sw_version": __version__},
        "origin": {"name": "edge-client", "sw_version": __version__},
    }
    entities: dict[str, tuple[str, dict[str, object]]] = {
        "label": ("sensor", {"name": "Label", "state_topic": results, "value_template": _field("label")}),
        "confidence": (
            "sensor",
            {
                "name": "Confidence",
                "state_topic": results,
                "value_template": "{{ (value_json.confidence * 100) | round(1) }}",
                "unit_of_measurement": "%",
                "state_class": "measurement",
            },
        ),
        "latency": (
            "sensor",
            {
                "name": "Latency",
                "state_topic": status,
                "value_template": _field("latency_ms"),
                "unit_of_measurement": "ms",
                "state_class": "measurement",
                "entity_category": "diagnostic",
            },
        ),
        "model": (
            "update",
            {
                "name": "Model",
                "state_topic": status,
                "value_template": _MODEL,
                "command_topic": command_topic(fleet, device_id, channel),
                "payload_install": INSTALL.decode(),
                "entity_category": "config",
            },
        ),
    }
    return {
        f"{prefix}/{component}/{node}/{beside}{name}/config": msgspec.json.encode(
            {
                **common,
                **entity,
                "name": f"{channel} {entity['name']}".strip(),
                "unique_id": f"edge-client_{node}_{beside}{name}",
            }
        )
        for name, (component, entity) in entities.items()
    }


def _field(name: str) -> str:
    return f"{{{{ value_json.{name} }}}}"
