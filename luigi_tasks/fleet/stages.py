"""How a rollout goes from state to state: pure functions of its record, a verdict and the time.

    planned -> [waiting_for_approval ->] open -> soaking -> open (next stage) ... -> done
    open, soaking, waiting: a hard breach -> going_back (or halted); a soft one, a timeout -> paused
    paused, halted -> what was before, by a person
    going_back -> back
    not ended -> superseded (in the first stage), aborted

A stage is opened by its threshold: between the hash of its last device and that of the next, of the devices
that are registered and matched then. A device that is enrolled later joins the share that it hashes into. A
threshold only grows until the rollout ends or goes back. Silence never advances: a stage passes by a verdict
`pass` alone.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.rollout import EVERYBODY, rollout_hash, selects
from luigi_tasks.fleet.records import (
    ABORTED,
    APPROVAL,
    BACK,
    DONE,
    ENDED,
    GOING_BACK,
    HALT,
    HALTED,
    OPEN,
    PASS,
    PAUSED,
    PLANNED,
    SOAKING,
    SUPERSEDED,
    RolloutEvent,
    StageRecord,
)
from luigi_tasks.fleet.tables import count
from luigi_tasks.settings.rollout import APPROVE, devices_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from luigi_tasks.fleet.records import EnrolledDevice, RolloutRecord, VerdictRecord

ADVANCE = "AdvanceRollout"
# States in which a verdict may open the next stage.
WATCHED = (OPEN, SOAKING, APPROVAL)
# Devices that go back are waited for so long after the last of them should have moved.
GOING_BACK_LIMIT_S = 86400.0


@dataclasses.dataclass(frozen=True)
class Moment:
    """When something happens to a rollout, and through whom.

    Attributes:
        now: Seconds since 1970.
        at: The same, UTC, ISO 8601.
        who: Person, or `AdvanceRollout`.
    """

    now: float
    at: str
    who: str = ADVANCE


def members(record: RolloutRecord, enrolled: Iterable[EnrolledDevice]) -> list[EnrolledDevice]:
    """Return the registered devices that a rollout is for, in its order.

    Devices that cannot run the release are none of them.
    """
    plan = record.plan
    found = [
        one
        for one in enrolled
        if not one.retired_at
        and record.channel in one.channels
        and one.device not in record.skipped
        and selects(plan.only, plan.excluded, one.member)
    ]
    return sorted(found, key=lambda one: (place(record, one), one.device))


def place(record: RolloutRecord, device: EnrolledDevice) -> int:
    """Return a device's hash in a rollout's order."""
    return rollout_hash(record.id, record.plan.by, device.member)


def next_stage(record: RolloutRecord, enrolled: Iterable[EnrolledDevice], now: float) -> StageRecord | None:
    """Return the stage after the last that was opened; None if no stage adds a device.

    A stage has at least one device, and more than there are below the threshold before it; the others are
    skipped. Where a rollout goes by sites, a stage is as large as the sites that its last device is in.
    """
    ordered = members(record, enrolled)
    places = [place(record, one) for one in ordered]
    last = record.stages[-1] if record.stages else None
    below = sum(one < last.threshold for one in places) if last else 0
    for number, text in enumerate(record.plan.stages, start=1):
        if last is not None and number <= last.number:
            continue
        wanted = devices_of(text, len(places))
        if wanted <= below:
            continue
        threshold = _threshold(places, wanted, is_all=text == "100%")
        size = sum(one < threshold for one in places)
        return StageRecord(number=number, size=size, threshold=threshold, opened_at=now, watched_since=now)
    return None


def _threshold(places: Sequence[int], count: int, *, is_all: bool) -> int:
    """Return a threshold between the hash of the last of so many devices and that of the next."""
    if is_all:
        return EVERYBODY
    last = places[count - 1]
    following = next((one for one in places if one > last), EVERYBODY)
    return (last + following + 1) // 2


def preview(record: RolloutRecord, enrolled: Iterable[EnrolledDevice], now: float) -> list[StageRecord]:
    """Return the stages that a rollout would open, were the registry to stay as it is."""
    enrolled, found = list(enrolled), list[StageRecord]()
    while (stage := next_stage(record, enrolled, now)) is not None:
        found.append(stage)
        record = msgspec.structs.replace(record, stages=tuple(found))
    return found


def awaited_approvals(record: RolloutRecord, following: StageRecord | None) -> tuple[int, ...]:
    """Return the stages that a person has to approve before the next one, or the end.

    A stage that is skipped for want of devices keeps its approval: it is asked for before what comes instead.
    """
    opened = record.stages[-1].number if record.stages else 0
    end = following.number if following is not None else len(record.plan.stages)
    return tuple(one for one in record.plan.approve if opened < one <= end and one not in record.approved)


# What a look does


def look(
    record: RolloutRecord,
    verdict: VerdictRecord | None,
    key: str,
    following: StageRecord | None,
    when: Moment,
) -> RolloutRecord:
    """Return the rollout after a look at its open stage, at most one step further.

    Args:
        record: The rollout: planned, or with an open stage.
        verdict: The verdict on the open stage; None while there is none.
        key: Key of the verdict.
        following: The stage after it, see `next_stage`; None: none adds a device.
        when: The time of the look.
    """
    if not record.stages and record.state in {PLANNED, APPROVAL}:
        return _go_on(record, "", following, when)
    if verdict is None or record.state not in (*WATCHED, PAUSED):
        return record
    record = _count_look(record, verdict, key)
    if verdict.result == HALT:
        return _break_off(record, verdict, key, when)
    if verdict.result == PASS and record.state != PAUSED:
        record, why = _distrust_unsigned(record, verdict, following)
        return _go_on(record, key, following, when, why)
    if verdict.asks and record.state != PAUSED:  # who resumes it accepts what was asked
        return _pause(msgspec.structs.replace(record, breached=verdict.asks), verdict.words, key, when)
    return wait(record, verdict.words, key, when)


def wait(record: RolloutRecord, why: str, verdict: str, when: Moment) -> RolloutRecord:
    """Return the rollout while its stage neither passes nor breaks a limit; paused after its time limit.

    Args:
        record: The rollout.
        why: Why the stage does not pass.
        verdict: Key of the verdict; empty: there is none.
        when: The time of the look.
    """
    if record.state not in {OPEN, SOAKING}:
        return record  # a person is waited for
    stage = record.stages[-1]
    if when.now - stage.watched_since > record.plan.stage_timeout_s:
        limit = in_words(record.plan.stage_timeout_s)
        return _pause(record, f"stage {stage.number} did not pass in {limit}: {why}", verdict, when)
    return enter(record, SOAKING if stage.soaking_since else OPEN, when)


def _count_look(record: RolloutRecord, verdict: VerdictRecord, key: str) -> RolloutRecord:
    """Return the rollout with one more look, and the soak that begins or ends with the verdict."""
    stage = record.stages[-1]
    since = stage.soaking_since
    if verdict.is_ready:
        since = since or verdict.at
    stage = msgspec.structs.replace(
        stage, looks=verdict.look, soaking_since=since, judged_at=verdict.at, verdict=key
    )
    return msgspec.structs.replace(record, stages=(*record.stages[:-1], stage))


def _distrust_unsigned(
    record: RolloutRecord, verdict: VerdictRecord, following: StageRecord | None
) -> tuple[RolloutRecord, str]:
    """Return the rollout waiting for a person before its next stage where too little is signed, and why.

    Whoever owns the broker speaks for devices without a key; they open the second stage, and none after it.
    """
    plan = record.plan
    if not verdict.unsigned or plan.unsigned != APPROVE or len(record.stages) < 2 or following is None:
        return record, ""
    plan = msgspec.structs.replace(plan, approve=tuple(sorted({*plan.approve, following.number})))
    unsigned, stage = count(verdict.unsigned, "device"), record.stages[-1].number
    why = (
        f", since {unsigned} that passed stage {stage} sign no reports: "
        "`edge-fleet re-enroll` gives them keys; [rollout] unsigned = count trusts the broker"
    )
    return msgspec.structs.replace(record, plan=plan), why


def _go_on(
    record: RolloutRecord, verdict: str, following: StageRecord | None, when: Moment, because: str = ""
) -> RolloutRecord:
    """Open the next stage, wait for a person, or end."""
    if record.stages and record.state != APPROVAL:
        record = add_event(record, "passed", when, verdict=verdict)
    if awaited := awaited_approvals(record, following):
        if record.state == APPROVAL:
            return record
        numbers = ", ".join(map(str, awaited))
        why = f"stage {numbers} waits for `edge-fleet approve` (or the task Approve){because}"
        return add_event(enter(record, APPROVAL, when), "waiting", when, why, verdict)
    if following is None:
        if not record.stages:
            return record  # nobody is registered: nothing was shown
        return add_event(enter(record, DONE, when), "done", when, verdict=verdict)
    record = msgspec.structs.replace(record, stages=(*record.stages, following))
    why = f"{count(following.size, 'device')} ({record.plan.stages[following.number - 1]})"
    return add_event(enter(record, OPEN, when), "stage", when, why)


def _break_off(record: RolloutRecord, verdict: VerdictRecord, key: str, when: Moment) -> RolloutRecord:
    halting = (one.name for one in verdict.checks if one.result == HALT and one.kind == "soft")
    breached = tuple(dict.fromkeys((*halting, *verdict.asks)))
    if verdict.is_hard:
        record = add_event(record, "halted", when, verdict.words, key)
        if record.plan.on_breach == "back":
            return go_back(record, verdict.words, when)
        return enter(msgspec.structs.replace(record, resume_state=_before_pause(record)), HALTED, when)
    if record.state == PAUSED:
        return record
    return _pause(msgspec.structs.replace(record, breached=breached), verdict.words, key, when)


def _pause(record: RolloutRecord, why: str, verdict: str, when: Moment) -> RolloutRecord:
    record = msgspec.structs.replace(record, resume_state=_before_pause(record))
    return add_event(enter(record, PAUSED, when), "paused", when, why, verdict)


def _before_pause(record: RolloutRecord) -> str:
    return record.resume_state if record.state in {PAUSED, HALTED} else record.state


# What a person does


def approve(record: RolloutRecord, stage: int, why: str, when: Moment) -> RolloutRecord:
    """Return the rollout with a stage approved; the next look opens it if the evidence still passes.

    Args:
        record: The rollout.
        stage: Number of a stage, from 1; 0: those that it waits for.
        why: Reason.
        when: Time and person.
    Raises: InputError if the plan asks for no such approval, or it has ended.
    """
    _check_runs(record)
    opened = record.stages[-1].number if record.stages else 0
    waiting = [one for one in record.plan.approve if one > opened and one not in record.approved]
    wanted = [stage] if stage else waiting[:1]
    if not wanted or wanted[0] not in record.plan.approve or wanted[0] <= opened:
        asked = ", ".join(map(str, waiting)) or "none"
        msg = f"rollout {record.id}: nothing to approve there; stages that wait for a person: {asked}"
        raise InputError(msg)
    if wanted[0] in record.approved:
        return record
    record = msgspec.structs.replace(record, approved=tuple(sorted({*record.approved, *wanted})))
    return add_event(record, "approved", when, why, stage=wanted[0])


def pause(record: RolloutRecord, why: str, when: Moment) -> RolloutRecord:
    """Return the rollout paused: it opens no stage; a hard breach still halts it."""
    _check_runs(record)
    if record.state == PAUSED:
        return record
    if record.state in {HALTED, GOING_BACK}:
        msg = f"rollout {record.id} is {record.state}: nothing to pause"
        raise InputError(msg)
    return _pause(record, why, "", when)


def resume(record: RolloutRecord, why: str, when: Moment) -> RolloutRecord:
    """Return the rollout as before its pause; what a soft check found is accepted, and only reported."""
    if record.state not in {PAUSED, HALTED}:
        msg = f"rollout {record.id} is {record.state}: only one that is paused or halted can be resumed"
        raise InputError(msg)
    accepted = tuple(one for one in record.breached if one not in record.plan.report_only)
    plan = msgspec.structs.replace(record.plan, report_only=(*record.plan.report_only, *accepted))
    stages = record.stages
    if stages:  # the time limit of the stage begins again
        stages = (*stages[:-1], msgspec.structs.replace(stages[-1], watched_since=when.now))
    state, words = record.resume_state or OPEN, f"accepted: {', '.join(accepted)}" if accepted else ""
    record = msgspec.structs.replace(record, plan=plan, stages=stages, resume_state="", breached=())
    why = "; ".join(one for one in (why, words) if one)
    return add_event(enter(record, state, when), "resumed", when, why)


def go_back(record: RolloutRecord, why: str, when: Moment) -> RolloutRecord:
    """Return the rollout on its way back: its devices return to the steady release, paced."""
    _check_runs(record)
    if record.state == GOING_BACK:
        return record
    return add_event(enter(record, GOING_BACK, when), "going_back", when, why)


def abort(record: RolloutRecord, why: str, when: Moment) -> RolloutRecord:
    """Return the rollout ended at once: devices return at their next look, and nothing is withdrawn."""
    _check_runs(record)
    return add_event(enter(record, ABORTED, when), "aborted", when, why)


def distrust(record: RolloutRecord, why: str, when: Moment) -> RolloutRecord:
    """Return the rollout paused, because it is older than what was signed, or than this machine has seen."""
    words = (
        f"{why}: somebody put an older copy of the rollout's record back. Nothing moves; restore the newer "
        "one from the bucket's versions, go on from here with `edge-fleet resume`, or `edge-fleet abort`"
    )
    record = msgspec.structs.replace(record, resume_state=_before_pause(record))
    return add_event(enter(record, PAUSED, when), "older_copy", when, words)


def adopt(record: RolloutRecord, threshold: int) -> RolloutRecord:
    """Return the rollout with the threshold that was signed for its open stage, if that is larger."""
    if not record.stages or threshold <= record.stages[-1].threshold:
        return record
    stage = msgspec.structs.replace(record.stages[-1], threshold=threshold)
    return msgspec.structs.replace(record, stages=(*record.stages[:-1], stage))


def supersede(record: RolloutRecord, by: str, when: Moment) -> RolloutRecord:
    """Return the rollout ended in favour of another release.

    Raises: InputError if it is past its first stage, or goes back.
    """
    _check_runs(record)
    if len(record.stages) > 1 or record.state == GOING_BACK:
        msg = (
            f"rollout {record.id} is {record.state} past its first stage: it can be superseded in the first "
            "only; let it end, or send it back (`edge-fleet back`)"
        )
        raise InputError(msg)
    return add_event(enter(record, SUPERSEDED, when), "superseded", when, f"by release {by}")


def finish_going_back(record: RolloutRecord, serving: Collection[str] | None, when: Moment) -> RolloutRecord:
    """Return the rollout as `back` once no device is known to serve the release, or a time has passed.

    Args:
        record: The rollout, going back.
        serving: Devices that reported the release last; None: unknown.
        when: The time.
    """
    paced = spread_s(record) + GOING_BACK_LIMIT_S
    has_waited = when.now - record.state_since > paced
    if serving is None and not has_waited:
        return record
    if serving and not has_waited:
        return record
    why = f"{len(serving)} devices still have it" if serving else "no device is known to have it"
    if serving is None:
        why = f"{in_words(paced)} have passed; nothing newer is known of the devices"
    return add_event(enter(record, BACK, when), "back", when, why)


# Parts


def spread_s(record: RolloutRecord) -> float:
    """Return over how many seconds the devices of the open stage move, so that the plan's pace is kept."""
    if not record.plan.pace_per_min or not record.stages:
        return 0.0
    return round(record.stages[-1].size / record.plan.pace_per_min * 60, 3)


def enter(record: RolloutRecord, state: str, when: Moment) -> RolloutRecord:
    """Return the rollout in a state, with the time since which it is."""
    if record.state == state:
        return record
    return msgspec.structs.replace(record, state=state, state_since=when.now)


def add_event(
    record: RolloutRecord, what: str, when: Moment, why: str = "", verdict: str = "", stage: int = 0
) -> RolloutRecord:
    """Return the rollout with one more event."""
    number = stage or (record.stages[-1].number if record.stages else 0)
    event = RolloutEvent(at=when.at, what=what, who=when.who, why=why, stage=number, verdict=verdict)
    return msgspec.structs.replace(record, events=(*record.events, event))


def is_limited(record: RolloutRecord) -> bool:
    """Whether a rollout is for a part of the fleet only: one that a person chose.

    Devices that cannot run the release are left out of its stages, and limit nothing: when the pointer moves,
    they refuse by themselves and keep what they serve.
    """
    unable = {f"device={one}" for one in record.skipped}
    return bool(record.plan.only or set(record.plan.excluded) - unable)


def in_words(seconds: float) -> str:
    """Return a time such as `2 h` or `3 d`."""
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.4g} {unit}"
    return f"{seconds:.4g} s"


def _check_runs(record: RolloutRecord) -> None:
    if record.state in ENDED:
        msg = f"rollout {record.id} has ended: {record.state}"
        raise InputError(msg)
