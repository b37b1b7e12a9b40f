"""What a verdict sees of a stage: its devices and those outside of it, each with one vote.

Votes have the devices of the registry that follow the channel, that the rollout is for and that can run the
release. Devices outside of the stage are its control: the hash that divides them is as good as chance. A
device that was never enrolled has no vote. An id under which two machines report is as one that nothing was
heard of, which the quorum counts: whoever makes devices look like clones would else take failures away.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.rollout import rollout_hash, selects
from luigi_tasks.fleet.device_state import BEGAN, is_heard, release_for, state_in_rollout
from luigi_tasks.fleet.records import UNSEEN
from luigi_tasks.fleet.statistics import poisson_p

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from edge_client.contract.report import DeviceReport, ReleaseFigures
    from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice, RolloutRecord, SnapshotHead, StageRecord

# A device that serves and yet fails is broken: it failed on at least half of at least so many frames ...
BROKEN_FRAMES, BROKEN_SHARE = 20, 0.5
# ... or was started again so often that nobody asked for, and so improbably by its own rate before.
BROKEN_RESTARTS, BROKEN_P = 3, 0.005
# Without figures of the release before, so many starts an hour are too many on any device.
BROKEN_RESTARTS_PER_HOUR = 0.5


@dataclasses.dataclass(frozen=True)
class Vote:
    """One device.

    Attributes:
        enrolled: The device in the registry.
        row: What the collector knows of it; None: nothing.
        state: Its state in the rollout.
        release: The release that the rollout has for it.
        is_heard: Whether its last report is young enough; the collector's own silence counts as silence.
        fault: Why it fails though it serves the release, in a sentence; empty: it does not.
        is_restarting: Whether that is because it was started again and again.
    """

    enrolled: EnrolledDevice
    row: DeviceRow | None
    state: str
    release: str
    is_heard: bool
    fault: str = ""
    is_restarting: bool = False

    @property
    def device(self) -> str:
        """Its id."""
        return self.enrolled.device


@dataclasses.dataclass(frozen=True)
class StageView:
    """A stage at the time of a snapshot.

    Attributes:
        record: The rollout.
        stage: The stage.
        head: The snapshot's head.
        members: The devices of the stage, by id.
        control: The devices outside of it, by id.
        clones: Devices whose id two machines use.
        strangers: Number of devices that reported and were never enrolled.
    """

    record: RolloutRecord
    stage: StageRecord
    head: SnapshotHead
    members: tuple[Vote, ...]
    control: tuple[Vote, ...]
    clones: tuple[str, ...]
    strangers: int

    @property
    def seen(self) -> tuple[Vote, ...]:
        """Members of which anything is known; `unseen` is in no denominator."""
        return tuple(one for one in self.members if one.state != UNSEEN)

    @property
    def began(self) -> tuple[Vote, ...]:
        """Members that the release has reached."""
        return tuple(one for one in self.members if one.state in BEGAN)


def view_stage(
    record: RolloutRecord,
    stage: StageRecord,
    enrolled: Mapping[str, EnrolledDevice],
    rows: Sequence[DeviceRow],
    head: SnapshotHead,
) -> StageView:
    """Return the stage as a snapshot shows it."""
    known = {row.device: row for row in rows if row.channel == record.channel}
    members: list[Vote] = []
    control: list[Vote] = []
    clones: list[str] = []
    for device in _voters(record, enrolled):
        row = known.get(device.device)
        if row is not None and row.clones:
            clones.append(device.device)
            row = None
        vote = _vote(record, device, row, head)
        is_member = rollout_hash(record.id, record.plan.by, device.member) < stage.threshold
        (members if is_member else control).append(vote)
    strangers = sum(name not in enrolled for name in known)
    return StageView(record, stage, head, tuple(members), tuple(control), tuple(clones), strangers)


def _voters(record: RolloutRecord, enrolled: Mapping[str, EnrolledDevice]) -> Iterable[EnrolledDevice]:
    plan = record.plan
    for _, device in sorted(enrolled.items()):
        if device.retired_at or record.channel not in device.channels or device.device in record.skipped:
            continue
        if not (plan.only or plan.excluded) or selects(plan.only, plan.excluded, device.member):
            yield device


def _vote(record: RolloutRecord, device: EnrolledDevice, row: DeviceRow | None, head: SnapshotHead) -> Vote:
    silent_after = record.plan.silent_after
    state = state_in_rollout(
        row, record, device, head.taken_at, silent_after, listening_since=head.listening_since
    )
    release = release_for(record, device)
    if row is None or row.report is None or (device.key and not row.is_signed):
        return Vote(device, row, state, release, is_heard=False)
    heard = is_heard(row, head.taken_at, silent_after)
    fault, is_restarting = "", False
    if state in BEGAN:
        fault, is_restarting = _fault(row.report, release, record.from_release)
    return Vote(device, row, state, release, heard, fault, is_restarting)


def _fault(report: DeviceReport, release: str, from_release: str) -> tuple[str, bool]:
    now = report.figures(release)
    if now is None:
        return "", False
    before = report.figures(from_release) if from_release else None
    frames = now.frames + now.failed
    if frames >= BROKEN_FRAMES and now.failed >= BROKEN_SHARE * frames and not _failed_before(before):
        return f"it failed on {now.failed} of {frames} frames", False
    if now.restarts >= BROKEN_RESTARTS and _restarts_more(now, before):
        hours = now.seconds / 3600
        return f"it was started {now.restarts} times in {hours:.1f} h, and nobody asked for it", True
    return "", False


def _restarts_more(now: ReleaseFigures, before: ReleaseFigures | None) -> bool:
    if before is None or before.seconds <= 0:
        return now.restarts >= BROKEN_RESTARTS_PER_HOUR * now.seconds / 3600
    return poisson_p(now.restarts, now.seconds, before.restarts, before.seconds) < BROKEN_P


def _failed_before(before: ReleaseFigures | None) -> bool:
    return before is not None and before.failed >= BROKEN_SHARE * max(before.frames + before.failed, 1)
