"""Server-sent events: open pages are told which of their topics changed, and fetch what they show again.

    event: snapshot
    data: 3f2a9c41b0

The data is the version of the topic. A page that connects again gets all versions, and fetches what changed
meanwhile. A page that reads slowly gets the newest version of each topic: nothing grows behind it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from luigi_tasks.board.access.limits import Slots

if TYPE_CHECKING:
    from collections.abc import Callable

# What can change: the fleet's snapshot, rollouts, releases, frames in the inbox, runs of the pipeline, and
# what people chose on the page Label.
SNAPSHOT, ROLLOUTS, RELEASES, INBOX, PIPELINE = "snapshot", "rollouts", "releases", "inbox", "pipeline"
LABELS = "labels"
TOPICS = (SNAPSHOT, ROLLOUTS, RELEASES, INBOX, PIPELINE, LABELS)
# Each costs about 0.1 MB, and a thread of nobody.
STREAMS_AT_MOST = 300


class TooManyStreamsError(Exception):
    """As many pages are open as the board follows."""


class Stream:
    """One open page: what it has to be told.

    Args:
        versions: What it is told first.
        give_back: Called when it is closed.
    """

    def __init__(self, versions: dict[str, str], give_back: Callable[[], None]) -> None:
        self.give_back = give_back
        self._pending = dict(versions)
        self._is_told = asyncio.Event()
        if versions:
            self._is_told.set()

    def put(self, topic: str, version: str) -> None:
        """Note a new version, in the place of an older one that was not sent."""
        self._pending[topic] = version
        self._is_told.set()

    def wake(self) -> None:
        """Let `get` return, also with nothing."""
        self._is_told.set()

    async def get(self) -> str:
        """Return what is to be sent, as soon as there is anything."""
        await self._is_told.wait()
        self._is_told.clear()
        pending, self._pending = self._pending, {}
        return "".join(event(topic, version) for topic, version in pending.items())


class Streams:
    """Open streams, and the version of each topic; for the thread of the event loop alone.

    Attributes:
        versions: Version of each topic that is known.
        on_open: Called when the first page is opened.
        has_ended: Whether the board ends, and streams do with it.
    """

    def __init__(self) -> None:
        self.versions: dict[str, str] = {}
        self.on_open: Callable[[], None] = _nothing
        self._streams: set[Stream] = set()
        self._slots = Slots(STREAMS_AT_MOST, STREAMS_AT_MOST // 2)
        self.has_ended = False

    def __len__(self) -> int:
        return len(self._streams)

    def tell(self, topic: str, version: str) -> None:
        """Tell all open pages that a topic changed, unless they know this version."""
        if self.versions.get(topic) == version:
            return
        self.versions[topic] = version
        for stream in self._streams:
            stream.put(topic, version)

    def open(self, network: str) -> Stream:
        """Return a new stream; what it sends first are all versions.

        Args:
            network: Where its page is: one network alone does not take all of them.
        Raises: TooManyStreamsError.
        """
        give_back = self._slots.take(network)
        if give_back is None:
            raise TooManyStreamsError
        stream = Stream(self.versions, give_back)
        self._streams.add(stream)
        if len(self._streams) == 1:
            self.on_open()
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream."""
        stream.give_back()
        self._streams.discard(stream)

    def end(self) -> None:
        """End all streams; a cancellation alone is lost where a stream has just been told something."""
        self.has_ended = True
        for stream in self._streams:
            stream.wake()


def event(topic: str, version: str) -> str:
    """Return an event as it is sent."""
    return f"event: {topic}\ndata: {version}\n\n"


def _nothing() -> None:
    pass
