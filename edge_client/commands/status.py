"""`edge-client status`: show the serving release, the reason for it, and the health of the device."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from edge_client.contract.text import one_line
from edge_client.settings.file import of_channels

if TYPE_CHECKING:
    from edge_client.contract.messages import (
        Comparison,
        DeviceStatus,
        Drift,
        InboxMetrics,
        SinkMetrics,
        SureMetrics,
        UpdateMetrics,
    )
    from edge_client.settings.file import Settings


def show_status(settings: Settings, *, as_json: bool) -> None:
    """Print the status of each channel, refreshed by a running daemon, else as last stored.

    Raises: DeviceError if no status is stored yet, or it cannot be read.
    """
    from edge_client.reporting.status import STATUS_FILE  # noqa: PLC0415
    from edge_client.state_folder import daemon_runs, refresh_status  # noqa: PLC0415

    channels, state_dir = of_channels(settings), settings.device.state_dir
    running = daemon_runs(state_dir)
    fresh = running and refresh_status(state_dir, [one.device.state_dir / STATUS_FILE for one in channels])
    statuses = [_last_status(one, main=one is settings) for one in channels]
    if as_json:
        import msgspec  # noqa: PLC0415

        main, *more = (msgspec.to_builtins(status) for status in statuses)
        shown = {"running": running, "fresh": fresh, **main, **({"more_channels": more} if more else {})}
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    else:
        daemon = _describe_daemon(running=running, fresh=fresh)
        sys.stdout.write("\n".join(_describe(status, daemon) for status in statuses))


def _last_status(settings: Settings, *, main: bool) -> DeviceStatus:
    """Return the last stored status of a channel.

    Raises: DeviceError if it cannot be read. A new extra channel without a status is shown as such.
    """
    from edge_client.contract.messages import DeviceStatus  # noqa: PLC0415 - the other commands start faster
    from edge_client.reporting.status import STATUS_FILE, read_status  # noqa: PLC0415

    device = settings.device
    if not main and not (device.state_dir / STATUS_FILE).exists():
        why = "the daemon follows this channel from its next start on"
        return DeviceStatus(device=device.id, channel=device.channel, state="not started yet", why=why)
    return read_status(device.state_dir)


def _describe_daemon(*, running: bool, fresh: bool) -> str:
    if not running:
        return "not running; this is its last status"
    return "running" if fresh else "running, but did not refresh its status: this may be out of date"


def _describe(status: DeviceStatus, daemon: str) -> str:
    lines = _lines_of_model(status, daemon) if status.model else _lines_of_channel(status, daemon)
    return "".join(f"{name:<12} {one_line(str(value))}\n" for name, value in lines)


def _lines_of_model(status: DeviceStatus, daemon: str) -> list[tuple[str, str]]:
    """Return what there is to say where a model file serves: nothing of releases."""
    return [
        ("device", status.device),
        ("daemon", daemon),
        ("state", status.state),
        ("model", status.model),
        ("SHA-256", status.model_sha256),
        ("why", status.why or "-"),
        ("runtime", status.runtime),
        ("frames", f"{status.frames} since start"),
        ("latency", "-" if status.latency_ms is None else f"{status.latency_ms:.2f} ms"),
        ("inbox", _describe_inbox(status.inbox)),
        ("results", _describe_sinks(status.sinks)),
        ("passed over", status.passed_over or "none"),
        ("warning", status.warning or "none"),
        ("last error", status.last_error or "none"),
        ("changed at", status.changed_at),
    ]


def _lines_of_channel(status: DeviceStatus, daemon: str) -> list[tuple[str, str]]:
    return [
        ("device", status.device),
        ("daemon", daemon),
        ("state", status.state),
        ("channel", status.channel),
        ("release", status.release or "none yet"),
        ("probation", "on probation" if status.probation else "none"),
        ("why", status.why or "-"),
        ("latest", status.latest or "unknown"),
        ("waits for", status.waits_for or "nothing"),
        ("rollout", _describe_rollout(status)),
        ("share", "-" if status.share_percent is None else f"{status.share_percent:g}% of the devices"),
        ("previous", status.previous or "none"),
        ("runtime", status.runtime),
        ("frames", f"{status.frames} since start"),
        ("latency", "-" if status.latency_ms is None else f"{status.latency_ms:.2f} ms"),
        ("last update", _describe_update(status.update)),
        ("shadow", _describe_shadow(status.shadow)),
        ("drift", _describe_drift(status.drift)),
        ("sure", _describe_sure(status.sure)),
        ("evidence", status.evidence or "-"),
        ("inbox", _describe_inbox(status.inbox)),
        ("results", _describe_sinks(status.sinks)),
        ("passed over", status.passed_over or "none"),
        ("refused", status.refused or "none"),
        ("next try", status.retry_at or "-"),
        ("warning", status.warning or "none"),
        ("last error", status.last_error or "none"),
        ("changed at", status.changed_at),
    ]


def _describe_rollout(status: DeviceStatus) -> str:
    if not status.rollout:
        return "none under way"
    return f"{status.rollout}; the channel's release is {status.steady or 'none yet'}"


def _describe_update(update: UpdateMetrics | None) -> str:
    return f"{update.release}: {update.bytes_pulled} bytes, {update.seconds:.2f} s" if update else "-"


def _describe_shadow(shadow: Comparison | None) -> str:
    if shadow is None or shadow.agreement is None:
        return f"{shadow.release}, no frames yet" if shadow else "-"
    return (
        f"{shadow.release} agrees on {shadow.agreement:.0%} of {shadow.frames} frames, "
        f"{shadow.latency_ms:.2f} ms instead of {shadow.latency_before_ms or 0:.2f} ms, "
        f"{shadow.seconds_left:.0f} s left"
    )


def _describe_drift(drift: Drift | None) -> str:
    if drift is None:
        return "-"
    alarm = f"ALARM since {drift.since}, less sure than where it was proven; " if drift.alarm else ""
    return (
        f"{alarm}labels {drift.labels:.2f}, confidence {drift.confidence:.2f} over {drift.answers} frames "
        "(below 0.1 stable, above 0.25 a shift)"
    )


def _describe_sure(sure: SureMetrics | None) -> str:
    if sure is None:
        return "-"
    here = "no predictions yet" if sure.share is None else f"{sure.share:.0%} of {sure.answers} predictions"
    return f"{here} ({sure.coverage:.0%} of the calibration pictures, {sure.precision:.0%} right)"


def _describe_inbox(inbox: InboxMetrics | None) -> str:
    if inbox is None:
        return "-"
    problem = f"; {inbox.error}" if inbox.error else ""
    return f"{inbox.waiting} frames wait, {inbox.uploaded} uploaded{problem}"


def _describe_sinks(sinks: dict[str, SinkMetrics]) -> str:
    return "; ".join(f"{name} {_describe_sink(counts)}" for name, counts in sinks.items()) or "-"


def _describe_sink(counts: SinkMetrics) -> str:
    kept = f" ({counts.kept} on the disk)" if counts.kept else ""
    skipped = f", {counts.skipped} skipped" if counts.skipped else ""
    return f"{counts.written} written, {counts.unsent} wait{kept}, {counts.dropped} lost{skipped}"
