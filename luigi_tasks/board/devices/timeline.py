"""What happened to a device, newest first: enrolment, sightings, activations, what its rollout did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.rollout import rollout_hash, selects
from edge_client.contract.times import seconds_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.contract.rollout import Member
    from luigi_tasks.fleet.records import EnrolledDevice, RolloutEvent, RolloutRecord
    from luigi_tasks.fleet.view import ShownDevice

_EVENTS_AT_MOST = 60
# Events of a rollout that concern every device of it.
_FOR_ALL = {"paused", "resumed", "halted", "back", "going_back", "done", "aborted", "superseded"}


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One entry.

    Attributes:
        at: Seconds since 1970.
        what: A word or two.
        words: The rest of it.
        state: `good`, `warn`, `bad`, `busy`, `info` or `off`.
        release: Release that it is about; empty: none.
        rollout: Rollout that it is about; empty: none.
        by_device: Whether the time is by the device's own clock.
    """

    at: float
    what: str
    words: str = ""
    state: str = "info"
    release: str = ""
    rollout: str = ""
    by_device: bool = False


_STATES = {"passed": "good", "sent_back": "bad", "refused": "bad", "silent": "warn", "held": "warn"}


def timeline_of(
    one: ShownDevice, record: RolloutRecord | None, gone: EnrolledDevice | None
) -> tuple[Happening, ...]:
    """Return the entries, the newest first.

    Args:
        one: A channel of the device.
        record: The rollout that runs on the channel, or ran last.
        gone: Its entry in the registry, if it left the fleet.
    """
    entries = [*_of_registry(gone or one.enrolled), *_of_collector(one), *_of_releases(one)]
    if record is not None:
        entries += _of_rollout(record, one.member)
    known = [entry for entry in entries if entry.at > 0]
    # What one look did has one time: of that too the last comes first.
    return tuple(sorted(known, key=lambda entry: entry.at)[::-1][:_EVENTS_AT_MOST])


def _of_registry(entry: EnrolledDevice | None) -> Iterator[Happening]:
    if entry is None:
        return
    again = f", epoch {entry.epoch}" if entry.epoch > 1 else ""
    yield Happening(
        at=seconds_of(entry.enrolled_at), what="enrolled", words=f"by {entry.enrolled_by or 'unknown'}{again}"
    )
    if entry.retired_at:
        yield Happening(at=seconds_of(entry.retired_at), what="left the fleet", state="off")


def _of_collector(one: ShownDevice) -> Iterator[Happening]:
    row = one.row
    if row is None:
        return
    yield Happening(at=row.first_seen, what="first heard", words="by the collector")
    if row.report is not None:
        yield Happening(
            at=row.last_seen, what="last report", words=f"serves {row.report.release or 'nothing'}"
        )
    for seen in row.sightings:
        yield Happening(
            at=seen.at,
            what=seen.state.replace("_", " "),
            words=seen.reason,
            state=_STATES.get(seen.state, "busy"),
            release=seen.release,
            rollout=seen.rollout,
        )


def _of_releases(one: ShownDevice) -> Iterator[Happening]:
    for figures in one.report.releases if one.report is not None else ():
        yield Happening(
            at=seconds_of(figures.activated_at), what="activated", release=figures.release, by_device=True
        )
        if figures.ended_at:
            ended = figures.probation or "refused"
            yield Happening(
                at=seconds_of(figures.ended_at),
                what=f"probation {ended}" if ended == "passed" else ended.replace("_", " "),
                words=figures.reason,
                state=_STATES.get(ended, "info"),
                release=figures.release,
                by_device=True,
            )


def _of_rollout(record: RolloutRecord, member: Member) -> Iterator[Happening]:
    """Yield the stage in which a rollout came to the device, and what happened to the rollout after that."""
    if not selects(record.plan.only, record.plan.excluded, member):
        return
    if member.device in record.skipped:
        yield Happening(
            at=seconds_of(record.created_at),
            what="skipped by the rollout",
            words=record.skipped[member.device],
            state="off",
            release=record.release,
            rollout=record.id,
        )
        return
    place = rollout_hash(record.id, record.plan.by, member)
    came = next((stage for stage in record.stages if place < stage.threshold), None)
    if came is None:
        return
    release = record.variants.get(member.device_class, record.release)
    yield Happening(
        at=came.opened_at,
        what=f"stage {came.number} opened",
        words="the rollout came to it",
        state="busy",
        release=release,
        rollout=record.id,
    )
    for event in _after(record, came.opened_at):
        yield Happening(
            at=seconds_of(event.at),
            what=f"rollout {event.what.replace('_', ' ')}",
            words=": ".join(filter(None, (event.who, event.why))),
            state="warn" if event.what in {"paused", "halted", "back", "going_back"} else "info",
            rollout=record.id,
        )


def _after(record: RolloutRecord, at: float) -> list[RolloutEvent]:
    return [one for one in record.events if one.what in _FOR_ALL and seconds_of(one.at) >= at]
