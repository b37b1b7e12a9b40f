"""What a channel is in, what a look at it found, and both in words."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    from luigi_tasks.fleet.documents import Signed
    from luigi_tasks.fleet.records import CurrentRollout, RolloutRecord
    from luigi_tasks.release.channel import Pointers


class RolloutRunsError(InputError):
    """Another rollout runs on the channel."""


class RolloutHaltedError(InputError):
    """A look halted or paused a rollout."""


class RolloutMovedError(InputError):
    """A rollout is no longer what the person saw who decided about it."""


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a person saw who decides: the decision is about that, and about nothing newer.

    A look that decides nothing leaves the history as it is; one that opened a stage meanwhile does not.

    Attributes:
        rollout: Id of the rollout.
        events: Entries of its history; None: whatever there are.
    """

    rollout: str
    events: int | None

    def check(self, record: RolloutRecord) -> None:
        """Raise RolloutMovedError if the rollout is another one, or something was decided since."""
        if record.id != self.rollout:
            msg = f"channel {record.channel}: rollout {self.rollout} no longer runs, {record.id} does"
            raise RolloutMovedError(msg)
        if self.events is not None and len(record.events) != self.events:
            last = record.events[-1]
            what, state = (one.replace("_", " ") for one in (last.what, record.state))
            msg = f"rollout {record.id} has moved meanwhile: {what} by {last.who}; it is {state}"
            raise RolloutMovedError(msg)


@dataclasses.dataclass(frozen=True)
class Look:
    """What a look at a channel found and did.

    Attributes:
        record: The rollout; None: none runs.
        words: In a sentence.
        is_halted: Whether this look halted the rollout, paused it or sent it back.
    """

    record: RolloutRecord | None
    words: str
    is_halted: bool = False


@dataclasses.dataclass(frozen=True)
class Standing:
    """What a channel is in.

    Attributes:
        current: `current.json`; None: there is none.
        running: The rollout that it names; None: none.
        signed: The signed documents of the channel.
    """

    current: Signed[CurrentRollout] | None
    running: Signed[RolloutRecord] | None
    signed: Pointers

    @property
    def queued(self) -> str:
        """Release that waits for the rollout's end; empty: none."""
        return self.current.document.queued if self.current is not None else ""


def in_words(record: RolloutRecord, why: str) -> str:
    """Return where a rollout is, and why."""
    stage = record.stages[-1] if record.stages else None
    where = (
        f", stage {stage.number} of {len(record.plan.stages)} ({count(stage.size, 'device')})"
        if stage
        else ""
    )
    return f"rollout {record.id} of release {record.release} is {record.state}{where}: {why}"


def runs_already(record: RolloutRecord) -> str:
    """Return the message that a rollout runs, with the way out."""
    return (
        f"channel {record.channel}: rollout {record.id} of release {record.release} is {record.state}; one "
        "rollout a channel. Let it end, send it back, or give --supersede in its first stage"
    )
