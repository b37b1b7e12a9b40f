"""What is known of the fleet at one moment: registry, newest snapshot, pointers and rollouts, put together.

Shown is what devices reported, and when; what they ought to have stands apart. A device of which nothing is
known is unknown, and counts as that.
"""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.release import in_rollout
from edge_client.contract.rollout import EVERYBODY, Member, RolloutDocument, rollout_hash, selects
from luigi_tasks.fleet.device_state import is_heard, state_in_rollout
from luigi_tasks.fleet.records import DEVICE_STATES, ENDED, RolloutPlan
from luigi_tasks.fleet.tables import UNKNOWN, age_in_words, clock_in_words, count, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edge_client.contract.release import ChannelDocument
    from edge_client.contract.report import DeviceReport
    from luigi_tasks.fleet.records import (
        CurrentRollout,
        DeviceRow,
        EnrolledDevice,
        RolloutRecord,
        SnapshotHead,
    )
    from luigi_tasks.fleet.registry import Registry
    from luigi_tasks.fleet.snapshots import Snapshot

# How a device is heard of.
HEARD, QUIET, NEVER = "heard", "quiet", "never"
NONE = "none"
# Clocks of the collector and of this machine, both kept by NTP.
_CLOCKS_APART_S = 60.0


@dataclasses.dataclass(frozen=True)
class FleetView:
    """The fleet at one moment.

    Attributes:
        fleet: Its name.
        now: This machine's clock, seconds since 1970.
        registry: Who is in the fleet; None: nobody was enrolled.
        snapshot: What the devices reported; None: no collector wrote one.
        pointers: Steady pointer by channel.
        documents: Signed rollout by channel.
        current: Which rollout each channel is in.
        records: The rollout that runs or ran last, by channel.
        faults: What could not be trusted or read, and is not shown.
        notes: What is missing, and how to get it.
        snapshot_s: Time between two snapshots of a collector.
    """

    fleet: str
    now: float
    registry: Registry | None = None
    snapshot: Snapshot | None = None
    pointers: Mapping[str, ChannelDocument] = dataclasses.field(default_factory=dict)
    documents: Mapping[str, RolloutDocument] = dataclasses.field(default_factory=dict)
    current: Mapping[str, CurrentRollout] = dataclasses.field(default_factory=dict)
    records: Mapping[str, RolloutRecord] = dataclasses.field(default_factory=dict)
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    snapshot_s: float = 300.0

    @property
    def is_old(self) -> bool:
        """Whether a newer snapshot is overdue."""
        return self.head is not None and self.now - self.head.taken_at > 2 * self.snapshot_s + _CLOCKS_APART_S

    @property
    def head(self) -> SnapshotHead | None:
        """Head of the snapshot."""
        return None if self.snapshot is None else self.snapshot.head

    @property
    def enrolled(self) -> Mapping[str, EnrolledDevice]:
        """Devices in the registry."""
        return {} if self.registry is None else self.registry.devices

    @property
    def channels(self) -> list[str]:
        """Names of all channels that anything names."""
        followed = {channel for one in self.enrolled.values() for channel in one.channels}
        reported = {row.channel for row in self.snapshot.rows} if self.snapshot is not None else set()
        return sorted({*self.pointers, *self.documents, *self.records, *followed, *reported})

    def running(self, channel: str) -> RolloutRecord | None:
        """Return the rollout that a channel is in; None if there is none."""
        record = self.records.get(channel)
        return None if record is None or record.state in ENDED else record

    def expected(self, channel: str, member: Member) -> Expectation:
        """Return what a device ought to have on a channel."""
        return expect(self.pointers.get(channel), self.documents.get(channel), member)

    def devices(self) -> Iterator[ShownDevice]:
        """Yield each channel of each device, those of the registry and others that reported."""
        rows = {} if self.snapshot is None else {(row.device, row.channel): row for row in self.snapshot.rows}
        for device in sorted(self.enrolled):
            one = self.enrolled[device]
            for channel in one.channels:
                yield self.show(device, channel, one, rows.pop((device, channel), None))
        for (device, channel), row in sorted(rows.items()):
            yield self.show(device, channel, self.enrolled.get(device), row)

    def show(
        self, device: str, channel: str, enrolled: EnrolledDevice | None, row: DeviceRow | None
    ) -> ShownDevice:
        """Return a channel of a device as this view shows it.

        Args:
            device: The device.
            channel: The channel.
            enrolled: Its entry in the registry, if any.
            row: Its row in the snapshot, if any.
        """
        report = None if row is None else row.report
        record = self.running(channel)
        return ShownDevice(
            device=device,
            channel=channel,
            enrolled=enrolled,
            row=row,
            release=UNKNOWN if report is None else report.release or NONE,
            heard=self._heard(row),
            rollout_state=self._rollout_state(record, enrolled, row),
        )

    def _rollout_state(
        self, record: RolloutRecord | None, enrolled: EnrolledDevice | None, row: DeviceRow | None
    ) -> str:
        head = self.head
        if record is None or enrolled is None or head is None or not _is_for(record, enrolled):
            return ""
        return state_in_rollout(
            row,
            record,
            enrolled,
            head.taken_at,
            record.plan.silent_after,
            listening_since=head.listening_since,
        )

    def _heard(self, row: DeviceRow | None) -> str:
        if self.head is None:
            return UNKNOWN
        if row is None or row.report is None:
            return NEVER
        head, after = self.head, RolloutPlan().silent_after
        heard = is_heard(row, head.taken_at, after, listening_since=head.listening_since)
        return HEARD if heard else QUIET


@dataclasses.dataclass(frozen=True)
class ShownDevice:
    """One channel of a device.

    Attributes:
        device: Its id.
        channel: The channel.
        enrolled: Its entry in the registry; None: it has none.
        row: What the collector knows; None: nothing.
        release: Release that it reported; `none`, or `unknown`.
        heard: `heard`, `quiet` (it owes reports), `never`, or `unknown`.
        rollout_state: State in the channel's rollout; empty: there is none, or not for it.
    """

    device: str
    channel: str
    enrolled: EnrolledDevice | None
    row: DeviceRow | None
    release: str
    heard: str
    rollout_state: str

    @property
    def report(self) -> DeviceReport | None:
        """Its last report."""
        return None if self.row is None else self.row.report

    @property
    def member(self) -> Member:
        """What a rollout asks of it: by its own report, as it decides itself, else by the registry."""
        report = self.report
        if report is not None and report.knows_rollouts:
            return Member(self.device, report.site, report.device_class, report.tags)
        return self.enrolled.member if self.enrolled is not None else Member(self.device)

    @property
    def differs(self) -> bool:
        """Whether a device's own settings are not those of the registry; a client of before told none."""
        if self.enrolled is None or self.report is None or not self.report.client:
            return False
        own, known = self.member, self.enrolled.member
        are_same = (own.site, own.device_class) == (known.site, known.device_class)
        return not are_same or set(own.tags) != set(known.tags)

    def facts(self) -> dict[str, set[str]]:
        """Return site, class and tags, by the registry and by its report: a filter may mean either."""
        members = [self.member, *([self.enrolled.member] if self.enrolled is not None else [])]
        return {
            "site": {one.site for one in members},
            "class": {one.device_class for one in members},
            "tag": {tag for one in members for tag in one.tags},
        }


@dataclasses.dataclass(frozen=True)
class Expectation:
    """What a device ought to have on a channel, by what is signed.

    Attributes:
        release: The release; None: nothing says any, or it keeps what it has.
        words: Why, in sentences.
    """

    release: str | None
    words: tuple[str, ...]


def expect(pointer: ChannelDocument | None, rollout: RolloutDocument | None, member: Member) -> Expectation:
    """Return what a device ought to have, and why: the same rule as on the device.

    Args:
        pointer: The channel's steady pointer.
        rollout: Its rollout document.
        member: The device.
    """
    words = []
    if rollout is not None and rollout.id:
        words.append(_explain_rollout(rollout, member))
        if (release := rollout.release_for(member)) is not None:
            return Expectation(release, tuple(words))
    if pointer is None:
        return Expectation(None, (*words, "the channel points to nothing: no release was published on it"))
    words.append(f"the channel's steady release is {pointer.release}, since {pointer.moved_at or UNKNOWN}")
    if pointer.share_percent < 100 and not in_rollout(member.device, pointer.release, pointer.share_percent):
        words.append(
            f"the device is outside the share of {pointer.share_percent:g}% that may move to it: it keeps "
            "what it has, and takes it if it has nothing"
        )
        return Expectation(None, tuple(words))
    return Expectation(pointer.release, tuple(words))


def _explain_rollout(rollout: RolloutDocument, member: Member) -> str:
    named = f"rollout {rollout.id} of release {rollout.release}"
    if not selects(rollout.only, rollout.excluded, member):
        only = f" only {', '.join(rollout.only)}" if rollout.only else ""
        excluded = f" not {', '.join(rollout.excluded)}" if rollout.excluded else ""
        return f"{named} is not for this device: it is for{only}{excluded}"
    place = rollout_hash(rollout.id, rollout.by, member)
    unit = f"site {member.site}" if rollout.by == "site" and member.site else "the device"
    numbers = f"{unit} has place {place / EVERYBODY:.2%}, open is up to {rollout.threshold / EVERYBODY:.2%}"
    if place >= rollout.threshold:
        return f"{named} has not come to it yet: {numbers}"
    variant = rollout.variants.get(member.device_class)
    if variant:
        return f"{named} has come to it: {numbers}; class {member.device_class} gets the variant {variant}"
    return f"{named} has come to it: {numbers}"


def _is_for(record: RolloutRecord, enrolled: EnrolledDevice) -> bool:
    return enrolled.device not in record.skipped and selects(
        record.plan.only, record.plan.excluded, enrolled.member
    )


def snapshot_in_words(view: FleetView) -> str:
    """Return which moment is shown, and how complete it is."""
    head = view.head
    if head is None:
        return "".join(f"{one}. " for one in view.notes) + (
            "No snapshot: no collector that the registry names has written one. What devices serve is "
            "unknown (`edge-fleet doctor` says why)"
        )
    age_s = view.now - head.taken_at
    text = f"As of {clock_in_words(head.taken_at)}, {age_in_words(age_s)}"
    named = "" if head.collector == "collector" else f" {shown(head.collector) or UNKNOWN}"
    text += f" (collector{named}): {head.heard} of {count(head.registered, 'registered device')} heard"
    if view.is_old:
        text += ". OLD: the collector has written nothing since; what happened later is unknown"
    return text + "".join(f". {one}" for one in snapshot_doubts(view))


def snapshot_doubts(view: FleetView) -> tuple[str, ...]:
    """Return what makes a snapshot tell less than it seems to, beside its age: sentences without a stop."""
    head = view.head
    if head is None:
        return ()
    doubts = []
    if head.listening_since > head.taken_at - view.snapshot_s:
        doubts.append(f"The collector has listened only since {clock_in_words(head.listening_since)}")
    if view.now - head.taken_at < -_CLOCKS_APART_S:
        doubts.append("The clocks of this machine and of the collector differ")
    return tuple(doubts)


def count_releases(devices: list[ShownDevice]) -> dict[str, int]:
    """Return the number of registered devices by the release that they reported, the largest first."""
    counts = collections.Counter(one.release for one in devices if one.enrolled is not None)
    return dict(counts.most_common())


def count_states(devices: list[ShownDevice]) -> dict[str, int]:
    """Return the number of registered devices by their state in the rollout."""
    counts = collections.Counter(one.rollout_state for one in devices if one.rollout_state)
    return {state: counts[state] for state in DEVICE_STATES if counts[state]}
