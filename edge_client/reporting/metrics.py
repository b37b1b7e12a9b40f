"""Prometheus metrics over HTTP, off by default.

Source: Prometheus' text exposition format, version 0.0.4.
"""

from __future__ import annotations

import http.server
import logging
import socketserver
import threading
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_client.contract.messages import DeviceStatus
    from edge_client.settings.reporting import MetricsSettings

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ABOUT = {
    "info": ("gauge", "What runs here."),
    "release_info": ("gauge", "Release that serves, and the channel's."),
    "frames_total": ("counter", "Pictures classified since start."),
    "serving": ("gauge", "1 if a release serves."),
    "up_to_date": ("gauge", "1 if it is the channel's."),
    "probation": ("gauge", "1 while the release may go back."),
    "error": ("gauge", "1 if the last look or frame failed."),
    "latency_seconds": ("gauge", "Median of a picture."),
    "update_bytes": ("gauge", "Pulled by the last update."),
    "update_seconds": ("gauge", "Taken by the last update."),
    "shadow_agreement": ("gauge", "Share of frames on which a release beside the serving one agrees."),
    "drift_labels": ("gauge", "Population stability index of the labels answered."),
    "drift_confidence": ("gauge", "Population stability index of how sure the answers were."),
    "inbox_waiting": ("gauge", "Frames kept for labelling."),
    "inbox_uploaded_total": ("counter", "Frames uploaded for labelling since start."),
}


class _Server(http.server.HTTPServer):
    """Without the look at DNS for its own name, which takes half a minute where DNS is away."""

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])


def render(statuses: Sequence[DeviceStatus]) -> str:
    """Return the metrics of one moment, one status for each channel."""
    families = [_describe(status) for status in statuses]
    names = dict.fromkeys(name for family in families for name in family)
    lines = []
    for name in names:
        kind, about = _ABOUT[name]
        full = f"edge_client_{name}"
        lines += [f"# HELP {full} {about}", f"# TYPE {full} {kind}"]
        for family in families:
            if name in family:
                value, labels = family[name]
                inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
                lines.append(f"{full}{{{inner}}} {value}")
    return "\n".join(lines) + "\n"


def serve(
    settings: MetricsSettings, statuses: Callable[[], Sequence[DeviceStatus]]
) -> http.server.HTTPServer:
    """Answer in a thread of its own until the server is shut down.

    Raises: SettingsError if the address cannot be listened at.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 5.0  # a reader that hangs must not keep others waiting

        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/metrics"
            body = render(statuses()).encode() if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            logger.debug(format, *args)

    try:
        server = _Server((settings.host, settings.port), Handler)
    except OSError as e:
        msg = f"[metrics] {settings.host}:{settings.port}: {e.strerror or e}; give a free port"
        raise SettingsError(msg) from e
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _is_latest(status: DeviceStatus) -> bool:
    return status.release is not None and status.latest in {None, status.release}


def _describe(status: DeviceStatus) -> dict[str, tuple[float, dict[str, str]]]:
    """Return values and labels by name; what is not known is left out."""
    same = {"device": status.device, "channel": status.channel}
    release = {**same, "release": status.release or "", "latest": status.latest or ""}
    values: dict[str, float] = {
        "frames_total": status.frames,
        "serving": int(status.release is not None),
        "up_to_date": int(_is_latest(status)),
        "probation": int(status.probation),
        "error": int(bool(status.last_error)),
    }
    if status.latency_ms is not None:
        values["latency_seconds"] = status.latency_ms / 1000
    if (update := status.update) is not None:
        values |= {"update_bytes": update.bytes_pulled, "update_seconds": update.seconds}
    if status.shadow is not None and status.shadow.agreement is not None:
        values["shadow_agreement"] = status.shadow.agreement
    if (drift := status.drift) is not None:
        values |= {"drift_labels": drift.labels, "drift_confidence": drift.confidence}
    if (inbox := status.inbox) is not None:
        values |= {"inbox_waiting": inbox.waiting, "inbox_uploaded_total": inbox.uploaded}
    return {
        "info": (1, {**same, "version": __version__, "runtime": status.runtime}),
        "release_info": (1, release),
        **{name: (value, same) for name, value in values.items()},
    }


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
