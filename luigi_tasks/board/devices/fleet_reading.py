"""What the Fleet page shows: which moment, what is wrong, counts, releases over time, the devices."""

from __future__ import annotations

import urllib.parse
from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.board.index.queries import SORTS
from luigi_tasks.board.index.records import (
    ROWS_AT_MOST,
    Counts,
    DeviceQuery,
    IndexState,
    Mix,
    TablePart,
)
from luigi_tasks.board.paging import whole_number
from luigi_tasks.board.rollouts.view import STOPPED, stopped_by
from luigi_tasks.fleet.records import (
    APPROVAL,
    BACK,
    DEVICE_STATES,
    FAILURES,
    RolloutRecord,
)
from luigi_tasks.fleet.tables import count

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luigi_tasks.board.index.index import Index
    from luigi_tasks.fleet.view import FleetView

# Parameters of the page's address, with the fields of a query that they are.
FILTERS = {
    "q": "text",
    "channel": "channel",
    "site": "site",
    "class": "device_class",
    "tag": "tag",
    "release": "release",
    "heard": "heard",
    "state": "state",
    "online": "online",
    "enrolled": "enrolled",
    "odd": "odd",
}
# What the chart reaches back to, seconds.
SPANS = {"hour": 3600, "day": 86400, "week": 7 * 86400, "month": 31 * 86400, "year": 366 * 86400}
_SPAN, _ROWS = "day", 50
# What the registry says where there never was one; anything else is a registry that is lost.
NOBODY = "no device was enrolled yet"
_VALUE_CHARACTERS = 200
_BAD, _WARN = "bad", "warn"
# For so long a person is told of a rollout that went back: over a weekend.
_TOLD_S = 3 * 86400.0


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """What a person has to look at now.

    Attributes:
        level: `bad`, or `warn`.
        words: What it is, in sentences.
        channel: Channel whose rollout it is about.
        rollout: Id of that rollout.
    """

    level: str
    words: str
    channel: str = ""
    rollout: str = ""


class ChannelNow(msgspec.Struct, frozen=True, kw_only=True):
    """A channel.

    Attributes:
        channel: Its name.
        steady: Release that its pointer names; None: none was published.
        rollout: Id of the rollout that runs; None: none does.
        release: Release that is rolled out.
        state: State of the rollout.
        stage: Stage that is open, from 1; 0: none yet.
        stages: Stages of its plan.
        devices: Devices by their state in it.
    """

    channel: str
    steady: str | None = None
    rollout: str | None = None
    release: str = ""
    state: str = ""
    stage: int = 0
    stages: int = 0
    devices: dict[str, int] = {}


class Fleet(msgspec.Struct, frozen=True, kw_only=True):
    """The Fleet page.

    Attributes:
        state: Which moment is shown, and how complete it is.
        alerts: What a person has to look at now, the worst first.
        channels: The channels and their rollouts.
        followed: Channels that a device follows or reported on.
        counts: Registered devices by what is known of them.
        mix: Devices by release over time.
        span: How far back that reaches, one of `SPANS`.
        page: The devices that were asked for.
    """

    state: IndexState
    alerts: tuple[Alert, ...]
    channels: tuple[ChannelNow, ...]
    followed: int
    counts: Counts
    mix: Mix
    span: str
    page: TablePart


def read_fleet(index: Index, view: FleetView | None, query: DeviceQuery, span: str) -> Fleet:
    """Return the page.

    Args:
        index: The index.
        view: Pointers and rollouts; None: they were not read yet.
        query: Devices that are asked for.
        span: One of `SPANS`.
    """
    channels = tuple(_channels(index, view))
    return Fleet(
        state=index.state(),
        alerts=tuple(sorted(_alerts(view, channels), key=lambda one: one.level != _BAD)),
        channels=channels,
        followed=len(index.channels),
        counts=index.counts(),
        mix=index.mix(query.channel, SPANS[span]),
        span=span,
        page=index.devices(query),
    )


def query_of(argument: Callable[[str], str], rows_at_most: int = ROWS_AT_MOST) -> tuple[DeviceQuery, str]:
    """Return what an address asks for: devices, and the span of the chart.

    Args:
        argument: Returns a parameter of the address; empty where there is none.
        rows_at_most: Rows of a page at most.
    """
    given = {field: argument(name)[:_VALUE_CHARACTERS].strip() for name, field in FILTERS.items()}
    sort, span = argument("sort"), argument("span")
    limit = min(max(whole_number(argument("rows"), _ROWS), 1), rows_at_most)
    query = DeviceQuery(
        **given,
        sort=sort if sort in SORTS else "device",
        descending=argument("order") == "desc",
        limit=limit,
        offset=(max(whole_number(argument("page"), 1), 1) - 1) * limit,
    )
    return query, span if span in SPANS else _SPAN


def address_of(query: DeviceQuery, span: str, **changes: object) -> str:
    """Return the parameters of an address that asks for devices; those that say nothing are left out.

    Args:
        query: What is asked for.
        span: Span of the chart.
        changes: Fields of the query that are another; any but `offset` leads to the first page.
    """
    asked = msgspec.structs.replace(query, **({"offset": 0} | changes))
    values = {name: getattr(asked, field) for name, field in FILTERS.items()}
    values["sort"] = "" if asked.sort == "device" else asked.sort
    values["order"] = "desc" if asked.descending else ""
    values["rows"] = "" if asked.limit == _ROWS else str(asked.limit)
    values["page"] = str(asked.offset // asked.limit + 1) if asked.offset >= asked.limit else ""
    values["span"] = "" if span == _SPAN else span
    given = urllib.parse.urlencode({name: value for name, value in values.items() if value})
    return f"?{given}" if given else ""


def name_in_words(state: str) -> str:
    """Return a name of a state as words."""
    return state.replace("_", " ")


def _channels(index: Index, view: FleetView | None) -> list[ChannelNow]:
    names = {*index.channels, *(view.channels if view is not None else ())}
    found = []
    for name in sorted(names):
        pointer = view.pointers.get(name) if view is not None else None
        record = view.running(name) if view is not None else None
        steady = pointer.release if pointer is not None else None
        if record is None:
            found.append(ChannelNow(channel=name, steady=steady))
            continue
        states = index.counts(name).states
        now = ChannelNow(
            channel=name,
            steady=steady,
            rollout=record.id,
            release=record.release,
            state=record.state,
            stage=record.stages[-1].number if record.stages else 0,
            stages=len(record.plan.stages),
            devices={state: states[state] for state in DEVICE_STATES if states.get(state)},
        )
        found.append(now)
    return found


def _alerts(view: FleetView | None, channels: tuple[ChannelNow, ...]) -> list[Alert]:
    found = [_alert(view, now) for now in channels] if view is not None else []
    return [one for one in found if one is not None]


def _alert(view: FleetView, now: ChannelNow) -> Alert | None:
    """Return what a person has to look at in a channel; None: nothing."""
    record, current = view.records.get(now.channel), view.current.get(now.channel)
    if record is None:
        name = current.rollout if current is not None else ""
        words = f"Channel {now.channel}: rollout {name} runs; its record is gone or forged, so nothing moves."
        return Alert(level=_BAD, words=words, channel=now.channel, rollout=name) if name else None
    failed = {state: now.devices[state] for state in FAILURES if now.devices.get(state)}
    words = " ".join(filter(None, (_standstill(record, view.now), _failed_in_words(failed))))
    if not words:
        return None
    is_bad = failed or record.state not in {APPROVAL, BACK}
    named = f"Channel {now.channel}, rollout of release {record.release}:"
    level = _BAD if is_bad else _WARN
    return Alert(level=level, words=f"{named} {words}", channel=now.channel, rollout=record.id)


def _standstill(record: RolloutRecord, now: float) -> str:
    """Return why a rollout does not go on, or went back lately; empty: it does, or ended long ago."""
    if record.state == APPROVAL:
        return "waits for a person's approval."
    if record.state not in STOPPED or (record.state == BACK and now - record.state_since > _TOLD_S):
        return ""
    stopped = stopped_by(record)
    state = "went back" if record.state == BACK else name_in_words(record.state)
    why = stopped.why.rstrip(".") if stopped is not None else ""
    return f"{state}{f': {why}' if why else ''}."


def _failed_in_words(failed: Mapping[str, int]) -> str:
    if not failed:
        return ""
    parts = ", ".join(f"{number} {name_in_words(state)}" for state, number in failed.items())
    return f"{count(sum(failed.values()), 'device')} failed ({parts})."
