"""Check where results go: the file of JSON lines, the actions' programs and labels, the metrics' port."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.commands.doctor.machine import check_makeable
from edge_client.commands.doctor.model import current_slot, labels_of_channels
from edge_client.contract.errors import DeviceError, SettingsError
from edge_client.releases import read_release
from edge_client.settings.file import of_channels
from edge_client.settings.labels import unknown_watched
from edge_client.settings.results import ACT

if TYPE_CHECKING:
    from edge_client.settings.file import Settings


def check_json_lines(settings: Settings) -> str:
    path = Path(settings.sinks.json_lines)
    if not path.exists():
        return f"{path}: {check_makeable(path)}"
    if path.is_dir() or not os.access(path, os.W_OK):
        msg = f"{path}: not a file that this user may write; change its owner, or [sinks] json_lines"
        raise DeviceError(msg)
    return f"{path}: writable"


def check_action(settings: Settings) -> str:
    commands = [shlex.split(text) for text in (settings.action.on_command, settings.action.off_command)]
    programs = [command[0] for command in commands if command]
    if missing := [program for program in programs if shutil.which(program) is None]:
        msg = f"{', '.join(missing)}: no such program for this user; install it, or correct [action]"
        raise DeviceError(msg)
    known = labels_of_channels(settings)
    if known is not None and (warning := unknown_watched(settings.action, known)) is not None:
        raise SettingsError(warning)
    _check_watched_labels(settings)
    return f"{', '.join(programs)}: found"


def _check_watched_labels(settings: Settings) -> None:
    """Raise SettingsError if a release is never sure of a watched label, so that it never switches on."""
    if settings.action.when_unsure == ACT:
        return
    for one in of_channels(settings):
        folder = current_slot(one)
        document = None if folder is None else read_release(folder)
        if document is None or (point := document.operating_point) is None:
            continue
        thresholds = zip(document.labels, point.thresholds, strict=True)
        sure = {label for label, threshold in thresholds if threshold is not None}
        if never := sorted(set(document.labels).intersection(settings.action.labels) - sure):
            msg = (
                f"[action] labels: release {document.release} is never sure of {', '.join(never)}: no score "
                f"gives a precision of {point.precision:g}, so nothing switches on; give it more pictures, "
                f'or set when_unsure = "{ACT}"'
            )
            raise SettingsError(msg)


def check_metrics(settings: Settings) -> str:
    import edge_client.reporting.metrics  # noqa: F401, PLC0415 - refused without the extra
    from edge_client.state_folder import daemon_runs  # noqa: PLC0415

    host, port = settings.metrics.host, settings.metrics.port
    if daemon_runs(settings.device.state_dir):
        return f"{host}:{port}: in use by the daemon"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        with socket.socket(found[0][0]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind(found[0][4])
    except OSError as e:
        msg = f"[metrics] {host}:{port}: {e.strerror or e}; give a free port"
        raise SettingsError(msg) from e
    return f"{host}:{port}: free"
