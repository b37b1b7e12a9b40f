"""Retained messages of a device at the broker, which outlive the device until somebody removes them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from edge_client.contract.names import check_name, online_topic, status_topic
from luigi_tasks.release.broker import Message

if TYPE_CHECKING:
    from luigi_tasks.fleet.records import EnrolledDevice
    from luigi_tasks.release.broker import BrokerClient

ONLINE = b"online"


@dataclasses.dataclass(frozen=True)
class ClearedTopics:
    """What was removed.

    Attributes:
        topics: Topics that hold no retained message any more.
        was_online: Whether the broker knew the device as connected: it will publish again.
    """

    topics: tuple[str, ...]
    was_online: bool


def clear_retained(broker: BrokerClient, device: EnrolledDevice, prefix: str = "") -> ClearedTopics:
    """Remove the retained messages of a device: status, online, and entities of Home Assistant.

    Args:
        broker: The broker.
        device: The device.
        prefix: Home Assistant's prefix; empty: entities are not looked for.
    Raises: SettingsError if the broker does not let this user do it; TransportError.
    """
    fleet, name = broker.fleet, device.device
    online = online_topic(fleet, name)
    is_online = broker.read_retained(online) == ONLINE
    # Those that every device has, for brokers that tell no retained message of a filter with wildcards.
    topics = {online, *(status_topic(fleet, name, channel) for channel in ("", *device.channels[1:]))}
    topics |= _find(broker, online, prefix)
    broker.publish(*(Message(topic, b"", is_retained=True) for topic in sorted(topics)))
    if not is_online and (left := _find(broker, online, prefix)):
        msg = (
            f"MQTT broker {broker.address}: {', '.join(sorted(left)[:10])} is still there. Brokers drop what "
            "an ACL denies without a word: allow this user to write it (configs/mosquitto.acl, user "
            "operator), or end a program that publishes it, and run this again"
        )
        raise SettingsError(msg)
    return ClearedTopics(tuple(sorted(topics)), is_online)


def _find(broker: BrokerClient, online: str, prefix: str) -> set[str]:
    """Return the topics of a device that hold a retained message."""
    found = set(broker.find_retained(f"{online.rpartition('/')[0]}/#"))
    if prefix:
        # The name of a device in these topics has no dots, so that two devices may have one name there.
        named = broker.find_retained(f"{check_name(prefix, 'prefix')}/+/{_node(broker, online)}/+/config")
        found |= {topic for topic, payload in named.items() if f'"{online}"'.encode() in payload}
    return found


def _node(broker: BrokerClient, online: str) -> str:
    return f"{broker.fleet}_{online.split('/')[3]}".replace(".", "_")
