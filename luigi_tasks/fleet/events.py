"""What happens in the fleet's rollouts, told over MQTT and by signed webhooks.

An event is told at least once: which receiver was told what is kept in the bucket, and
what one did not take is told at the next look, with the same id. A receiver that is away costs a look some
seconds, and never stops a rollout.

    edge/<fleet>/events               each event, not retained
    edge/<fleet>/rollouts/<channel>   state of the channel's rollout, retained
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import logging
import threading
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, encode_compact
from edge_client.contract.errors import EdgeError, InputError, TrustError
from edge_client.contract.names import events_topic, rollout_topic
from edge_client.contract.text import one_line
from edge_client.contract.times import seconds_until, utc_now
from luigi_tasks.fleet.opening import documents_of
from luigi_tasks.fleet.records import RolloutRecord
from luigi_tasks.fleet.webhooks import open_webhook_pool, read_webhooks, send_webhook
from luigi_tasks.logs import LUIGI_LOGGER
from luigi_tasks.release.broker import BrokerClient, Message
from luigi_tasks.storage.store import StoreConflictError, TooLargeError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import urllib3

    from luigi_tasks.fleet.documents import SignedDocuments
    from luigi_tasks.fleet.webhooks import Webhook
    from luigi_tasks.release.repository import ReleaseRepository
    from luigi_tasks.settings.values import PipelineSettings

logger = logging.getLogger(LUIGI_LOGGER)

RELEASE_REFUSED, RELEASE_HELD = "release.refused", "release.held"
BROKER = "broker"
_LIMIT_BYTES = 1 << 20
# All receivers together have so long at one look; one that answers a byte at a time is left alone then.
LOOK_S = 30.0
_EVENTS_A_LOOK = 50
_WORDS = 2000
# What nobody took for so long is told no more: an event of last week is no news.
_GIVEN_UP_S = 7 * 86400.0
_ROLLOUTS_KEPT, _TOLD_KEPT = 5, 200


class FleetEvent(Document, frozen=True, kw_only=True):
    """An event as it is sent: `type`, `timestamp` and `data`, as Standard Webhooks advises.

    Attributes:
        id: The same however often it is sent.
        type: `rollout.opened`, `rollout.halted`, ..., `release.refused`.
        timestamp: When it happened, UTC, ISO 8601.
        data: Texts by name: fleet, channel, rollout, release, state, stage, who, why.
    """

    id: str
    type: str
    timestamp: str
    data: dict[str, str] = {}


class RolloutState(Document, frozen=True, kw_only=True):
    """The retained state of a channel's rollout.

    Attributes:
        channel: The channel.
        rollout: Id of the rollout.
        release: Release that is rolled out.
        from_release: Release that it follows; empty: none.
        state: State of the rollout.
        stage: Stage that is open, from 1; 0: none.
        stages: Number of stages.
        devices: Devices in the open stage.
        at: Time of the last event, UTC, ISO 8601.
        words: What happened last, in a sentence.
    """

    channel: str
    rollout: str
    release: str
    from_release: str
    state: str
    stage: int
    stages: int
    devices: int
    at: str
    words: str


class ToldEvents(Document, frozen=True, kw_only=True, omit_defaults=True):
    """`fleet/told/<channel>.json`: which receiver was told what.

    Attributes:
        fleet: The fleet.
        rollouts: Number of events by rollout, the oldest first.
        told: By receiver, the number of events by rollout that it was told, or that were given up.
        waiting: Events of no rollout that some receiver lacks.
        delivered: Ids of such events that were told, by receiver.
    """

    fleet: str = ""
    rollouts: dict[str, int] = {}
    told: dict[str, dict[str, int]] = {}
    waiting: tuple[FleetEvent, ...] = ()
    delivered: dict[str, tuple[str, ...]] = {}

    def lacking(
        self, receiver: str, owed: dict[str, list[FleetEvent]], waiting: Sequence[FleetEvent]
    ) -> list[FleetEvent]:
        """Return the events that a receiver was not told yet."""
        counts, ids = self.told.get(receiver, {}), self.delivered.get(receiver, ())
        lacks = [event for rollout, events in owed.items() for event in events[counts.get(rollout, 0) :]]
        return [*lacks, *(event for event in waiting if event.id not in ids)]


@dataclasses.dataclass(frozen=True)
class _Receiver:
    name: str
    shown: str
    send: Callable[[Sequence[FleetEvent], set[str]], None]


def tell_events(
    settings: PipelineSettings, documents: SignedDocuments, channel: str, record: RolloutRecord | None
) -> list[str]:
    """Tell what a channel's receivers were not told yet; return in words what could not be told.

    Args:
        settings: Broker, and `[fleet] webhooks_file`.
        documents: Where rollouts and what was told lie.
        channel: The channel.
        record: The rollout that runs, or ran last; None: there was none.
    """
    try:
        return _tell(settings, documents, channel, record, ())
    except EdgeError as e:
        return [_warn(f"events of channel {channel}: {e}")]


def tell_gate(settings: PipelineSettings, repository: ReleaseRepository, event: FleetEvent) -> list[str]:
    """Tell that the gate did not let a release pass; return in words what could not be told."""
    try:
        return _tell(settings, documents_of(repository), settings.release.channel, None, (event,))
    except EdgeError as e:
        return [_warn(f"event {event.type}: {e}")]


def tell_once(settings: PipelineSettings, event: FleetEvent) -> list[str]:
    """Tell of something that no signed document remembers; return in words who did not take it.

    What is not taken is not told again.
    """
    try:
        receivers = _open_receivers(settings, None)
    except EdgeError as e:
        return [_warn(f"event {event.type}: {e}")]
    _, faults = _deliver(receivers, {one.name: [event] for one in receivers})
    return [_warn(text) for text in faults.values()]


def gate_event(settings: PipelineSettings, release: str, words: str, *, is_refused: bool) -> FleetEvent:
    """Return the event of a candidate that the gate refused, or held for want of evidence.

    Args:
        settings: Name of the fleet and channel.
        release: Id that the candidate would have had.
        words: The verdict.
        is_refused: Whether it was refused.
    """
    kind = RELEASE_REFUSED if is_refused else RELEASE_HELD
    data = {
        "fleet": settings.broker.fleet,
        "channel": settings.release.channel,
        "release": release,
        "why": one_line(words)[:_WORDS],
    }
    digest = hashlib.sha256(repr((kind, sorted(data.items()))).encode()).hexdigest()[:20]
    return FleetEvent(id=f"gate-{digest}", type=kind, timestamp=utc_now(), data=data)


def events_of(record: RolloutRecord, fleet: str) -> list[FleetEvent]:
    """Return the events of a rollout, oldest first."""
    return [
        FleetEvent(
            id=f"{record.id}-{number}",
            type=f"rollout.{one.what}",
            timestamp=one.at,
            data={
                "fleet": fleet,
                "channel": record.channel,
                "rollout": record.id,
                "release": record.release,
                "from_release": record.from_release,
                "stage": str(one.stage) if one.stage else "",
                "stages": ",".join(record.plan.stages),
                "who": one_line(one.who)[:_WORDS],
                "why": one_line(one.why)[:_WORDS],
                "verdict": one.verdict,
            },
        )
        for number, one in enumerate(record.events, 1)
    ]


def state_of(record: RolloutRecord) -> RolloutState:
    """Return the state of a rollout, as it is retained."""
    last = record.events[-1] if record.events else None
    return RolloutState(
        channel=record.channel,
        rollout=record.id,
        release=record.release,
        from_release=record.from_release,
        state=record.state,
        stage=record.stages[-1].number if record.stages else 0,
        stages=len(record.plan.stages),
        devices=record.stages[-1].size if record.stages else 0,
        at=last.at if last else record.created_at,
        words=one_line(last.why)[:_WORDS] if last else "",
    )


def told_key(channel: str) -> str:
    """Return the key of what a channel's receivers were told."""
    return f"fleet/told/{channel}.json"


def _tell(
    settings: PipelineSettings,
    documents: SignedDocuments,
    channel: str,
    record: RolloutRecord | None,
    more: tuple[FleetEvent, ...],
) -> list[str]:
    receivers = _open_receivers(settings, record)
    if not receivers:
        return []
    before, etag = _load(documents, channel)
    names = [one.name for one in receivers]
    owed = _find_owed(documents, channel, before, names)
    if record is not None:
        owed[record.id] = events_of(record, settings.broker.fleet)
    waiting = [*before.waiting, *(one for one in more if one.id not in {old.id for old in before.waiting})]
    todo = {name: before.lacking(name, owed, waiting)[:_EVENTS_A_LOOK] for name in names}
    took, faults = _deliver(receivers, todo)
    done = {name: took[name] | (_given_up(todo[name]) if name in faults else set()) for name in names}
    after = _count(before, owed, waiting, done)
    if after != before:
        _save(documents, channel, after, etag)
    return [_warn(text) for text in faults.values()]


def _load(documents: SignedDocuments, channel: str) -> tuple[ToldEvents, str | None]:
    """Return what was told, and its version; nothing where that cannot be trusted: silence is no way out."""
    key = told_key(channel)
    try:
        found = documents.load(ToldEvents, key, limit_bytes=_LIMIT_BYTES)
    except (TrustError, InputError, TooLargeError) as e:
        _warn(f"{e}. Events of the current rollout are told again")
        if isinstance(e, TooLargeError):
            documents.store.put(key, b"{}")  # what is not read has no version to write under
        stored = documents.store.get(key, limit_bytes=_LIMIT_BYTES)
        return ToldEvents(), stored.etag if stored is not None else None
    return (ToldEvents(), None) if found is None else (found.document, found.etag)


def _find_owed(
    documents: SignedDocuments, channel: str, before: ToldEvents, names: Sequence[str]
) -> dict[str, list[FleetEvent]]:
    """Return the events of earlier rollouts of which one of the receivers lacks some, by rollout."""
    owed = {}
    for rollout, total in before.rollouts.items():
        if all(before.told.get(name, {}).get(rollout, total) >= total for name in names):
            continue
        key = f"fleet/rollouts/{channel}/{rollout}.json"
        try:
            signed = documents.load(RolloutRecord, key, limit_bytes=_LIMIT_BYTES)
        except (TrustError, InputError, TooLargeError) as e:
            _warn(f"{e}. Its events wait; others are told")
            continue
        if signed is not None:
            owed[rollout] = events_of(signed.document, before.fleet)
    return owed


def _count(
    before: ToldEvents,
    owed: dict[str, list[FleetEvent]],
    waiting: Sequence[FleetEvent],
    done: dict[str, set[str]],
) -> ToldEvents:
    """Return what the receivers have after a look.

    Args:
        before: What they had.
        owed: Events by rollout.
        waiting: Events of no rollout.
        done: Ids of events that each receiver took at this look, or that were given up.
    """
    rollouts = {**before.rollouts, **{rollout: len(events) for rollout, events in owed.items()}}
    rollouts = dict([*rollouts.items()][-_ROLLOUTS_KEPT:])
    told, delivered = {}, {}
    for name, ids in done.items():
        counts = {
            r: before.told.get(name, {}).get(r, 0 if r in owed else total) for r, total in rollouts.items()
        }
        for rollout, events in owed.items():
            while rollout in counts and counts[rollout] < len(events) and events[counts[rollout]].id in ids:
                counts[rollout] += 1
        told[name] = counts
        kept = [*before.delivered.get(name, ()), *(one.id for one in waiting if one.id in ids)]
        delivered[name] = tuple(kept[-_TOLD_KEPT:])
    lacked = tuple(one for one in waiting if any(one.id not in ids for ids in delivered.values()))
    fleet = next((one.data["fleet"] for events in owed.values() for one in events), before.fleet)
    return ToldEvents(fleet=fleet, rollouts=rollouts, told=told, waiting=lacked, delivered=delivered)


def _given_up(events: Sequence[FleetEvent]) -> set[str]:
    """Return the ids of events that are too old to be told, of those that a receiver lacks."""
    old = [event for event in events if seconds_until(event.timestamp) < -_GIVEN_UP_S]
    for event in old:
        logger.error("event %s (%s): not taken for a week; it is told no more", event.id, event.type)
    return {event.id for event in old}


def _save(documents: SignedDocuments, channel: str, after: ToldEvents, etag: str | None) -> None:
    try:
        documents.save(told_key(channel), after, etag)
    except StoreConflictError:
        logger.info("events of channel %s: another look told them too", channel)


def _open_receivers(settings: PipelineSettings, record: RolloutRecord | None) -> list[_Receiver]:
    receivers = []
    broker = BrokerClient(settings.broker)
    if broker.is_set:
        receivers.append(_broker_receiver(broker, record))
    if webhooks := read_webhooks(settings.fleet.webhooks_file):
        pool = open_webhook_pool()
        receivers += [_webhook_receiver(one, pool) for one in webhooks]
    return receivers


def _broker_receiver(broker: BrokerClient, record: RolloutRecord | None) -> _Receiver:
    def send(events: Sequence[FleetEvent], took: set[str]) -> None:
        messages = [Message(events_topic(broker.fleet), encode_compact(event)) for event in events]
        if record is not None:
            topic = rollout_topic(broker.fleet, record.channel)
            messages.append(Message(topic, encode_compact(state_of(record)), is_retained=True))
        broker.publish(*messages)
        took.update(event.id for event in events)

    return _Receiver(BROKER, f"MQTT broker {broker.address}", send)


def _webhook_receiver(webhook: Webhook, pool: urllib3.PoolManager) -> _Receiver:
    def send(events: Sequence[FleetEvent], took: set[str]) -> None:
        for event in events:
            send_webhook(webhook, event.id, encode_compact(event), pool=pool)
            took.add(event.id)

    return _Receiver(webhook.name, f"webhook {webhook.shown}", send)


def _deliver(
    receivers: Sequence[_Receiver], events: dict[str, list[FleetEvent]]
) -> tuple[dict[str, set[str]], dict[str, str]]:
    """Send to all receivers at once; return what each took, and why one did not take all, by its name."""
    took: dict[str, set[str]] = {one.name: set() for one in receivers}
    running: dict[str, concurrent.futures.Future[None]] = {}
    for one in receivers:
        if events[one.name]:
            running[one.name] = concurrent.futures.Future()
            # Not a pool's thread: the interpreter would wait at its end for one that never answers.
            arguments = (running[one.name], one, events[one.name], took[one.name])
            threading.Thread(target=_run, args=arguments, daemon=True).start()
    concurrent.futures.wait(running.values(), timeout=LOOK_S)
    faults = {}
    for one in receivers:
        if one.name not in running:
            continue
        if not running[one.name].done():
            faults[one.name] = f"{one.shown}: no end within {LOOK_S:.0f} s; the next look tries again"
        elif (error := running[one.name].exception()) is not None:
            faults[one.name] = str(error) if isinstance(error, EdgeError) else f"{one.shown}: {error!r}"
    return {name: set(ids) for name, ids in took.items()}, faults


def _run(
    future: concurrent.futures.Future[None], one: _Receiver, events: list[FleetEvent], took: set[str]
) -> None:
    try:
        one.send(events, took)
    except Exception as e:  # noqa: BLE001 - told by who waits
        future.set_exception(e)
    else:
        future.set_result(None)


def _warn(text: str) -> str:
    logger.warning("%s", one_line(text))
    return one_line(text)
