"""What Prometheus reads."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import http.client
import importlib
import re
import socket
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from edge_client.contract.errors import SettingsError
from edge_client.contract.messages import (
    Comparison,
    DeviceStatus,
    Drift,
    InboxMetrics,
    SinkMetrics,
    SureMetrics,
    UpdateMetrics,
)
from edge_client.reporting import metrics
from edge_client.reporting.metrics import (
    LABELS_COUNTED,
    PredictionCounter,
    StatusCollector,
    open_registry,
    serve,
)
from edge_client.settings.reporting import MetricsSettings
from tests.fakes.results import example_result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edge_client.contract.messages import Result

STATUS = DeviceStatus(
    device="pi-1",
    channel="stable",
    state="serving",
    runtime='LiteRT "2"\n',
    release="a1",
    latest="b2",
    frames=12_345_678,
    latency_ms=2.5,
    last_error="no network",
    update=UpdateMetrics(release="a1", bytes_pulled=1000, seconds=0.25),
)
LINE = re.compile(r'edge_client_[a-z_]+\{(?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+\} [0-9.e+-]+')


def render(statuses: Sequence[DeviceStatus]) -> str:
    registry = CollectorRegistry()
    registry.register(StatusCollector(lambda: statuses))
    return generate_latest(registry).decode()


def value(text: str, name: str) -> float:
    [line] = [line for line in text.splitlines() if line.startswith(f"edge_client_{name}{{")]
    return float(line.rpartition(" ")[2])


def test_each_line_is_well_formed_and_declared():
    text = render([STATUS])
    assert text.endswith("\n")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(LINE.fullmatch(line) for line in lines)
    declared = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert {line.partition("{")[0] for line in lines} == declared


def test_values_are_those_of_the_status():
    text = render([STATUS])
    assert value(text, "frames_total") == 12_345_678
    assert value(text, "latency_seconds") == 0.0025
    assert value(text, "update_bytes") == 1000
    assert value(text, "up_to_date") == 0
    assert value(text, "error") == 1
    assert re.search(r'release_info\{.*latest="b2",release="a1"\} 1', text)


def test_unknown_values_are_left_out():
    text = render([DeviceStatus(device="pi-1", channel="stable", state="starting")])
    assert "latency" not in text
    assert "update_seconds" not in text
    assert value(text, "serving") == 0


def predictions(*results: Result) -> list[str]:
    counter = PredictionCounter()
    for result in results:
        counter.write(result)
    registry = CollectorRegistry()
    registry.register(counter)
    lines = generate_latest(registry).decode().splitlines()
    return [line.partition("edge_client_predictions_total")[2] for line in lines if not line.startswith("#")]


def test_predictions_are_counted_under_unknown_where_the_release_was_not_sure():
    said = functools.partial(example_result, channel="stable")
    series = 'channel="stable",device="pi-1"'
    assert predictions(
        said(), said(), said(sure=False), said(label="rotten", sure=False), said(label="unknown")
    ) == [
        f'{{{series},label="ripe",sure="true"}} 2.0',
        f'{{{series},label="unknown",sure="false"}} 2.0',
        f'{{{series},label="unknown",sure="true"}} 1.0',
    ]


def test_a_device_of_a_thousand_classes_does_not_make_a_thousand_series():
    labels = [f"class {number}" for number in range(1000)] * 2
    more = (example_result(sure=False), example_result(channel="doors"))
    lines = predictions(*(example_result(label=label) for label in labels), *more)
    assert len(lines) == LABELS_COUNTED + 3
    assert 'label="unknown",sure="false"} 1.0' in lines[-2]
    assert 'label="class 0",sure="true"} 2.0' in lines[0]
    assert f'label="",sure="true"}} {2 * (1000 - LABELS_COUNTED)}.0' in lines[LABELS_COUNTED]
    assert 'channel="doors",device="pi-1",label="ripe"' in lines[-1]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as found:
            found.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_it_is_served_on_loopback_and_nothing_else_is():
    settings = MetricsSettings(port=free_port())
    server = serve(settings, lambda: [STATUS], PredictionCounter())
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=")
            assert render([STATUS]) in answer.read().decode()
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/../etc/passwd", timeout=5)
        with pytest.raises(SettingsError, match=r"\[metrics\].*free port"):
            serve(settings, lambda: [STATUS], PredictionCounter())
    finally:
        server.stop()


def test_head_keep_alive_other_methods_and_other_paths_are_answered():
    settings = MetricsSettings(port=free_port())
    server = serve(settings, lambda: [STATUS], PredictionCounter())
    client = http.client.HTTPConnection("127.0.0.1", settings.port, timeout=5)

    def ask(method: str, path: str, body: bytes | None = None) -> tuple[http.client.HTTPResponse, bytes]:
        client.request(method, path, body, headers={"Accept-Encoding": "identity"})
        answer = client.getresponse()
        return answer, answer.read()

    try:
        client.connect()
        connection = client.sock
        got, body = ask("GET", "/metrics?from=a-dashboard")
        assert (got.status, got.headers["Content-Length"]) == (200, str(len(body)))
        assert render([STATUS]) in body.decode()
        head, nothing = ask("HEAD", "/metrics")
        assert (head.status, nothing) == (200, b"")
        assert head.headers["Content-Type"] == got.headers["Content-Type"]
        assert int(head.headers["Content-Length"]) > len(render([STATUS]))
        assert client.sock is connection, "one connection for several requests"
        for method, path, status in (
            ("GET", "/", 404),
            ("HEAD", "/metrics/", 404),
            ("POST", "/metrics", 405),
            ("OPTIONS", "/metrics", 405),
            ("DELETE", "/", 405),
            ("BREW", "/metrics", 501),
        ):
            refused, _text = ask(method, path, b"body" if method == "POST" else None)
            assert refused.status == status, method
            assert status != 405 or refused.headers["Allow"] == "GET, HEAD"
        assert ask("GET", "/metrics")[0].status == 200
    finally:
        client.close()
        server.stop()


def test_the_server_starts_without_a_dns_query(monkeypatch):
    def no_dns(*_arguments: object) -> None:
        raise AssertionError("the daemon waits for DNS")

    for name in ("getfqdn", "gethostbyaddr"):
        monkeypatch.setattr(socket, name, no_dns)
    server = serve(MetricsSettings(port=free_port(), host="0.0.0.0"), list, PredictionCounter())  # noqa: S104
    server.stop()


def test_nothing_listens_by_default():
    assert dataclasses.asdict(MetricsSettings()) == {"port": 0, "host": "127.0.0.1"}


def test_each_channel_has_its_own_values_below_one_declaration():
    doors = msgspec.structs.replace(STATUS, channel="doors", frames=5, latency_ms=None)
    text = render([STATUS, doors])
    assert text.count("# TYPE edge_client_frames_total") == 1
    assert 'frames_total{channel="doors",device="pi-1"} 5.0' in text
    assert text.count("edge_client_latency_seconds{") == 1


def test_shadow_drift_and_inbox_are_exported():
    watched = msgspec.structs.replace(
        STATUS,
        shadow=Comparison(release="b2", frames=10, agreement=0.9),
        drift=Drift(answers=500, labels=0.3, confidence=0.05),
        inbox=InboxMetrics(waiting=3, uploaded=4),
        sure=SureMetrics(precision=0.95, coverage=0.9, answers=10, share=0.7),
    )
    text = render([watched])
    assert value(text, "shadow_agreement") == 0.9
    assert value(text, "drift_labels") == 0.3
    assert value(text, "drift_confidence") == 0.05
    assert value(text, "inbox_waiting") == 3
    assert (value(text, "sure_share"), value(text, "sure_coverage")) == (0.7, 0.9)
    assert value(text, "inbox_uploaded_total") == 4


def test_results_of_each_sink_and_the_alarm_of_drift_are_exported():
    counted = msgspec.structs.replace(
        STATUS,
        drift=Drift(answers=500, labels=0.3, confidence=0.05, shift=0.25, alarm=True),
        sinks={
            "mqtt": SinkMetrics(written=7, unsent=5, kept=3, dropped=2),
            "action": SinkMetrics(dropped=1),
        },
    )
    lines = render([counted]).splitlines()
    same = 'channel="stable",device="pi-1"'
    assert f"edge_client_drift_alarm{{{same}}} 1.0" in lines
    assert f"edge_client_drift_shift{{{same}}} 0.25" in lines
    for name, value_ in (
        ("results_written_total", 7.0),
        ("results_unsent", 5.0),
        ("results_kept", 3.0),
        ("results_dropped_total", 2.0),
    ):
        assert f'edge_client_{name}{{{same},sink="mqtt"}} {value_}' in lines
    assert f'edge_client_results_dropped_total{{{same},sink="action"}} 1.0' in lines
    assert sum(line.startswith("# TYPE edge_client_results_dropped_total") for line in lines) == 1


def test_metric_names_do_not_change():
    watched = msgspec.structs.replace(
        STATUS,
        shadow=Comparison(release="b2", frames=10, agreement=0.9),
        drift=Drift(answers=500, labels=0.3, confidence=0.05),
        inbox=InboxMetrics(waiting=3, uploaded=4),
    )
    names = {line.partition("{")[0] for line in render([watched]).splitlines() if not line.startswith("#")}
    gauges = {
        *("info", "release_info", "serving", "up_to_date", "probation", "error", "latency_seconds"),
        *("update_bytes", "update_seconds", "shadow_agreement", "drift_labels", "drift_confidence"),
        *("drift_alarm", "inbox_waiting"),
    }
    assert names == {f"edge_client_{name}" for name in gauges | {"frames_total", "inbox_uploaded_total"}}


def test_quotes_and_newlines_of_a_label_are_escaped():
    [family] = [f for f in text_string_to_metric_families(render([STATUS])) if f.name == "edge_client_info"]
    assert family.samples[0].labels["runtime"] == STATUS.runtime


def test_process_and_python_metrics_are_exported():
    text = generate_latest(open_registry(list, PredictionCounter())).decode()
    assert "\nprocess_resident_memory_bytes " in text
    assert "\nprocess_cpu_seconds_total " in text
    assert "\npython_info{" in text


def test_a_client_that_drips_its_request_is_cut_off(monkeypatch):
    monkeypatch.setattr(metrics, "REQUEST_S", 0.2)
    settings = MetricsSettings(port=free_port())
    server = serve(settings, lambda: [STATUS], PredictionCounter())
    try:
        with socket.create_connection(("127.0.0.1", settings.port), timeout=5) as client:
            client.sendall(b"GET /met")
            assert client.recv(1) == b""
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/metrics", timeout=5) as answer:
            assert answer.status == 200
    finally:
        server.stop()


def test_slow_readers_keep_nobody_from_the_metrics_and_nothing_from_its_end(monkeypatch):
    monkeypatch.setattr(metrics, "REQUEST_S", 60.0)  # none is cut off for its time
    settings = MetricsSettings(port=free_port())
    server = serve(settings, lambda: [STATUS], PredictionCounter())
    before = threading.active_count()
    with contextlib.ExitStack() as stack:
        for _ in range(5 * metrics.MAX_CONNECTIONS):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", settings.port), timeout=5))
            slow.sendall(b"GET /met")
        with urllib.request.urlopen(f"http://127.0.0.1:{settings.port}/metrics", timeout=5) as answer:
            assert answer.status == 200
        assert threading.active_count() <= before + 2 * metrics.MAX_CONNECTIONS
        server.stop()
        with contextlib.suppress(ConnectionResetError):  # what was sent is not read any more
            assert slow.recv(1) == b""
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", settings.port), timeout=5).close()


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_is_served_at_ipv6_addresses():
    for host, ask in (("::1", "[::1]"), ("::", "[::1]"), ("::", "127.0.0.1"), ("", "127.0.0.1")):
        settings = MetricsSettings(port=free_port(), host=host)
        server = serve(settings, lambda: [STATUS], PredictionCounter())
        try:
            with urllib.request.urlopen(f"http://{ask}:{settings.port}/metrics", timeout=5) as answer:
                assert answer.status == 200
        finally:
            server.stop()


def test_a_status_that_cannot_be_read_ends_one_scrape_only(caplog):
    reads = iter(range(2))

    def read() -> list[DeviceStatus]:
        if next(reads) == 0:
            raise ValueError("no status")
        return [STATUS]

    settings = MetricsSettings(port=free_port())
    server = serve(settings, read, PredictionCounter())
    try:
        url = f"http://127.0.0.1:{settings.port}/metrics"
        with pytest.raises(http.client.HTTPException):
            urllib.request.urlopen(url, timeout=5)
        assert "no status" in caplog.text
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert answer.status == 200
    finally:
        server.stop()


def test_a_missing_library_is_named_with_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    monkeypatch.delitem(sys.modules, "edge_client.reporting.metrics")
    with pytest.raises(SettingsError, match=r"\[metrics\] port: .*pip install 'edge-fleet\[metrics\]'"):
        importlib.import_module("edge_client.reporting.metrics")
