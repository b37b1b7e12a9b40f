"""The collector: hears the fleet, keeps what it says, and writes snapshots into the bucket.

    network thread   reads the broker, admits (`intake.py`) and puts into a bounded queue
    writer           takes batches out of it, verifies, and writes them into the database; its only writer
    clerk            asks the registry who is in the fleet, and writes snapshots

Nothing waits for anything that may be away. While the disk refuses, the queue fills and then drops with a
count; while the bucket is away, the next snapshot comes later; while the broker is away, snapshots say that
nothing was heard. A gap in the hearing of any kind moves `listening_since`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import random
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, SettingsError, TransportError
from edge_client.contract.names import report_request_topic
from luigi_tasks.fleet.database import DamagedError, Database, DatabaseBusyError, Keeping
from luigi_tasks.fleet.intake import (
    MALFORMED,
    ONLINE,
    OVERLOAD,
    REPORT,
    STATUS,
    Intake,
    RejectedError,
    read_online,
)
from luigi_tasks.release.broker import Message as Outgoing

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from luigi_tasks.fleet.intake import Message
    from luigi_tasks.fleet.records import EnrolledDevice
    from luigi_tasks.release.broker import BrokerClient
    from luigi_tasks.settings.values import FleetSettings

logger = logging.getLogger("edge-fleet")

# What waits for the writer: a minute of the heartbeats of a large fleet, and at most so many bytes.
_QUEUE_MESSAGES, _QUEUE_BYTES = 20000, 64 << 20
_BATCH, _BATCH_S = 2000, 0.25
_FIRST_RETRY_S, _LONGEST_RETRY_S = 1.0, 60.0
# What no check of a message foresaw.
UNFORESEEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# Of a stop: systemd waits for 30 s.
_STOP_S = 20.0


class Inbox:
    """What was admitted and not yet written; bounded, since whoever fills it may be hostile."""

    def __init__(self, messages: int = _QUEUE_MESSAGES, size_bytes: int = _QUEUE_BYTES) -> None:
        self._limits = messages, size_bytes
        self._messages: collections.deque[Message] = collections.deque()
        self._size_bytes = 0
        self._changed = threading.Condition()
        self._closed = False

    def put(self, message: Message) -> bool:
        """Add a message; return whether there was room."""
        with self._changed:
            messages, size_bytes = self._limits
            if len(self._messages) >= messages or self._size_bytes >= size_bytes:
                return False
            self._messages.append(message)
            self._size_bytes += len(message.payload)
            if len(self._messages) == 1:
                self._changed.notify()
        return True

    def take(self, at_most: int) -> list[Message]:
        """Return the oldest messages; waits for the first one. Empty: closed, and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._messages or self._closed)
            return self._pop(at_most)

    def take_all(self) -> list[Message]:
        """Return what there is, without waiting."""
        with self._changed:
            return self._pop(len(self._messages))

    def _pop(self, at_most: int) -> list[Message]:
        taken = [self._messages.popleft() for _ in range(min(at_most, len(self._messages)))]
        self._size_bytes -= sum(len(one.payload) for one in taken)
        return taken

    def close(self) -> None:
        """Let `take` return what is left, and then nothing."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


@dataclasses.dataclass(frozen=True)
class CollectorScope:
    """What a collector works with.

    Attributes:
        settings: Section [fleet].
        fleet: Name of the fleet.
        clock: Seconds since 1970.
    """

    settings: FleetSettings
    fleet: str
    clock: Callable[[], float] = time.time

    @property
    def database(self) -> Path:
        """File of the database."""
        return Path(self.settings.database_file).expanduser()

    @property
    def keeping(self) -> Keeping:
        """How much of the past is kept."""
        s = self.settings
        return Keeping(s.period_s, s.keep_periods, s.max_unknown_devices)


class Collector:
    """A collector; only its writer's thread touches the database.

    Args:
        scope: What it works with.
    Raises: SettingsError if another collector has the database, or its folder refuses.
    """

    def __init__(self, scope: CollectorScope) -> None:
        self.scope = scope
        s = scope.settings
        self.intake = Intake(
            scope.fleet, max_per_min=s.max_reports_per_min, max_unknown=s.max_unknown_devices, members={}
        )
        self.inbox = Inbox()
        self.stopping = threading.Event()
        self.reports = 0
        self._database = Database(scope.database, scope.keeping)
        self._members_changed = threading.Event()
        self._online_is_stale = threading.Event()
        self._online_is_stale.set()
        self._listening_since: float | None = None
        self._damage = ""  # of the database, as a reader found it

    @property
    def listening_since(self) -> float | None:
        """Since when nothing was missed, seconds since 1970; None while the broker is not heard."""
        return self._listening_since

    def set_members(self, members: Mapping[str, EnrolledDevice]) -> None:
        """Let the devices of the registry count from now on."""
        self.intake.members = members
        self._members_changed.set()

    def note_damage(self, what: str) -> None:
        """Let the writer put the database aside: a reader found it damaged."""
        self._damage = what

    @contextlib.contextmanager
    def running(self, *works: Callable[[], object]) -> Iterator[None]:
        """Do works in threads beside the block; one that fails stops all, and its error is raised."""
        faults: list[BaseException] = []

        def guarded(work: Callable[[], object]) -> None:
            try:
                work()
            except BaseException as e:  # noqa: BLE001 - raised again below
                faults.append(e)
                self.stopping.set()

        threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
        for one in threads:
            one.start()
        try:
            yield
        finally:
            self.stopping.set()
            self.inbox.close()
            for one in threads:
                one.join(_STOP_S)
        if faults:
            raise faults[0]

    # Network thread

    def take(self, topic: str, payload: bytes, is_retained: bool) -> None:
        """Take a message of the broker."""
        now = self.scope.clock()
        message = self.intake.admit(topic, payload, now, is_retained=is_retained)
        if message is not None and not self.inbox.put(message):
            self.intake.rejections.count(OVERLOAD)
            if self._listening_since is not None:
                self._listening_since = now

    def listen(self, broker: BrokerClient, *, ask: bool) -> None:
        """Hear the broker until the collector stops; begin again whenever the connection ends.

        Raises: SettingsError if the broker refuses the first connection.
        """
        delay_s, was_heard = _FIRST_RETRY_S, False
        topics = subscriptions(self.scope.fleet, self.scope.settings)

        def on_ready(publish: Callable[[Outgoing], None]) -> None:
            nonlocal delay_s, was_heard
            delay_s, was_heard = _FIRST_RETRY_S, True
            self.note_listening(is_heard=True)
            logger.info("broker %s: listening to fleet %s", broker.address, self.scope.fleet)
            if ask:
                publish(Outgoing(report_request_topic(self.scope.fleet), b""))

        while not self.stopping.is_set():
            try:
                broker.hear(
                    topics,
                    self.take,
                    client_id=f"collector-{self.scope.settings.collector}",
                    on_ready=on_ready,
                    is_stopped=self.stopping.is_set,
                )
            except TransportError as e:
                fault: EdgeError = e
            except SettingsError as e:
                if not was_heard:
                    raise
                fault = e
            else:
                return
            self.note_listening(is_heard=False)
            wait_s = random.uniform(0, delay_s)  # noqa: S311 - full jitter, no secret
            logger.warning("%s. Nothing is heard meanwhile; the next try is in %.0f s", fault, wait_s)
            self.stopping.wait(wait_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)

    def note_listening(self, *, is_heard: bool) -> None:
        """Note whether what devices say arrives from now on; a gap begins and ends with this."""
        if not is_heard:
            self._listening_since = None
            self._online_is_stale.set()
        elif self._listening_since is None:
            self._listening_since = self.scope.clock()

    # Writer

    def write(self) -> None:
        """Write what was admitted, until the inbox is closed and empty."""
        while batch := self.inbox.take(_BATCH):
            self._write_until_it_holds(batch)
            if len(batch) < _BATCH:
                self.stopping.wait(_BATCH_S)  # more in a batch are cheaper

    def was_taken(self, name: str) -> bool:
        """Whether an object of recorded messages was read before."""
        return self._database.was_taken(name)

    def keep_taken(self, names: Collection[str]) -> None:
        """Forget the objects of recorded messages that are not among these."""
        self._database.keep_taken(names)

    def close(self) -> None:
        """Close the database; another collector may have it then."""
        self._database.close()

    def write_now(self, messages: Sequence[Message], name: str = "") -> None:
        """Write messages in this thread.

        Args:
            messages: What was admitted.
            name: Object that they are of, which counts as read with them.
        """
        self._write_until_it_holds(messages, name)

    def _write_until_it_holds(self, batch: Sequence[Message], name: str = "") -> None:
        delay_s = _FIRST_RETRY_S
        while True:
            try:
                self._bring_up_to_date()
                with self._database.batch():
                    rejected = [reason for one in batch if (reason := self._note(one))]
                    if name:
                        self._database.note_taken(name)
                break
            except DamagedError as e:
                self._database.replace(str(e))
                self._members_changed.set()
                lost = "What it knew is lost; devices tell their totals again"
                logger.warning("%s. %s", self._database.replaced, lost)
            except DatabaseBusyError as e:
                logger.warning("%s. Reports wait in memory, and are dropped when there are too many", e)
                if self.stopping.wait(delay_s):
                    return
                delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
        self.reports += len(batch) - len(rejected)
        for reason, number in collections.Counter(rejected).items():
            self.intake.rejections.count(reason, number)

    def _bring_up_to_date(self) -> None:
        if self._damage:
            damage, self._damage = self._damage, ""
            raise DamagedError(damage)
        if self._online_is_stale.is_set():
            self._online_is_stale.clear()
            self._database.forget_online()
        if self._members_changed.is_set():
            self._members_changed.clear()
            self._database.set_members(self.intake.members)

    def _note(self, message: Message) -> str:
        """Take a message into the batch; return why it does not count, empty if it does."""
        try:
            if message.kind == ONLINE:
                is_member = message.device in self.intake.members
                is_online = read_online(message.payload)
                self._database.note_online(message.device, is_online=is_online, is_member=is_member)
            else:
                self._database.note_report(self.intake.read(message))
        except RejectedError as e:
            return e.reason
        except UNFORESEEN:  # is the fault of one message, and must not end the collector
            logger.exception("a message of device %s", message.device)
            return MALFORMED
        return ""


def subscriptions(fleet: str, settings: FleetSettings) -> tuple[str, ...]:
    """Return the topics that a collector subscribes.

    Who is online, and old statuses, are told on subscribing, since the broker keeps them; in a group that
    shares they would not be: each collector hears them itself.
    """
    share = f"$share/{settings.share_group}/" if settings.share_group else ""
    devices = f"edge/{fleet}/devices/+"
    statuses = (f"{devices}/{STATUS}", f"{devices}/{STATUS}/+") if settings.old_statuses else ()
    return (f"{share}{devices}/{REPORT}", f"{share}{devices}/{REPORT}/+", *statuses, f"{devices}/{ONLINE}")
