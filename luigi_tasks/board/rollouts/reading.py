"""Reading of rollouts for the board: records, verdicts, past rollouts. It blocks: for threads.

Verdicts never change and are kept; records of rollouts that ended are kept under the ETag of their object.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError, TrustError
from edge_client.contract.names import check_name
from edge_client.contract.times import seconds_of
from luigi_tasks.board.kept_values import KeptValues
from luigi_tasks.board.own_key import OwnKey
from luigi_tasks.board.paging import part_of
from luigi_tasks.board.rollouts.acts import Act, Circumstances, acts_of, acts_without_record
from luigi_tasks.board.rollouts.view import (
    ChannelLine,
    Looked,
    NextLook,
    RolloutLine,
    ShownStage,
    describe_state,
    devices_with,
    next_look,
    show_line,
    show_stages,
    stopped_by,
    verdict_name,
)
from luigi_tasks.fleet.records import (
    ENDED,
    PLANNED,
    CurrentRollout,
    RolloutEvent,
    RolloutRecord,
    VerdictRecord,
)
from luigi_tasks.fleet.rollouts import RECORD_LIMIT_BYTES, VERDICTS_FOLDER, Rollouts
from luigi_tasks.fleet.standing import RolloutRunsError, runs_already

if TYPE_CHECKING:
    from luigi_tasks.board.index.index import Index
    from luigi_tasks.fleet.view import FleetView
    from luigi_tasks.settings.values import PipelineSettings

PAGE_ROWS = 20
_VERDICTS_KEPT, _RECORDS_KEPT, _CHILDREN_AT_ONCE = 256, 256, 2


class UnknownError(InputError):
    """There is no such channel, rollout or verdict."""


class ShownRollout(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout with all that its page shows.

    Attributes:
        channel: The channel.
        rollout: Its record; None: no rollout was ever started on the channel.
        words: Where it stands, in a sentence.
        is_running: Whether it is the one that the channel is in.
        running: Id of the one that the channel is in; empty: none.
        steady: The channel's steady release; empty: none.
        withdrawn: Whether the release is withdrawn from the channel.
        queued: Release that waits for the end of the one that runs.
        stages: The stages of its plan.
        members: Registered devices that it is for; None: unknown.
        counts: Devices of the open stage by state, at the verdict.
        verdict: The newest verdict, or the one that was asked for; None: there is none yet.
        verdict_name: Its name in addresses.
        verdict_key: Address of its document.
        stopped: The entry of the history that says why it does not go on, or went back; None: it goes on.
        acts: What a person may do.
        next_look: What the next look has to go by.
        faults: What could not be trusted or read.
    """

    channel: str
    rollout: RolloutRecord | None = None
    words: str = ""
    is_running: bool = False
    running: str = ""
    steady: str = ""
    withdrawn: bool = False
    queued: str = ""
    stages: tuple[ShownStage, ...] = ()
    members: int | None = None
    counts: dict[str, int] = {}
    verdict: VerdictRecord | None = None
    verdict_name: str = ""
    verdict_key: str = ""
    stopped: RolloutEvent | None = None
    acts: tuple[Act, ...] = ()
    next_look: NextLook = NextLook()
    faults: tuple[str, ...] = ()


class Listing(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=False):
    """The rollouts of all channels.

    Attributes:
        channels: The channels; those that a person is needed for come first.
        snapshot_at: Time of the newest snapshot; 0: there is none.
        snapshot_words: How old it is, and how complete.
        stages: `[rollout] stages`.
        key_fault: Why this machine cannot act; empty: it can.
        faults: What could not be trusted or read.
        notes: What is missing, and how to get it.
    """

    channels: tuple[ChannelLine, ...]
    snapshot_at: float = 0.0
    snapshot_words: str = ""
    stages: str = ""
    key_fault: str = ""
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class PastRollouts(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the rollouts of a channel, the newest first.

    Attributes:
        channel: The channel.
        page: Number of the page, from 1; this and the next four as in `paging.Part`.
        pages: How many there are.
        first: Number of the first rollout of this page.
        last: Number of the last one.
        total: Rollouts of the channel.
        rollouts: Those of this page.
        faults: What could not be trusted or read.
    """

    channel: str
    page: int
    pages: int
    first: int
    last: int
    total: int
    rollouts: tuple[RolloutLine, ...]
    faults: tuple[str, ...] = ()


class ShownLook(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict in the list of looks."""

    name: str
    stage: int
    look: int
    at: float
    result: str
    words: str
    counts: dict[str, int] = {}


class Looks(msgspec.Struct, frozen=True, kw_only=True):
    """A page of the verdicts of a rollout, the newest first; see `PastRollouts`."""

    channel: str
    rollout: str
    page: int
    pages: int
    first: int
    last: int
    total: int
    looks: tuple[ShownLook, ...]
    faults: tuple[str, ...] = ()


class RolloutReader:
    """Reads the rollouts of a fleet.

    Args:
        settings: Settings of all sections.
        index: The newest snapshot, which tells how many devices a rollout is for.

    Attributes:
        rollouts: The records.
        key: Whether this machine can sign what a person decides.
        looked: The last look that a person took on this board, by channel.
        children: Processes that read a whole snapshot, see `child.py`.
    """

    def __init__(self, settings: PipelineSettings, index: Index) -> None:
        from luigi_tasks.fleet.opening import documents_of  # noqa: PLC0415 - imports python-tuf
        from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - as above
        from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - as above

        self._settings, self._index = settings, index
        self._repository = ReleaseRepository(open_store(settings.store), settings.trust)
        self.rollouts = Rollouts(documents_of(self._repository))
        self.children = asyncio.Semaphore(_CHILDREN_AT_ONCE)
        self.looked: dict[str, Looked] = {}
        self.key = OwnKey(self.rollouts.documents)
        self._verdicts: KeptValues[VerdictRecord] = KeptValues(_VERDICTS_KEPT)
        self._records: KeptValues[RolloutRecord] = KeptValues(_RECORDS_KEPT)

    def channels(self, view: FleetView) -> Listing:
        """Return the rollouts of all channels."""
        from luigi_tasks.fleet.view import snapshot_in_words  # noqa: PLC0415 - as above

        lines = sorted((self._line(view, one) for one in self._channels(view)), key=_urgency)
        return Listing(
            channels=tuple(lines),
            snapshot_at=view.head.taken_at if view.head is not None else 0.0,
            snapshot_words=snapshot_in_words(view),
            stages=self._settings.rollout.stages,
            key_fault=self.key.fault(),
            faults=view.faults,
            notes=view.notes,
        )

    def rollout(self, view: FleetView, channel: str, name: str = "", verdict: str = "") -> ShownRollout:
        """Return a rollout with all that its page shows; its record is read anew.

        Args:
            view: The fleet.
            channel: The channel.
            name: Id of the rollout; empty: the one that runs, or ran last.
            verdict: Name of one of its verdicts; empty: the newest.
        Raises: UnknownError; TrustError, TransportError, SettingsError.
        """
        signed = self.rollouts.current(check_name(channel, "channel"))
        current = signed.document if signed is not None else CurrentRollout(channel=channel)
        wanted = name or current.rollout or current.last
        if not wanted and channel not in self._channels(view):
            msg = f"no channel {channel}"
            raise UnknownError(msg)
        steady = _steady(view, channel)
        if not wanted:
            return ShownRollout(channel=channel, steady=steady)
        try:
            record = self._find(channel, wanted, must=wanted == current.rollout)
        except (InputError, TrustError) as e:
            if wanted != current.rollout:
                raise
            acts = acts_without_record(self.key.fault())
            return ShownRollout(channel=channel, steady=steady, running=wanted, acts=acts, faults=(str(e),))
        return self._shown(view, current, record, verdict)

    def _shown(
        self, view: FleetView, current: CurrentRollout, record: RolloutRecord, verdict: str
    ) -> ShownRollout:
        faults: list[str] = list(view.faults)
        key, shown = self._verdict(record, verdict, faults)
        newest = shown if not verdict else self._verdict(record, "", faults)[1]
        members, steady = self._members(record), _steady(view, record.channel)
        now = Circumstances(
            steady=steady,
            stages=show_stages(record, members),
            verdict=newest,
            key_fault=self.key.fault(),
            is_running=record.id == current.rollout and record.state not in ENDED,
        )
        pointer = view.pointers.get(record.channel)
        return ShownRollout(
            channel=record.channel,
            rollout=record,
            words=describe_state(record),
            is_running=now.is_running,
            running=current.rollout,
            steady=steady,
            withdrawn=pointer is not None and record.release in pointer.withdrawn,
            queued=current.queued,
            stages=tuple(now.stages),
            members=members,
            counts=devices_with(newest),
            verdict=shown,
            verdict_name=verdict_name(key),
            verdict_key=self.rollouts.documents.store.url(key) if key else "",
            stopped=stopped_by(record),
            acts=acts_of(record, now),
            next_look=next_look(view, record),
            faults=tuple(dict.fromkeys(faults)),
        )

    def _find(self, channel: str, name: str, *, must: bool = False) -> RolloutRecord:
        """Return a record; one that must be there and is gone is no UnknownError, but says the way out."""
        if must:
            return self.rollouts.load(channel, name).document
        found = self.rollouts.find(channel, check_name(name, "rollout id"))
        if found is None:
            msg = f"channel {channel}: no rollout {name}"
            raise UnknownError(msg)
        return found.document

    def past(self, view: FleetView, channel: str, page: int) -> PastRollouts:
        """Return a page of a channel's rollouts, the newest first; one that never started is left out.

        Raises: UnknownError; TransportError, SettingsError.
        """
        listed = self.rollouts.listed(channel)
        names = sorted(listed, reverse=True)
        if not names and channel not in self._channels(view):
            msg = f"no channel {channel}"
            raise UnknownError(msg)
        part = part_of(names, page, PAGE_ROWS)
        current = view.current.get(channel)
        running = current.rollout if current is not None else ""
        lines, faults = [], list[str]()
        for name in part.rows:
            record = self._past_record(channel, name, listed[name], faults)
            if record is not None and (record.state != PLANNED or name == running):
                lines.append(show_line(record, None))
        return PastRollouts(
            channel=channel,
            page=part.page,
            pages=part.pages,
            first=part.first,
            last=part.last,
            total=part.total,
            rollouts=tuple(lines),
            faults=tuple(faults),
        )

    def looks(self, channel: str, name: str, page: int) -> Looks:
        """Return a page of a rollout's verdicts, the newest first.

        Raises: UnknownError; TrustError, TransportError, SettingsError.
        """
        keys = self.rollouts.verdicts(self._find(check_name(channel, "channel"), name))[::-1]
        part = part_of(keys, page, PAGE_ROWS)
        faults: list[str] = []
        read = ((key, self._read(key, faults)) for key in part.rows)
        looks = tuple(
            ShownLook(
                name=verdict_name(key),
                stage=one.stage,
                look=one.look,
                at=one.at,
                result=one.result,
                words=one.words,
                counts=devices_with(one),
            )
            for key, one in read
            if one is not None
        )
        return Looks(
            channel=channel,
            rollout=name,
            page=part.page,
            pages=part.pages,
            first=part.first,
            last=part.last,
            total=part.total,
            looks=looks,
            faults=tuple(faults),
        )

    def document(self, channel: str, name: str, verdict: str) -> bytes:
        """Return the signed document of a verdict, as it lies in the bucket.

        Raises: UnknownError; TransportError, SettingsError.
        """
        key = _verdict_key(channel, name, verdict)
        found = self.rollouts.documents.store.get(key, limit_bytes=RECORD_LIMIT_BYTES)
        if found is None:
            msg = f"channel {channel}, rollout {name}: no verdict {verdict}"
            raise UnknownError(msg)
        return found.data

    def releases(self, view: FleetView, channel: str) -> tuple[str, ...]:
        """Return the signed releases that can be rolled out on a channel, the newest first.

        Raises: UnknownError; TrustError, TransportError, SettingsError.
        """
        pointer = view.pointers.get(check_name(channel, "channel"))
        if channel not in self._channels(view):
            msg = f"no channel {channel}"
            raise UnknownError(msg)
        left_out = {pointer.release, *pointer.withdrawn} if pointer is not None else set()
        return tuple(one for one in reversed(self._repository.load().releases()) if one not in left_out)

    def check_idle(self, channel: str, release: str) -> None:
        """Raise RolloutRunsError if a rollout of another release runs on a channel."""
        current = self.rollouts.current(check_name(channel, "channel"))
        name = current.document.rollout if current is not None else ""
        record = self._find(channel, name, must=True) if name else None
        if record is not None and record.state not in ENDED and record.release != release:
            raise RolloutRunsError(runs_already(record))

    def note_look(self, channel: str, who: str, words: str) -> None:
        """Keep what a look found that a person took."""
        self.looked[channel] = Looked(at=time.time(), who=who, words=words)

    def _line(self, view: FleetView, channel: str) -> ChannelLine:
        pointer, record, current = (
            view.pointers.get(channel),
            view.records.get(channel),
            view.current.get(channel),
        )
        return ChannelLine(
            channel=channel,
            steady=pointer.release if pointer is not None else "",
            steady_since=seconds_of(pointer.moved_at) if pointer is not None else 0.0,
            rollout=show_line(record, self._members(record)) if record is not None else None,
            runs=record is not None and record.state not in ENDED,
            unreadable=current.rollout if current is not None and record is None else "",
            queued=current.queued if current is not None else "",
            queued_at=seconds_of(current.queued_at) if current is not None else 0.0,
            next_look=next_look(view, record) if record is not None else NextLook(),
        )

    def _channels(self, view: FleetView) -> set[str]:
        """Return the channels that anything names; devices may follow one before a release is on it."""
        return {*view.channels, *self._index.channels}

    def _members(self, record: RolloutRecord) -> int | None:
        """Return how many registered devices a rollout is for, by the newest index; None: unknown."""
        if record.stages and record.plan.stages[record.stages[-1].number - 1 :] == ("100%",):
            return record.stages[-1].size
        counts = self._index.counts(record.channel)
        if record.state not in ENDED and counts.states:
            return sum(counts.states.values())
        is_limited = record.plan.only or len(record.plan.excluded) > len(record.skipped)
        return None if is_limited or not counts.devices else counts.devices - len(record.skipped)

    def _verdict(
        self, record: RolloutRecord, name: str, faults: list[str]
    ) -> tuple[str, VerdictRecord | None]:
        """Return a verdict and its key: the named one, or the newest that is known without a listing."""
        if name:
            key = _verdict_key(record.channel, record.id, name)
            if (named := self._read(key, faults)) is None:
                msg = f"rollout {record.id}: no verdict {name}"
                raise UnknownError(msg)
            return key, named
        noted = [one.verdict for one in record.stages if one.verdict]
        keys = noted or [one.verdict for one in record.events if one.verdict]
        return (keys[-1], self._read(keys[-1], faults)) if keys else ("", None)

    def _read(self, key: str, faults: list[str]) -> VerdictRecord | None:
        try:
            return self._verdicts.get_or_make(key, lambda: self.rollouts.verdict(key))
        except (TrustError, InputError) as e:
            faults.append(str(e))
            return None

    def _past_record(self, channel: str, name: str, etag: str, faults: list[str]) -> RolloutRecord | None:
        def read() -> RolloutRecord | None:
            found = self.rollouts.find(channel, name)
            return found.document if found is not None else None

        try:
            return self._records.get_or_make((channel, name, etag), read)
        except (TrustError, InputError) as e:
            faults.append(str(e))
            return None


def _steady(view: FleetView, channel: str) -> str:
    pointer = view.pointers.get(channel)
    return pointer.release if pointer is not None else ""


def _verdict_key(channel: str, rollout: str, verdict: str) -> str:
    names = (
        check_name(channel, "channel"),
        check_name(rollout, "rollout id"),
        check_name(verdict, "verdict"),
    )
    return f"{VERDICTS_FOLDER}{'/'.join(names)}.json"


def _urgency(line: ChannelLine) -> tuple[int, str]:
    """Sort channels: those that a person is needed for, those where a rollout runs, the others."""
    state = line.rollout.state if line.rollout is not None else ""
    if state in {"halted", "paused", "waiting_for_approval"}:
        return 0, line.channel
    return (1 if line.runs else 2), line.channel
