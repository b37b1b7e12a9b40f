"""The device daemon: serves frames, follows its channel, reports.

Threads: `frames` classifies and never waits for anything else; `updates` looks at the store when
announced, when the poll interval is over and at the start; `status` sends the status; paho's. The
main thread waits for signals. A release on the disk serves before any network is touched.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import logging
import operator
import os
import random
import signal
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.announcements import Awaited, Doorbell, read_announcement
from edge_client.contract.errors import DeviceError, EdgeError, InputError, TransportError
from edge_client.contract.messages import DeviceStatus, Result, UpdateFigures
from edge_client.contract.names import (
    announcement_topic,
    command_topic,
    online_topic,
    results_topic,
    status_topic,
)
from edge_client.files import disk_errors
from edge_client.homeassistant import INSTALL, discovery_messages
from edge_client.inference.runtime import runtime_name
from edge_client.inference.swap import ClassifierHolder
from edge_client.mqtt import BrokerConnection
from edge_client.settings import read_root
from edge_client.sinks import open_sinks
from edge_client.sources import open_source
from edge_client.systemd import SystemdNotifier
from edge_client.telemetry import STATUS_FILE, StatusBoard, utc_now
from edge_client.update.handover import BUNDLE_FILE, forget_bundle, of_bundle
from edge_client.update.look import look_in_child
from edge_client.update.probation import CRASHES, STOPPED, Probation, RecentAnswers
from edge_client.update.slots import Slots
from edge_client.update.updater import (
    Decision,
    RefusedError,
    UpdateOutcome,
    let_serve,
    open_best_slot,
    open_slot,
    this_software,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from http.server import HTTPServer
    from pathlib import Path

    from edge_client.inference.classifier import Classification
    from edge_client.settings import Settings
    from edge_client.sources import Frame
    from edge_client.update.probation import ProbationRecord

logger = logging.getLogger(__name__)

LOCK_FILE = "lock"
# Announcements are not trusted: a flood of them costs one look a second at most.
SHORTEST_LOOK_INTERVAL_S = 1.0
# After a lost connection, or when the store does not show yet what was announced (a CDN may lag).
RETRY_DELAYS_S = (2.0, 5.0, 15.0, 60.0, 300.0)
POLL_JITTER = 0.1
SOURCE_RETRY_S = (1.0, 60.0)
STOP_S = 5.0
# No picture takes so long: the runtime hangs.
STUCK_S = 60.0


def run(settings: Settings) -> int:
    """Run until SIGTERM or SIGINT, or until a finite source ends; returns the exit code.

    Raises: SettingsError, DeviceError if it cannot start.
    """
    with state_lock(settings.device.state_dir), end_requests() as (wait_for_end, request_end):
        daemon = Daemon(settings, on_end=request_end)
        daemon.start()
        logger.info("%s: stopping", wait_for_end(daemon.look_again))
        daemon.stop()
    return 0


@contextlib.contextmanager
def end_requests() -> Iterator[tuple[Callable[[Callable[[], None]], str], Callable[[], None]]]:
    """Turn signals into bytes of a pipe: a handler that took a lock could wait for ever.

    Yields: A function that waits for the end and returns its reason, calling what it is given at each
        SIGHUP until then, and one that asks for the end.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.set_wakeup_fd(writer)
    handlers = {number: signal.signal(number, lambda _number, _frame: None) for number in signals}

    def wait(on_hangup: Callable[[], None]) -> str:
        while (number := os.read(reader, 1)[0]) == signal.SIGHUP:
            on_hangup()
        return signal.Signals(number).name if number else "end of the source"

    def request() -> None:
        os.write(writer, b"\0")

    try:
        yield wait, request
    finally:
        signal.set_wakeup_fd(-1)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reader)
        os.close(writer)


class Daemon:
    """All the parts of one device."""

    def __init__(self, settings: Settings, on_end: Callable[[], None]) -> None:
        """Load the release on the disk; touch no network.

        Args:
            settings: All of them.
            on_end: Called when a finite source has no more frames.
        Raises: SettingsError, DeviceError.
        """
        self._settings = settings
        self._on_end = on_end
        device = settings.device
        runtime = runtime_name()
        self._stop = threading.Event()
        self._may_serve = threading.Event()
        self._doorbell = Doorbell()
        self._measured: RunningUpdate | None = None
        self._source_fault: str | None = None
        self._software = this_software()
        self._look_now = False
        self._slots = Slots(device.state_dir)
        self._recent = RecentAnswers(settings.probation.unsure_below)
        self._probation = self._resume_probation()
        self._holder = ClassifierHolder(open_best_slot(self._slots, device.threads))
        self._slots.clean()
        if self._holder.current is None:
            read_root(settings.trust)  # without a release and without a root there is nothing to do
        else:
            self._may_serve.set()
        self._broker = self._open_broker()
        self._board = StatusBoard(
            DeviceStatus(
                device=device.id,
                channel=device.channel,
                state="starting",
                runtime=runtime,
                why="it was on the disk; the store was not looked at yet",
                changed_at=utc_now(),
            ),
            file=device.state_dir / STATUS_FILE,
            publish=self._publish_status,
            interval_s=settings.status.interval_s,
        )
        self._metrics = self._serve_metrics()
        self._sinks = open_sinks(
            settings.sinks,
            publish=self._broker.publish if self._broker else lambda _topic, _payload: None,
            topic=results_topic(device.fleet, device.id),
            action=settings.action,
        )
        self._looked_at = self._measure_from = float("-inf")
        self._systemd = SystemdNotifier()
        self._classifying_since: float | None = None
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for name, target in (
                ("frames", self._serve_frames),
                ("updates", self._follow_channel),
                ("status", self._send_status),
                ("watchdog", self._say_alive),
            )
        ]

    def start(self) -> None:
        """Start all threads."""
        self._show_slots()
        logger.info(
            "%s: %s, channel %s",
            self._settings.device.id,
            f"serving release {self._slots.current}"
            if self._holder.current
            else "waiting for a first release",
            self._settings.device.channel,
        )
        if self._broker:
            self._broker.start()
        for thread in self._threads:
            thread.start()
        self._systemd.ready()

    def stop(self) -> None:
        """End all threads; an update on its way is abandoned, which is as safe as a power cut."""
        self._systemd.stopping()
        self._stop.set()
        self._may_serve.set()
        self._doorbell.close()
        self._board.close()
        if record := self._slots.probation:
            with contextlib.suppress(DeviceError):
                self._slots.keep_probation(msgspec.structs.replace(record, crashes=STOPPED))
        deadline = time.monotonic() + STOP_S
        for thread in self._threads:
            thread.join(max(deadline - time.monotonic(), 0))
        for sink in self._sinks:
            sink.close()
        if self._metrics:
            self._metrics.shutdown()
        if self._broker:
            self._broker.stop()

    def look_again(self) -> None:
        """Somebody left a bundle, or wants the channel's release now."""
        self._look_now = True
        self._doorbell.nudge()

    def _open_broker(self) -> BrokerConnection | None:
        device, broker = self._settings.device, self._settings.broker
        if not broker.host:
            return None
        return BrokerConnection(
            broker,
            device.id,
            topic=announcement_topic(device.fleet, device.channel),
            online_topic=online_topic(device.fleet, device.id),
            on_message=self._doorbell.ring,
            on_connection=self._greet,
            commands=(command_topic(device.fleet, device.id), self._obey),
        )

    def _serve_metrics(self) -> HTTPServer | None:
        if not self._settings.metrics.port:
            return None
        from edge_client.metrics import serve  # noqa: PLC0415 - 2 MB that most devices do not need

        return serve(self._settings.metrics, lambda: self._board.status)

    def _greet(self) -> None:
        """Publish what is retained anew: the broker may have forgotten it."""
        self._board.send_again()
        home = self._settings.homeassistant
        if home.discovery and self._broker:
            device = self._settings.device
            for topic, payload in discovery_messages(home.prefix, device.fleet, device.id).items():
                self._broker.publish_state(topic, payload)

    def _obey(self, payload: bytes) -> None:
        """Somebody asks for the channel's release; whoever it is, only what is signed for it is taken."""
        if payload == INSTALL:
            self.look_again()

    # Status

    def _send_status(self) -> None:
        going = True
        while going:
            try:
                going = self._board.step()
                if self._broker and going:
                    self._broker.revive()
            except Exception:
                # Serving does not depend on the status; the next change tries again.
                logger.exception("the status could not be sent")

    def _publish_status(self, payload: bytes) -> bool:
        device = self._settings.device
        return self._broker is not None and self._broker.publish_state(
            status_topic(device.fleet, device.id), payload
        )

    def _show_slots(self, **changes: object) -> None:
        """Show which release serves, and whatever else changed."""
        state = "serving" if self._holder.current else "waiting"
        self._board.change(
            state=state,
            release=self._slots.current,
            previous=self._slots.previous,
            probation=self._slots.probation is not None,
            **changes,
        )

    def _say_alive(self) -> None:
        """Feed systemd's watchdog while the threads live and no picture takes for ever."""
        while self._systemd.interval_s is not None and not self._stop.wait(self._systemd.interval_s):
            since = self._classifying_since
            stuck = since is not None and time.monotonic() - since > STUCK_S
            if stuck or not all(thread.is_alive() for thread in self._threads):
                logger.error("the daemon is stuck: systemd's watchdog is not fed any more")
                return
            self._systemd.alive()

    # Frames

    def _serve_frames(self) -> None:
        """Classify until told to stop; a source that fails is opened again."""
        self._may_serve.wait()
        delay_s = SOURCE_RETRY_S[0]
        while not self._stop.is_set():
            frames = self._board.frames
            try:
                self._classify_all()
            except EdgeError as e:
                self._show_source_fault(e)
            except Exception:
                # Whatever a camera's driver raises: a device that answers nothing helps nobody.
                logger.exception("the source failed")
            else:
                if not self._stop.is_set():
                    logger.info("the source has no more frames")
                    self._on_end()
                return
            if self._board.frames > frames:
                delay_s = SOURCE_RETRY_S[0]
            self._stop.wait(delay_s)
            delay_s = min(delay_s * 2, SOURCE_RETRY_S[1])

    def _classify_all(self) -> None:
        failing = False
        for frame in open_source(self._settings.source).frames(self._stop):
            classifier = self._holder.current
            if classifier is None:
                continue  # cannot be: a classifier is only ever replaced by another
            self._classifying_since = time.monotonic()
            try:
                answer = classifier.classify(frame.pixels)
            except EdgeError as e:
                if not failing:
                    logger.error("%s: %s", frame.source, e)  # noqa: TRY400 - said in one line
                failing = True
                self._watch(operator.methodcaller("failed", str(e)), classifier.release)
                continue
            finally:
                self._classifying_since = None
            failing = False
            self._hand_out(frame, answer, classifier.release)

    def _hand_out(self, frame: Frame, answer: Classification, release: str | None) -> None:
        self._board.count(answer.latency_ms)
        self._recent.take(answer.latency_ms, answer.confidence)
        told = operator.methodcaller("answered", answer.latency_ms, answer.confidence, time.monotonic())
        self._watch(told, release)
        result = Result(
            device=self._settings.device.id,
            source=frame.source,
            frame=self._board.frames,
            label=answer.label,
            confidence=answer.confidence,
            top=answer.top(self._settings.device.top),
            release=release,
            latency_ms=answer.latency_ms,
            at=utc_now(),
        )
        for sink in self._sinks:
            sink.write(result)
        frame.done()
        self._source_fault = None
        if self._measured is not None and self._measured.release == release:
            measured, self._measured = self._measured, None
            self._board.change(update=measured.figures(time.monotonic()))

    def _watch(self, tell: Callable[[Probation], bool], release: str | None) -> None:
        """Tell the probation of a frame; the updates thread settles it."""
        probation = self._probation
        if probation is not None and probation.release == release and tell(probation):
            self._doorbell.nudge()

    def _show_source_fault(self, error: EdgeError) -> None:
        if str(error) != self._source_fault:
            logger.error("%s", error)
            self._board.change(last_error=str(error))
        self._source_fault = str(error)

    # Updates

    def _follow_channel(self) -> None:
        """Look at the start, at each announcement, and when the poll interval is over."""
        awaited: Awaited | None = None
        failures, next_look = 0, time.monotonic()
        while True:
            ring = self._doorbell.wait(next_look - time.monotonic())
            if self._stop.is_set():
                return
            self._settle_probation()
            self._take_bundle()
            if ring is None and not self._look_now and time.monotonic() < next_look:
                continue
            asked_for, self._look_now = self._look_now, False
            if ring is not None:
                announced = self._read_announcement(ring.payload)
                if announced == self._slots.current:
                    awaited = None  # whatever was announced before, the channel is back here
                if announced in {None, self._slots.current}:
                    self._stop.wait(SHORTEST_LOOK_INTERVAL_S)
                    continue
                awaited, failures = Awaited(announced, ring.arrived), 0
            self._stop.wait(max(self._looked_at + SHORTEST_LOOK_INTERVAL_S - time.monotonic(), 0))
            self._measure_from = awaited.since if awaited else time.monotonic()
            settled = self._look(awaited.release if awaited else None, asked_for=asked_for)
            self._looked_at = time.monotonic()
            failures = 0 if settled else failures + 1
            if settled or failures >= len(RETRY_DELAYS_S):
                awaited = None  # anybody may announce anything: from here on, what is signed counts
            next_look = time.monotonic() + self._delay_s(failures)

    def _delay_s(self, failures: int) -> float:
        """Seconds until the next look, spread so that a fleet does not come at once."""
        poll_s = self._settings.update.poll_s
        delay_s = (
            poll_s if failures == 0 else min(RETRY_DELAYS_S[min(failures, len(RETRY_DELAYS_S)) - 1], poll_s)
        )
        return delay_s * random.uniform(1 - POLL_JITTER, 1 + POLL_JITTER)  # noqa: S311 - no secret

    def _take_bundle(self) -> None:
        """Look into a bundle that was left here, instead of the store."""
        bundle = self._settings.device.state_dir / BUNDLE_FILE
        if not bundle.exists():
            return
        self._look_now = False
        self._measure_from = time.monotonic()
        self._look(None, of_bundle(self._settings, bundle), asked_for=True)
        forget_bundle(self._settings.device.state_dir)

    def _look(
        self, announced: str | None, settings: Settings | None = None, *, asked_for: bool = False
    ) -> bool:
        """Look once and show what came of it; False if looking again soon may help."""
        try:
            outcome = self._take_newest(
                settings or self._settings,
                expecting=announced is not None,
                allowed=asked_for or self._settings.update.automatic,
            )
        except RefusedError as e:
            self._show_slots(last_error=str(e), refused=self._last_refused())
            return True
        except EdgeError as e:
            logger.warning("no update: %s", e)
            self._show_slots(last_error=str(e))
            return not isinstance(e, TransportError)
        except Exception as e:
            # The serving release is not touched before everything is verified: safe to go on.
            logger.exception("no update")
            self._show_slots(last_error=f"unexpected {type(e).__name__}: {e}")
            return True
        return self._show_outcome(outcome, announced)

    def _take_newest(self, settings: Settings, *, expecting: bool, allowed: bool) -> UpdateOutcome:
        """Look in a child process; what it took serves afterwards."""
        try:
            outcome = look_in_child(
                settings,
                self._software,
                lambda: self._board.change(state="updating"),
                expecting=expecting,
                allowed=allowed,
            )
        finally:
            self._slots.reload()  # what was refused, too
        if outcome.decision is Decision.TAKE:
            let_serve(
                outcome,
                self._slots,
                self._holder,
                software=self._software,
                threads=self._settings.device.threads,
                probation=self._begin_probation(outcome.release),
                before_swap=lambda: self._before_swap(outcome.release, outcome.bytes_pulled),
            )
        return outcome

    def _show_outcome(self, outcome: UpdateOutcome, announced: str | None) -> bool:
        error, refused = None, None
        if outcome.decision is Decision.REFUSED:
            error, refused = f"release {outcome.release} was refused: {outcome.reason}", outcome.release
        elif announced not in {None, outcome.release}:
            error = (
                f"release {announced} was announced, but the signed channel {self._settings.device.channel} "
                f"points to {outcome.release}; the announcement is not followed"
            )
            logger.warning("%s", error)
        if outcome.decision is Decision.TAKE:
            logger.info("release %s serves; %d bytes pulled", outcome.release, outcome.bytes_pulled)
            self._may_serve.set()
        self._show_slots(
            last_error=error or self._source_fault,
            refused=refused,
            latest=outcome.release,
            why=explain_outcome(outcome, self._settings.device.channel),
        )
        return announced in {None, outcome.release}

    def _before_swap(self, release: str, bytes_pulled: int) -> None:
        self._measured = RunningUpdate(release, bytes_pulled, self._measure_from)
        self._recent = RecentAnswers(self._settings.probation.unsure_below)
        record = self._slots.probation
        self._probation = (
            Probation(record, self._settings.probation, time.monotonic()) if record is not None else None
        )

    # Probation

    def _begin_probation(self, release: str) -> ProbationRecord | None:
        """Compare a new release with the serving one; there must be one to go back to."""
        if self._slots.current is None or not self._settings.probation.frames:
            return None
        return self._recent.as_record(release)

    def _resume_probation(self) -> Probation | None:
        """Go on after a restart; a release whose probation the daemon did not survive goes back."""
        record = self._slots.probation
        if record is None:
            return None
        try:
            return self._count_start(record)
        except DeviceError as e:
            logger.warning("%s; release %s serves on, its probation is not counted", e, record.release)
            return None

    def _count_start(self, record: ProbationRecord) -> Probation | None:
        record = msgspec.structs.replace(record, crashes=record.crashes + 1)
        if record.crashes >= CRASHES and self._slots.previous is not None:
            reason = f"the daemon ended {record.crashes} times without warning in its probation"
            logger.error("release %s goes back: %s", record.release, reason)
            self._slots.send_back(f"sent back: {reason}", self._software)
            return None
        self._slots.keep_probation(record)
        return Probation(record, self._settings.probation, time.monotonic())

    def _settle_probation(self) -> None:
        """End a probation that has a verdict."""
        probation = self._probation
        if probation is None or probation.verdict is None:
            return
        self._probation = None
        try:
            if probation.verdict.breach and self._slots.previous is not None:
                self._send_back(probation.verdict.breach)
            else:
                self._slots.keep_probation(None)
                logger.info("release %s has passed its probation", probation.release)
                self._show_slots()
        except EdgeError as e:
            logger.exception("release %s: its probation cannot be ended", probation.release)
            self._show_slots(last_error=str(e))

    def _send_back(self, breach: str) -> None:
        """Let the previous release serve again.

        Raises: DeviceError or InputError if it cannot; the current one goes on serving.
        """
        broken, device = self._slots.current, self._settings.device
        reason = f"sent back in its probation: {breach}"
        logger.error("release %s: %s", broken, reason)
        old = open_slot(self._slots.folder(self._slots.previous or ""), device.threads)
        self._slots.send_back(reason, self._software)
        self._recent = RecentAnswers(self._settings.probation.unsure_below)
        self._holder.swap(old)
        self._slots.clean_slots()
        self._show_slots(
            last_error=f"release {broken}: {reason}",
            refused=broken,
            why=f"release {broken} was {reason}",
        )

    def _last_refused(self) -> str | None:
        return next(reversed(self._slots.refused), None)

    def _read_announcement(self, payload: bytes) -> str | None:
        """Return the release that an announcement names; None, with the reason shown, if it is none."""
        device = self._settings.device
        topic = announcement_topic(device.fleet, device.channel)
        try:
            return read_announcement(payload, topic=topic, channel=device.channel)
        except InputError as e:
            logger.warning("%s", e)
            self._board.change(last_error=str(e))
            return None


def explain_outcome(outcome: UpdateOutcome, channel: str) -> str:
    """Say why the serving release serves, given what a look came to."""
    if outcome.decision in {Decision.SERVES, Decision.TAKE}:
        return f"channel {channel} points to it"
    other = f"channel {channel} points to {outcome.release}, which"
    if outcome.decision is Decision.NOT_IN_SHARE:
        return f"{other} is for {outcome.share_percent:g}% of the devices so far; this one is not among them"
    return f"{other} {outcome.decision.value}{': ' if outcome.reason else ''}{outcome.reason}"


@dataclasses.dataclass(frozen=True)
class RunningUpdate:
    """An update whose first answer is still to come.

    Attributes:
        release: The new release.
        bytes_pulled: What it took to pull it.
        started: Monotonic seconds at which its announcement (or the poll) came.
    """

    release: str
    bytes_pulled: int
    started: float

    def figures(self, now: float) -> UpdateFigures:
        """Return what the update cost, its first answer being given at `now`."""
        return UpdateFigures(
            release=self.release, bytes_pulled=self.bytes_pulled, seconds=round(now - self.started, 3)
        )


@contextlib.contextmanager
def state_lock(state_dir: Path) -> Iterator[None]:
    """Hold the state folder for this process alone.

    Raises: DeviceError if another daemon holds it, or the folder cannot be made.
    """
    path = state_dir / LOCK_FILE
    with disk_errors(path):
        state_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a")  # not emptied: another daemon's number may stand there
    with file:
        if not _try_lock(file.fileno()):
            msg = f"{state_dir}: another edge-client uses it; stop that, or give each a [device] state_dir"
            raise DeviceError(msg)
        with disk_errors(path):
            file.truncate()
            file.write(str(os.getpid()))
            file.flush()
        yield


def running_process(state_dir: Path) -> int | None:
    """Process id of the daemon that holds the state folder; None if there is none."""
    try:
        with (state_dir / LOCK_FILE).open() as file:
            return None if _try_lock(file.fileno()) else int(file.read() or 0) or None
    except (OSError, ValueError):
        return None


def nudge(state_dir: Path) -> None:
    """Make the daemon look now, and take what it finds.

    Raises: DeviceError if there is none, or it may not be told.
    """
    process = running_process(state_dir)
    if process is None:
        msg = f"{state_dir}: no daemon runs; start `edge-client run`"
        raise DeviceError(msg)
    try:
        os.kill(process, signal.SIGHUP)
    except OSError as e:
        msg = f"the daemon (process {process}) cannot be told: {e.strerror}; run this as its user, or as root"
        raise DeviceError(msg) from e


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
