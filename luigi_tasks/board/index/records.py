"""What the index tells the pages. Times are seconds since 1970 by the collector's clock."""

from __future__ import annotations

import msgspec

from edge_client.contract.report import DeviceReport  # noqa: TC001 - msgspec reads it
from luigi_tasks.fleet.records import (  # noqa: TC001 - as above
    EnrolledDevice,
    PeriodSum,
    Sighting,
    SnapshotHead,
)

# Names of a device's oddities, that a filter may ask for.
DRIFT, CLONES, DIFFERS, UNSIGNED, ERROR, WARNING = (
    "drift",
    "clones",
    "differs",
    "unsigned",
    "error",
    "warning",
)
ROWS_AT_MOST = 500


class DeviceQuery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Which rows of the table of devices are asked for; empty texts let all through.

    Attributes:
        text: Words, each of which is a part of id, channel, site, class, a tag, release or state.
        channel: The channel.
        site: The site, as the registry or the device says.
        device_class: The class, likewise.
        tag: A tag, likewise.
        release: Release that was reported; `none`, `unknown`.
        heard: `heard`, `quiet`, `never`, `unknown`.
        state: State in the channel's rollout.
        online: `yes`, `no`, `unknown`.
        enrolled: `yes`, `no`.
        odd: An oddity, by its name above.
        sort: One of `queries.SORTS`.
        descending: Whether the greatest comes first.
        offset: Rows to leave out.
        limit: Rows at most, up to `ROWS_AT_MOST`.
    """

    text: str = ""
    channel: str = ""
    site: str = ""
    device_class: str = msgspec.field(default="", name="class")
    tag: str = ""
    release: str = ""
    heard: str = ""
    state: str = ""
    online: str = ""
    enrolled: str = ""
    odd: str = ""
    sort: str = "device"
    descending: bool = False
    offset: int = 0
    limit: int = 50


class IndexedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One channel of a device.

    Attributes:
        device: Its id.
        channel: The channel.
        site: Its site, by its own report, else by the registry.
        device_class: Its class, likewise.
        tags: Its tags, likewise.
        enrolled: Whether it is in the registry.
        release: Release that it reported; `none`, `unknown`.
        expected: Release that it ought to have; None: none, or it keeps what it has.
        heard: `heard`, `quiet`, `never`, `unknown`.
        rollout_state: State in the channel's rollout; empty: none.
        online: By its last will; None: unknown.
        is_signed: Whether its report was signed with its key; None: there is no report.
        last_seen: When its last report came; None: never.
        latency_ms: Mean latency under its release; None: unknown, like the next three.
        unsure: Share of the frames that it was not sure of.
        failed_frames: Frames that failed.
        restarts: Restarts that nobody asked for.
        drift_alarm: Whether its drift alarm is raised.
        warning: Fault that does not stop it.
        notes: What is odd about it, the worst first.
        odd: The same as names.
        clones: Machines that report under this id, where there are several.
    """

    device: str
    channel: str
    site: str = ""
    device_class: str = msgspec.field(default="", name="class")
    tags: tuple[str, ...] = ()
    enrolled: bool = False
    release: str = ""
    expected: str | None = None
    heard: str = ""
    rollout_state: str = ""
    online: bool | None = None
    is_signed: bool | None = None
    last_seen: float | None = None
    latency_ms: float | None = None
    unsure: float | None = None
    failed_frames: int | None = None
    restarts: int | None = None
    drift_alarm: bool = False
    warning: str = ""
    notes: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()
    clones: int = 0


class DeviceMore(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the page of a device shows besides.

    Attributes:
        report: Its last report.
        entry: Its entry in the registry; None: it has none.
        why: Why it ought to have what it ought to have, in sentences.
        first_seen: When the collector first heard it.
        sightings: History of its states in rollouts, oldest first.
        periods: Sums by period and release, oldest first.
        clones: Fingerprints of the machines that report under its id, where there are several.
    """

    report: DeviceReport | None = None
    entry: EnrolledDevice | None = None
    why: tuple[str, ...] = ()
    first_seen: float = 0.0
    sightings: tuple[Sighting, ...] = ()
    periods: tuple[PeriodSum, ...] = ()
    clones: tuple[str, ...] = ()


class DeviceDetail(msgspec.Struct, frozen=True, kw_only=True):
    """All that is known of one channel of a device.

    Attributes:
        row: As in the table.
        more: The rest.
    """

    row: IndexedDevice
    more: DeviceMore


class TablePart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the table of devices.

    Attributes:
        query: What was asked for, as it was understood.
        total: Rows that the filters let through.
        devices: The rows.
    """

    query: DeviceQuery
    total: int
    devices: tuple[IndexedDevice, ...]


class Counts(msgspec.Struct, kw_only=True):
    """Devices of a channel, or of the fleet, by what is known of them. A device counts once in each value.

    Attributes:
        devices: Registered devices.
        strangers: Devices that report and are not registered; they are in no other number.
        heard: By how they are heard of.
        online: `yes`, `no`, `unknown`.
        states: By state in the rollout.
        releases: By the release that they reported, the most first.
        odd: By oddity.
        classes: By class.
        sites: By site, the two hundred largest.
        tags: By tag, the two hundred most frequent.
    """

    devices: int = 0
    strangers: int = 0
    heard: dict[str, int] = {}
    online: dict[str, int] = {}
    states: dict[str, int] = {}
    releases: dict[str, int] = {}
    odd: dict[str, int] = {}
    classes: dict[str, int] = {}
    sites: dict[str, int] = {}
    tags: dict[str, int] = {}


class IndexContent(msgspec.Struct, frozen=True, kw_only=True):
    """What the index was made of, as it is written into it.

    Attributes:
        version: Names what was looked at; the same things have the same.
        source: Address of the bucket, and name of the fleet.
        fleet: Name of the fleet.
        head: Head of the snapshot; None: there is none.
        has_registry: Whether anybody was ever enrolled.
        rows: Rows in the index.
        counts: By channel; under the empty name of the whole fleet.
        faults: What could not be trusted or read, and is not shown.
        notes: What is missing, and how to get it.
        load_s: How long it took.
    """

    version: str
    source: str
    fleet: str
    head: SnapshotHead | None = None
    has_registry: bool = False
    rows: int = 0
    counts: dict[str, Counts] = {}
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    load_s: float = 0.0


class IndexState(msgspec.Struct, frozen=True, kw_only=True):
    """Which moment the pages show, and how complete it is.

    Attributes:
        version: Of the index; empty: there is none yet.
        words: All that follows in a sentence.
        taken_at: When the snapshot was taken; None: there is none.
        collector: Who took it.
        registered: Devices in the registry.
        heard: Registered devices that do not owe a report.
        rows: Rows in the index.
        has_registry: Whether anybody was ever enrolled.
        is_old: Whether a newer snapshot is overdue.
        doubts: What makes the snapshot tell less than it seems to, in sentences.
        is_loading: Whether another one is being read.
        rejected: Reports that did not count, by reason.
        faults: What could not be trusted, read or reached.
        notes: What is missing, and how to get it.
    """

    version: str = ""
    words: str = ""
    taken_at: float | None = None
    collector: str = ""
    registered: int = 0
    heard: int = 0
    rows: int = 0
    has_registry: bool = False
    is_old: bool = False
    doubts: tuple[str, ...] = ()
    is_loading: bool = False
    rejected: dict[str, int] = {}
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Devices by release over time.

    Attributes:
        channel: The channel; empty: the whole fleet.
        times: Seconds since 1970, ascending.
        releases: Releases, those with the most devices last seen first; the last may be `other`.
        devices: A list for each release: devices at each time.
    """

    channel: str
    times: tuple[float, ...] = ()
    releases: tuple[str, ...] = ()
    devices: tuple[tuple[int, ...], ...] = ()
