"""MQTT messages, and the record of a frame in the inbox."""

from __future__ import annotations

from edge_client.contract.documents import Document

ANNOUNCEMENT_LIMIT_BYTES = 4096
STATUS_LIMIT_BYTES = 65536
INBOX_RECORD_LIMIT_BYTES = 65536
# Shown in place of the label of a prediction that is not sure. Where a class has this name too, `sure` tells
# the two apart: in both cases nothing is known.
UNKNOWN = "unknown"


class Announcement(Document, frozen=True, kw_only=True):
    """Retained hint that a channel points to another release; not trusted, it only starts an update check.

    Attributes:
        channel: The channel's name.
        release: Id of the release that the channel points to now.
        announced_at: UTC, ISO 8601; shown to people, never compared.
    """

    channel: str
    release: str
    announced_at: str


class DeviceStatus(Document, frozen=True, kw_only=True):
    """Retained state of one device.

    Attributes:
        device: Device id.
        channel: Channel that the device follows; empty where a model file serves.
        state: `starting`, `serving`, `updating` or `waiting` (no release yet).
        probation: Whether the serving release is on probation, and may be rolled back.
        release: Id of the serving release; for a model file `model-` and the first digits of its digest.
        model: Model file that serves in the place of a release ([device] model); empty: releases serve.
        model_sha256: Hex digest of that file.
        previous: Id of the release kept for a rollback.
        serving_since: When the serving release was activated, UTC, ISO 8601; None if unknown.
        latest: Release that the last update check found signed for this device: the one of the rollout that
            includes it, else the one that the channel points to.
        decision: Decision of that check on `latest`: `serves`, `not_in_share` (of a channel without
            rollouts), `refused`, `held` (see `waits_for`), `postponed` (a try failed for a reason that may
            pass), or `install` (it is in shadow mode and serves afterwards); empty before the first
            check, and while `latest` is fetched and tried.
        offered: Release that this device would install on request; None without one.
        steady: Release that the channel pointed to, for all devices, at that check.
        rollout: Id of the rollout that was under way then, whether or not it includes this device; empty:
            none was.
        intended: Release that this device is to have in the end; another than `latest` where it takes the
            steady one first.
        waits_for: What `latest` waits for: `request`, `window`, `spread` or `retry`; empty: nothing.
        why: Why this release serves, in a sentence for people.
        runtime: Name and version of the TFLite runtime.
        last_error: Why the last update attempt failed, in one paragraph; None after a success.
        warning: Fault of the device that does not stop it from serving; None without one.
        refused: Release that was refused on this device, and is not tried again.
        retry_at: When a release whose try failed is tried again, UTC, ISO 8601; None if none is.
        frames: Frames classified since start.
        latency_ms: Median of preprocessing plus inference over the last 100 frames.
        share_percent: Share of the devices that the channel's release is for; None before the first check.
        update: Metrics of the last completed update.
        shadow: Comparison of the release in shadow mode with the serving one; None if there is none.
        drift: Distance of the predictions from those on the release's hold-out; None while unknown.
        sure: How many predictions are sure; None if the serving release has no operating point.
        evidence: What is thin about the evidence that the serving release was published on; empty: nothing.
        inbox: Counts of frames kept for labelling; None if the inbox is off.
        sinks: Counts of results by sink: `mqtt`, `json_lines`, `standard_output`, `action`; of the device, in
            the status of its main channel.
        passed_over: Files that a watched folder leaves alone, with number, reason and an example of each;
            None if there are none. In the status of the main channel.
        changed_at: UTC, ISO 8601.
    """

    device: str
    channel: str
    state: str
    probation: bool = False
    release: str | None = None
    model: str = ""
    model_sha256: str = ""
    previous: str | None = None
    serving_since: str | None = None
    latest: str | None = None
    decision: str = ""
    offered: str | None = None
    steady: str | None = None
    rollout: str = ""
    intended: str | None = None
    waits_for: str = ""
    why: str = ""
    runtime: str = ""
    last_error: str | None = None
    warning: str | None = None
    refused: str | None = None
    retry_at: str | None = None
    frames: int = 0
    latency_ms: float | None = None
    share_percent: float | None = None
    update: UpdateMetrics | None = None
    shadow: Comparison | None = None
    drift: Drift | None = None
    sure: SureMetrics | None = None
    evidence: str = ""
    inbox: InboxMetrics | None = None
    sinks: dict[str, SinkMetrics] = {}
    passed_over: str | None = None
    changed_at: str = ""


class Comparison(Document, frozen=True, kw_only=True):
    """Comparison of the shadow release with the serving one, on the same live frames.

    Attributes:
        release: The shadow release.
        frames: Frames that both releases classified.
        agreement: Share of these frames, 0-1, with the same best label, sure or not; None before
            the first.
        latency_ms: Median latency of the shadow release.
        latency_before_ms: Median latency of the serving release.
        seconds_left: Seconds until the decision.
    """

    release: str
    frames: int
    agreement: float | None = None
    latency_ms: float | None = None
    latency_before_ms: float | None = None
    seconds_left: float = 0.0


class Drift(Document, frozen=True, kw_only=True):
    """Population stability indices, see `serving/drift.py`: below 0.1 stable, above 0.25 a shift.

    Attributes:
        answers: Number of last predictions that were compared.
        labels: Index of the distribution of predicted labels.
        confidence: Index of the distribution of confidence.
        shift: Chance that a prediction here is less sure than one of the hold-out, minus 0.5, at the last
            test; None before, or without an alarm ([drift]).
        alarm: Whether the release is less sure here than where it was proven, see `serving/drift_alarm.py`.
        since: When the alarm was raised, UTC, ISO 8601; None without one.
    """

    answers: int
    labels: float
    confidence: float
    shift: float | None = None
    alarm: bool = False
    since: str | None = None


class SureMetrics(Document, frozen=True, kw_only=True):
    """How many of a release's predictions are sure, see `OperatingPoint`.

    Attributes:
        precision: Share of the sure predictions that was asked to be right.
        coverage: Share of the calibration pictures whose prediction was sure.
        answers: Number of last predictions on this device that were counted.
        share: Share of these that were sure, 0-1; None before the first.
    """

    precision: float
    coverage: float
    answers: int = 0
    share: float | None = None


class InboxMetrics(Document, frozen=True, kw_only=True):
    """Counts of frames kept for labelling.

    Attributes:
        waiting: Frames on the device.
        uploaded: Frames uploaded since start.
        error: Why the last upload failed; None if it succeeded.
    """

    waiting: int
    uploaded: int = 0
    error: str | None = None


class SinkMetrics(Document, frozen=True, kw_only=True):
    """Counts of one sink since start; for `action`, of commands instead of results.

    Attributes:
        written: Written to the file, acknowledged by the broker, or run.
        unsent: Waiting, wherever.
        kept: Those that wait on the disk, and survive a restart.
        dropped: Lost.
        skipped: Not published as `[sinks] on_change` and `min_interval_s` ask.
        error: Why results are being dropped, or cannot be kept; None while all is well.
    """

    written: int = 0
    unsent: int = 0
    kept: int = 0
    dropped: int = 0
    skipped: int = 0
    error: str | None = None


class UpdateMetrics(Document, frozen=True, kw_only=True):
    """Size and duration of one update.

    Attributes:
        release: Release that was activated.
        bytes_pulled: Bytes of metadata and targets downloaded from the store.
        seconds: From the arrival of the announcement (or the poll) to the first frame that it classified.
    """

    release: str
    bytes_pulled: int
    seconds: float


class Result(Document, frozen=True, kw_only=True):
    """Classification of one frame.

    Attributes:
        device: Device id.
        source: File name or camera name.
        frame: Number of the frame since start, from 1, without gaps.
        label: Best label, also where the prediction is not sure.
        confidence: Its score in [0, 1].
        sure: Whether the score is one to act on, see `OperatingPoint`; true for a release without one.
        known: How much the frame resembles those of the classes, in [0, 1]: strangers have the lowest values;
            None for a model that does not tell.
        top: The best labels with their scores, best first.
        release: Id of the release that classified it.
        channel: Channel that the release serves.
        latency_ms: Duration of preprocessing and inference.
        at: UTC, ISO 8601.
    """

    device: str
    source: str
    frame: int
    label: str
    confidence: float
    sure: bool = True
    known: float | None = None
    top: dict[str, float]
    release: str | None
    channel: str = ""
    latency_ms: float
    at: str


class InboxRecord(Document, frozen=True, kw_only=True):
    """Record of a frame kept for labelling: `<name>.json` next to `<name>.jpg`.

    Attributes:
        device: Device id.
        picture: Name of the picture file.
        sha256: Hex digest of the picture file.
        why: `unsure`, or `disagreement` between the serving and the shadow release.
        label: Best label, a suggestion only.
        confidence: Its score in [0, 1].
        sure: Whether the release was sure of it.
        top: The best labels with their scores, best first.
        release: Id of the release that classified it.
        channel: Channel that the release serves.
        at: UTC, ISO 8601.
    """

    device: str
    picture: str
    sha256: str
    why: str
    label: str
    confidence: float
    sure: bool = True
    top: dict[str, float] = {}
    release: str | None = None
    channel: str = ""
    at: str = ""
