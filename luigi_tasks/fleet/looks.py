"""One look at a rollout: the newest snapshot is read and judged, and the rollout is at most one step further.

A registry that is gone is an error. A collector that is down is not: the look says so, and nothing moves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.fleet import stages
from luigi_tasks.fleet.observed import observe, read_baseline
from luigi_tasks.fleet.records import ENDED, GOING_BACK, HALTED
from luigi_tasks.fleet.rollouts import verdict_key
from luigi_tasks.fleet.snapshots import keep_snapshot

if TYPE_CHECKING:
    from luigi_tasks.fleet.observed import Observed
    from luigi_tasks.fleet.records import RolloutRecord, StageRecord
    from luigi_tasks.fleet.rollouts import Rollouts
    from luigi_tasks.fleet.snapshots import Snapshot
    from luigi_tasks.fleet.stages import Moment
    from luigi_tasks.settings.values import PipelineSettings


def take_step(
    settings: PipelineSettings, rollouts: Rollouts, record: RolloutRecord, when: Moment
) -> tuple[RolloutRecord, str]:
    """Return the rollout after a look, and in words why it is where it is; the verdict is saved.

    Args:
        settings: Settings of all sections.
        rollouts: Where verdicts and snapshots lie, too.
        record: The rollout.
        when: The time.
    Raises: NoRegistryError; TrustError; InputError; TransportError.
    """
    if record.state in (*ENDED, HALTED):
        return record, record.events[-1].why
    seen = observe(settings, rollouts.documents, when.now)
    if record.state == GOING_BACK:
        after = stages.finish_going_back(record, _serving(record, seen), when)
        return after, "its devices go back" if after is record else after.events[-1].why
    if seen.stale:
        words = f"nothing moves, {seen.stale}"
        return stages.wait(record, words, "", when), words
    following = stages.next_stage(record, seen.enrolled.values(), when.now)
    if not record.stages:
        return _open_first(rollouts, record, seen, following, when)
    baseline = read_baseline(settings, rollouts.documents, record.baseline, seen)
    return _judge(rollouts, record, seen, baseline, following, when)


def _open_first(
    rollouts: Rollouts, record: RolloutRecord, seen: Observed, following: StageRecord | None, when: Moment
) -> tuple[RolloutRecord, str]:
    if following is None:
        return record, "no device of the registry is on this channel and matches: `edge-fleet enroll`"
    after = stages.look(record, None, "", following, when)
    if after.stages and seen.snapshot is not None:
        keys = tuple(sorted(seen.snapshot.sources))
        for key in keys:
            keep_snapshot(rollouts.documents.store, key)
        after = msgspec.structs.replace(after, baseline=keys)
    return after, after.events[-1].why


def _judge(
    rollouts: Rollouts,
    record: RolloutRecord,
    seen: Observed,
    baseline: Snapshot | None,
    following: StageRecord | None,
    when: Moment,
) -> tuple[RolloutRecord, str]:
    from luigi_tasks.fleet.judge import judge  # noqa: PLC0415 - NumPy

    stage, snapshot = record.stages[-1], seen.snapshot
    if snapshot is None or snapshot.head.taken_at <= max(stage.judged_at, stage.opened_at):
        return record, "waits for a snapshot of the fleet that is newer than the last look"
    if not stages.members(record, seen.enrolled.values()):
        return record, "nothing moves, no device of the registry is in it any more"
    verdict = judge(
        record,
        stage,
        seen.enrolled,
        snapshot.rows,
        snapshot.head,
        baseline=baseline.rows if baseline is not None else (),
        snapshots={**(baseline.sources if baseline is not None else {}), **snapshot.sources},
    )
    after = stages.look(record, verdict, verdict_key(verdict), following, when)
    if len(after.events) > len(record.events):  # what something was decided on stays
        for key in snapshot.sources:
            keep_snapshot(rollouts.documents.store, key)
    rollouts.save_verdict(verdict)
    return after, verdict.words


def _serving(record: RolloutRecord, seen: Observed) -> set[str] | None:
    """Return the registered devices that reported a rollout's release last; None: nothing newer is known."""
    if seen.stale or seen.snapshot is None or seen.snapshot.head.taken_at <= record.state_since:
        return None
    gone = {record.release, *record.variants.values()}
    return {
        row.device
        for row in seen.snapshot.rows
        if row.device in seen.enrolled
        and row.channel == record.channel
        and row.report is not None
        and row.report.release in gone
    }
