"""One channel on this device: which of its releases serves, which comes next, and what its status says.

A daemon has one of these for each channel. Its frames thread asks `classify` and `compare`; `follow` runs
in a thread of its own, and so does the board's sending. What serves is changed by `follow` alone.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from edge_client.announcements import Awaited, Doorbell, read_announcement
from edge_client.contract.errors import EdgeError, InputError, TransportError
from edge_client.contract.messages import DeviceStatus, Result, UpdateFigures
from edge_client.contract.names import announcement_topic
from edge_client.inference.runtime import runtime_name
from edge_client.serving import Serving
from edge_client.telemetry import STATUS_FILE, StatusBoard, utc_now
from edge_client.update.handover import BUNDLE_FILE, forget_bundle, of_bundle
from edge_client.update.look import look_in_child
from edge_client.update.updater import Decision, RefusedError, UpdateOutcome, this_software

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from edge_client.inference.classifier import Classification
    from edge_client.settings import Settings
    from edge_client.sources import Frame

logger = logging.getLogger(__name__)

# Announcements are not trusted: a flood of them costs one look a second at most.
SHORTEST_LOOK_INTERVAL_S = 1.0
# After a lost connection, or when the store does not show yet what was announced (a CDN may lag).
RETRY_DELAYS_S = (2.0, 5.0, 15.0, 60.0, 300.0)
POLL_JITTER = 0.1


@dataclasses.dataclass(frozen=True)
class Answered:
    """A frame that the serving release answered.

    Attributes:
        answer: What it said.
        result: The same for the outside.
    """

    answer: Classification
    result: Result


class ChannelFollower:
    """Serves one channel."""

    def __init__(
        self,
        settings: Settings,
        *,
        stop: threading.Event,
        may_serve: threading.Event,
        publish_status: Callable[[bytes], bool],
        moment: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        """Load the release on the disk; touch no network.

        Args:
            settings: Of this channel, see `settings.of_channels`.
            stop: Set when the daemon ends.
            may_serve: To be set once a release serves.
            publish_status: Sends one retained payload; False if it could not go out now.
            moment: Returns what else its status tells when it is sent.
        Raises: SettingsError, DeviceError.
        """
        self._settings = settings
        self._stop = stop
        device = settings.device
        self.doorbell = Doorbell()
        self._may_serve = may_serve
        self._source_fault: str | None = None
        self._software = this_software(device.device_class)
        self._serving = Serving(settings, self._software, on_verdict=self.doorbell.nudge)
        self._measured: RunningUpdate | None = None
        self._looked_at = self._measure_from = float("-inf")
        self._look_now = self._failing = False
        if self.serves:
            self._may_serve.set()
        self.board = StatusBoard(
            DeviceStatus(
                device=device.id,
                channel=device.channel,
                state="starting",
                runtime=runtime_name(),
                why="it was on the disk; the store was not looked at yet",
                changed_at=utc_now(),
            ),
            file=device.state_dir / STATUS_FILE,
            publish=publish_status,
            interval_s=settings.status.interval_s,
            moment=lambda: {**self._serving.moment(), **moment()},
        )

    @property
    def serves(self) -> bool:
        """Whether a release serves."""
        return self._serving.serves

    def describe(self) -> str:
        """Say what serves, in a few words."""
        serving = (
            f"serving release {self._serving.slots.current}" if self.serves else "waiting for a first release"
        )
        return f"{serving}, channel {self._settings.device.channel}"

    def look_again(self) -> None:
        """Somebody left a bundle, or wants the channel's release now."""
        self._look_now = True
        self.doorbell.nudge()

    def close(self) -> None:
        """End `follow`; an update on its way is abandoned, which is as safe as a power cut."""
        self.doorbell.close()
        self.board.close()
        self._serving.close()

    def show_source_fault(self, fault: str) -> None:
        """Show why no frames come, until one does."""
        if fault != self._source_fault:
            self.board.change(last_error=fault)
        self._source_fault = fault

    # Frames

    def classify(self, frame: Frame) -> Answered | None:
        """Let the serving release answer; None if there is none yet, or it failed on this frame."""
        try:
            answered = self._serving.answer(frame.pixels)
        except EdgeError as e:
            if not self._failing:
                logger.error("%s: %s", frame.source, e)  # noqa: TRY400 - said in one line
            self._failing = True
            return None
        if answered is None:
            return None
        self._failing = False
        answer, release = answered
        self.board.count(answer.latency_ms)
        return Answered(answer, self._result(frame, answer, release))

    def compare(self, frame: Frame, answered: Answered) -> bool:
        """Let a release that is beside the serving one answer too; whether it says something else."""
        return self._serving.compare(frame.pixels, answered.answer)

    def handed_out(self, answered: Answered) -> None:
        """The result is with all sinks."""
        self._source_fault = None
        if self._measured is not None and self._measured.release == answered.result.release:
            measured, self._measured = self._measured, None
            self.board.change(update=measured.figures(time.monotonic()))

    def _result(self, frame: Frame, answer: Classification, release: str | None) -> Result:
        device = self._settings.device
        return Result(
            device=device.id,
            source=frame.source,
            frame=self.board.frames,
            label=answer.label,
            confidence=answer.confidence,
            top=answer.top(device.top),
            release=release,
            channel=device.channel,
            latency_ms=answer.latency_ms,
            at=utc_now(),
        )

    # Status

    def show_slots(self, **changes: object) -> None:
        """Show which release serves, and whatever else changed."""
        self.board.change(
            state="serving" if self.serves else "waiting",
            release=self._serving.slots.current,
            previous=self._serving.slots.previous,
            probation=self._serving.slots.probation is not None,
            **changes,
        )

    # Updates

    def follow(self) -> None:
        """Look at the start, at each announcement, and when the poll interval is over; until closed."""
        awaited: Awaited | None = None
        failures, next_look = 0, time.monotonic()
        while True:
            ring = self.doorbell.wait(next_look - time.monotonic())
            if self._stop.is_set():
                return
            self._settle()
            self._take_bundle()
            if ring is None and not self._look_now and time.monotonic() < next_look:
                continue
            asked_for, self._look_now = self._look_now, False
            if ring is not None:
                announced = self._read_announcement(ring.payload)
                if announced == self._serving.slots.current:
                    awaited = None  # whatever was announced before, the channel is back here
                if announced in {None, self._serving.newest}:
                    self._stop.wait(SHORTEST_LOOK_INTERVAL_S)
                    continue
                awaited, failures = Awaited(announced, ring.arrived), 0
                if (spread_s := self._settings.update.spread_s) and not asked_for:
                    spread = random.uniform(0, spread_s)  # noqa: S311 - no secret
                    # Whoever announces without an end must not put the look off.
                    next_look = min(next_look, time.monotonic() + spread)
                    continue
            self._stop.wait(max(self._looked_at + SHORTEST_LOOK_INTERVAL_S - time.monotonic(), 0))
            self._measure_from = awaited.since if awaited else time.monotonic()
            settled = self._look(awaited.release if awaited else None, asked_for=asked_for)
            self._looked_at = time.monotonic()
            failures = 0 if settled else failures + 1
            if settled or failures >= len(RETRY_DELAYS_S):
                awaited = None  # anybody may announce anything: from here on, what is signed counts
            next_look = time.monotonic() + self._delay_s(failures)

    def _settle(self) -> None:
        """End what has a verdict: a probation, or a release's time beside the serving one."""
        try:
            changes = self._serving.settle(self._begin_measuring)
        except EdgeError as e:
            logger.exception("the verdict on a release cannot be carried out")
            changes = {"last_error": str(e)}
        if changes is not None:
            self.show_slots(**changes)

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
                allowed=asked_for
                or self._settings.update.automatic
                or self._serving.newest != self._serving.slots.current,
            )
        except RefusedError as e:
            self.show_slots(last_error=str(e), refused=self._last_refused())
            return True
        except EdgeError as e:
            logger.warning("no update: %s", e)
            self.show_slots(last_error=str(e))
            return not isinstance(e, TransportError)
        except Exception as e:
            # The serving release is not touched before everything is verified: safe to go on.
            logger.exception("no update")
            self.show_slots(last_error=f"unexpected {type(e).__name__}: {e}")
            return True
        return self._show_outcome(outcome, announced)

    def _take_newest(self, settings: Settings, *, expecting: bool, allowed: bool) -> UpdateOutcome:
        """Look in a child process; what it took serves afterwards, or answers beside what serves."""
        try:
            outcome = look_in_child(
                settings,
                self._software,
                lambda: self.board.change(state="updating"),
                expecting=expecting,
                allowed=allowed,
            )
        finally:
            self._serving.slots.reload()  # what was refused, too
        if outcome.decision is Decision.TAKE:
            self._serving.take(outcome, self._begin_measuring)
            if self.serves:
                self._may_serve.set()
        else:
            self._serving.drop_shadow()
        return outcome

    def _begin_measuring(self, outcome: UpdateOutcome) -> None:
        self._measured = RunningUpdate(outcome.release, outcome.bytes_pulled, self._measure_from)

    def _show_outcome(self, outcome: UpdateOutcome, announced: str | None) -> bool:
        error, refused = None, None
        channel = self._settings.device.channel
        if outcome.decision is Decision.REFUSED:
            error, refused = f"release {outcome.release} was refused: {outcome.reason}", outcome.release
        elif announced not in {None, outcome.release}:
            error = (
                f"release {announced} was announced, but the signed channel {channel} "
                f"points to {outcome.release}; the announcement is not followed"
            )
            logger.warning("%s", error)
        why = explain_outcome(outcome, channel)
        if self._serving.newest == outcome.release != self._serving.slots.current:
            why = f"channel {channel} points to {outcome.release}, which answers beside it first ([shadow])"
        self.show_slots(
            last_error=error or self._source_fault, refused=refused, latest=outcome.release, why=why
        )
        return announced in {None, outcome.release}

    def _last_refused(self) -> str | None:
        return next(reversed(self._serving.slots.refused), None)

    def _read_announcement(self, payload: bytes) -> str | None:
        """Return the release that an announcement names; None, with the reason shown, if it is none."""
        device = self._settings.device
        topic = announcement_topic(device.fleet, device.channel)
        try:
            return read_announcement(payload, topic=topic, channel=device.channel)
        except InputError as e:
            logger.warning("%s", e)
            self.board.change(last_error=str(e))
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
