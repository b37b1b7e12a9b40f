"""What the fleet keeps in the bucket: who is in it, what was reported, each rollout, each verdict.

    fleet/registry/...                         who is in the fleet (`registry.py`)
    fleet/snapshots/<time>-<collector>.{json,jsonl.zst}  what the devices reported (`snapshots.py`)
    fleet/rollouts/<channel>/<id>.json         a rollout: plan, state, events (`rollouts.py`)
    fleet/rollouts/<channel>/current.json      which rollout the channel is in, and what is queued
    fleet/verdicts/<channel>/<id>/<n>.json     a verdict with its inputs

All of them are signed (`documents.py`): whoever can write the bucket can take them away, and not forge them.
"""

from __future__ import annotations

from edge_client.contract.documents import Document
from edge_client.contract.report import DeviceReport  # noqa: TC001 - msgspec reads it
from edge_client.contract.rollout import BY_DEVICE, NOW, Member

# Who is in the fleet


class EnrolledDevice(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A device in the registry: one vote.

    Attributes:
        device: Its id.
        site: Its site; empty: none.
        device_class: Its class; empty: none.
        tags: Its tags, as in its settings.
        key: Public key that signs its reports, PEM (Ed25519); empty: it was enrolled without one.
        channels: Channels that it follows.
        enrolled_at: UTC, ISO 8601.
        enrolled_by: Who enrolled it.
        epoch: Number of its enrolment; grows with `re-enroll`.
        retired_at: When it left the fleet; empty: it is in it.
    """

    device: str
    site: str = ""
    device_class: str = ""
    tags: tuple[str, ...] = ()
    key: str = ""
    channels: tuple[str, ...] = ("stable",)
    enrolled_at: str = ""
    enrolled_by: str = ""
    epoch: int = 1
    retired_at: str = ""

    @property
    def member(self) -> Member:
        """The device, as far as a rollout asks."""
        return Member(self.device, self.site, self.device_class, self.tags)


# What the devices reported


class PeriodSum(Document, frozen=True, kw_only=True, omit_defaults=True):
    """What a device did under one release in one period (an hour, see `[fleet] period_s`).

    Attributes:
        start: Start of the period, seconds since 1970, a multiple of its length.
        release: The release.
        seconds: Seconds that it served.
        frames: Frames classified.
        failed: Frames that failed.
        unsure: Frames of which the release was not sure.
        restarts: Restarts that nobody asked for.
        latency_ms: Sum of the latencies.
        latency: Frames by bin of latency, see `edge_client.contract.report.ReleaseFigures`.
        confidence: Frames by tenth of confidence.
        labels: Frames by best label.
    """

    start: int
    release: str
    seconds: float = 0.0
    frames: int = 0
    failed: int = 0
    unsure: int = 0
    restarts: int = 0
    latency_ms: float = 0.0
    latency: dict[str, int] = {}
    confidence: tuple[int, ...] = ()
    labels: dict[str, int] = {}


class Sighting(Document, frozen=True, kw_only=True, omit_defaults=True):
    """When the collector first saw a device in a state that a verdict asks for.

    Attributes:
        rollout: Id of the rollout.
        state: One of `DEVICE_STATES`.
        at: Seconds since 1970, the collector's clock.
        release: Release that it was about.
        reason: Why, for `sent_back` and `refused`.
        reason_code: The same as a code.
    """

    rollout: str
    state: str
    at: float
    release: str = ""
    reason: str = ""
    reason_code: str = ""


class DeviceRow(Document, frozen=True, kw_only=True, omit_defaults=True):
    """One channel of one device, as the collector knows it.

    Attributes:
        device: Its id.
        channel: The channel.
        enrolled: Whether it is in the registry; else it is shown, and votes for nothing.
        is_signed: Whether the last report was signed with the key in the registry.
        online: By its last will; None: unknown (the collector was away).
        first_seen: Seconds since 1970, the collector's clock.
        last_seen: As `first_seen`: arrival of the last report.
        report: The last report; None: none arrived.
        sightings: History of states, oldest first; of the last rollouts only.
        periods: Sums by period and release, oldest first; of the last periods only.
        clones: Fingerprints of the machines that report under this id, if there is more than one.
    """

    device: str
    channel: str
    enrolled: bool = False
    is_signed: bool = False
    online: bool | None = None
    first_seen: float = 0.0
    last_seen: float = 0.0
    report: DeviceReport | None = None
    sightings: tuple[Sighting, ...] = ()
    periods: tuple[PeriodSum, ...] = ()
    clones: tuple[str, ...] = ()


class SnapshotHead(Document, frozen=True, kw_only=True, omit_defaults=True):
    """First line of a snapshot; a `DeviceRow` in each further line.

    Attributes:
        fleet: The fleet.
        taken_at: Seconds since 1970, the collector's clock.
        collector: Name of the collector.
        listening_since: Since when the collector has heard the broker without a gap; what it does not know
            lies before.
        period_s: Length of a period.
        devices: Number of rows.
        registered: Devices in the registry.
        heard: Registered devices that reported within their interval times `silent_after`.
        rejected: Reports that did not count, by reason.
    """

    fleet: str
    taken_at: float
    collector: str = ""
    listening_since: float = 0.0
    period_s: float = 3600.0
    devices: int = 0
    registered: int = 0
    heard: int = 0
    rejected: dict[str, int] = {}


# States of a device in a rollout, in the order in which they come; the last four are ends.
UNSEEN, WAITING, OFFERED, HELD, FETCHING, SHADOW, PROBATION = (
    "unseen",
    "waiting",
    "offered",
    "held",
    "fetching",
    "shadow",
    "probation",
)
PASSED, SENT_BACK, REFUSED, SILENT = "passed", "sent_back", "refused", "silent"
DEVICE_STATES = (
    UNSEEN,
    WAITING,
    OFFERED,
    HELD,
    FETCHING,
    SHADOW,
    PROBATION,
    PASSED,
    SENT_BACK,
    REFUSED,
    SILENT,
)
FAILURES = (SENT_BACK, REFUSED, SILENT)


# A rollout

# States of a rollout.
PLANNED, APPROVAL, OPEN, SOAKING, DONE = "planned", "waiting_for_approval", "open", "soaking", "done"
PAUSED, HALTED, GOING_BACK, BACK = "paused", "halted", "going_back", "back"
SUPERSEDED, ABORTED = "superseded", "aborted"
ENDED = (DONE, BACK, SUPERSEDED, ABORTED)
ROLLOUT_STATES = (PLANNED, APPROVAL, OPEN, SOAKING, PAUSED, HALTED, GOING_BACK, *ENDED)


class RolloutPlan(Document, frozen=True, kw_only=True):
    """How a rollout goes; the fields are the settings of `[rollout]`, and the flags of the task `Rollout`.

    Attributes:
        stages: Shares of the fleet, growing: `3d` are three devices, `10%` a share, at least one device.
        min_passed: Devices that must have passed their probation before a stage can pass.
        success: Share of the stage's devices that must have passed, 0 to 1.
        errors: Failures that halt: a share `10%`, and a number `2d` for stages so small that the share is
            fewer devices; with `|` between, both. See `checks.ErrorLimit`.
        quorum: Share of the stage's devices that must have been heard of, 0 to 1.
        soak_s: Seconds that a stage is watched after its devices passed.
        stage_timeout_s: Seconds after which a stage that did not pass is paused.
        silent_after: Missed reports after which a device counts as silent.
        approve: Stages, from 1, before which a person has to approve.
        only: Devices that the rollout is for, see `edge_client.contract.rollout.selects`.
        excluded: Devices that it is not for.
        by: `device` or `site`.
        apply: `now`, `window` or `ask`.
        window: Local time of the devices, such as `01:00-05:00`.
        pace_per_min: Devices a minute that move at most; 0: no limit.
        on_breach: `pause` or `back`: what a hard breach does. A soft one always pauses.
        unsigned: `approve`: stages from the third on wait for a person where reports that nobody signed are
            needed to pass the one before; `count`: they do not.
        report_only: Checks that report and do not judge.
        tolerance: Relative change of a soft figure that is tolerated, such as 0.25.
        heartbeat_s: Longest time between two reports of a device; 0: as in its own settings.
        confidence: One-sided confidence of the hard checks.
        soft_confidence: Confidence of the soft checks.
    """

    stages: tuple[str, ...] = ("1d", "3d", "10%", "50%", "100%")
    min_passed: int = 1
    success: float = 0.95
    errors: str = "10%|2d"
    quorum: float = 0.8
    soak_s: float = 7200.0
    stage_timeout_s: float = 259200.0
    silent_after: float = 3.0
    approve: tuple[int, ...] = ()
    only: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    by: str = BY_DEVICE
    apply: str = NOW
    window: str = ""
    pace_per_min: float = 0.0
    on_breach: str = "back"
    unsigned: str = "approve"
    report_only: tuple[str, ...] = ()
    tolerance: float = 0.25
    heartbeat_s: float = 0.0
    confidence: float = 0.95
    soft_confidence: float = 0.98


class RolloutEvent(Document, frozen=True, kw_only=True, omit_defaults=True):
    """One entry of a rollout's history; entries are only added.

    Attributes:
        at: UTC, ISO 8601.
        what: Code of the event: `opened`, `stage`, `passed`, `paused`, `approved`, `halted`, `back`, ...
        who: Person, or `AdvanceRollout`.
        why: In a sentence.
        stage: Stage, from 1; 0: none.
        verdict: Key of the verdict that it stands on.
    """

    at: str
    what: str
    who: str = ""
    why: str = ""
    stage: int = 0
    verdict: str = ""


class StageRecord(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A stage that was opened.

    Attributes:
        number: From 1.
        size: Registered devices in it, those of earlier stages included.
        threshold: See `RolloutDocument.threshold`.
        opened_at: Seconds since 1970.
        looks: Verdicts of it so far.
        soaking_since: When all that was asked for but the soak was there, seconds since 1970; 0: not yet.
        watched_since: From when its time limit counts: `opened_at`, or when a person resumed it.
        judged_at: Time of the newest snapshot that it was judged by; another look needs a newer one.
        verdict: Key of the newest verdict; empty: none yet, or a version wrote it that did not note it.
    """

    number: int
    size: int
    threshold: int
    opened_at: float
    looks: int = 0
    soaking_since: float = 0.0
    watched_since: float = 0.0
    judged_at: float = 0.0
    verdict: str = ""


class RolloutRecord(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A rollout: what it is to do, how far it is, and all that happened to it.

    Attributes:
        id: Its id.
        channel: Its channel.
        release: Release that is rolled out.
        from_release: Steady release that it follows; empty: the first of the channel.
        variants: Release by device class.
        plan: How it goes.
        state: One of the states above.
        stages: The stages that were opened.
        approved: Stages that were approved, from 1.
        resume_state: State before a pause.
        created_at: UTC, ISO 8601.
        created_by: Who started it.
        events: History.
        baseline: Keys of the snapshot before the first stage opened; of several collectors, of each.
        skipped: Registered devices that cannot run the release, by id, with the reason.
        version: Grows by one with each change; a machine that saw a newer one notices an older copy.
        state_since: Since when it is in its state, seconds since 1970.
        breached: Soft checks that paused it; who resumes it accepts them.
    """

    id: str
    channel: str
    release: str
    from_release: str = ""
    variants: dict[str, str] = {}
    plan: RolloutPlan = RolloutPlan()
    state: str = PLANNED
    stages: tuple[StageRecord, ...] = ()
    approved: tuple[int, ...] = ()
    resume_state: str = ""
    created_at: str = ""
    created_by: str = ""
    events: tuple[RolloutEvent, ...] = ()
    baseline: tuple[str, ...] = ()
    skipped: dict[str, str] = {}
    version: int = 0
    state_since: float = 0.0
    breached: tuple[str, ...] = ()


class CurrentRollout(Document, frozen=True, kw_only=True, omit_defaults=True):
    """Which rollout a channel is in.

    Attributes:
        channel: The channel.
        rollout: Id of the rollout that runs; empty: none does.
        queued: Release that waits for its end (the newest wins); empty: none.
        queued_at: UTC, ISO 8601.
        last: Id of the rollout before; empty: none.
    """

    channel: str
    rollout: str = ""
    queued: str = ""
    queued_at: str = ""
    last: str = ""


# A verdict

PASS, HALT, INCONCLUSIVE = "pass", "halt", "inconclusive"
HARD, SOFT, REPORT = "hard", "soft", "report"


class Check(Document, frozen=True, kw_only=True, omit_defaults=True):
    """One check of a verdict.

    Attributes:
        name: `failures`, `silence`, `passed`, `quorum`, `soak`, `latency`, `unsure`, `failed_frames`,
            `restarts`, `confidence`, `drift:LABEL`; of a part of the stage: `latency:class=wide`.
        kind: `hard`, `soft` or `report`.
        result: `pass`, `halt` or `inconclusive`.
        value: What was measured; None: nothing could be.
        low: Lower end of its interval.
        high: Upper end of its interval.
        limit: What it was compared with.
        unit: Unit of these four, such as `share` or `relative`.
        counted: Devices that it stands on.
        control: Devices that were compared with; 0: none.
        words: In a sentence, with what was and was not shown.
    """

    name: str
    kind: str
    result: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    unit: str = ""
    counted: int = 0
    control: int = 0
    words: str = ""


class Example(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A device that a verdict stands on: hit, or not heard of."""

    device: str
    state: str
    reason: str = ""
    site: str = ""
    device_class: str = ""
    machine: str = ""
    runtime: str = ""


class Common(Document, frozen=True, kw_only=True, omit_defaults=True):
    """What the hit devices have in common, beside the others.

    Attributes:
        fact: Such as `runtime=tflite-runtime 2.14.0`.
        hit: Hit devices with it.
        hit_of: Hit devices.
        others: Devices of the stage with it that were not hit.
        others_of: Devices of the stage that were not hit.
        p: One-sided p-value of Fisher's exact test.
    """

    fact: str
    hit: int
    hit_of: int
    others: int
    others_of: int
    p: float


class VerdictRecord(Document, frozen=True, kw_only=True, omit_defaults=True):
    """A verdict on a stage; the same snapshot and rollout give the same bytes.

    Attributes:
        rollout: Id of the rollout.
        channel: Its channel.
        stage: From 1.
        look: Number of this look at the stage, from 1.
        at: Time of the snapshot, seconds since 1970.
        plan: The rollout's plan at this look; a person who resumes a rollout changes it.
        soaking_since: As in the stage at this look; 0: it did not soak yet.
        registry: SHA-256 over the registered devices, hex.
        snapshots: Keys of the snapshots that it stands on, with their SHA-256.
        result: `pass`, `halt` or `inconclusive`.
        is_hard: Whether a hard check halted it.
        is_ready: Whether all that a pass asks for was there but the soak, which starts then.
        unsigned: Devices of the stage that passed and have no key, where those that sign would not be enough.
        counts: Devices of the stage by state.
        control: Devices outside of the stage by state.
        clones: Devices whose id two machines use, the first hundred; they vote for nothing.
        strangers: Devices that reported and were never enrolled; they vote for nothing.
        checks: The checks.
        asks: Names of the checks that more time makes no clearer: the rollout pauses, and a person looks.
        common: What the hit devices have in common, the strongest first.
        examples: At most twenty devices, the hit ones first.
        words: The verdict in a sentence.
    """

    rollout: str
    channel: str
    stage: int
    look: int
    at: float
    plan: RolloutPlan = RolloutPlan()
    soaking_since: float = 0.0
    registry: str = ""
    snapshots: dict[str, str] = {}
    result: str = INCONCLUSIVE
    is_hard: bool = False
    is_ready: bool = False
    unsigned: int = 0
    counts: dict[str, int] = {}
    control: dict[str, int] = {}
    clones: tuple[str, ...] = ()
    strangers: int = 0
    checks: tuple[Check, ...] = ()
    asks: tuple[str, ...] = ()
    common: tuple[Common, ...] = ()
    examples: tuple[Example, ...] = ()
    words: str = ""
