"""What the pages of rollouts show: values out of records, verdicts and the fleet's view, in plain words.

Pure functions; `reading.py` fetches what they are given. Times are seconds since 1970.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.times import seconds_of
from luigi_tasks.fleet import records
from luigi_tasks.fleet.observed import SHORTEST_S, SNAPSHOTS_MISSED
from luigi_tasks.fleet.records import ENDED, RolloutEvent, RolloutRecord, VerdictRecord
from luigi_tasks.fleet.tables import age_in_words, count
from luigi_tasks.settings.rollout import devices_of

if TYPE_CHECKING:
    from luigi_tasks.fleet.records import StageRecord
    from luigi_tasks.fleet.view import FleetView

# Looks that do not come: the newest snapshot is so much newer than the one that was judged.
OVERDUE_S = 1800.0
# States of a rollout that stands still or went back, and entries of its history that say why.
STOPPED = (records.PAUSED, records.HALTED, records.GOING_BACK, records.BACK)
_STOPS = ("halted", "paused", "older_copy", "going_back")
# States of a stage that the bar shows beside those of a rollout.
STAGE_DONE, TO_COME, SKIPPED = "done", "to_come", "skipped"


class ShownStage(msgspec.Struct, frozen=True, kw_only=True):
    """A stage of the plan.

    Attributes:
        number: From 1.
        text: As it is written, such as `10%`.
        state: `done`, `to_come`, `skipped`, or the rollout's state.
        size: Devices in it, those of earlier stages included; of one to come as the registry is now.
        share: The same of all devices that the rollout is for, 0 to 1; None: unknown.
        opened_at: When it was opened; 0: it was not.
        looks: Verdicts of it so far.
        approval: `needed`, `given`, or empty.
    """

    number: int
    text: str
    state: str
    size: int | None = None
    share: float | None = None
    opened_at: float = 0.0
    looks: int = 0
    approval: str = ""


class NextLook(msgspec.Struct, frozen=True, kw_only=True):
    """What the next look has to go by.

    Attributes:
        judged_at: Time of the snapshot that was judged last; 0: none was.
        snapshot_at: Time of the newest snapshot; 0: there is none.
        soaked_at: When the soak is served; 0: it does not soak.
        limit_at: When the stage's time limit pauses the rollout; 0: none runs.
        words: In a sentence.
        is_late: Whether looks do not come, or snapshots.
    """

    judged_at: float = 0.0
    snapshot_at: float = 0.0
    soaked_at: float = 0.0
    limit_at: float = 0.0
    words: str = ""
    is_late: bool = False


class RolloutLine(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout in a list.

    Attributes:
        id: Its id.
        channel: Its channel.
        release: Release that is rolled out.
        from_release: Steady release that it follows; empty: the first.
        state: Its state.
        words: Where it stands, in a sentence.
        since: Since when it is in its state.
        started_at: When it was started.
        started_by: Who started it.
        stages: Its stages.
        last: The newest entry of its history.
        stopped: The entry that says why it does not go on, or went back; None: it goes on.
    """

    id: str
    channel: str
    release: str
    from_release: str
    state: str
    words: str
    since: float
    started_at: float
    started_by: str
    stages: tuple[ShownStage, ...]
    last: RolloutEvent | None = None
    stopped: RolloutEvent | None = None


class ChannelLine(msgspec.Struct, frozen=True, kw_only=True):
    """A channel in the list.

    Attributes:
        channel: Its name.
        steady: Its steady release; empty: none was published on it.
        steady_since: Since when.
        rollout: The rollout that runs, or ran last; None: none ever did.
        runs: Whether it runs.
        unreadable: Id of the rollout that runs and whose record is gone or forged; empty: none is.
        queued: Release that waits for its end.
        queued_at: Since when.
        next_look: What the next look has to go by.
    """

    channel: str
    steady: str = ""
    steady_since: float = 0.0
    rollout: RolloutLine | None = None
    runs: bool = False
    unreadable: str = ""
    queued: str = ""
    queued_at: float = 0.0
    next_look: NextLook = NextLook()


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    """A look that a person took on this board."""

    at: float
    who: str
    words: str


def show_stages(record: RolloutRecord, members: int | None) -> tuple[ShownStage, ...]:
    """Return the stages of the plan: those that were opened, and those to come as the registry is now.

    Args:
        record: The rollout.
        members: Registered devices that it is for; None: unknown.
    """
    opened = {one.number: one for one in record.stages}
    last = record.stages[-1] if record.stages else None
    below = last.size if last else 0
    shown = []
    for number, text in enumerate(record.plan.stages, start=1):
        approval = ""
        if number in record.plan.approve:
            approval = "given" if number in record.approved else "needed"
        if (stage := opened.get(number)) is not None:
            shown.append(_opened(record, stage, text, members, approval))
            continue
        state, size = TO_COME, None
        if last is not None and number < last.number:
            state = SKIPPED
        elif members:
            size = devices_of(text, members)
            state = TO_COME if size > below and record.state not in ENDED else SKIPPED
            below = max(below, size)
        share = size / members if size is not None and members else None
        shown.append(
            ShownStage(number=number, text=text, state=state, size=size, share=share, approval=approval)
        )
    return tuple(shown)


def show_draft(record: RolloutRecord) -> tuple[ShownStage, ...]:
    """Return the stages of a rollout that was drafted: all to come, those that add nobody skipped."""
    sizes = {one.number: one.size for one in record.stages}
    total = max(sizes.values(), default=0)
    return tuple(
        ShownStage(
            number=number,
            text=text,
            state=TO_COME if number in sizes else SKIPPED,
            size=sizes.get(number),
            share=sizes[number] / total if number in sizes else None,
            approval="needed" if number in record.plan.approve else "",
        )
        for number, text in enumerate(record.plan.stages, start=1)
    )


def _opened(
    record: RolloutRecord, stage: StageRecord, text: str, members: int | None, approval: str
) -> ShownStage:
    is_last = stage is record.stages[-1]
    has_passed = record.state in {records.APPROVAL, records.DONE}
    going = record.state in {records.GOING_BACK, records.BACK, records.ABORTED, records.SUPERSEDED}
    state = record.state if going or (is_last and not has_passed) else STAGE_DONE
    return ShownStage(
        number=stage.number,
        text=text,
        state=state,
        size=stage.size,
        share=min(stage.size / members, 1.0) if members else None,
        opened_at=stage.opened_at,
        looks=stage.looks,
        approval=approval,
    )


def stopped_by(record: RolloutRecord) -> RolloutEvent | None:
    """Return the entry of the history that says why a rollout stands still or went back; None: it did not."""
    if record.state not in STOPPED:
        return None
    return next((one for one in reversed(record.events) if one.what in _STOPS), None)


def waiting_for(record: RolloutRecord) -> int:
    """Return the next stage that a person has to approve; 0: none."""
    opened = record.stages[-1].number if record.stages else 0
    waiting = [one for one in record.plan.approve if one > opened and one not in record.approved]
    return waiting[0] if waiting else 0


def describe_state(record: RolloutRecord) -> str:
    """Return where a rollout stands, and what it waits for, in a sentence."""
    stage = record.stages[-1] if record.stages else None
    place = ""
    if stage is not None:
        place = f"stage {stage.number} of {len(record.plan.stages)}, {count(stage.size, 'device')}"
    words = {
        records.PLANNED: "the devices do not know of it; the first look opens stage 1",
        records.APPROVAL: f"stage {waiting_for(record) or '?'} waits for a person to approve it",
        records.OPEN: f"{place}: they have the release to try",
        records.SOAKING: f"{place}: all that was asked for is there, but the time",
        records.DONE: "the channel points to the release",
        records.PAUSED: f"{place or 'no stage is open'}: devices keep what they have, and no stage opens",
        records.HALTED: f"{place}: a hard check broke its limit; a person decides",
        records.GOING_BACK: f"{place}: nobody has the release any more, and devices return",
        records.BACK: "the release is withdrawn from the channel",
        records.SUPERSEDED: "a newer release took its place",
        records.ABORTED: "a person ended it; the release is not withdrawn",
    }
    return words.get(record.state, place)


def next_look(view: FleetView, record: RolloutRecord) -> NextLook:
    """Return what the next look has to go by, and whether looks or snapshots fail to come."""
    head, stage = view.head, record.stages[-1] if record.stages else None
    snapshot_at = head.taken_at if head is not None else 0.0
    judged_at = stage.judged_at if stage is not None else 0.0
    if record.state in (*ENDED, records.HALTED):
        return NextLook(judged_at=judged_at, snapshot_at=snapshot_at)
    soak_s = record.plan.soak_s
    soaked_at = limit_at = 0.0
    if stage is not None and record.state in {records.OPEN, records.SOAKING}:
        soaked_at = stage.soaking_since + soak_s if stage.soaking_since else 0.0
        limit_at = (stage.watched_since or stage.opened_at) + record.plan.stage_timeout_s
    words, is_late = _look_in_words(view, record, judged_at, snapshot_at)
    return NextLook(
        judged_at=judged_at,
        snapshot_at=snapshot_at,
        soaked_at=soaked_at,
        limit_at=limit_at,
        words=words,
        is_late=is_late,
    )


def _look_in_words(
    view: FleetView, record: RolloutRecord, judged_at: float, snapshot_at: float
) -> tuple[str, bool]:
    # Nothing is judged while a rollout is halted: looks are due again from when a person decided.
    since = max(judged_at, record.state_since, record.stages[-1].opened_at if record.stages else 0.0)
    if not snapshot_at:
        return "no snapshot of the fleet, so nothing moves: see whether `edge-fleet collect` runs", True
    if view.now - snapshot_at > max(SNAPSHOTS_MISSED * view.snapshot_s, SHORTEST_S):
        age = age_in_words(view.now - snapshot_at).removesuffix(" ago")
        return f"the newest snapshot is {age} old, so nothing moves: see `edge-fleet collect`", True
    if snapshot_at - since > OVERDUE_S:
        late = age_in_words(snapshot_at - since).removesuffix(" ago")
        command = "luigi --module luigi_tasks AdvanceRollout"
        return f"no look for {late}: see whether cron runs `{command}`, or look now", True
    if snapshot_at > since:
        return "the next look judges the newest snapshot", False
    return "the next look needs a snapshot that is newer than the one that was judged", False


def show_line(record: RolloutRecord, members: int | None) -> RolloutLine:
    """Return a rollout as a list shows it."""
    return RolloutLine(
        id=record.id,
        channel=record.channel,
        release=record.release,
        from_release=record.from_release,
        state=record.state,
        words=describe_state(record),
        since=record.state_since,
        started_at=seconds_of(record.created_at),
        started_by=record.created_by,
        stages=show_stages(record, members),
        last=record.events[-1] if record.events else None,
        stopped=stopped_by(record),
    )


def verdict_name(key: str) -> str:
    """Return the name of a verdict in addresses: its key without folder and ending."""
    return key.rpartition("/")[2].removesuffix(".json")


def devices_with(verdict: VerdictRecord | None) -> dict[str, int]:
    """Return the devices of the open stage by state, in the order in which the states come."""
    if verdict is None:
        return {}
    return {state: verdict.counts[state] for state in records.DEVICE_STATES if verdict.counts.get(state)}
