"""The report of a device: version 2 of its status, and what a rollout is judged by.

Counts are totals since the activation of a release, not since the last report: a report that is lost costs
nothing. A report goes out when the state changes, and as a heartbeat. It is not retained: no verdict stands
on a replay of retained messages. A device that was enrolled with a key signs it: the payload on the wire is a
DSSE envelope then (see `signed_report.py`), else the document itself.
"""

from __future__ import annotations

import math

from edge_client.contract.documents import Document

# AWS IoT Core takes messages of 128 kB and bills each 5 kB; a report is about 2 kB.
REPORT_LIMIT_BYTES = 32768
REPORT_PAYLOAD_TYPE = "application/vnd.edge-fleet.report+json"
# The latency histogram: 8 bins an octave are 9% each, from 2^-4 ms on.
LATENCY_BINS_PER_OCTAVE = 8
LATENCY_FLOOR_MS = 2.0**-4
LATENCY_BINS = 160
LABELS_AT_MOST = 64
# Update stages of a device, in their order.
IDLE, OFFERED, FETCHING, SHADOW, PROBATION = "", "offered", "fetching", "shadow", "probation"
# Verdicts of a probation.
RUNNING, PASSED, SENT_BACK = "running", "passed", "sent_back"


class MachineFacts(Document, frozen=True, kw_only=True):
    """What a device is.

    Attributes:
        model: Board, such as `Raspberry Pi 4 Model B Rev 1.4`.
        architecture: `aarch64`, `x86_64`.
        cores: Number of cores.
        memory_bytes: Bytes of memory.
        system: Name and version of the system.
        fingerprint: Hex digest over the machine's id and the fleet: two machines that share a device id have
            different ones. The machine's id itself is not told.
    """

    model: str = ""
    architecture: str = ""
    cores: int = 0
    memory_bytes: int = 0
    system: str = ""
    fingerprint: str = ""


class ReleaseFigures(Document, frozen=True, kw_only=True, omit_defaults=True):
    """What happened under one release on a device since it was activated, restarts included.

    Totals grow within one start of the daemon. After a kill they go on from the last that were written to
    the disk, some minutes before: who adds up differences adds nothing where a total fell.

    Attributes:
        release: Its id.
        activated_at: UTC, ISO 8601. Another one where the totals begin anew: the release failed before and is
            tried again, or was gone from the device. Going back to a release is no new activation.
        seconds: Seconds that it served.
        frames: Frames that it classified.
        failed: Frames that it failed on.
        unsure: Frames of which it was not sure: below its operating point, or below the device's setting
            [probation] unsure_below, which holds for releases without one, too.
        restarts: Starts of the daemon while it was current, without those that somebody asked for.
        latency_ms: Sum of the latencies of all frames, for the mean.
        latency: Number of frames by bin of latency, see `latency_bin`; JSON has texts as keys.
        confidence: Number of frames in each of ten equal parts of [0, 1].
        labels: Number of frames by best label; at most `LABELS_AT_MOST`, the rest under `""`.
        probation: `running`, `passed` or `sent_back`; empty: it had none (the first release of a device).
        reason: Why it was sent back or refused, in a sentence.
        reason_code: The same as a code (`Ending` of the client, lower case), to count by.
        failed_stage: Where it failed: `fetching` (download and self-test), `shadow` or `probation`; empty: it
            did not.
        ended_at: When the probation ended, or the release was refused, UTC, ISO 8601.
    """

    release: str
    activated_at: str = ""
    seconds: float = 0.0
    frames: int = 0
    failed: int = 0
    unsure: int = 0
    restarts: int = 0
    latency_ms: float = 0.0
    latency: dict[str, int] = {}
    confidence: tuple[int, ...] = ()
    labels: dict[str, int] = {}
    probation: str = ""
    reason: str = ""
    reason_code: str = ""
    failed_stage: str = ""
    ended_at: str = ""


class DeviceReport(Document, frozen=True, kw_only=True, omit_defaults=True):
    """State of one channel on a device.

    Attributes:
        fleet: Its fleet.
        device: Its id.
        channel: The channel that it reports on.
        reported_at: The device's clock, UTC, ISO 8601; shown, and never compared with another clock.
        start: Number of this start of the daemon: it only grows, on a card that was written anew, too, since
            the seconds since 1970 are the least that it is.
        sequence: Number of this report since that start. (start, sequence) orders the reports of a device.
        boot_id: Random id of this boot of the machine (Linux).
        interval_s: Seconds until the next heartbeat at the latest.
        client: Version of the client.
        runtime: Name and version of the TFLite runtime.
        operators: Highest version of each TFLite operator that a release used which this runtime ran.
        machine: The machine.
        site: Site; empty: none.
        device_class: Class; empty: none.
        tags: Tags.
        state: As in `DeviceStatus`.
        decision: As in `DeviceStatus`, a code.
        stage: How far the update to `offered` is: `""`, `offered`, `fetching`, `shadow` or `probation`.
        release: Serving release; empty: none.
        previous: Release kept for a rollback; empty: none.
        rollout: Id of the rollout that this device saw last; empty: none.
        steady: Release that the channel's pointer named then.
        offered: Release that this device is to have by pointer and rollout.
        waits_for: What a held release waits for: `request`, `window`, `spread` or `retry`; empty: nothing.
        retry_at: When a release that failed for a reason that may pass is tried again, UTC; empty: none is.
        releases: Figures of the serving release, the previous one, and the one that was refused last.
        drift_alarm: Whether the drift alarm is raised.
        warning: Fault of the device that does not stop it from serving.
        last_error: Why the last update failed.
    """

    fleet: str
    device: str
    channel: str
    reported_at: str = ""
    start: int = 0
    sequence: int = 0
    boot_id: str = ""
    interval_s: float = 0.0
    client: str = ""
    runtime: str = ""
    operators: dict[str, int] = {}
    machine: MachineFacts = MachineFacts()
    site: str = ""
    device_class: str = ""
    tags: tuple[str, ...] = ()
    state: str = ""
    decision: str = ""
    stage: str = IDLE
    release: str = ""
    previous: str = ""
    rollout: str = ""
    steady: str = ""
    offered: str = ""
    waits_for: str = ""
    retry_at: str = ""
    releases: tuple[ReleaseFigures, ...] = ()
    drift_alarm: bool = False
    warning: str = ""
    last_error: str = ""

    @property
    def knows_rollouts(self) -> bool:
        """Whether the client does: an older one has a status alone, without client, site, class and tags."""
        return bool(self.client)

    def figures(self, release: str) -> ReleaseFigures | None:
        """Return the figures of a release, if the device has any."""
        return next((one for one in self.releases if one.release == release), None)


def latency_bin(latency_ms: float) -> int:
    """Return the bin of a latency, 0 to `LATENCY_BINS` - 1."""
    if not latency_ms > LATENCY_FLOOR_MS:
        return 0
    place = math.log2(latency_ms / LATENCY_FLOOR_MS) * LATENCY_BINS_PER_OCTAVE
    return int(min(place, LATENCY_BINS - 1))


def latency_of_bin(number: int) -> float:
    """Return the latency in the middle of a bin, milliseconds."""
    return float(LATENCY_FLOOR_MS * 2.0 ** ((number + 0.5) / LATENCY_BINS_PER_OCTAVE))
