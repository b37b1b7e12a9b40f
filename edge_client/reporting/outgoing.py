"""Messages and subscriptions on their way to the broker, in the order in which they go out.

Subscriptions and states go before entities of Home Assistant, and all before results: a device whose results
are late is better than one that is not seen.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from typing import TYPE_CHECKING

from edge_client.reporting.denials import Act, Use

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# Sent and not acknowledged: as many as paho has on the wire.
WINDOW = 20
# Of a careful connection, in seconds: before its first message, longer than another client with this id takes
# to come back; after a message; after a subscription. AWS IoT Core acknowledges one, and ends the connection
# when it may not deliver the retained message.
QUIET_S, GAP_S, SUBSCRIBED_GAP_S = 2.0, 0.1, 0.4
# After an answer: of the broker's time to end the connection, beside two of its answers.
_AFTERTHOUGHT_S = 0.05
# AWS IoT Core drops what is beyond 100 publishes a second on a connection, and a second retained message on a
# topic within one second.
AWS_PUBLISHES_PER_S, AWS_RETAINED_EVERY_S = 80, 1.1


@dataclasses.dataclass(frozen=True, slots=True)
class Operation:
    """A PUBLISH or SUBSCRIBE.

    Attributes:
        number: Number of the message, for who sent it.
        uses: What it does with which topics; several for a SUBSCRIBE.
        topics: These topics, in full.
        payload: Of a PUBLISH.
        retain: Whether the broker shall retain it.
        is_state: Whether it is state, retained or a report: the newest counts, and it is published anew after
            a connect.
    """

    number: int
    uses: tuple[Use, ...]
    topics: tuple[str, ...]
    payload: bytes = b""
    retain: bool = False
    is_state: bool = False

    @property
    def subscribes(self) -> bool:
        """Whether it is a SUBSCRIBE."""
        return self.uses[0].act is Act.SUBSCRIBE


def use_of(topic: str) -> Use:
    """Return the use of a topic that is published; those of discovery are denied or allowed together."""
    first, _, _ = topic.partition("/")
    return Use(Act.PUBLISH, topic if first == "edge" else f"{first}/#")


class Outgoing:
    """Queues, and what was sent and is not acknowledged. Any thread may put; one thread does the rest.

    Args:
        paced: Whether to keep to the rates of AWS IoT Core.
    """

    def __init__(self, *, paced: bool) -> None:
        self._paced = paced
        self._numbers = itertools.count(1)
        self._states: collections.deque[Operation] = collections.deque()
        self._entities: collections.deque[Operation] = collections.deque()
        self._results: collections.deque[Operation] = collections.deque()
        self._newest: dict[str, int] = {}  # number of the newest state of each topic
        self._under_way: dict[int, tuple[Operation, float]] = {}
        self._just_done: tuple[tuple[Use, ...], float] = ((), float("-inf"))
        self._answer_s = 0.0  # how long the last answer took
        self._published: collections.deque[float] = collections.deque(maxlen=AWS_PUBLISHES_PER_S)
        self._retained_at: dict[str, float] = {}

    def __len__(self) -> int:
        return sum(len(queue) for queue in self._queues) + len(self._under_way)

    @property
    def _queues(self) -> tuple[collections.deque[Operation], ...]:
        return self._states, self._entities, self._results

    @property
    def waits(self) -> bool:
        """Whether anything is not sent yet."""
        return any(self._queues)

    def number(self) -> int:
        """Return a number for a message that is never sent."""
        return next(self._numbers)

    def put(self, topic: str, payload: bytes, *, retain: bool) -> int:
        """Queue a message; return its number."""
        operation = self.state(topic, payload) if retain else self._operation(topic, payload, retain=False)
        self._queue_of(operation).append(operation)
        return operation.number

    def subscribe(self, uses: tuple[Use, ...]) -> None:
        """Queue a SUBSCRIBE."""
        self._states.append(Operation(next(self._numbers), uses, tuple(use.topic for use in uses)))

    def report(self, topic: str, payload: bytes) -> int:
        """Queue state that is not retained; return its number."""
        operation = self.state(topic, payload, retain=False)
        self._states.append(operation)
        return operation.number

    def state(self, topic: str, payload: bytes, *, retain: bool = True) -> Operation:
        """Return a message with state, which takes the place of older ones that wait."""
        operation = self._operation(topic, payload, retain=retain, is_state=True)
        self._newest[topic] = operation.number
        return operation

    def _operation(self, topic: str, payload: bytes, *, retain: bool, is_state: bool = False) -> Operation:
        return Operation(next(self._numbers), (use_of(topic),), (topic,), payload, retain, is_state)

    def take(self, now: float, allows: Callable[[Use], bool], *, careful: bool) -> Iterator[Operation]:
        """Yield what may be sent now; what is denied waits if it is a result, and is dropped if it is not.

        Args:
            now: Time.
            allows: Whether a topic may be used.
            careful: Whether one message goes at a time.
        """
        done, done_at = self._just_done
        gap_s = SUBSCRIBED_GAP_S if any(use.act is Act.SUBSCRIBE for use in done) else GAP_S
        if careful and now - done_at < gap_s:
            return
        for queue in self._queues:
            held: list[Operation] = []
            try:
                while queue and len(self._under_way) < (1 if careful else WINDOW):
                    operation = queue.popleft()
                    if operation.is_state and self._newest[operation.topics[0]] != operation.number:
                        continue
                    if not all(allows(use) for use in operation.uses):
                        held += [operation] if queue is self._results else []
                    elif self._is_too_fast(operation, now):
                        held.append(operation)
                    else:
                        yield operation
            finally:
                queue.extendleft(reversed(held))

    def put_back(self, operation: Operation) -> None:
        """Queue an operation that could not be sent first."""
        self._queue_of(operation).appendleft(operation)

    def sent(self, mid: int, operation: Operation, now: float) -> None:
        """Note that an operation is under way with this packet number."""
        self._under_way[mid] = (operation, now)
        if not operation.subscribes:
            self._published.append(now)
        if operation.retain:
            self._retained_at[operation.topics[0]] = now

    def done(self, mid: int, now: float) -> Operation | None:
        """Return what has this packet number, and is answered now; None if it is unknown."""
        operation, sent_at = self._under_way.pop(mid, (None, 0.0))
        if operation is not None:
            self._just_done, self._answer_s = (operation.uses, now), now - sent_at
        return operation

    def is_under_way(self, operation: Operation) -> bool:
        """Whether an operation was sent and is not answered."""
        return any(one is operation for one, _ in self._under_way.values())

    def overdue(self, now: float, limit_s: float) -> list[Use]:
        """Return what was sent so long ago, and is not answered."""
        late = [one for one, sent_at in self._under_way.values() if now - sent_at > limit_s]
        return [use for one in late for use in one.uses]

    def suspects(self, now: float, *, careful: bool) -> list[Use]:
        """Return for what the broker may have ended the connection now."""
        under_way = [use for one, _ in self._under_way.values() for use in one.uses]
        if careful and not under_way and now - self._just_done[1] < _AFTERTHOUGHT_S + 2 * self._answer_s:
            return list(self._just_done[0])  # a broker may answer and end the connection then
        return under_way

    def end(self) -> None:
        """Note the end of the connection: results are sent again, and states are published anew."""
        unanswered = [one for one, _ in self._under_way.values() if self._is_result(one)]
        self._under_way.clear()
        self._states.clear()
        self._entities.clear()
        self._results.extendleft(reversed(unanswered))

    def _queue_of(self, operation: Operation) -> collections.deque[Operation]:
        if self._is_result(operation):
            return self._results
        return self._states if operation.topics[0].startswith("edge/") else self._entities

    def _is_result(self, operation: Operation) -> bool:
        return not operation.subscribes and not operation.is_state

    def _is_too_fast(self, operation: Operation, now: float) -> bool:
        """Whether AWS IoT Core would drop a message that is sent now."""
        if not self._paced or operation.subscribes:
            return False
        full = len(self._published) == AWS_PUBLISHES_PER_S and now - self._published[0] < 1.0
        since = now - self._retained_at.get(operation.topics[0], float("-inf"))
        return full or (operation.retain and since < AWS_RETAINED_EVERY_S)
