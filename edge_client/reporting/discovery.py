"""Home Assistant's discovery messages of this device at the broker, and the removal of those of before.

A discovery message is retained: an entity stays until an empty message replaces it. The topics that may hold
one are remembered in a file, written before the messages are sent, so that turning discovery off, another
prefix, name or channel leaves nothing behind.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, InputError
from edge_client.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

# In the state folder of the device.
DISCOVERY_FILE = "discovery.json"
_LIMIT_BYTES = 1_000_000


class AnnouncedEntities(Document, frozen=True, kw_only=True):
    """Topics that may hold a discovery message of this device."""

    topics: tuple[str, ...] = ()


class Discovery:
    """Discovery messages of one device."""

    def __init__(self, file: Path, messages: Mapping[str, bytes]) -> None:
        """Read which topics held messages before.

        Args:
            file: Remembers the topics.
            messages: Payloads by topic; empty where discovery is off.
        """
        self._file = file
        self._messages = messages
        known = _read(file)
        self._stale = known - set(messages)
        self._unremoved: set[int] | None = None  # numbers of the empty messages; None: not sent
        if set(messages) - known:
            self._remember(known | set(messages))

    def publish(self, publish: Callable[[str, bytes], int | None]) -> None:
        """Publish all messages, and empty ones in the place of those of before; at each connection.

        Args:
            publish: Publishes (topic, payload) retained; returns a number that `acknowledged` gets, or None
                if that is not possible now.
        """
        for topic, payload in self._messages.items():
            publish(topic, payload)
        numbers = {publish(topic, b"") for topic in self._stale}
        sent = {number for number in numbers if number is not None}
        self._unremoved = sent if len(sent) == len(self._stale) else None

    def acknowledged(self, number: int) -> None:
        """Note that the broker has a message."""
        if self._unremoved:
            self._unremoved.discard(number)

    def settle(self) -> None:
        """Forget the topics of before once the broker has removed their messages; call it now and then."""
        if self._stale and self._unremoved is not None and not self._unremoved:
            logger.info("%d entities of before are removed from Home Assistant", len(self._stale))
            self._stale = set()
            self._remember(set(self._messages))

    def _remember(self, topics: set[str]) -> None:
        try:
            write_durably(self._file, encode_document(AnnouncedEntities(topics=tuple(sorted(topics)))))
        except DeviceError as e:
            logger.warning("%s; entities of Home Assistant may stay when they are no longer wanted", e)


def _read(file: Path) -> set[str]:
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return set()
    except OSError as e:
        logger.warning("%s: %s; entities of Home Assistant may stay", file, e.strerror or e)
        return set()
    try:
        found = decode_document(AnnouncedEntities, data, source=str(file), limit_bytes=_LIMIT_BYTES)
    except InputError as e:
        logger.warning("%s; entities of Home Assistant may stay", e)
        return set()
    return {topic for topic in found.topics if topic.endswith("/config") and not set(topic) & set("+#")}
