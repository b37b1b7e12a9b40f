"""What the page Label shows: frames of the inbox in an order in which like stands by like, page by page."""

from __future__ import annotations

import bisect
import collections
import dataclasses
from typing import TYPE_CHECKING

import msgspec

from luigi_tasks.labelling.desk import OF_DATASET

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from luigi_tasks.labelling.desk import Desk
    from luigi_tasks.labelling.records import DoubtfulPicture, ListedFrame, SkippedObject, Taken

INBOX, DOUBTFUL = "inbox", "doubtful"
UNDECIDED, DECIDED, ALL = "undecided", "decided", "all"
# A page ends with the group that these many are reached in, see `labelling/similar.py`. With photos of 5 kB
# it stays below 300 kB.
PAGE_FRAMES = 24
NUMBERED = 9  # classes with a key of their own
_OPTIONS = 200  # of a filter
_SKIPPED = 100


class Query(msgspec.Struct, frozen=True):
    """Which frames, and where the page starts.

    Attributes:
        tab: `inbox` or `doubtful`.
        device: Of this device; empty: of all.
        predicted: With this predicted label, or of this class; empty: all.
        why: Kept for this reason; empty: for any.
        show: `undecided`, `decided` or `all`.
        at: Id of the first frame of the page, whether or not it is shown; empty: the first of all.
    """

    tab: str = INBOX
    device: str = ""
    predicted: str = ""
    why: str = ""
    show: str = UNDECIDED
    at: str = ""


class Card(msgspec.Struct, frozen=True):
    """A picture on the page.

    Attributes:
        id: Its id, see `labelling.desk.Choice`.
        sha256: Digest of the picture; its address is `label/pictures/SHA256`.
        predicted: The device's best label; of a picture of the dataset, the class that it probably is of.
        confidence: Its confidence, or how doubtful the label is; 0-1.
        is_class: Whether the predicted label is a class.
        own: Class of a picture of the dataset.
        device: Device that kept it.
        at: When, seconds since 1970, as the device says; None: unknown.
        why: Reason why the device kept it, or what speaks against the label.
        release: Release that classified it.
        group: Id of the group of like frames.
        group_size: Number of frames in that group.
        chosen: Label that was chosen; empty: undecided.
        by: Who chose it; empty: not known.
        fault: Why it can only be thrown away; empty: it can be used.
    """

    id: str
    sha256: str
    predicted: str
    confidence: float
    is_class: bool
    own: str = ""
    device: str = ""
    at: float | None = None
    why: str = ""
    release: str = ""
    group: str = ""
    group_size: int = 1
    chosen: str = ""
    by: str = ""
    fault: str = ""


class LabelModel(msgspec.Struct, frozen=True):
    """The page.

    Attributes:
        query: What was asked for.
        frames: The cards.
        first: Number of the first one among those that fit, from 1.
        total: How many fit.
        back: Id that the page before begins with; None: there is none; empty: the first page.
        on: Id that the next page begins with; empty: there is none.
        labels: Classes, those with a key first.
        decided: Pictures of this tab that are decided on.
        of: All pictures of this tab.
        undecided: Pictures without a decision by tab.
        to_take: Decisions that TakeLabelled would carry out.
        devices: Devices with the number of their frames; likewise `predictions` and `reasons`.
        waiting: Further frames in the inbox, beyond the limit.
        skipped: Objects of the inbox that are no frames.
        is_listed: Whether the inbox was listed.
        place: Where the decisions ended, for `label/state`.
        listing: Digest of the listing.
        taken: What the last TakeLabelled did.
        doubts_at: When the doubtful labels were found; 0: never.
        doubts_fault: Why decisions about the dataset cannot be carried out; empty: they can.
        wrong_share: Estimated share of wrong labels.
    """

    query: Query
    frames: list[Card]
    first: int
    total: int
    back: str | None
    on: str
    labels: tuple[str, ...]
    decided: int
    of: int
    undecided: dict[str, int]
    to_take: int
    devices: list[tuple[str, int]]
    predictions: list[tuple[str, int]]
    reasons: list[tuple[str, int]]
    waiting: int
    skipped: tuple[SkippedObject, ...]
    is_listed: bool
    place: int
    listing: str
    taken: Taken | None
    doubts_at: float
    doubts_fault: str
    wrong_share: float


@dataclasses.dataclass(frozen=True)
class _Item:
    """A picture of either tab, and where it stands in the order."""

    id: str
    key: tuple[str, ...]
    device: str
    predicted: str
    why: str
    group: str
    source: ListedFrame | DoubtfulPicture


class Ordered:
    """The pictures of a desk in their order, made once for each listing.

    Args:
        desk: The desk.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._known: dict[str, tuple[object, list[_Item]]] = {}
        self._labels: tuple[str, ...] = ()

    def items(self, tab: str) -> list[_Item]:
        """Return the pictures of a tab."""
        source: object = self._desk.frames() if tab == INBOX else self._desk.pictures()
        known = self._known.get(tab)
        if known is None or known[0] is not source:
            made = _order_frames(self._desk) if tab == INBOX else _order_doubtful(self._desk)
            known = self._known[tab] = (source, made)
        return known[1]

    def labels(self) -> tuple[str, ...]:
        """Return the classes, those with a key first: a class that is in use keeps its key.

        Where there are more than have a key, those have one that are predicted or chosen most.
        """
        labels = self._desk.labels()
        known = {*labels}
        counts = collections.Counter(one.predicted for tab in (INBOX, DOUBTFUL) for one in self.items(tab))
        counts.update(self._desk.chosen().values())
        most = sorted(labels, key=lambda one: -counts[one])
        before = self._labels or sorted(most[:NUMBERED], key=labels.index)
        order = [*dict.fromkeys((*(one for one in before if one in known), *labels))]
        wanted = [one for one in most if counts[one] and one not in order[:NUMBERED]]
        idle = [place for place, one in enumerate(order[:NUMBERED]) if not counts[one]]
        for place, one in zip(idle, wanted, strict=False):
            other = order.index(one)
            order[place], order[other] = order[other], order[place]
        self._labels = tuple(order) or self._labels  # while the dataset is away, they are remembered
        return tuple(order)


def read_model(desk: Desk, ordered: Ordered, query: Query) -> LabelModel:
    """Return what the page shows.

    Raises: InputError if `labels.csv` is none; DeviceError.
    """
    place, _ = desk.since(-1)  # before the labels are read: what comes meanwhile comes again
    record, doubts, chosen = desk.listing(), desk.doubts(), desk.chosen()
    items = ordered.items(query.tab)
    fitting = [one for one in items if _fits(one, query, chosen)]
    starts = _page_starts(fitting)
    at = _find_start(items, fitting, query.at)
    end = next((one for one in starts if one > at), len(fitting))
    back = max((one for one in starts if one < at), default=-1)
    labels = ordered.labels()
    sizes = collections.Counter(one.group for one in items)
    tabs = {tab: ordered.items(tab) for tab in (INBOX, DOUBTFUL)}
    return LabelModel(
        query=query,
        frames=[_card(one, desk, chosen, {*labels}, sizes[one.group]) for one in fitting[at:end]],
        first=at + 1,
        total=len(fitting),
        back=None if back < 0 else fitting[back].id if back else "",
        on=fitting[end].id if end < len(fitting) else "",
        labels=labels,
        decided=sum(one.id in chosen for one in items),
        of=len(items),
        undecided={tab: sum(one.id not in chosen for one in some) for tab, some in tabs.items()},
        to_take=count_to_take(desk),
        devices=_count(one.device for one in items),
        predictions=_count(one.predicted for one in items),
        reasons=_count(one.why for one in items) if query.tab == INBOX else [],
        waiting=record.waiting if record is not None else 0,
        skipped=_without_frames(desk)[:_SKIPPED],
        is_listed=record is not None,
        place=place,
        listing=f"{record.digest if record is not None else ''}-{doubts.key}-{len(doubts.doubtful)}",
        taken=desk.taken(),
        doubts_at=doubts.at if doubts.key else 0.0,
        doubts_fault=doubts.fault,
        wrong_share=doubts.wrong_share,
    )


def count_to_take(desk: Desk) -> int:
    """Return how many decisions change something: a label that was confirmed changes nothing."""
    pictures = desk.pictures()
    return sum(
        1
        for name, label in desk.chosen().items()
        if not name.startswith(OF_DATASET) or (name in pictures and pictures[name].label != label)
    )


def _order_frames(desk: Desk) -> list[_Item]:
    frames = desk.frames()
    begun: dict[str, str] = {}
    for one in frames.values():
        group = one.group or one.frame
        begun[group] = min(begun.get(group, one.at), one.at)
    made = [
        _Item(
            one.frame,
            (
                "1" if one.fault else "0",
                one.label.casefold(),
                one.label,
                begun[one.group or one.frame],
                one.group or one.frame,
                one.at,
                one.frame,
            ),
            one.device,
            one.label,
            one.why,
            one.group or one.frame,
            one,
        )
        for one in frames.values()
    ]
    return sorted(made, key=lambda one: one.key)


def _order_doubtful(desk: Desk) -> list[_Item]:
    """Return the doubtful pictures: as they were found, the worst first."""
    return [
        _Item(name, (f"{number:09}",), "", one.probable, one.label, name, one)
        for number, (name, one) in enumerate(desk.pictures().items())
    ]


def _fits(one: _Item, query: Query, chosen: dict[str, str]) -> bool:
    return (
        (not query.device or one.device == query.device)
        and (not query.predicted or one.predicted == query.predicted)
        and (not query.why or one.why == query.why)
        and (query.show == ALL or (one.id in chosen) == (query.show == DECIDED))
    )


def _page_starts(items: Sequence[_Item]) -> list[int]:
    """Return where pages begin: never within a group."""
    starts, begun = [0], 0
    for place in range(1, len(items)):
        if place - begun >= PAGE_FRAMES and items[place].group != items[place - 1].group:
            starts.append(place)
            begun = place
    return starts


def _find_start(items: Sequence[_Item], fitting: Sequence[_Item], at: str) -> int:
    """Return where the page begins that begins with a picture, or with the next one that fits."""
    key = next((one.key for one in items if one.id == at), None) if at else None
    if key is None:
        return 0
    place = bisect.bisect_left([one.key for one in fitting], key)
    return place if place < len(fitting) else 0  # all from there on are decided: what was passed over


def _card(one: _Item, desk: Desk, chosen: dict[str, str], labels: set[str], group_size: int) -> Card:
    source = one.source
    label = chosen.get(one.id, "")
    by = desk.who(one.id) if label else ""
    if one.id.startswith(OF_DATASET):
        return Card(
            id=one.id,
            sha256=source.sha256,
            predicted=one.predicted,
            confidence=source.score,  # type: ignore[union-attr]
            is_class=one.predicted in labels,
            own=source.label,
            why=source.why,
            chosen=label,
            by=by,
        )
    frame: ListedFrame = source  # type: ignore[assignment]
    return Card(
        id=one.id,
        sha256=frame.sha256,
        predicted=frame.label,
        confidence=frame.confidence,
        is_class=frame.label in labels,
        device=frame.device,
        at=frame.taken_at,
        why=frame.why,
        release=frame.release,
        group=one.group,
        group_size=group_size,
        chosen=label,
        by=by,
        fault=frame.fault,
    )


def _count(names: Iterable[str]) -> list[tuple[str, int]]:
    counts = collections.Counter(names)
    counts.pop("", None)
    return sorted(counts.most_common(_OPTIONS))


def _without_frames(desk: Desk) -> tuple[SkippedObject, ...]:
    """Return what was skipped and has no card."""
    record = desk.listing()
    if record is None:
        return ()
    shown = {f"{INBOX}/{name}" for name, one in desk.frames().items() if one.fault}
    return tuple(one for one in record.skipped if one.key not in shown)


def find_source(desk: Desk, sha256: str) -> tuple[str, ListedFrame | DoubtfulPicture] | None:
    """Return id and entry of a picture that the page has; None for any other."""
    for name, frame in desk.frames().items():
        if frame.sha256 == sha256:
            return name, frame
    return next(((name, one) for name, one in desk.pictures().items() if one.sha256 == sha256), None)
