"""`edge-fleet collect | ask`: hear what the devices report, and ask them to."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import SettingsError
from luigi_tasks.fleet.commands.command import Subparsers, new_command, read_settings, to_json

if TYPE_CHECKING:
    import argparse

    from luigi_tasks.fleet.clerk import Clerk
    from luigi_tasks.fleet.collector import Collector
    from luigi_tasks.settings.values import PipelineSettings

_LOOK_S = 30.0


def add_parser(subparsers: Subparsers) -> None:
    """Add the commands."""
    parser = new_command(
        subparsers, "collect", run, "hear the devices' reports, and write snapshots of the fleet; runs on"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--from-bucket",
        metavar="PREFIX",
        help="read what a rule of AWS IoT Core wrote below this prefix of [store], in place of the broker",
    )
    source.add_argument(
        "--from-file", metavar="FILE", type=Path, help="take the recorded messages of a file, and end"
    )
    parser.add_argument("--no-ask", action="store_true", help="do not ask all devices to report at the start")
    parser.add_argument(
        "--no-snapshot", action="store_true", help="with --from-file: write no snapshot; needs no bucket"
    )
    new_command(subparsers, "ask", run_ask, "ask all devices to report now; each answers after a random time")


def run(options: argparse.Namespace) -> str:
    """Collect until SIGTERM or Ctrl-C, or to the end of the file."""
    from luigi_tasks.fleet.collector import Collector, CollectorScope  # noqa: PLC0415 - --help needs none

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", stream=sys.stderr)
    settings = read_settings()
    if not (options.from_file or options.from_bucket or settings.broker.host):
        msg = "[broker] host is empty: nothing can be heard. Name the broker, or give --from-bucket"
        raise SettingsError(msg)
    with contextlib.closing(Collector(CollectorScope(settings.fleet, settings.broker.fleet))) as collector:
        return _collect(collector, settings, options)


def run_ask(options: argparse.Namespace) -> str:
    """Publish the request."""
    from edge_client.contract.names import report_request_topic  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.release.broker import BrokerClient, Message  # noqa: PLC0415 - as above

    settings = read_settings()
    topic = report_request_topic(settings.broker.fleet)
    BrokerClient(settings.broker).publish(Message(topic, b""))
    if options.json:
        return to_json({"asked": topic})
    return f"{topic}: all devices that are online were asked to report; each answers after a random time\n"


def _collect(collector: Collector, settings: PipelineSettings, options: argparse.Namespace) -> str:
    if options.no_snapshot and options.from_file:
        return _take_file(collector, None, options)
    clerk = _open_clerk(collector, settings)
    if options.from_file:
        clerk.open()
        return _take_file(collector, clerk, options)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: collector.stopping.set())
    clerk.open()
    if options.from_bucket:
        _follow_bucket(collector, clerk, settings, options.from_bucket)
    else:
        _follow_broker(collector, clerk, settings, ask=not options.no_ask)
    return to_json(_figures(collector)) if options.json else ""


def _open_clerk(collector: Collector, settings: PipelineSettings) -> Clerk:
    from luigi_tasks.fleet.clerk import Clerk, Office, open_collector_key  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.opening import open_documents  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.registry import load_registry  # noqa: PLC0415 - as above

    documents = open_documents(settings)
    signer = open_collector_key(settings.fleet)
    return Clerk(collector, Office(documents.store, lambda known: load_registry(documents, known), signer))


def _follow_broker(collector: Collector, clerk: Clerk, settings: PipelineSettings, *, ask: bool) -> None:
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415 - as above

    with collector.running(collector.write, clerk.tend):
        try:
            collector.listen(BrokerClient(settings.broker), ask=ask)
        finally:
            collector.inbox.close()


def _follow_bucket(collector: Collector, clerk: Clerk, settings: PipelineSettings, prefix: str) -> None:
    from luigi_tasks.fleet.recorded import follow_objects  # noqa: PLC0415 - as above
    from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

    store = open_store(settings.store)
    with collector.running(clerk.tend):
        follow_objects(collector, store, prefix, _LOOK_S)


def _take_file(collector: Collector, clerk: Clerk | None, options: argparse.Namespace) -> str:
    from luigi_tasks.fleet.recorded import take_file  # noqa: PLC0415 - as above

    begun = time.perf_counter()
    lines = take_file(collector, options.from_file)
    seconds = time.perf_counter() - begun
    key = clerk.write_snapshot() if clerk is not None else ""
    figures = {"lines": lines, "seconds": round(seconds, 3), "snapshot": key, **_figures(collector)}
    if options.json:
        return to_json(figures)
    rejected = ", ".join(f"{reason} {n}" for reason, n in collector.intake.rejections.by_reason().items())
    return (
        f"{options.from_file}: {lines} messages in {seconds:.1f} s, {lines / seconds:,.0f} a second; "
        f"rejected: {rejected or 'none'}\n" + (f"{key}\n" if key else "")
    )


def _figures(collector: Collector) -> dict[str, object]:
    return {"reports": collector.reports, "rejected": collector.intake.rejections.by_reason()}
