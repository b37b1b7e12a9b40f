"""Prometheus metrics over HTTP, off by default; needs the extra `metrics`.

Importing this module raises SettingsError where `prometheus_client` is not installed: only a device whose
settings name a port imports it. The daemon then serves without metrics; `edge-client doctor` fails.
"""

from __future__ import annotations

import contextlib
import http.server
import logging
import socket
import socketserver
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from edge_client import __version__
from edge_client.contract.errors import SettingsError
from edge_client.contract.messages import UNKNOWN

try:
    from prometheus_client import (
        CollectorRegistry,
        GCCollector,
        PlatformCollector,
        ProcessCollector,
        make_wsgi_app,
    )
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as e:
    way_out = "run scripts/install-device again, or pip install 'edge-fleet[metrics]', or set port = 0"
    msg = f"[metrics] port: needs prometheus_client ({e}); {way_out}"
    raise SettingsError(msg) from e

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from edge_client.contract.messages import DeviceStatus, Result
    from edge_client.settings.reporting import MetricsSettings

logger = logging.getLogger(__name__)

# A scrape takes milliseconds: a client that hangs must not keep others waiting, nor the daemon from ending.
REQUEST_S = 5.0
# A connection without a request is closed sooner, so that none is cut off in the middle of an answer.
IDLE_S = 2.5
MAX_CONNECTIONS = 8
STOP_S = 1.0
# Labels of one channel that get a series each; a device of a thousand classes must not make a thousand.
LABELS_COUNTED = 100
_PREFIX = "edge_client_"
# Counters end in `_total`, all others are gauges.
_HELP = {
    "info": "Version of edge-client and its TFLite runtime.",
    "release_info": "Serving release, and the release that the channel points to.",
    "frames_total": "Frames classified since start.",
    "serving": "1 if a release serves.",
    "up_to_date": "1 if the serving release is the channel's.",
    "probation": "1 while the serving release is on probation.",
    "error": "1 if the last update check or frame failed.",
    "latency_seconds": "Median time to classify a frame.",
    "update_bytes": "Bytes downloaded by the last update.",
    "update_seconds": "Duration of the last update.",
    "shadow_agreement": "Share of frames on which the shadow release agrees with the serving one.",
    "drift_labels": "Population stability index of the predicted labels.",
    "drift_confidence": "Population stability index of the confidence.",
    "drift_shift": "By how much the confidence is below that on the hold-out, -0.5 to 0.5.",
    "drift_alarm": "1 while the release is less sure here than where it was proven.",
    "predictions_total": "Predictions since start by label: `unknown` where the release was not sure, empty "
    f"beyond the first {LABELS_COUNTED} labels.",
    "sure_share": "Share of the last predictions that the serving release was sure of.",
    "sure_coverage": "Share of the calibration pictures that the serving release was sure of.",
    "results_written_total": "Results since start that the sink wrote, or the broker acknowledged.",
    "results_unsent": "Results that wait for the broker, or commands for their turn.",
    "results_kept": "Those of them that are on the disk.",
    "results_dropped_total": "Results since start that were lost.",
    "inbox_waiting": "Frames kept for labelling.",
    "inbox_uploaded_total": "Frames uploaded for labelling since start.",
}


class StatusCollector(Collector):
    """Metrics of the channels' statuses, read at the time of a scrape."""

    def __init__(self, statuses: Callable[[], Sequence[DeviceStatus]]) -> None:
        """Args: statuses: Returns one status for each channel."""
        self._statuses = statuses

    def collect(self) -> Iterable[CounterMetricFamily | GaugeMetricFamily]:
        """Return a family for each metric that a channel has a value for."""
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for status in self._statuses():
            for name, value, labels in _describe(status):
                if name not in families:
                    kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                    families[name] = kind(_PREFIX + name, _HELP[name], labels=list(labels))
                families[name].add_metric(list(labels.values()), value)
        return families.values()


class PredictionCounter(Collector):
    """Sink that counts predictions by label; where the release was not sure, under `unknown`."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, ...], int] = {}  # by device, channel, label and `sure`
        self._changing = threading.Lock()

    def write(self, result: Result, _prediction: object = None, /) -> None:
        """Count one result."""
        channel, label = (result.device, result.channel), result.label if result.sure else UNKNOWN
        sure = "true" if result.sure else "false"
        with self._changing:
            known = (*channel, label, sure) in self._counts
            if result.sure and not known and self._is_full(channel):
                label = ""
            series = (*channel, label, sure)
            self._counts[series] = self._counts.get(series, 0) + 1

    def collect(self) -> Iterable[CounterMetricFamily]:
        """Return the counts since start."""
        name, labels = "predictions_total", ("device", "channel", "label", "sure")
        family = CounterMetricFamily(_PREFIX + name, _HELP[name], labels=labels)
        with self._changing:
            counts = dict(self._counts)
        for series, count in counts.items():
            family.add_metric(series, count)
        return [family]

    def _is_full(self, channel: tuple[str, str]) -> bool:
        return sum(series[:2] == channel for series in self._counts) >= LABELS_COUNTED


class MetricsServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """HTTP server that no reader can occupy: few connections, each for a few seconds; a new one is served.

    With `MAX_CONNECTIONS` open, the oldest is cut off. Its thread ends soon; until then it counts, so that no
    flood makes more than twice as many.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64  # else a flood lets an honest reader wait for its SYN to be sent again

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """Listen; with an empty host, on all addresses. Raises: OSError."""
        self.app = make_wsgi_app(registry)
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        self.address_family, address = found[0][0], found[0][4]
        self._open: dict[socket.socket, float] = {}  # when each connection is cut off, monotonic seconds
        self._changing = threading.Lock()
        super().__init__((str(address[0]), port), _Handler)

    def server_bind(self) -> None:
        """Bind without the DNS query for the own name, which takes half a minute where DNS is away."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" is IPv4 as well
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401 - socketserver's
        """Answer in a thread of its own, in the place of the oldest connection if there are too many."""
        with self._changing:
            if len(self._open) >= 2 * MAX_CONNECTIONS:
                self.close_request(request)
                return
            if len(self._open) >= MAX_CONNECTIONS:
                self._cut_off(next(iter(self._open)))
            self._open[request] = time.monotonic() + REQUEST_S
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:  # noqa: ANN401 - socketserver's
        """End a connection whose request was answered, or failed."""
        with self._changing:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def extend(self, connection: socket.socket) -> None:
        """Give the next request of a connection its time."""
        with self._changing:
            if connection in self._open:
                self._open[connection] = time.monotonic() + REQUEST_S

    def service_actions(self) -> None:
        """Cut off the connections that took too long; called twice a second, and after each request."""
        now = time.monotonic()
        with self._changing:
            for connection in [one for one, until in self._open.items() if until <= now]:
                self._cut_off(connection)

    def stop(self) -> None:
        """End within a second, whatever the readers do."""
        with self._changing:
            for connection in list(self._open):
                self._cut_off(connection)
        ending = threading.Thread(target=self.shutdown, daemon=True)
        ending.start()
        ending.join(STOP_S)
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - socketserver's
        """Log what ended a request; the next one is answered."""
        broken_off = isinstance(sys.exc_info()[1], OSError)
        logger.log(
            logging.DEBUG if broken_off else logging.ERROR, "metrics for %s", client_address, exc_info=True
        )

    def _cut_off(self, connection: socket.socket) -> None:
        """Let the thread of a connection end; it is the newest from now on, so that another one is next."""
        self._open[connection] = self._open.pop(connection)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD of `/metrics`, and nothing else; several requests may come on one connection."""

    protocol_version = "HTTP/1.1"
    timeout = IDLE_S
    server: MetricsServer

    def handle_one_request(self) -> None:
        """Wait for a request, and answer it, within a time of its own."""
        self.server.extend(self.connection)
        super().handle_one_request()

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_OPTIONS(self) -> None:
        self._refuse_method()

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS  # noqa: N815 - their names there

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        logger.debug(format, *args)

    def _answer(self) -> None:
        path, _, query = self.path.partition("?")
        if path != "/metrics":
            self.send_error(http.HTTPStatus.NOT_FOUND, explain="metrics are at /metrics")
            return
        request = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
        }
        body = b"".join(self.server.app(request, self._begin))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _begin(self, status: str, headers: list[tuple[str, str]], *_: object) -> Callable[[bytes], object]:
        """Take status and headers of the answer, as WSGI hands them over."""
        self.send_response(int(status.split(maxsplit=1)[0]))
        for name, value in headers:
            self.send_header(name, value)
        return self.wfile.write

    def _refuse_method(self) -> None:
        self.send_response(http.HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Length", "0")
        self.send_header("Connection", "close")  # a body may follow, which nobody reads
        self.end_headers()


def open_registry(
    statuses: Callable[[], Sequence[DeviceStatus]], predictions: PredictionCounter
) -> CollectorRegistry:
    """Return a registry with the channels' metrics, and those of this process and of Python.

    Args:
        statuses: Returns one status for each channel.
        predictions: Counts the results.
    """
    registry = CollectorRegistry()
    registry.register(StatusCollector(statuses))
    registry.register(predictions)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def serve(
    settings: MetricsSettings,
    statuses: Callable[[], Sequence[DeviceStatus]],
    predictions: PredictionCounter,
) -> MetricsServer:
    """Answer scrapes in a thread of their own until the server is stopped.

    Args:
        settings: Section [metrics].
        statuses: Returns one status for each channel.
        predictions: Counts the results.
    Raises: SettingsError if the address cannot be listened at.
    """
    try:
        registry = open_registry(statuses, predictions)
        server = MetricsServer(settings.host, settings.port, registry)
    except OSError as e:
        msg = (
            f"[metrics] host {settings.host}, port {settings.port}: {e.strerror or e}; give an "
            "address of this machine and a free port"
        )
        raise SettingsError(msg) from e
    threading.Thread(target=server.serve_forever, name="metrics", daemon=True).start()
    return server


def _is_latest(status: DeviceStatus) -> bool:
    return status.release is not None and status.latest in {None, status.release}


def _describe(status: DeviceStatus) -> Iterator[tuple[str, float, dict[str, str]]]:
    """Yield name, value and labels; a value that is not known is left out."""
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
        values |= {"drift_alarm": int(drift.alarm)}
        values |= {} if drift.shift is None else {"drift_shift": drift.shift}
    if (sure := status.sure) is not None:
        values |= {"sure_coverage": sure.coverage}
        values |= {} if sure.share is None else {"sure_share": sure.share}
    if (inbox := status.inbox) is not None:
        values |= {"inbox_waiting": inbox.waiting, "inbox_uploaded_total": inbox.uploaded}
    yield "info", 1, {**same, "version": __version__, "runtime": status.runtime}
    yield "release_info", 1, release
    yield from ((name, value, same) for name, value in values.items())
    for sink, counts in status.sinks.items():
        of_sink = {**same, "sink": sink}
        yield "results_written_total", counts.written, of_sink
        yield "results_unsent", counts.unsent, of_sink
        yield "results_kept", counts.kept, of_sink
        yield "results_dropped_total", counts.dropped, of_sink
