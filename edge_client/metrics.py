"""Prometheus metrics over HTTP, off by default.

Source: Prometheus' text exposition format, version 0.0.4.
"""

from __future__ import annotations

import http.server
import logging
import threading
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.messages import DeviceStatus
    from edge_client.settings import MetricsSettings

logger = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def render(status: DeviceStatus) -> str:
    """Return the metrics of one moment."""
    same = {"device": status.device, "channel": status.channel}
    release = {**same, "release": status.release or "", "latest": status.latest or ""}
    lines = [
        *_metric(
            "info", "gauge", "What runs here.", 1, {**same, "version": __version__, "runtime": status.runtime}
        ),
        *_metric("release_info", "gauge", "Release that serves, and the channel's.", 1, release),
        *_metric("frames_total", "counter", "Pictures classified since start.", status.frames, same),
        *_metric("serving", "gauge", "1 if a release serves.", int(status.release is not None), same),
        *_metric("up_to_date", "gauge", "1 if it is the channel's.", int(_is_latest(status)), same),
        *_metric("probation", "gauge", "1 while the release may go back.", int(status.probation), same),
        *_metric("error", "gauge", "1 if the last look or frame failed.", int(bool(status.last_error)), same),
    ]
    if status.latency_ms is not None:
        lines += _metric("latency_seconds", "gauge", "Median of a picture.", status.latency_ms / 1000, same)
    if status.update is not None:
        lines += _metric(
            "update_bytes", "gauge", "Pulled by the last update.", status.update.bytes_pulled, same
        )
        lines += _metric("update_seconds", "gauge", "Taken by the last update.", status.update.seconds, same)
    return "\n".join(lines) + "\n"


def serve(settings: MetricsSettings, status: Callable[[], DeviceStatus]) -> http.server.HTTPServer:
    """Answer in a thread of its own until the server is shut down.

    Raises: SettingsError if the address cannot be listened at.
    """

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 5.0  # a reader that hangs must not keep others waiting

        def do_GET(self) -> None:
            found = self.path.split("?")[0] == "/metrics"
            body = render(status()).encode() if found else b"see /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
            logger.debug(format, *args)

    try:
        server = http.server.HTTPServer((settings.host, settings.port), Handler)
    except OSError as e:
        msg = f"[metrics] {settings.host}:{settings.port}: {e.strerror or e}; give a free port"
        raise SettingsError(msg) from e
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _is_latest(status: DeviceStatus) -> bool:
    return status.release is not None and status.latest in {None, status.release}


def _metric(name: str, kind: str, about: str, value: float, labels: dict[str, str]) -> list[str]:
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    full = f"edge_client_{name}"
    return [f"# HELP {full} {about}", f"# TYPE {full} {kind}", f"{full}{{{inner}}} {value}"]


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
