"""What the page of a device shows: why it serves what it serves, timeline, figures, what to do next."""

from __future__ import annotations

import dataclasses
import difflib
import shlex
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.report import DeviceReport  # noqa: TC001 - msgspec reads it
from edge_client.contract.text import one_line
from edge_client.contract.times import seconds_of
from luigi_tasks.board.devices.figures import (
    Drift,
    OverTime,
    UnderRelease,
    drift_of,
    over_time,
    under_release,
)
from luigi_tasks.board.devices.frames import KeptFrames, read_frames
from luigi_tasks.board.devices.timeline import Happening, timeline_of
from luigi_tasks.board.index.records import (
    CLONES,
    ERROR,
    UNSIGNED,
    DeviceQuery,
    IndexedDevice,
)
from luigi_tasks.fleet.commands.why import explain
from luigi_tasks.fleet.opening import open_documents
from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice
from luigi_tasks.fleet.registry import find_devices
from luigi_tasks.fleet.view import HEARD, NEVER, QUIET
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.board.board import Board
    from luigi_tasks.board.index.records import DeviceDetail
    from luigi_tasks.fleet.view import FleetView, ShownDevice

_CLOSE_AT_MOST = 8
_LONGEST_ID = 200


class NextStep(msgspec.Struct, frozen=True, kw_only=True):
    """A command, and when it is the right one."""

    command: str
    words: str


class ChannelOfDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One channel of the device.

    Attributes:
        channel: The channel.
        row: As in the table of devices.
        conclusion: Why it serves what it serves, in a sentence.
        why: What the conclusion stands on, in sentences.
        report: What it reported last; None: nothing.
        clock_ahead_s: Seconds that its clock is ahead of the collector's, as far as a report's way tells;
            None: unknown.
        timeline: What happened to it, newest first.
        releases: Figures under each release that it has, the serving one first.
        periods: Figures over time.
        drift: Its answers beside those on the hold-out; None: it serves nothing.
    """

    channel: str
    row: IndexedDevice
    conclusion: str
    why: tuple[str, ...]
    report: DeviceReport | None
    clock_ahead_s: float | None
    timeline: tuple[Happening, ...]
    releases: tuple[UnderRelease, ...]
    periods: OverTime
    drift: Drift | None


class DeviceModel(msgspec.Struct, frozen=True, kw_only=True):
    """The page.

    Attributes:
        device: Its id.
        snapshot: Which moment is shown, in words.
        taken_at: When the snapshot was taken; None: there is none.
        is_old: Whether a newer snapshot is overdue.
        entry: Its entry in the registry, also of one that left; None: it has none.
        enrolled_at: When it was enrolled, seconds since 1970; 0: unknown.
        retired_at: When it left the fleet; 0: it did not.
        channels: Its channels.
        clones: Fingerprints of the machines that report under its id, where there are several.
        frames: Its frames in the inbox; None: they could not be read.
        next_steps: Commands that help.
        faults: What could not be read, and is not shown.
    """

    device: str
    snapshot: str
    taken_at: float | None
    is_old: bool
    entry: EnrolledDevice | None
    enrolled_at: float
    retired_at: float
    channels: tuple[ChannelOfDevice, ...]
    clones: tuple[str, ...]
    frames: KeptFrames | None
    next_steps: tuple[NextStep, ...]
    faults: tuple[str, ...]


class UnknownDevice(msgspec.Struct, frozen=True, kw_only=True):
    """What is said of an id that nobody knows.

    Attributes:
        device: The id.
        error: That it is not known.
        close: Ids like it.
        snapshot: Which moment was looked at, in words.
        is_loading: Whether the fleet is still being read.
    """

    device: str
    error: str
    close: tuple[str, ...]
    snapshot: str
    is_loading: bool = False


def read_device(board: Board, device: str) -> DeviceModel | UnknownDevice:
    """Return the page of a device; it blocks, for index, bucket and inbox.

    Raises: TransportError if the index is damaged.
    """
    state, details = board.index.state(), board.index.device(device)
    faults = list(state.faults)
    entry = next((one.more.entry for one in details if one.more.entry is not None), None)
    if entry is None and state.has_registry:
        entry = _registered(board, device, faults)
    if not details and entry is None:
        return _unknown(board, device)
    view = _view(board, device, entry, faults)
    channels = tuple(_channel(board, view, one, entry, faults) for one in details)
    clones = tuple(sorted({one for detail in details for one in detail.more.clones}))
    return DeviceModel(
        device=device,
        snapshot=state.words,
        taken_at=state.taken_at,
        is_old=state.is_old,
        entry=entry,
        enrolled_at=seconds_of(entry.enrolled_at) if entry is not None else 0.0,
        retired_at=seconds_of(entry.retired_at) if entry is not None else 0.0,
        channels=channels,
        clones=clones,
        frames=_frames(board, device, faults),
        next_steps=tuple(next_steps(device, entry, [one.row for one in channels])),
        faults=tuple(dict.fromkeys(faults)),
    )


def next_steps(device: str, entry: EnrolledDevice | None, rows: list[IndexedDevice]) -> Iterator[NextStep]:
    """Yield the commands that help with a device in this state, the most urgent first."""
    name = shlex.quote(device)
    odd = {one for row in rows for one in row.odd}
    heard = {row.heard for row in rows}
    if entry is not None and entry.retired_at:
        yield NextStep(
            command=f"edge-fleet re-enroll {name}", words="takes it back into the fleet, with new keys"
        )
    elif entry is None:
        yield NextStep(
            command=f"edge-fleet enroll {name} --site SITE", words="lets it into the fleet: it votes"
        )
    if CLONES in odd or any(row.clones for row in rows):
        yield NextStep(
            command=f"edge-fleet re-enroll {name}",
            words="gives one machine new keys; enroll the other one under an id of its own",
        )
    elif UNSIGNED in odd:
        yield NextStep(
            command=f"edge-fleet re-enroll {name}",
            words="makes new keys, if the bundle of the last enrolment is lost; else install that bundle",
        )
    if heard & {QUIET, NEVER} and HEARD not in heard:
        yield NextStep(
            command="edge-client doctor", words="on the device itself: says why it does not report"
        )
        yield NextStep(
            command="edge-fleet doctor",
            words="on this machine: broker, collector and registry, whether they agree",
        )
    elif ERROR in odd:
        yield NextStep(
            command="edge-client status", words="on the device itself: its last error, and its log"
        )
    yield NextStep(command="edge-fleet ask", words="lets all devices report now; each within a random time")
    yield NextStep(command=f"edge-fleet why {name}", words="says on a terminal what stands above")
    if entry is not None and not entry.retired_at:
        yield NextStep(
            command=f"edge-fleet retire {name}", words="lets it leave the fleet, if it is gone for good"
        )


def shown_device(view: FleetView, detail: DeviceDetail) -> ShownDevice:
    """Return a channel of a device as the commands of `edge-fleet` show it."""
    row, more = detail.row, detail.more
    known = None
    if more.report is not None or more.first_seen or more.sightings or more.clones:
        known = DeviceRow(
            device=row.device,
            channel=row.channel,
            enrolled=row.enrolled,
            is_signed=bool(row.is_signed),
            online=row.online,
            first_seen=more.first_seen,
            last_seen=row.last_seen or 0.0,
            report=more.report,
            sightings=more.sightings,
            periods=more.periods,
            clones=more.clones,
        )
    shown = view.show(row.device, row.channel, more.entry, known)
    # As of the snapshot that the index was made of; the view may be of a later one.
    return dataclasses.replace(shown, heard=row.heard, rollout_state=row.rollout_state)


def _channel(
    board: Board,
    view: FleetView | None,
    detail: DeviceDetail,
    entry: EnrolledDevice | None,
    faults: list[str],
) -> ChannelOfDevice:
    more, channel = detail.more, detail.row.channel
    report = more.report
    figures = report.figures(report.release) if report is not None else None
    words, timeline = list(more.why), tuple[Happening, ...]()
    conclusion = "why it serves that is not known: pointers and rollouts could not be read"
    if view is not None:
        one = shown_device(view, detail)
        conclusion, *words = explain(view, one)
        gone = entry if entry is not None and entry.retired_at else None
        timeline = timeline_of(one, view.records.get(channel), gone)
    document = _document(board, figures.release, faults) if figures is not None else None
    return ChannelOfDevice(
        channel=channel,
        row=detail.row,
        conclusion=conclusion,
        why=tuple(words),
        report=report,
        clock_ahead_s=_clock_ahead_s(detail),
        timeline=timeline,
        releases=tuple(
            under_release(one, is_serving=report is not None and one.release == report.release)
            for one in sorted(
                report.releases if report is not None else (),
                key=lambda one: report is None or one.release != report.release,
            )
        ),
        periods=over_time(more.periods),
        drift=None
        if figures is None or report is None
        else drift_of(figures, more.periods, document, is_alarm=report.drift_alarm),
    )


def _clock_ahead_s(detail: DeviceDetail) -> float | None:
    at = seconds_of(detail.more.report.reported_at) if detail.more.report is not None else 0.0
    return round(at - detail.row.last_seen, 1) if at and detail.row.last_seen else None


def _view(board: Board, device: str, entry: EnrolledDevice | None, faults: list[str]) -> FleetView | None:
    """Return the fleet without its devices but this one."""
    try:
        view = board.fleet_view()
    except EdgeError as e:
        faults.append(str(e))
        return None
    faults += view.faults
    if entry is None or view.registry is None:
        return view
    known = {device: entry}
    registry = dataclasses.replace(
        view.registry,
        devices={} if entry.retired_at else known,
        retired=known if entry.retired_at else {},
    )
    return dataclasses.replace(view, registry=registry)


def _registered(board: Board, device: str, faults: list[str]) -> EnrolledDevice | None:
    """Return the entry of a device that the index does not show as enrolled: it may have left the fleet."""
    try:
        return find_devices(open_documents(board.settings), [device]).get(device)
    except InputError:  # there is no registry, or this is no id
        return None
    except EdgeError as e:
        faults.append(str(e))
        return None


def _document(board: Board, release: str, faults: list[str]) -> ReleaseDocument | None:
    try:
        return board.published().documents.get(release)
    except EdgeError as e:
        faults.append(str(e))
        return None


def _frames(board: Board, device: str, faults: list[str]) -> KeptFrames | None:
    try:
        return read_frames(open_store(board.settings.store), device)
    except EdgeError as e:
        faults.append(str(e))
        return None


def _unknown(board: Board, device: str) -> UnknownDevice:
    state = board.index.state()
    is_loading = state.is_loading and not state.version
    error = (
        "the fleet is being read; this page will know in a moment"
        if is_loading
        else f"no device {one_line(device[:_LONGEST_ID])}: it is not in the registry, and no snapshot has "
        "heard of it; ids are compared letter by letter"
    )
    return UnknownDevice(
        device=device,
        error=error,
        close=() if is_loading else tuple(_close_ids(board, device)),
        snapshot=state.words,
        is_loading=is_loading,
    )


def _close_ids(board: Board, device: str) -> Iterable[str]:
    """Return ids like one, of those that share its beginning or its end."""
    word = device[:_LONGEST_ID].split(maxsplit=1)[0] if device.strip() else ""
    found: dict[str, None] = {}
    for part in dict.fromkeys(
        (word, word[: -(-len(word) * 2 // 3)], word[len(word) // 3 :], word[: len(word) // 3])
    ):
        if part:
            page = board.index.devices(DeviceQuery(text=part, limit=200))
            found |= dict.fromkeys(one.device for one in page.devices)
    return (
        difflib.get_close_matches(device[:_LONGEST_ID], found, _CLOSE_AT_MOST, 0.5)
        or [*found][:_CLOSE_AT_MOST]
    )
