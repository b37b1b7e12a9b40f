"""The judge: from a rollout's record and a snapshot of reports to a verdict on a stage.

A pure function: no clock, no disk, no chance, and numbers rounded by a rule, so that all who have the
snapshot get the same bytes (`rebuild`). The time of a verdict is that of its snapshot: who asks for one
looks first whether the snapshot is young.

    a hard check halts           halt, is_hard
    a soft check halts           halt
    all hard checks pass         is_ready; the soak starts
    ... and the soak was served  the soft checks are looked at; if none is in doubt: pass
    a soft check asks            inconclusive, with what a person has to look at: pause
    else                         inconclusive: wait, and pause at the stage's timeout

The choices and their error rates are in `docs/decisions/0022-verdicts.md`.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import encode_compact, encode_document
from edge_client.contract.errors import InputError
from luigi_tasks.fleet.checks import counts, failed_votes, hard_checks, soak, unsigned_passes
from luigi_tasks.fleet.hit_devices import examples, in_common
from luigi_tasks.fleet.records import HALT, HARD, INCONCLUSIVE, PASS, REPORT, SOFT, VerdictRecord
from luigi_tasks.fleet.soft_checks import soft_findings
from luigi_tasks.fleet.stage_view import view_stage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from luigi_tasks.fleet.records import (
        Check,
        DeviceRow,
        EnrolledDevice,
        RolloutPlan,
        RolloutRecord,
        SnapshotHead,
        StageRecord,
    )


# Checks that the words of a verdict tell, and clones that it names.
TOLD_AT_MOST, CLONES_AT_MOST = 3, 100


def judge(
    record: RolloutRecord,
    stage: StageRecord,
    enrolled: Mapping[str, EnrolledDevice],
    rows: Sequence[DeviceRow],
    head: SnapshotHead,
    *,
    baseline: Sequence[DeviceRow] = (),
    snapshots: Mapping[str, str] | None = None,
) -> VerdictRecord:
    """Return the verdict on a stage.

    Args:
        record: The rollout.
        stage: The stage that is open; `soaking_since` is the time of the first verdict that was `is_ready`.
        enrolled: The registry, devices by id.
        rows: Rows of the newest snapshot.
        head: Its head.
        baseline: Rows of the snapshot from before the first stage: what devices did under the release before
            may have left the newest one.
        snapshots: Keys of both with their SHA-256, which the verdict names.
    Raises: InputError if the plan cannot be read.
    """
    view = view_stage(record, stage, enrolled, rows, head)
    hard = _report_only(hard_checks(view), record.plan)
    is_ready = all(check.result == PASS for check in hard if check.kind == HARD)
    soaked = soak(view)
    is_soaked = is_ready and soaked.result == PASS
    found = soft_findings(view, baseline, is_soaked=is_soaked)
    checks = (*hard, soaked, *_report_only(found.checks, record.plan))
    hard_hit = {one.device for one in failed_votes(view)}
    is_hard, is_soft = (
        any(one.result == HALT and one.kind == kind for one in checks) for kind in (HARD, SOFT)
    )
    asks = tuple(one.name for one in checks if one.name in found.asks and one.kind != REPORT)
    hit = found.hit if (is_soft or asks) and not is_hard else hard_hit
    is_certain = not any(one.result == INCONCLUSIVE and one.kind != REPORT for one in checks)
    result = HALT if is_hard or is_soft else PASS if is_certain else INCONCLUSIVE
    return VerdictRecord(
        rollout=record.id,
        channel=record.channel,
        stage=stage.number,
        look=stage.looks + 1,
        at=head.taken_at,
        plan=record.plan,
        soaking_since=stage.soaking_since,
        registry=_digest(enrolled),
        snapshots=dict(sorted((snapshots or {}).items())),
        result=result,
        is_hard=is_hard,
        is_ready=is_ready,
        unsigned=unsigned_passes(view),
        counts=counts(view.members),
        control=counts(view.control),
        clones=view.clones[:CLONES_AT_MOST],
        strangers=view.strangers,
        checks=checks,
        asks=asks,
        common=in_common(view.seen, hit),
        examples=examples(view.members, hit),
        words=_words(result, checks, asks),
    )


def rebuild(
    verdict: VerdictRecord,
    record: RolloutRecord,
    enrolled: Mapping[str, EnrolledDevice],
    rows: Sequence[DeviceRow],
    head: SnapshotHead,
    *,
    baseline: Sequence[DeviceRow] = (),
) -> bytes:
    """Return the bytes of a verdict, made again from what it names: those of `encode_document(verdict)`.

    Raises: InputError if they are not, or if the rollout has no such stage.
    """
    what = f"verdict {verdict.look} on stage {verdict.stage} of {verdict.rollout}"
    stage = next((one for one in record.stages if one.number == verdict.stage), None)
    if stage is None or record.id != verdict.rollout:
        msg = f"{what}: rollout {record.id} has no such stage"
        raise InputError(msg)
    if _digest(enrolled) != verdict.registry:
        msg = (
            f"{what} stands on another state of the registry; take the version of that time from the "
            "bucket's versions"
        )
        raise InputError(msg)
    stage = msgspec.structs.replace(stage, looks=verdict.look - 1, soaking_since=verdict.soaking_since)
    record = msgspec.structs.replace(record, plan=verdict.plan)
    again = judge(record, stage, enrolled, rows, head, baseline=baseline, snapshots=verdict.snapshots)
    if encode_document(again) != encode_document(verdict):
        msg = (
            f"{what}: made again it differs. The snapshot or the rollout is not that one any more, or "
            "the judge has changed since"
        )
        raise InputError(msg)
    return encode_document(again)


def _digest(enrolled: Mapping[str, EnrolledDevice]) -> str:
    digest = hashlib.sha256()
    for _, device in sorted(enrolled.items()):
        digest.update(encode_compact(device))
    return digest.hexdigest()


def _report_only(checks: tuple[Check, ...], plan: RolloutPlan) -> tuple[Check, ...]:
    return tuple(
        msgspec.structs.replace(check, kind=REPORT)
        if check.name in plan.report_only or check.name.partition(":")[0] in plan.report_only
        else check
        for check in checks
    )


def _words(result: str, checks: Sequence[Check], asks: Collection[str]) -> str:
    if result == HALT or asks:
        told = [one for one in checks if one.result == HALT and one.kind != REPORT]
        told += [one for one in checks if one.name in asks]
        more = f"; and {len(told) - TOLD_AT_MOST} more" if len(told) > TOLD_AT_MOST else ""
        return "; ".join(f"{one.name}: {one.words}" for one in told[:TOLD_AT_MOST]) + more
    failures = next(one for one in checks if one.name == "failures")
    if result == PASS:
        return failures.words
    missing = [one for one in checks if one.kind != REPORT and one.result == INCONCLUSIVE]
    if [one.name for one in missing] == ["soak"]:
        return f"{missing[0].words}; {failures.words}"
    return "not yet: " + "; ".join(f"{one.name}: {one.words}" for one in missing[: TOLD_AT_MOST + 2])
