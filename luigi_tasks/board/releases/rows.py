"""The table of releases, and the accuracy over time: what is shown of many releases."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError
from edge_client.contract.names import COMPRESSED_MODEL_FILE, MODEL_FILE, patch_file
from edge_client.contract.rollout import EVERYBODY
from edge_client.contract.times import seconds_of
from luigi_tasks.board.paging import part_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from edge_client.contract.release import ReleaseDocument
    from luigi_tasks.board.releases.known import GateFigures, Published

ROWS_A_PAGE = 50
# A line of more points than pixels shows nothing more.
CHART_POINTS = 100

STEADY, ROLLING_OUT, VARIANT, QUEUED, WITHDRAWN = "steady", "rolling out", "variant", "waiting", "withdrawn"
# How a state is shown: colours of badges.
KINDS = {STEADY: "good", ROLLING_OUT: "busy", VARIANT: "busy", QUEUED: "info", WITHDRAWN: "bad"}


@dataclasses.dataclass(frozen=True)
class InChannel:
    """What a channel says of a release.

    Attributes:
        channel: The channel.
        state: `steady`, `rolling out`, `variant`, `waiting` or `withdrawn`.
        words: The state with its detail, such as `rolling out, 25%`.
        rollout: Id of the rollout; empty: none.
    """

    channel: str
    state: str
    words: str
    rollout: str = ""


@dataclasses.dataclass(frozen=True)
class ReleaseRow:
    """A release in the table.

    Attributes:
        release: Its id.
        made_at: When it was made, seconds since 1970; 0: unknown.
        accuracy: On the hold-out, 0 to 1.
        interval: Its interval at 95 %; None: not kept.
        pictures: Pictures of the hold-out; None: unknown.
        outcome: What the gate said: `passed`, `thin` or `refused`; empty: not known.
        states: What the channels say of it.
        evidence: What is thin about the evidence; empty: nothing.
        model_bytes: Size of the model.
        packed_bytes: Size of the compressed model; None: there is none.
        patch_bytes: Size of the patch from its parent; None: there is none.
        devices: Devices that reported it; None: unknown.
        architecture: Network.
        quantization: Scheme.
        device_class: Devices that it is for; empty: all.
        labels: Number of its labels.
        parent: Release that it was judged against; empty: none.
        fault: Why nothing of it is shown; empty: nothing is wrong.
    """

    release: str
    made_at: float = 0.0
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    pictures: int | None = None
    outcome: str = ""
    states: tuple[InChannel, ...] = ()
    evidence: str = ""
    model_bytes: int | None = None
    packed_bytes: int | None = None
    patch_bytes: int | None = None
    devices: int | None = None
    architecture: str = ""
    quantization: str = ""
    device_class: str = ""
    labels: int = 0
    parent: str = ""
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class ChartPoint:
    """Accuracy of one release, for the chart."""

    release: str
    at: float
    accuracy: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class ReleaseList:
    """The page of releases.

    Attributes:
        total: Signed releases, of all pages.
        rows: Of this page.
        sort: Column that orders.
        order: `ascending` or `descending`.
        first: Number of the first row, from 1.
        last: Number of the last row; less than `first` where there is none.
        page: From 1.
        pages: Number of pages.
        chart: Accuracy over time, oldest first; the newest ones only.
        lowest: Where the scale of the chart begins, below all of it.
        names: All releases, newest first.
        channels: Channels that are published.
        waiting: Releases that wait for the end of a rollout, by channel; they are signed after it.
        where: Address of the store.
        notes: What could not be read, and what is missing.
    """

    total: int
    rows: tuple[ReleaseRow, ...]
    sort: str
    order: str
    first: int
    last: int
    page: int
    pages: int
    chart: tuple[ChartPoint, ...]
    lowest: float
    names: tuple[str, ...]
    channels: tuple[str, ...]
    waiting: Mapping[str, str]
    where: str
    notes: tuple[str, ...]


# Columns that sort: what a row is ordered by; what is unknown comes last.
SORTS: dict[str, Callable[[ReleaseRow], Any]] = {
    "made": lambda row: row.made_at,
    "accuracy": lambda row: row.accuracy,
    "model": lambda row: row.model_bytes,
    "patch": lambda row: row.patch_bytes,
    "devices": lambda row: row.devices,
    "architecture": lambda row: (row.architecture, row.quantization),
}
DESCENDING, ASCENDING = "descending", "ascending"


def list_releases(
    published: Published,
    devices: Mapping[str, int] | None = None,
    *,
    sort: str = "made",
    order: str = DESCENDING,
    page: int = 1,
) -> ReleaseList:
    """Return a page of the table.

    Args:
        published: What is published.
        devices: Number of devices by release; None: unknown.
        sort: One of `SORTS`.
        order: `ascending` or `descending`.
        page: From 1; one after the last shows the last.
    Raises: InputError on an unknown column.
    """
    if sort not in SORTS or order not in {ASCENDING, DESCENDING}:
        columns = ", ".join(SORTS)
        msg = f"sort {sort[:40]!r}, order {order[:40]!r}: one of {columns}; {ASCENDING} or {DESCENDING}"
        raise InputError(msg)
    states = states_by_release(published)
    rows = [row_of(published, one, states.get(one, ()), devices) for one in reversed(published.order)]
    chart = _chart(rows)
    rows = _ordered(rows, sort, order)
    part = part_of(rows, page, ROWS_A_PAGE)
    return ReleaseList(
        total=part.total,
        rows=tuple(part.rows),
        sort=sort,
        order=order,
        first=part.first,
        last=part.last,
        page=part.page,
        pages=part.pages,
        chart=chart,
        lowest=_lowest(chart),
        names=tuple(reversed(published.order)),
        channels=tuple(published.pointers),
        waiting=_waiting(published),
        where=published.state.store.url(""),
        notes=published.notes,
    )


def _lowest(chart: Sequence[ChartPoint]) -> float:
    """Return where the scale of the chart begins: at a whole tenth below all of it."""
    return math.floor(10 * min((one.low or one.accuracy for one in chart), default=1.0)) / 10


def _waiting(published: Published) -> dict[str, str]:
    """Return the releases that wait for the end of a rollout and are not signed yet, by channel."""
    queued = {channel: one.queued for channel, one in published.log.current.items()}
    return {channel: release for channel, release in queued.items() if release and not published.has(release)}


def row_of(
    published: Published,
    release: str,
    states: Sequence[InChannel],
    devices: Mapping[str, int] | None,
) -> ReleaseRow:
    """Return the row of a release: what cannot be read of it costs its own figures alone."""
    known = None if devices is None else devices.get(release, 0)
    document, fault = published.documents.get(release), published.faults.get(release, "")
    if document is None:
        return ReleaseRow(release, states=tuple(states), devices=known, fault=fault or "no document")
    gate = published.gates.get(release)
    parent = document.parent or ""
    return ReleaseRow(
        release=release,
        made_at=seconds_of(document.created_at),
        accuracy=document.accuracy,
        interval=gate.interval if gate is not None else None,
        pictures=pictures_of(document, gate),
        outcome=gate.outcome if gate is not None else "",
        states=tuple(states),
        evidence=document.evidence,
        model_bytes=document.model_bytes,
        packed_bytes=published.size(release, COMPRESSED_MODEL_FILE),
        patch_bytes=published.size(release, patch_file(parent)) if is_name(parent) else None,
        devices=known,
        architecture=document.architecture,
        quantization=document.quantization,
        device_class=document.device_class,
        labels=len(document.labels),
        parent=parent,
        fault=fault,
    )


def pictures_of(document: ReleaseDocument, gate: GateFigures | None) -> int | None:
    """Return the number of hold-out pictures; None: unknown."""
    if gate is not None and gate.pictures is not None:
        return gate.pictures
    return sum(document.hold_out.confidence) if document.hold_out is not None else None


def states_by_release(published: Published) -> dict[str, list[InChannel]]:
    """Return what each channel says of the releases that it names, by release."""
    found: dict[str, list[InChannel]] = {}
    for channel, pointer in published.pointers.items():
        found.setdefault(pointer.release, []).append(InChannel(channel, STEADY, STEADY))
        for release in pointer.withdrawn:
            found.setdefault(release, []).append(InChannel(channel, WITHDRAWN, WITHDRAWN))
    for channel, document in published.rollouts.items():
        if not document.id:
            continue
        share = f"{document.threshold / EVERYBODY:.0%}"
        steady = published.pointers.get(channel)
        if steady is None or steady.release != document.release:
            words = f"{ROLLING_OUT}, {share}"
            found.setdefault(document.release, []).append(InChannel(channel, ROLLING_OUT, words, document.id))
        for device_class, release in document.variants.items():
            words = f"{VARIANT} for class {device_class}, {share}"
            found.setdefault(release, []).append(InChannel(channel, VARIANT, words, document.id))
    for channel, current in published.log.current.items():
        if current.queued:
            found.setdefault(current.queued, []).append(
                InChannel(channel, QUEUED, "waits for the end of a rollout")
            )
    return found


def is_name(release: str) -> bool:
    """Whether a text can be the id of a release: a document may name anything as its parent."""
    try:
        patch_file(release)
    except InputError:
        return False
    return bool(release) and len(patch_file(release)) > len(MODEL_FILE)


def _ordered(rows: Sequence[ReleaseRow], sort: str, order: str) -> list[ReleaseRow]:
    if sort == "made":  # as they were signed: a release made earlier may be signed later
        return list(rows) if order == DESCENDING else list(reversed(rows))
    key = SORTS[sort]
    known = [row for row in rows if not row.fault and key(row) is not None]
    unknown = [row for row in rows if row.fault or key(row) is None]
    known.sort(key=key, reverse=order == DESCENDING)
    return [*known, *unknown]


def _chart(rows: Sequence[ReleaseRow]) -> tuple[ChartPoint, ...]:
    points = [
        ChartPoint(row.release, row.made_at, row.accuracy, *(row.interval or (None, None)))
        for row in rows
        if row.accuracy is not None and row.made_at
    ]
    return tuple(sorted(points[:CHART_POINTS], key=lambda one: one.at))
