"""Server-sent events: open pages are told which of their topics changed, and fetch what they show again.

    event: snapshot
    data: 20261128T020000Z-collector

The data is the version of the topic. A page that connects again gets all versions, and fetches what changed
meanwhile.
"""

from __future__ import annotations

import asyncio
from typing import Any

# What can change: the fleet's snapshot, rollouts, releases, frames in the inbox, runs of the pipeline.
SNAPSHOT, ROLLOUTS, RELEASES, INBOX, PIPELINE = "snapshot", "rollouts", "releases", "inbox", "pipeline"
TOPICS = (SNAPSHOT, ROLLOUTS, RELEASES, INBOX, PIPELINE)


class Streams:
    """Open streams, and the version of each topic."""

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self._queues: set[asyncio.Queue[str]] = set()

    def __len__(self) -> int:
        return len(self._queues)

    def tell(self, topic: str, version: str) -> None:
        """Tell all open pages that a topic changed, unless they know this version; from the event loop."""
        if self.versions.get(topic) == version:
            return
        self.versions[topic] = version
        for queue in self._queues:
            queue.put_nowait(event(topic, version))

    def open(self) -> asyncio.Queue[str]:
        """Return the queue of a new stream; its first events are all versions."""
        queue: asyncio.Queue[str] = asyncio.Queue()
        for topic, version in self.versions.items():
            queue.put_nowait(event(topic, version))
        self._queues.add(queue)
        return queue

    def close(self, queue: asyncio.Queue[Any]) -> None:
        """Forget a stream."""
        self._queues.discard(queue)


def event(topic: str, version: str) -> str:
    """Return an event as it is sent."""
    return f"event: {topic}\ndata: {version}\n\n"
