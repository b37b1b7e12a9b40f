"""`edge-client`: run, classify, status, update, doctor, export, import.

Exit codes: 0 done; 1 a picture or document cannot be used; 2 wrong usage or settings; 3 signatures do
not hold; 4 store or broker cannot be reached; 5 the device's disk, camera or runtime failed.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.errors import (
    DeviceError,
    EdgeError,
    InputError,
    SettingsError,
    TransportError,
    TrustError,
)
from edge_client.logs import configure_logs
from edge_client.settings import DEFAULT_FILE, load_settings, of_channel, of_channels

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.contract.messages import (
        Comparison,
        DeviceStatus,
        Drift,
        InboxFigures,
        UpdateFigures,
    )
    from edge_client.doctor import Check
    from edge_client.settings import Settings

EXIT_CODES: dict[type[EdgeError], int] = {
    InputError: 1,
    SettingsError: 2,
    TrustError: 3,
    TransportError: 4,
    DeviceError: 5,
}
_SIGINT_EXIT = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; an error is one paragraph on standard error."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except EdgeError as e:
        sys.stderr.write(f"edge-client: {e}\n")
        return next((code for kind, code in EXIT_CODES.items() if isinstance(e, kind)), 1)
    except KeyboardInterrupt:
        return _SIGINT_EXIT
    except BrokenPipeError:
        # The reader went away (`| head`); Python must not fail again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-client", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"edge-client {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    run = commands.add_parser("run", help="serve: classify pictures and follow the channel")
    _add_config(run)
    run.add_argument("--verbose", action="store_true", help="log more")
    run.set_defaults(command=_run)
    classify = commands.add_parser("classify", help="classify picture files with any TFLite classifier")
    classify.add_argument("--model", type=Path, required=True, help="a .tflite image classifier")
    classify.add_argument("--labels", type=Path, required=True, help="text file, one label a line")
    classify.add_argument("--top", type=_positive, default=3, help="labels for each picture (default 3)")
    classify.add_argument("--threads", type=_positive, default=1, help="threads (default 1)")
    classify.add_argument("--json", action="store_true", help="one JSON object a line")
    classify.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    classify.set_defaults(command=_classify)
    status = commands.add_parser("status", help="show what the daemon does, or did last")
    doctor = commands.add_parser("doctor", help="check everything that this device needs")
    for command, function in ((status, _status), (doctor, _doctor)):
        _add_config(command)
        command.add_argument("--json", action="store_true", help="for machines")
        command.set_defaults(command=function)
    update = commands.add_parser("update", help="let the daemon take the channel's release now")
    _add_config(update)
    update.set_defaults(command=_update)
    export = commands.add_parser("export", help="write the channel's release to a bundle, for a USB stick")
    take = commands.add_parser("import", help="take the release of a bundle, with the same checks")
    for command, function in ((export, _export), (take, _import)):
        _add_config(command)
        command.add_argument("--channel", default="", help="one of [device] more_channels (default: channel)")
        command.add_argument("bundle", type=Path, help="a .tar file")
        command.set_defaults(command=function)
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", type=Path, default=DEFAULT_FILE, help=f"settings file (default {DEFAULT_FILE})"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        msg = f"{number} is below 1"
        raise argparse.ArgumentTypeError(msg)
    return number


def _run(options: argparse.Namespace) -> int:
    configure_logs(logging.DEBUG if options.verbose else logging.INFO)
    settings = load_settings(options.config)
    from edge_client.daemon import run  # noqa: PLC0415 - the other commands start faster

    return run(settings)


def _classify(options: argparse.Namespace) -> int:
    from edge_client.classify import classify_files  # noqa: PLC0415

    return classify_files(
        options.model,
        options.labels,
        options.images,
        threads=options.threads,
        top=options.top,
        as_json=options.json,
        out=sys.stdout,
    )


def _status(options: argparse.Namespace) -> int:
    from edge_client.process import daemon_runs, refresh_status  # noqa: PLC0415
    from edge_client.telemetry import STATUS_FILE  # noqa: PLC0415

    settings = load_settings(options.config)
    channels, state_dir = of_channels(settings), settings.device.state_dir
    running = daemon_runs(state_dir)
    fresh = running and refresh_status(state_dir, [one.device.state_dir / STATUS_FILE for one in channels])
    statuses = [_last_status(one, main=one is settings) for one in channels]
    if options.json:
        import msgspec  # noqa: PLC0415

        main, *more = (msgspec.to_builtins(status) for status in statuses)
        shown = {"running": running, "fresh": fresh, **main, **({"more_channels": more} if more else {})}
        sys.stdout.write(json.dumps(shown, indent=2) + "\n")
    else:
        daemon = _describe_daemon(running=running, fresh=fresh)
        sys.stdout.write("\n".join(_describe(status, daemon) for status in statuses))
    return 0


def _last_status(settings: Settings, *, main: bool) -> DeviceStatus:
    """Return what a channel's status said last.

    Raises: DeviceError if it cannot be read; a channel beside the main one may have been added just now.
    """
    from edge_client.contract.messages import DeviceStatus  # noqa: PLC0415 - the other commands start faster
    from edge_client.telemetry import STATUS_FILE, read_status  # noqa: PLC0415

    device = settings.device
    if not main and not (device.state_dir / STATUS_FILE).exists():
        why = "the daemon has not followed this channel yet; it does from its next start on"
        return DeviceStatus(device=device.id, channel=device.channel, state="not started yet", why=why)
    return read_status(device.state_dir)


def _describe_daemon(*, running: bool, fresh: bool) -> str:
    if not running:
        return "not running; what follows is its last state"
    return "running" if fresh else "running; it could not be asked for news, what follows may be old"


def _describe(status: DeviceStatus, daemon: str) -> str:
    lines = [
        ("device", status.device),
        ("daemon", daemon),
        ("state", status.state),
        ("channel", status.channel),
        ("release", status.release or "none yet"),
        ("probation", "on probation" if status.probation else "none"),
        ("why", status.why or "-"),
        ("latest", status.latest or "not known yet"),
        ("share", "-" if status.share_percent is None else f"{status.share_percent:g}% of the devices"),
        ("previous", status.previous or "none"),
        ("runtime", status.runtime),
        ("pictures", f"{status.frames} since its start"),
        ("latency", "-" if status.latency_ms is None else f"{status.latency_ms:.2f} ms"),
        ("last update", _describe_update(status.update)),
        ("shadow", _describe_shadow(status.shadow)),
        ("drift", _describe_drift(status.drift)),
        ("inbox", _describe_inbox(status.inbox)),
        ("refused", status.refused or "none"),
        ("warning", status.warning or "none"),
        ("last error", status.last_error or "none"),
        ("changed at", status.changed_at),
    ]
    return "".join(f"{name:<12} {value}\n" for name, value in lines)


def _describe_update(update: UpdateFigures | None) -> str:
    return f"{update.release}: {update.bytes_pulled} bytes, {update.seconds:.2f} s" if update else "-"


def _describe_shadow(shadow: Comparison | None) -> str:
    if shadow is None or shadow.agreement is None:
        return f"{shadow.release} is beside it, no frames yet" if shadow else "-"
    return (
        f"{shadow.release} agrees on {shadow.agreement:.0%} of {shadow.frames} frames, "
        f"{shadow.latency_ms:.2f} ms beside {shadow.latency_before_ms or 0:.2f} ms, "
        f"{shadow.seconds_left:.0f} s left"
    )


def _describe_drift(drift: Drift | None) -> str:
    if drift is None:
        return "-"
    return (
        f"labels {drift.labels:.2f}, confidence {drift.confidence:.2f} over {drift.answers} answers "
        "(below 0.1 stable, above 0.25 a shift)"
    )


def _describe_inbox(inbox: InboxFigures | None) -> str:
    if inbox is None:
        return "-"
    problem = f"; {inbox.error}" if inbox.error else ""
    return f"{inbox.waiting} frames wait, {inbox.uploaded} uploaded{problem}"


def _doctor(options: argparse.Namespace) -> int:
    from edge_client.doctor import examine  # noqa: PLC0415

    settings = load_settings(options.config)
    checks = examine(settings)
    if options.json:
        content = [{"name": c.name, "passed": c.passed, "detail": c.detail} for c in checks]
        sys.stdout.write(json.dumps({"device": settings.device.id, "checks": content}, indent=2) + "\n")
    else:
        sys.stdout.write("".join(_mark(check) for check in checks))
    return 0 if all(check.passed for check in checks) else 5


def _update(options: argparse.Namespace) -> int:
    from edge_client.process import nudge  # noqa: PLC0415

    nudge(load_settings(options.config).device.state_dir)
    sys.stdout.write("the daemon looks; `edge-client status` says what came of it\n")
    return 0


def _export(options: argparse.Namespace) -> int:
    from edge_client.update.bundle import export_bundle  # noqa: PLC0415

    release = export_bundle(of_channel(load_settings(options.config), options.channel), options.bundle)
    size_bytes = options.bundle.stat().st_size
    sys.stdout.write(f"{options.bundle}: release {release}, {size_bytes} bytes\n")
    return 0


def _import(options: argparse.Namespace) -> int:
    from edge_client.offline import import_bundle  # noqa: PLC0415

    sys.stdout.write(f"{import_bundle(load_settings(options.config), options.bundle, options.channel)}\n")
    return 0


def _mark(check: Check) -> str:
    return f"{'ok  ' if check.passed else 'FAIL'} {check.name:<14} {check.detail}\n"


if __name__ == "__main__":
    sys.exit(main())
