"""The retained announcement of a channel: devices check for updates when they receive it."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.documents import decode_document, encode_document
from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.messages import ANNOUNCEMENT_LIMIT_BYTES, Announcement
from edge_client.contract.names import announcement_topic
from edge_client.contract.times import utc_now

if TYPE_CHECKING:
    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.release.published import RepositoryState

logger = logging.getLogger("luigi-interface")

# A managed broker of many machines may need a moment until all of them have a message that one has taken.
_READ_BACKS, _PAUSE_S = 3, 0.5


def release_to_announce(state: RepositoryState, channel: str) -> str | None:
    """Return the release that wakes the devices: the one that is rolled out, else the channel's.

    A device ignores the announcement of a release that it has.
    """
    pointer, rollout = state.channel(channel), state.rollout(channel)
    if rollout is not None and rollout.id and rollout.threshold:
        return rollout.release
    return None if pointer is None else pointer.release


def is_announced(broker: BrokerClient, channel: str, release: str) -> bool:
    """Whether a device that connects now receives the announcement of a release; true without a broker.

    Raises: TransportError if the broker cannot be reached; SettingsError.
    """
    if not broker.is_set:
        _tell_of_none()
        return True
    return announced_release(broker, channel) == release


def announced_release(broker: BrokerClient, channel: str) -> str | None:
    """Return the release that the broker's retained announcement names; None without a valid one.

    Raises: TransportError if the broker cannot be reached; SettingsError.
    """
    topic = announcement_topic(broker.fleet, channel)
    payload = broker.read_retained(topic)
    if payload is None:
        return None
    # A broken announcement counts as missing: the run replaces it.
    with contextlib.suppress(InputError):
        return decode_document(
            Announcement, payload, source=topic, limit_bytes=ANNOUNCEMENT_LIMIT_BYTES
        ).release
    return None


def announce(broker: BrokerClient, channel: str, release: str) -> None:
    """Publish the retained announcement and read it back; do nothing without a broker.

    Raises: TransportError if the broker does not take it or does not retain it; SettingsError.
    """
    if not broker.is_set:
        _tell_of_none()
        return
    topic = announcement_topic(broker.fleet, channel)
    message = Announcement(channel=channel, release=release, announced_at=utc_now())
    broker.publish_retained(topic, encode_document(message))
    for attempt in range(_READ_BACKS):
        time.sleep(_PAUSE_S * attempt)
        if announced_release(broker, channel) == release:
            return
    msg = (
        f"{broker.address}: topic {topic} does not hold the announcement of {release} after it was "
        "accepted; allow retained messages and writing in the broker's ACL or policy"
    )
    raise TransportError(msg)


@functools.cache
def _tell_of_none() -> None:
    logger.info("[broker] host is empty: nothing is announced, and devices find releases by polling")
