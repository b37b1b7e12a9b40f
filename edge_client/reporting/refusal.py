"""What it means for a device that its broker denies a topic, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.reporting.denials import Act, Use

if TYPE_CHECKING:
    from collections.abc import Sequence

_SHOWN = 4


def rights_for(use: Use) -> str:
    """Return the actions and resource of an AWS IoT policy that allow the use of a topic."""
    pattern = use.topic.replace("/#", "/*")
    if use.act is Act.SUBSCRIBE:
        return f"iot:Subscribe on topicfilter/{pattern} and iot:Receive on topic/{pattern}"
    plain = {"results", "report"}.intersection(use.topic.split("/")[4:5])
    retained = "" if plain else " and iot:RetainPublish"
    return f"iot:Publish{retained} on topic/{pattern}"


def describe_denial(address: str, client_id: str, use: Use) -> str:
    """Return one sentence: what is denied, what does not work without it, and the way out."""
    rights = rights_for(use)
    retained = ", and retained messages at all," if "Retain" in rights else ""
    return (
        f"MQTT broker {address}: does not let {client_id} {use.act.value} {use.topic}; {_consequence(use)}. "
        f"Allow it{retained} in the broker's policy or ACL (AWS IoT Core: {rights}); it is tried again now "
        "and then"
    )


def describe_suspicion(address: str, uses: Sequence[Use], *, unanswered: bool) -> str:
    """Return one sentence for a connection at whose end topics were under way.

    Args:
        address: Of the broker.
        uses: What was under way.
        unanswered: Whether the broker did not acknowledge it, and the connection was given up for that.
    """
    topics, rights = _some([use.topic for use in uses]), _some([rights_for(use) for use in uses])
    if unanswered:
        found, else_ = f"it does not acknowledge {topics}", "or beyond their rates"
    else:
        found, else_ = f"it ended the connection right after this device used {topics}", "or when they end"
    return (
        f"MQTT broker {address}: {found}: brokers do so where a policy or an ACL forbids it (AWS IoT Core: "
        f"{rights}), {else_}. Connecting again, one message after the other"
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def _consequence(use: Use) -> str:
    parts = use.topic.split("/")
    if use.act is Act.CONNECT:
        return "after a power cut the device stays `online` there"
    if use.act is Act.SUBSCRIBE:
        return _unheard(parts[2])
    if parts[0] != "edge":
        return "Home Assistant does not find the device"
    subject = parts[4] if len(parts) > 4 else ""
    told = {
        "results": "results wait on this device",
        "status": "its status is not seen there",
        "report": "rollouts of its fleet do not count this device. Without a fleet, set [status] "
        "report_interval_s = 0",
    }
    return told.get(subject, "it does not show there as online")


def _unheard(subject: str) -> str:
    told = {
        "channels": "until then only polling finds releases",
        "report": "until then it reports at its interval alone",
    }
    return told.get(subject, "until then requests to update are not heard")
