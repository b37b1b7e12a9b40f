"""What is signed for a rollout's record: the channel's pointer and rollout document, as pure functions.

The record is written first, the signature follows. Whoever looks next signs what the record says, so that it
does not matter where a machine was killed. A record that is older than what was signed (somebody put a copy
of the bucket's objects back) signs nothing: a person decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.rollout import EVERYBODY, NOBODY, NOW, RolloutDocument
from edge_client.contract.times import parse_time
from luigi_tasks.fleet.records import (
    ABORTED,
    APPROVAL,
    BACK,
    DONE,
    ENDED,
    GOING_BACK,
    OPEN,
    SOAKING,
    SUPERSEDED,
)
from luigi_tasks.fleet.stages import is_limited, spread_s
from luigi_tasks.release.channel import Pointers, point_channel

if TYPE_CHECKING:
    from edge_client.contract.release import ChannelDocument
    from luigi_tasks.fleet.records import RolloutRecord


# Clocks of two machines that look, both kept by NTP.
_CLOCKS_APART_S = 30.0
# Part of the time between two reports by which it may differ from what suits the fleet.
_PACE_LEFT = 0.1


def pointers_after(record: RolloutRecord, before: Pointers, at: str) -> Pointers:
    """Return what a channel's signed documents are to be; those that are right already as they are.

    Args:
        record: The rollout.
        before: What is signed.
        at: Time of the move, UTC, ISO 8601.
    """
    if why_behind(record, before):
        return before
    is_signed = before.rollout is not None and before.rollout.id == record.id
    channel, rollout = before.channel, before.rollout
    if record.state in {OPEN, SOAKING, APPROVAL} and record.stages:
        rollout = _open(record, at)
    elif record.state in {GOING_BACK, BACK}:
        channel = _withdraw(record, before, at)
    if is_signed and record.state == GOING_BACK:
        rollout = _going_back(record, at)
    elif is_signed and record.state == DONE:
        rollout, channel = _done(record, before, at), _move(record, before, at)
    elif is_signed and record.state in {BACK, ABORTED, SUPERSEDED}:
        rollout = idle(before, record.channel, at).rollout
    return Pointers(channel, _unless_same(rollout, before.rollout))


def idle(before: Pointers, channel: str, at: str) -> Pointers:
    """Return a channel without a rollout, also where its last one left a document for a part of the fleet."""
    if before.rollout is None or not before.rollout.id:
        return before
    heartbeat_s = before.rollout.heartbeat_s
    return Pointers(before.channel, RolloutDocument(channel=channel, heartbeat_s=heartbeat_s, moved_at=at))


def paced(before: Pointers, channel: str, heartbeat_s: float, at: str) -> Pointers:
    """Return a channel that no rollout runs on with the time between two reports that suits its fleet.

    A little more or less is left: a fleet that grows device by device signs nothing for each.
    """
    rollout = before.rollout if before.rollout is not None else RolloutDocument(channel=channel)
    if abs(heartbeat_s - rollout.heartbeat_s) <= _PACE_LEFT * rollout.heartbeat_s:
        return before
    return Pointers(before.channel, msgspec.structs.replace(rollout, heartbeat_s=heartbeat_s, moved_at=at))


def why_behind(record: RolloutRecord, signed: Pointers) -> str:
    """Return why a record is older than what was signed; empty: it is not.

    The signature follows the record, so it may be behind it, and never ahead.
    """
    if record.state in ENDED:
        return ""
    document = signed.rollout
    is_its = document is not None and document.id == record.id
    moved_at = _time(document.moved_at) if document is not None and document.moved_at else 0.0
    if not record.stages:
        is_newer = is_its or moved_at > record.state_since + _CLOCKS_APART_S
        return "the signed document was moved after this rollout was started" if is_newer else ""
    stage = record.stages[-1]
    points_to = signed.channel.release if signed.channel is not None else ""
    reasons = (
        (
            is_its and document is not None and document.threshold > stage.threshold,
            "more devices have the release by the signed document than the record knows of",
        ),
        (
            is_its and document is not None and document.threshold == NOBODY and record.state != GOING_BACK,
            "the signed document sends the devices back, and the record does not",
        ),
        (
            not is_its and points_to == record.release and not is_limited(record),
            "the channel points to the release already",
        ),
        (
            not is_its and len(record.stages) > 1,
            "the signed document is of another rollout, or of none",
        ),
        (
            not is_its and moved_at > stage.opened_at + _CLOCKS_APART_S,
            "the signed document was moved after this stage was opened",
        ),
    )
    return next((why for holds, why in reasons if holds), "")


def _time(at: str) -> float:
    return parse_time(at).timestamp()


def _open(record: RolloutRecord, at: str) -> RolloutDocument:
    plan = record.plan
    return RolloutDocument(
        channel=record.channel,
        id=record.id,
        release=record.release,
        from_release=record.from_release,
        threshold=record.stages[-1].threshold,
        by=plan.by,
        only=plan.only,
        excluded=plan.excluded,
        apply=plan.apply,
        window=plan.window,
        spread_s=spread_s(record),
        heartbeat_s=plan.heartbeat_s,
        variants=record.variants,
        moved_at=at,
    )


def _going_back(record: RolloutRecord, at: str) -> RolloutDocument:
    """Return the document that takes the release from everybody, paced; at once, whatever the window says."""
    return msgspec.structs.replace(_open(record, at), threshold=NOBODY, apply=NOW, window="")


def _done(record: RolloutRecord, before: Pointers, at: str) -> RolloutDocument | None:
    """Return the document of a rollout that is done.

    For a part of the fleet, and for the classes that have a variant, it stays: the pointer is everybody's.
    """
    if not (is_limited(record) or record.variants):
        return idle(before, record.channel, at).rollout
    return msgspec.structs.replace(_open(record, at), threshold=EVERYBODY, spread_s=0.0)


def _move(record: RolloutRecord, before: Pointers, at: str) -> ChannelDocument | None:
    """Return the pointer at the release, unless a person withdrew it meanwhile."""
    pointer = before.channel
    is_left = pointer is not None and (
        pointer.release == record.release or record.release in pointer.withdrawn
    )
    if is_limited(record) or is_left:
        return pointer
    return point_channel(pointer, record.channel, record.release, share_percent=100.0, at=at)


def _withdraw(record: RolloutRecord, before: Pointers, at: str) -> ChannelDocument | None:
    """Return the pointer with the release withdrawn: no Deploy starts it again."""
    pointer, gone = before.channel, (record.release, *record.variants.values())
    if pointer is None or pointer.release in gone:
        return pointer
    withdrawn = tuple(dict.fromkeys((*pointer.withdrawn, *gone)))
    if withdrawn == pointer.withdrawn:
        return pointer
    return msgspec.structs.replace(pointer, withdrawn=withdrawn, moved_at=at)


def _unless_same(rollout: RolloutDocument | None, before: RolloutDocument | None) -> RolloutDocument | None:
    """Return the document as it was where only the time of the move differs."""
    if rollout is None or before is None:
        return rollout
    return before if msgspec.structs.replace(rollout, moved_at=before.moved_at) == before else rollout
