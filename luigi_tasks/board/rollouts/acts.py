"""What a person may do to a rollout on the board: what each act does, in numbers; why it cannot be; doing it.

Whoever decides has seen the rollout as it was a moment ago: an act names what was seen (`Seen`), and does
nothing to anything newer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.board.rollouts.view import TO_COME, devices_with, waiting_for
from luigi_tasks.fleet import records
from luigi_tasks.fleet.records import ENDED, RolloutRecord
from luigi_tasks.fleet.stages import in_words, spread_s
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from luigi_tasks.board.rollouts.view import ShownStage
    from luigi_tasks.fleet.actions import Fleet
    from luigi_tasks.fleet.records import VerdictRecord

APPROVE, PAUSE, RESUME, BACK, ABORT = "approve", "pause", "resume", "back", "abort"
NAMES = (APPROVE, PAUSE, RESUME, BACK, ABORT)
# What each writes into the history.
EVENTS = {APPROVE: "approved", PAUSE: "paused", RESUME: "resumed", BACK: "going_back", ABORT: "aborted"}
_RUNS = (records.PLANNED, records.APPROVAL, records.OPEN, records.SOAKING)


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """Something that a person may do.

    Attributes:
        name: One of `NAMES`.
        title: As its button says.
        does_it: As the button says that does it, such as `Send 12 devices back`.
        does: What will happen, in sentences with numbers.
        why_not: Why it cannot be done now; empty: it can.
        is_grave: Whether devices lose the release by it.
    """

    name: str
    title: str
    does_it: str
    does: tuple[str, ...] = ()
    why_not: str = ""
    is_grave: bool = False


class Circumstances(msgspec.Struct, frozen=True, kw_only=True):
    """What decides about the acts beside the rollout's record.

    Attributes:
        steady: Release that the channel points to; empty: none.
        stages: The stages, as they are shown.
        verdict: The newest verdict on the open stage; None: there is none.
        key_fault: Why this machine cannot sign; empty: it can.
        is_running: Whether it is the rollout that the channel is in.
    """

    steady: str
    stages: Sequence[ShownStage] = ()
    verdict: VerdictRecord | None = None
    key_fault: str = ""
    is_running: bool = True


def acts_of(record: RolloutRecord, now: Circumstances) -> tuple[Act, ...]:
    """Return all acts on a rollout, those that cannot be done now with the reason."""
    made = (_approve(record, now), _pause(record), _resume(record), _back(record, now), _abort(record, now))
    if record.state in ENDED or not now.is_running:
        state = record.state.replace("_", " ")
        why_not = f"the rollout has ended: {state}" if record.state in ENDED else "another rollout runs"
    else:
        why_not = now.key_fault
    return tuple(msgspec.structs.replace(one, why_not=why_not or one.why_not) for one in made)


def acts_without_record(key_fault: str) -> tuple[Act, ...]:
    """Return what a person may do where the record of the rollout that runs is gone or forged: end it."""
    does = (
        "The channel's rollout ends, and its devices go back to the steady release at their next look.",
        "Its record cannot be read, so its history says nothing of it.",
    )
    return (
        Act(
            name=ABORT,
            title="Abort",
            does_it="Abort the rollout",
            does=does,
            why_not=key_fault,
            is_grave=True,
        ),
    )


def perform(fleet: Fleet, act: str, channel: str, who: str, why: str) -> RolloutRecord | None:
    """Do it; return the rollout then.

    Raises: RolloutMovedError if it is not what was seen; InputError; SettingsError; TransportError.
    """
    acts: dict[str, Callable[[], RolloutRecord | None]] = {
        APPROVE: lambda: fleet.approve(channel, who, why),
        PAUSE: lambda: fleet.pause(channel, who, why),
        RESUME: lambda: fleet.resume(channel, who, why),
        BACK: lambda: fleet.back(channel, who, why),
        ABORT: lambda: fleet.abort(channel, who, why),
    }
    return acts[act]()


def was_done(record: RolloutRecord, act: str, events: int, who: str, why: str) -> bool:
    """Whether an act was done already: the form was sent twice, or its first answer was lost.

    Args:
        record: The rollout now.
        act: The act.
        events: Entries of the history that the person saw.
        who: The person.
        why: Reason.
    """
    return any(
        (one.what, one.who) == (EVENTS[act], who) and one.why.startswith(why)
        for one in record.events[events : events + 1]
    )


def _approve(record: RolloutRecord, now: Circumstances) -> Act:
    number = waiting_for(record)
    title = f"Approve stage {number}" if number else "Approve"
    act = Act(name=APPROVE, title=title, does_it=title)
    if not number:
        return msgspec.structs.replace(act, why_not="no stage waits for a person")
    if record.state not in _RUNS:
        state = record.state.replace("_", " ")
        return msgspec.structs.replace(act, why_not=f"the rollout is {state}: resume it first")
    size = record.stages[-1].size if record.stages else 0
    coming = next((one for one in now.stages if one.state == TO_COME and one.size), None)
    does = [f"Stage {number} is approved."]
    if coming is not None and coming.size:
        does.append(
            f"The next look opens stage {coming.number} ({coming.text}) if the evidence still passes: "
            f"{count(coming.size - size, 'more device')}, {coming.size} in all, "
            f"get{'s' if coming.size == 1 else ''} release {record.release}."
        )
    if record.state != records.APPROVAL and record.stages:
        does.append(f"Stage {record.stages[-1].number} has not passed yet; what comes after it is approved.")
    return msgspec.structs.replace(act, does=tuple(does))


def _pause(record: RolloutRecord) -> Act:
    size = record.stages[-1].size if record.stages else 0
    keep = "device keeps what it has" if size == 1 else "devices keep what they have"
    return Act(
        name=PAUSE,
        title="Pause",
        does_it="Pause the rollout",
        does=(f"{size} {keep}; no further stage opens.", "A hard breach still halts the rollout."),
        why_not="" if record.state in _RUNS else f"it is {record.state.replace('_', ' ')}",
    )


def _resume(record: RolloutRecord) -> Act:
    is_stopped = record.state in {records.PAUSED, records.HALTED}
    does = [f"The rollout is {(record.resume_state or records.OPEN).replace('_', ' ')} again."]
    if record.stages:
        limit = in_words(record.plan.stage_timeout_s)
        does.append(f"The time limit of stage {record.stages[-1].number} ({limit}) begins again.")
    accepted = [one for one in record.breached if one not in record.plan.report_only]
    if accepted:
        does.append(f"What was found is accepted: {', '.join(accepted)} only report from now on.")
    if record.state == records.HALTED:
        does.append(
            "A hard breach that still stands halts it again at the next look; to go on all the same, abort "
            "it and start it with other --errors."
        )
    why_not = "" if is_stopped else f"it is {record.state.replace('_', ' ')}, not paused"
    return Act(name=RESUME, title="Resume", does_it="Resume the rollout", does=tuple(does), why_not=why_not)


def _back(record: RolloutRecord, now: Circumstances) -> Act:
    gone = (record.release, *record.variants.values())
    withdrawn = (
        f"{_named(gone)} withdrawn from channel {record.channel}: no Deploy and no Rollout starts it again."
    )
    does = [*_return(record, now), withdrawn]
    if now.steady in gone or not now.steady:
        does[-1] = f"Channel {record.channel} has no other release to point to, so nothing is withdrawn."
    if seconds := spread_s(record):
        does.append(f"They go back over {in_words(seconds)}, as the plan's pace says, whatever its window.")
    why_not = "its devices go back already" if record.state == records.GOING_BACK else ""
    size = record.stages[-1].size if record.stages else 0
    does_it = f"Send {count(size, 'device')} back" if size else "Withdraw the release"
    return Act(
        name=BACK, title="Send back", does_it=does_it, does=tuple(does), why_not=why_not, is_grave=True
    )


def _abort(record: RolloutRecord, now: Circumstances) -> Act:
    does = (
        "The rollout ends at once.",
        *_return(record, now),
        f"Release {record.release} is not withdrawn: a person may start it again.",
    )
    return Act(name=ABORT, title="Abort", does_it="Abort the rollout", does=does, is_grave=True)


def _return(record: RolloutRecord, now: Circumstances) -> list[str]:
    """Return how many devices return to which release, and how they are now."""
    if not record.stages:
        return ["No device has the release yet."]
    size = record.stages[-1].size
    to = f"to release {now.steady}" if now.steady else "to no release: the channel has none"
    words = [f"{count(size, 'device')} go{'es' if size == 1 else ''} back {to}."]
    if counts := devices_with(now.verdict):
        told = ", ".join(f"{number} {state.replace('_', ' ')}" for state, number in counts.items())
        words.append(f"At the newest verdict: {told}.")
    return words


def _named(releases: Sequence[str]) -> str:
    if len(releases) == 1:
        return f"Release {releases[0]} is"
    return f"Releases {', '.join(releases)} are"
