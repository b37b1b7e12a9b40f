"""`edge-fleet status`: the fleet on one page."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

from luigi_tasks.fleet.commands.command import Subparsers, finish, new_command, read_settings, to_json
from luigi_tasks.fleet.commands.selection import add_filters, choose
from luigi_tasks.fleet.tables import count, shown, table

if TYPE_CHECKING:
    import argparse

    from luigi_tasks.fleet.view import FleetView, ShownDevice

_RELEASES_AT_MOST = 12


def add_parser(subparsers: Subparsers) -> None:
    """Add the command."""
    add_filters(
        new_command(subparsers, "status", run, "show the fleet: releases that devices serve, rollouts")
    )


def run(options: argparse.Namespace) -> str:
    """Return the page."""
    from luigi_tasks.fleet.commands.told import told_snapshot  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.fleet.reading import read_view  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.view import snapshot_in_words  # noqa: PLC0415 - as above

    view = read_view(read_settings())
    devices = choose(view.devices(), options)
    channels = [options.channel] if options.channel else view.channels
    if options.json:
        told = {name: _told(view, name, [d for d in devices if d.channel == name]) for name in channels}
        return finish(view, to_json({"fleet": view.fleet, "snapshot": told_snapshot(view), "channels": told}))
    members = len({one.device for one in devices if one.enrolled is not None})
    text = f"Fleet {view.fleet}: {count(members, 'device')}. {snapshot_in_words(view)}\n"
    for name in channels:
        text += "\n" + _channel_in_words(view, name, [one for one in devices if one.channel == name])
    return finish(view, text + _odd_in_words(view, devices))


def _channel_in_words(view: FleetView, channel: str, devices: list[ShownDevice]) -> str:
    from luigi_tasks.fleet.commands.rollouts import (  # noqa: PLC0415 - as above
        ended_in_words,
        rollout_in_words,
    )
    from luigi_tasks.fleet.plans import every  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.view import count_releases, count_states  # noqa: PLC0415 - as above

    pointer, record = view.pointers.get(channel), view.running(channel)
    text = f"channel {channel}: steady release {pointer.release if pointer else 'none'}"
    if pointer is not None and pointer.share_percent < 100:
        text += f", for {pointer.share_percent:g}% of the devices"
    if heartbeat_s := _heartbeat_s(view, channel):
        text += f"; devices report {every(heartbeat_s)}"
    text += f"\n{rollout_in_words(view, record)}" if record is not None else "; no rollout runs\n"
    if record is None and (last := view.records.get(channel)) is not None:
        text += ended_in_words(last)
    current = view.current.get(channel)
    if current is not None and current.queued:
        text += f"queued: release {current.queued}\n"
    counts = count_releases(devices)
    total = sum(counts.values())
    rows = [
        (release, str(number), _share(number / total), _role(view, channel, release))
        for release, number in list(counts.items())[:_RELEASES_AT_MOST]
    ]
    if rows:
        text += "\n" + table(("reported release", "devices", "share", ""), rows)
    if len(counts) > _RELEASES_AT_MOST:
        text += f"and {len(counts) - _RELEASES_AT_MOST} more releases\n"
    if states := count_states(devices):
        text += "\n" + table(("in the rollout", "devices"), [(one, str(n)) for one, n in states.items()])
    return text


def _heartbeat_s(view: FleetView, channel: str) -> float:
    """Return the seconds between two reports that the signed documents ask for; 0: none."""
    document = view.documents.get(channel)
    return document.heartbeat_s if document is not None else 0.0


def _share(share: float) -> str:
    """Return a share in words; a few of very many are not 0%."""
    return f"{share:.0%}" if share >= 0.01 else f"{share:.1%}" if share >= 0.001 else "under 0.1%"


def _role(view: FleetView, channel: str, release: str) -> str:
    """Return what the channel says of a release."""
    pointer, record = view.pointers.get(channel), view.running(channel)
    words = []
    if pointer is not None and release == pointer.release:
        words.append("steady")
    if record is not None and release in {record.release, *record.variants.values()}:
        words.append("rolled out")
    document = view.documents.get(channel) if record is None else None
    if document is not None and document.id and release in {document.release, *document.variants.values()}:
        words.append("for a part of the fleet")
    if pointer is not None and release in pointer.withdrawn:
        words.append("withdrawn")
    return ", ".join(words)


def _odd_in_words(view: FleetView, devices: list[ShownDevice]) -> str:
    """Return what somebody should look at."""
    from luigi_tasks.fleet.view import QUIET  # noqa: PLC0415 - as above

    enrolled = [one for one in devices if one.enrolled is not None]
    strangers = {one.device for one in devices if one.enrolled is None}
    cloned = [one.device for one in enrolled if one.row is not None and one.row.clones]
    facts = [
        (len({one.device for one in enrolled if one.heard == QUIET}), "owing reports", "--state quiet"),
        (len(strangers), "in reports and not in the registry, without a vote", "--state stranger"),
        (
            len({one.device for one in enrolled if one.differs}),
            "with a site, class or tags other than in the registry, and they decide by their own",
            "",
        ),
        (sum(1 for one in enrolled if one.report and one.report.drift_alarm), "with a drift alarm", ""),
        (
            sum(1 for one in enrolled if one.report and one.report.last_error),
            "with an error at their last update",
            "",
        ),
    ]
    lines = [
        f"{count(number, 'device')} {words}" + (f" (edge-fleet devices {option})" if option else "")
        for number, words, option in facts
        if number
    ]
    if cloned:
        lines.append(f"several machines report under one id: {shown(', '.join(sorted(set(cloned))))}")
    if view.head is not None and view.head.rejected:
        reasons = ", ".join(f"{shown(reason)} {number}" for reason, number in view.head.rejected.items())
        lines.append(f"reports that did not count: {reasons}")
    return "\n" + "".join(f"{line}\n" for line in lines) if lines else ""


def _told(view: FleetView, channel: str, devices: list[ShownDevice]) -> dict[str, Any]:
    from luigi_tasks.fleet.view import count_releases, count_states  # noqa: PLC0415 - as above

    pointer, record, current = view.pointers.get(channel), view.running(channel), view.current.get(channel)
    return {
        "steady": pointer.release if pointer else None,
        "withdrawn": pointer.withdrawn if pointer else (),
        "rollout": None
        if record is None
        else {"id": record.id, "release": record.release, "state": record.state, "stages": record.stages},
        "queued": current.queued if current else "",
        "heartbeat_s": _heartbeat_s(view, channel),
        "releases": count_releases(devices),
        "rollout_states": count_states(devices),
        "heard": dict(collections.Counter(one.heard for one in devices if one.enrolled is not None)),
        "strangers": len({one.device for one in devices if one.enrolled is None}),
    }
