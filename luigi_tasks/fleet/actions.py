"""What is done to a rollout: started, looked at, approved, paused, sent back, aborted.

Each is one conditional write of the rollout's record, and then the signed move, the announcement and the
events, in this order. The record says what is meant, so that each may be killed at any instruction: whoever
looks next does the rest. Two at once: the slower one finds the record changed, and leaves it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import EdgeError, InputError, TransportError, TrustError
from luigi_tasks.fleet import moves, stages
from luigi_tasks.fleet.acceptance import accept_rollouts
from luigi_tasks.fleet.admission import admit
from luigi_tasks.fleet.evidence import what_is_not_seen
from luigi_tasks.fleet.looks import take_step
from luigi_tasks.fleet.plans import every, heartbeat_of
from luigi_tasks.fleet.records import (
    DONE,
    ENDED,
    GOING_BACK,
    HALTED,
    PAUSED,
    PLANNED,
    CurrentRollout,
    RolloutPlan,
    RolloutRecord,
)
from luigi_tasks.fleet.registry import NoRegistryError, load_registry
from luigi_tasks.fleet.rollouts import Rollouts, new_id
from luigi_tasks.fleet.stages import ADVANCE, Moment
from luigi_tasks.fleet.standing import Look, RolloutRunsError, Seen, Standing, in_words, runs_already
from luigi_tasks.logs import LUIGI_LOGGER
from luigi_tasks.release.channel import Pointers
from luigi_tasks.storage.store import StoreConflictError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings

logger = logging.getLogger(LUIGI_LOGGER)

ATTEMPTS = 5


class Fleet:
    """The rollouts of a fleet.

    Args:
        settings: Settings of all sections.
        documents: The fleet's signed documents.
        repository: The signed repository.
        broker: Where channels are announced.
        clock: Returns seconds since 1970.
        seen: What the person saw who decides: RolloutMovedError where it has moved; None: whatever there is.
    """

    def __init__(
        self,
        settings: PipelineSettings,
        documents: SignedDocuments,
        repository: ReleaseRepository,
        broker: BrokerClient,
        clock: Callable[[], float] = time.time,
        seen: Seen | None = None,
    ) -> None:
        self.settings = settings
        self.documents = documents
        self.rollouts = Rollouts(documents)
        self.repository = repository
        self.broker = broker
        self.clock = clock
        self.seen = seen

    # Looking

    def stand(self, channel: str) -> Standing:
        """Return what a channel is in.

        The signed document counts where `current.json` is gone, or is an older copy that somebody put back.
        Raises: InputError if the rollout's record is gone; TrustError; TransportError.
        """
        current = self.rollouts.current(channel)
        name = current.document.rollout if current is not None else ""
        running = self.rollouts.load(channel, name) if name else None
        state = self.repository.load()  # after the record: what is signed is never older than it
        signed = Pointers(state.channel(channel), state.rollout(channel))
        other = signed.rollout.id if signed.rollout is not None else ""
        if other not in {"", name} and (running is None or running.document.state in ENDED):
            found = self.rollouts.find(channel, other)
            if found is not None and found.document.state not in ENDED:
                running = found
        return Standing(current, running, signed)

    def advance(self, channel: str) -> Look:
        """Take one look at a channel's rollout: judge, move it at most one step, tell.

        Raises: NoRegistryError, InputError, TrustError, SettingsError, TransportError; what was signed
            before stays.
        """
        try:
            return self._advance(channel)
        except StoreConflictError:
            return Look(None, f"channel {channel}: another look was faster; left to that one")

    def _advance(self, channel: str) -> Look:
        standing = self.stand(channel)
        if standing.running is None:
            self._tell(channel, None)  # what a receiver did not take at the end of the last rollout
            waits = f"; release {standing.queued} waits for the next Deploy" if standing.queued else ""
            return Look(None, f"channel {channel}: no rollout runs{waits}{self._pace(channel, standing)}")
        before, when = standing.running.document, self._moment(ADVANCE)
        record = self._doubt(before, standing.signed, when)
        if record is before:
            self.rollouts.note(record)
            self._sign(record)  # what an earlier look was killed before
            record, words = take_step(self.settings, self.rollouts, record, when)
        else:
            words = record.events[-1].why
        if record != before:
            record = self.rollouts.save(record, standing.running.etag)
        self._settle(record)
        news = record.events[len(before.events) :]
        halts = [one for one in news if one.what in {"halted", "paused", "older_copy", "going_back"}]
        return Look(record, in_words(record, halts[0].why if halts else words), is_halted=bool(halts))

    def _doubt(self, record: RolloutRecord, signed: Pointers, when: Moment) -> RolloutRecord:
        """Return the rollout paused if its record is an older copy."""
        if record.state in (*ENDED, PAUSED, HALTED, GOING_BACK):
            return record
        is_older = self.rollouts.is_older(record)
        why = "this machine has seen a newer one" if is_older else moves.why_behind(record, signed)
        return stages.distrust(record, why, when) if why else record

    # Starting

    def start(
        self,
        channel: str,
        release: str,
        plan: RolloutPlan,
        who: str,
        *,
        variants: Mapping[str, str] | None = None,
        supersede: bool = False,
        skip_incompatible: bool = False,
    ) -> RolloutRecord:
        """Start a rollout, and return it; one of the same release that runs is returned as it is.

        Nothing is signed yet: the first look opens its first stage.
        Raises: RolloutRunsError if another one runs, or is past its first stage; NoRegistryError; InputError
            if the release cannot be rolled out, or if devices cannot run it and `skip_incompatible` does not
            leave them out; TrustError; TransportError.
        """
        load_registry(self.documents)  # without one no look would open a stage
        standing = self._finish_ended(channel)
        self._check(channel, release, variants or {}, standing.signed)
        running, when = standing.running, self._moment(who)
        if running is not None:
            if running.document.release == release:
                return running.document
            if not supersede:
                raise RolloutRunsError(runs_already(running.document))
        record = self._new(channel, release, plan, variants or {}, when, skip_incompatible=skip_incompatible)
        if running is not None:
            self._change(channel, lambda record: stages.supersede(record, release, when))
            standing = self.stand(channel)
        record = self.rollouts.save(record, None)
        last = standing.current.document.last if standing.current is not None else ""
        try:
            self._save_current(standing, CurrentRollout(channel=channel, rollout=record.id, last=last))
        except StoreConflictError as e:
            msg = f"channel {channel}: somebody else started a rollout in this moment; see which one runs"
            raise RolloutRunsError(msg) from e
        self._tell(record.channel, record)
        return record

    def draft(
        self,
        channel: str,
        release: str,
        plan: RolloutPlan,
        who: str,
        *,
        variants: Mapping[str, str] | None = None,
        skip_incompatible: bool = False,
    ) -> RolloutRecord:
        """Return a rollout with the stages that it would open, were the registry to stay as it is.

        Raises: As `start`; NoRegistryError.
        """
        self._check(channel, release, variants or {}, self.stand(channel).signed)
        when = self._moment(who)
        record = self._new(channel, release, plan, variants or {}, when, skip_incompatible=skip_incompatible)
        enrolled = load_registry(self.documents).devices.values()
        return msgspec.structs.replace(record, stages=tuple(stages.preview(record, enrolled, when.now)))

    def _new(
        self,
        channel: str,
        release: str,
        plan: RolloutPlan,
        variants: Mapping[str, str],
        when: Moment,
        *,
        skip_incompatible: bool,
    ) -> RolloutRecord:
        state = self.repository.load()
        admitted = admit(
            self.documents,
            state,
            self.settings.broker.fleet,
            channel,
            release,
            variants,
            plan,
            skip_incompatible=skip_incompatible,
        )
        pointer = state.channel(channel)
        heartbeat_s = heartbeat_of(self.settings.fleet, len(admitted.enrolled))
        record = RolloutRecord(
            id=new_id(release, when.now),
            channel=channel,
            release=release,
            from_release=pointer.release if pointer is not None else "",
            variants=dict(variants),
            plan=msgspec.structs.replace(admitted.plan, heartbeat_s=heartbeat_s),
            skipped=admitted.skipped,
            created_at=when.at,
            created_by=when.who,
            state=PLANNED,
            state_since=when.now,
        )
        words = (admitted.words, what_is_not_seen(record, admitted.enrolled))
        return stages.add_event(record, "opened", when, "; ".join(one for one in words if one))

    def queue(self, channel: str, release: str, who: str) -> bool:
        """Let a release wait for the end of the rollout that runs, if one does; the newest one waits."""
        for _ in range(ATTEMPTS):
            standing = self._finish_ended(channel)
            if standing.running is None or standing.running.document.release == release:
                return False
            if standing.queued == release:
                return True
            current = CurrentRollout(
                channel=channel,
                rollout=standing.running.document.id,
                last=standing.current.document.last if standing.current is not None else "",
                queued=release,
                queued_at=self._moment(who).at,
            )
            with contextlib.suppress(StoreConflictError):  # a look ended the rollout, perhaps
                self._save_current(standing, current)
        msg = f"channel {channel}: others changed its rollout {ATTEMPTS} times meanwhile; try again"
        raise TransportError(msg)

    def is_taken_up(self, channel: str, release: str) -> bool:
        """Whether a release needs no Deploy: it is rolled out or waits, or its rollout ended without moving.

        A release that was sent back, or aborted by a person, is started again by a person only.
        """
        standing = self.stand(channel)
        if standing.running is not None and standing.running.document.state not in ENDED:
            return release in {standing.running.document.release, standing.queued}
        if standing.running is not None:
            last: RolloutRecord | None = standing.running.document
        else:
            name = standing.current.document.last if standing.current is not None else ""
            found = self.rollouts.find(channel, name) if name else None
            last = found.document if found is not None else None
        if last is None or last.release != release:
            return False
        return last.state != DONE or stages.is_limited(last)

    def _check(self, channel: str, release: str, variants: Mapping[str, str], signed: Pointers) -> None:
        state = self.repository.load()
        for one in (release, *variants.values()):
            if state.release(one) is None:
                msg = f"release {one}: not signed in {self.settings.store.url}; give one that is"
                raise InputError(msg)
            if one in state.withdrawn(channel):
                msg = (
                    f"release {one}: was withdrawn from channel {channel}, so it is not rolled out again; "
                    f"`RollBack --to {one}` points the whole channel to it"
                )
                raise InputError(msg)
        if signed.channel is not None and signed.channel.release == release:
            msg = f"release {release}: channel {channel} points to it already, all devices may have it"
            raise InputError(msg)

    # What a person does

    def approve(self, channel: str, who: str, why: str = "", stage: int = 0) -> RolloutRecord:
        """Approve a stage (0: the next that waits); the next look opens it if the evidence passes."""
        when = self._moment(who)
        return self._change(channel, lambda record: stages.approve(record, stage, why, when))

    def pause(self, channel: str, who: str, why: str = "") -> RolloutRecord:
        """Pause a rollout: the devices keep what they have, no stage opens."""
        when = self._moment(who)
        return self._change(channel, lambda record: stages.pause(record, why, when))

    def resume(self, channel: str, who: str, why: str = "") -> RolloutRecord:
        """Let a paused rollout go on; what a soft check found is accepted.

        Raises: InputError if it is not paused, or its record is a copy from before what was signed.
        """
        when, signed = self._moment(who), self.stand(channel).signed
        document = signed.rollout

        def change(record: RolloutRecord) -> RolloutRecord:
            record = stages.resume(record, why, when)
            if document is not None and document.id == record.id:
                record = stages.adopt(record, document.threshold)
            if reason := moves.why_behind(record, signed):
                msg = (
                    f"rollout {record.id}: {reason}, so it cannot go on from this copy of its record; "
                    "restore the newer one from the bucket's versions, or end it with `edge-fleet abort`"
                )
                raise InputError(msg)
            return record

        return self._change(channel, change)

    def back(self, channel: str, who: str, why: str = "") -> RolloutRecord:
        """Send the devices of a rollout back to the steady release, paced; the release is withdrawn."""
        when = self._moment(who)
        return self._change(channel, lambda record: stages.go_back(record, why, when))

    def abort(self, channel: str, who: str, why: str = "") -> RolloutRecord | None:
        """End a rollout at once; its devices return at their next look, and nothing is withdrawn.

        Also one whose record is gone or forged; None then.
        """
        current = self.rollouts.current(channel)
        name = current.document.rollout if current is not None else ""
        if current is not None and name and not self._is_recorded(channel, name):
            self._point_idle(channel)
            self.rollouts.save_current(msgspec.structs.replace(current.document, rollout=""), current.etag)
            return None
        when = self._moment(who)
        return self._change(channel, lambda record: stages.abort(record, why, when))

    def _is_recorded(self, channel: str, rollout: str) -> bool:
        try:
            return self.rollouts.find(channel, rollout) is not None
        except TrustError:
            return False

    def accept(self, channel: str, who: str) -> str:
        """Sign again what this machine saw of records that no trusted key signs, see `acceptance.py`."""
        when = self._moment(who)
        return accept_rollouts(self.rollouts, channel, when, lambda: self._point_idle(channel))

    def leave(self, channel: str, who: str, why: str) -> None:
        """End whatever rollout a channel is in, and what waits, before its pointer is moved at once."""
        standing = self._finish_ended(channel)
        if standing.running is not None:
            self.abort(channel, who, why)
        if standing.signed.rollout is not None and standing.signed.rollout.id:
            self._point_idle(channel)
        self.empty_queue(channel)

    def empty_queue(self, channel: str) -> None:
        """Let no release wait, unless a rollout runs."""
        current = self.rollouts.current(channel)
        if current is None or current.document.rollout or not current.document.queued:
            return
        emptied = msgspec.structs.replace(current.document, queued="", queued_at="")
        with contextlib.suppress(StoreConflictError):  # somebody starts a rollout
            self.rollouts.save_current(emptied, current.etag)

    def _change(self, channel: str, change: Callable[[RolloutRecord], RolloutRecord]) -> RolloutRecord:
        """Change the rollout of a channel; again if a look was faster."""
        for _ in range(ATTEMPTS):
            standing = self._finish_ended(channel)
            if standing.running is None:
                msg = f"channel {channel}: no rollout runs"
                raise InputError(msg)
            if self.seen is not None:
                self.seen.check(standing.running.document)
            record = change(standing.running.document)
            try:
                if record != standing.running.document:
                    record = self.rollouts.save(record, standing.running.etag)
            except StoreConflictError:
                continue
            self._settle(record)
            return record
        msg = f"channel {channel}: others changed its rollout {ATTEMPTS} times meanwhile; try again"
        raise TransportError(msg)

    # What follows the record

    def _settle(self, record: RolloutRecord) -> None:
        """Bring the world to what a record says: signatures, announcement, events, `current.json`."""
        self._sign(record)
        self._tell(record.channel, record)
        if record.state in ENDED:
            self._close(record)

    def _finish_ended(self, channel: str) -> Standing:
        """Return what a channel is in, after what a killed look left undone of a rollout that ended."""
        standing = self.stand(channel)
        if standing.running is None or standing.running.document.state not in ENDED:
            return standing
        self._settle(standing.running.document)
        standing = self.stand(channel)
        return dataclasses.replace(standing, running=None)

    def _sign(self, record: RolloutRecord) -> None:
        state = self.repository.load()
        before = Pointers(state.channel(record.channel), state.rollout(record.channel))
        if moves.pointers_after(record, before, "") == before:
            return
        self.repository.point(
            record.channel, lambda now: moves.pointers_after(record, now, self._moment("").at)
        )
        self._announce(record.channel)

    def _point_idle(self, channel: str) -> None:
        self.repository.point(channel, lambda now: moves.idle(now, channel, self._moment("").at))
        self._announce(channel)

    def _pace(self, channel: str, standing: Standing) -> str:
        """Sign how often devices report, where that no longer suits their number; return it in words.

        They find it when they look by themselves: nothing is urgent about it.
        """
        try:
            devices = len(load_registry(self.documents).devices)
        except NoRegistryError:
            return ""
        wanted = heartbeat_of(self.settings.fleet, devices)
        if moves.paced(standing.signed, channel, wanted, "") == standing.signed:
            return ""
        self.repository.point(channel, lambda now: moves.paced(now, channel, wanted, self._moment("").at))
        return f"; devices are told to report {every(wanted)}"

    def _announce(self, channel: str) -> None:
        """Wake the devices; those that a broker does not reach find the move when they look by themselves."""
        from luigi_tasks.release import announcement  # noqa: PLC0415 - seldom

        release = announcement.release_to_announce(self.repository.load(), channel)
        if release is None:
            return
        try:
            announcement.announce(self.broker, channel, release)
        except EdgeError as e:
            logger.warning("channel %s is not announced (%s): devices find the move by polling", channel, e)

    def _tell(self, channel: str, record: RolloutRecord | None) -> None:
        from luigi_tasks.fleet.events import tell_events  # noqa: PLC0415 - imports urllib3

        tell_events(self.settings, self.documents, channel, record)

    def _close(self, record: RolloutRecord) -> None:
        """Note that a rollout that ended is the channel's last one."""
        current = self.rollouts.current(record.channel)
        if current is None or current.document.rollout not in {"", record.id}:
            return
        closed = msgspec.structs.replace(current.document, rollout="", last=record.id)
        if closed != current.document:
            self.rollouts.save_current(closed, current.etag)

    def _save_current(self, standing: Standing, current: CurrentRollout) -> None:
        self.rollouts.save_current(current, standing.current.etag if standing.current is not None else None)

    def _moment(self, who: str) -> Moment:
        now = self.clock()
        time_of_day = datetime.datetime.fromtimestamp(now, datetime.timezone.utc)
        return Moment(now, time_of_day.isoformat(timespec="milliseconds"), who)


def open_fleet(settings: PipelineSettings, seen: Seen | None = None) -> Fleet:
    """Open the fleet of the settings, for a person who saw this of it; nothing is read yet.

    Raises: SettingsError.
    """
    from luigi_tasks.fleet.in_use import find_in_use  # noqa: PLC0415 - seldom
    from luigi_tasks.fleet.opening import documents_of  # noqa: PLC0415 - imports python-tuf
    from luigi_tasks.release.broker import BrokerClient  # noqa: PLC0415 - imports paho
    from luigi_tasks.release.repository import ReleaseRepository  # noqa: PLC0415 - imports python-tuf
    from luigi_tasks.storage.opening import open_store  # noqa: PLC0415 - seldom

    store = open_store(settings.store)
    repository = ReleaseRepository(store, settings.trust, in_use=lambda one: find_in_use(settings, one))
    return Fleet(settings, documents_of(repository), repository, BrokerClient(settings.broker), seen=seen)
