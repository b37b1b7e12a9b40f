"""Which topics a broker denies, concluded from how connections end.

MQTT 3.1.1 has no answer to a PUBLISH that is not allowed: AWS IoT Core, HiveMQ and VerneMQ end the
connection, others never acknowledge. A SUBSCRIBE may be refused in the SUBACK, or end the connection too. To
end it is also how brokers treat the older of two clients with one id, and how a restart looks. What was under
way tells them apart:

    several messages         the next connection is careful: after a quiet moment, one message at a time
    one message, careful     its topic is suspected; if the next connection ends at it too, it is denied: set
                             aside, and tried again after a pause that doubles
    one that is tried again  still denied
    none                     not about a topic: another client with this id, or the broker

Nothing here knows paho, sockets or time.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

# Seconds until a denied topic is tried again: each try may cost the connection, for all topics.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 30.0, 3600.0
# A connection that lasts so long is no part of the trouble before.
STEADY_S = 30.0
# More lost connections in this time than a bad radio link causes: another client uses the id.
TAKEOVERS, TAKEOVER_WINDOW_S = 5, 60.0
# Longer than two clients that end each other's connections wait in between.
SUSPECTED_S = 90.0


class Act(enum.Enum):
    """What is done with a topic."""

    SUBSCRIBE = "subscribe"
    PUBLISH = "publish"
    CONNECT = "have a last will on"


@dataclasses.dataclass(frozen=True, slots=True)
class Use:
    """A topic, and what is done with it."""

    act: Act
    topic: str


class Ending(enum.Enum):
    """What the end of a connection tells."""

    DENIED = "denied"
    SUSPECT = "suspect"
    LOST = "lost"
    TAKEN_OVER = "taken over"


@dataclasses.dataclass(slots=True)
class _Denial:
    until: float
    pause_s: float
    tried_at: float | None = None


class Denials:
    """What is known of one broker."""

    def __init__(self) -> None:
        self._denied: dict[Use, _Denial] = {}
        self._drops: deque[float] = deque(maxlen=TAKEOVERS)  # unexplained ends
        self._suspected = False
        self._unreached = 0
        self._short = 0
        self._suspect: Use | None = None
        self.careful = False

    @property
    def denied(self) -> tuple[Use, ...]:
        """Topics that are set aside, or tried again now."""
        return tuple(self._denied)

    @property
    def failures(self) -> int:
        """Connections in a row that failed, or ended soon, for what another try at once does not mend."""
        return self._unreached + self._short

    @property
    def suspects_other_client(self) -> bool:
        """Whether connections end as they do if another client connects under the same id."""
        return self._suspected

    def allows(self, use: Use) -> bool:
        """Whether a topic may be used now."""
        denial = self._denied.get(use)
        return denial is None or denial.tried_at is not None

    def next_try(self, now: float) -> Use | None:
        """Return a topic whose pause is over, once; None without one.

        One is tried at a time; one that is not used meanwhile does not keep the others from it.
        """
        if any(one.tried_at is not None and now - one.tried_at < STEADY_S for one in self._denied.values()):
            return None
        for use, denial in self._denied.items():
            if use.act is not Act.CONNECT and denial.tried_at is None and denial.until <= now:
                denial.tried_at = now
                return use
        return None

    def may_try_will(self, now: float, unanswered: int) -> bool:
        """Whether the next connection may have its last will.

        Args:
            now: Time.
            unanswered: Connections in a row that the broker ended before it had accepted them: every third
                goes without a will, or every second once it is known that this helps.
        """
        denied = [one for use, one in self._denied.items() if use.act is Act.CONNECT]
        every = 2 if denied else 3
        return all(one.until <= now for one in denied) and unanswered % every != every - 1

    def acknowledged(self, uses: Iterable[Use]) -> tuple[Use, ...]:
        """Note that the broker took messages; return the topics that were denied until now."""
        mended = tuple(use for use in uses if self._denied.pop(use, None) is not None)
        if mended:
            for denial in self._denied.values():  # the policy was mended: the others may be tried now
                denial.until, denial.pause_s = 0.0, FIRST_PAUSE_S
        return mended

    def refused(self, uses: Iterable[Use], now: float) -> None:
        """Note that the broker refused topics, by word or by ending the connection."""
        for use in uses:
            before = self._denied.get(use)
            pause_s = FIRST_PAUSE_S if before is None else min(before.pause_s * 2, LONGEST_PAUSE_S)
            self._denied[use] = _Denial(now + pause_s, pause_s)

    def failed(self) -> None:
        """Note that no connection came about."""
        self._unreached += 1

    def accepted(self) -> None:
        """Note that one came about."""
        self._unreached = 0

    def lasted(self, seconds: float) -> None:
        """Note how long the present connection has lasted, so far."""
        if seconds >= STEADY_S:
            self._short, self.careful = 0, False
        if seconds >= SUSPECTED_S:
            self._suspected = False

    def ended(
        self, under_way: Collection[Use], now: float, *, by_broker: bool
    ) -> tuple[Ending, tuple[Use, ...]]:
        """Conclude from the end of a connection.

        Args:
            under_way: What the broker had not acknowledged, or only just.
            now: Time.
            by_broker: Whether the broker ended it, or did not acknowledge; not a silent network.
        Returns: What it tells, and the topics that it tells it of.
        """
        retried = tuple(use for use in under_way if use in self._denied)
        if not by_broker:
            self._give_up_try(now)
            return Ending.LOST, ()
        if retried:
            self.refused(retried, now)
            pause_until = max(self._denied[use].until for use in retried)
            for denial in self._denied.values():
                denial.until = max(denial.until, pause_until)
            return Ending.DENIED, retried
        self._give_up_try(now)
        uses = tuple(dict.fromkeys(under_way))
        before, self._suspect = self._suspect, uses[0] if len(uses) == 1 else None
        if self._suspect is not None and self._suspect == before and self.careful:
            self._suspect = None
            self.refused(uses, now)
            return Ending.DENIED, uses
        if uses:
            self.careful = True
            self._short += len(uses) > 1
            return Ending.SUSPECT, uses
        return self._unexplained(now), ()

    def _unexplained(self, now: float) -> Ending:
        self._drops.append(now)
        if len(self._drops) == TAKEOVERS and now - self._drops[0] < TAKEOVER_WINDOW_S:
            self._suspected = True
        if self._suspected:
            self._short += 1
            return Ending.TAKEN_OVER
        return Ending.LOST

    def _give_up_try(self, now: float) -> None:
        """Let a topic whose try was cut short be tried again soon."""
        for denial in self._denied.values():
            if denial.tried_at is not None:
                denial.tried_at, denial.until = None, now + FIRST_PAUSE_S
