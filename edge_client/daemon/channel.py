"""One channel on this device: which of its releases serves, which comes next, and what its status says.

A daemon has one of these for each channel. Its frames thread asks `classify` and `compare`; `follow` runs
in a thread of its own, and so does the board's sending. What serves is changed by `follow` alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError, EdgeError, InputError, TransportError
from edge_client.contract.messages import DeviceStatus, Result, UpdateFigures
from edge_client.contract.names import announcement_topic
from edge_client.contract.times import utc_now
from edge_client.inbox.selection import ChannelAnswer
from edge_client.inference.runtime import runtime_name
from edge_client.offline.handover import BUNDLE_FILE, BundleResult, close_bundle, of_bundle
from edge_client.reporting.status import STATUS_FILE, StatusBoard
from edge_client.serving.serving import Serving
from edge_client.update.check import Decision, UpdateOutcome
from edge_client.update.check_process import LookControl, LookStoppedError, look_in_child, name_of
from edge_client.update.refusals import RefusedError, this_software
from edge_client.update.schedule import SHORTEST_INTERVAL_S, LookSchedule
from edge_client.update.triggers import Doorbell, read_announcement

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from edge_client.inference.classifier import Prediction
    from edge_client.settings.file import Settings
    from edge_client.sources.source import Frame
    from edge_client.update.triggers import Ring

logger = logging.getLogger(__name__)

SETTLE_RETRY_S = 10.0
# A release beside the serving one is judged at least so often, also where no frames come.
LONGEST_WAIT_S = 600.0
_chance = random.Random()  # noqa: S311 - no secret


@dataclasses.dataclass(frozen=True)
class Looked:
    """How a look ended.

    Attributes:
        result: In words.
        settled: Whether looking again soon would not help.
        signed: Release that the signed channel points to, if it is known.
        stopped: Whether this process ended it before it came to anything.
    """

    result: BundleResult
    settled: bool
    signed: str | None = None
    stopped: bool = False


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
        self._looking = LookControl()
        self._serving = Serving(settings, self._software, on_verdict=self._heed)
        self._measured: RunningUpdate | None = None
        self._looked_at = self._measure_from = float("-inf")
        self._settle_after = float("inf")
        self._failing = False
        if self.serves:
            self._may_serve.set()
        self.board = StatusBoard(
            DeviceStatus(
                device=device.id,
                channel=device.channel,
                state="starting",
                runtime=runtime_name(),
                changed_at=utc_now(),
                **{
                    "why": "it was on the disk; the store was not looked at yet",
                    **self._serving.sent_back,
                },
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
        self.doorbell.ask()

    def end(self) -> None:
        """End `follow`; an update on its way is abandoned, which is as safe as a power cut."""
        self._looking.stop()
        self.doorbell.close()
        self.board.close()

    def close(self) -> None:
        """Remember that the daemon was told to end; once `follow` has ended, or was never begun."""
        self._serving.close()

    def show_source_fault(self, fault: str) -> None:
        """Show why no frames come, until one does."""
        if fault != self._source_fault:
            self.board.change(last_error=fault)
        self._source_fault = fault

    # Frames

    def classify(self, frame: Frame) -> ChannelAnswer | None:
        """Let the serving release answer; None if there is none yet, or it failed on this frame."""
        try:
            found = self._serving.answer(frame.pixels)
        except EdgeError as e:
            if not self._failing:
                logger.error("%s: %s", frame.source, e)  # noqa: TRY400 - said in one line
                self.board.change(last_error=f"{frame.source}: {e}")
            self._failing = True
            return None
        if found is None:
            return None
        if self._failing:
            self.board.change(last_error=None)
        self._failing = False
        prediction, release = found
        self.board.count(prediction.latency_ms)
        return ChannelAnswer(prediction, self._result(frame, prediction, release))

    def compare(self, frame: Frame, answer: ChannelAnswer) -> Prediction | None:
        """Let a release that is beside the serving one answer too, see `Serving.compare`."""
        return self._serving.compare(frame.pixels, answer.prediction)

    def handed_out(self, answer: ChannelAnswer) -> None:
        """The result is with all sinks."""
        if self._source_fault is not None:
            self._source_fault = None
            self.board.change(last_error=None)
        if self._measured is not None and self._measured.release == answer.result.release:
            measured, self._measured = self._measured, None
            self.board.change(update=measured.figures(time.monotonic()))

    def _result(self, frame: Frame, prediction: Prediction, release: str | None) -> Result:
        device = self._settings.device
        return Result(
            device=device.id,
            source=frame.source,
            frame=self.board.frames,
            label=prediction.label,
            confidence=prediction.confidence,
            top=prediction.top(device.top),
            release=release,
            channel=device.channel,
            latency_ms=prediction.latency_ms,
            at=utc_now(),
        )

    # Status

    def show_slots(self, **changes: object) -> None:
        """Show which release serves, and whatever else changed."""
        self.board.change(
            state="serving" if self.serves else "waiting",
            release=self._serving.release,
            previous=self._serving.slots.previous,
            probation=self._serving.slots.probation is not None,
            **changes,
        )

    # Updates

    def follow(self) -> None:
        """Look at the start, at each announcement, and when the poll interval is over; until closed."""
        schedule = LookSchedule(self._settings.update, time.monotonic(), _chance.uniform, serves=self.serves)
        asked = False
        while True:
            now = time.monotonic()
            call = self.doorbell.wait(min(schedule.due_in(now), self._settle_after - now, LONGEST_WAIT_S))
            if self._stop.is_set():
                return
            self._settle()
            self._take_bundle()
            asked = asked or call.asked
            now = time.monotonic()
            if asked:
                schedule.ask(now)
            if call.ring is not None and not self._hear(call.ring, schedule, now):
                # Whoever floods this device with announcements keeps nothing but himself busy.
                self._stop.wait(min(schedule.due_in(now), SHORTEST_INTERVAL_S))
            if schedule.due_in(time.monotonic()) > 0:
                continue
            awaited = schedule.awaited
            self._measure_from = awaited.since if awaited else time.monotonic()
            looked = self._look(awaited.release if awaited else None, asked_for=asked)
            asked = False
            schedule.looked(time.monotonic(), settled=looked.settled, signed=looked.signed)

    def _hear(self, ring: Ring, schedule: LookSchedule, now: float) -> bool:
        """Take an announcement; whether it is news."""
        announced = self._read_announcement(ring.payload)
        return announced is not None and schedule.hear(ring, announced, self._serving.newest, now)

    def _settle(self) -> None:
        """End what has a verdict: a probation, or a release's time beside the serving one."""
        now = time.monotonic()
        if now < self._settle_after and self._settle_after != float("inf"):
            return
        self._settle_after = float("inf")
        try:
            changes = self._serving.settle(self._begin_measuring)
        except EdgeError as e:
            logger.exception("the verdict on a release cannot be carried out; it will be tried again")
            self._settle_after = now + SETTLE_RETRY_S
            changes = {"last_error": str(e)}
        if changes is not None:
            self.show_slots(**changes)

    def _heed(self, urgent: bool) -> None:
        """There is a verdict; a look that goes on is no reason to answer badly for longer."""
        if urgent:
            self._looking.stop()
        self.doorbell.nudge()

    def _take_bundle(self) -> None:
        """Look into a bundle that was left here, instead of the store."""
        bundle = self._settings.device.state_dir / BUNDLE_FILE
        if not bundle.exists():
            return
        self._measure_from = time.monotonic()
        looked = self._look(None, of_bundle(self._settings, bundle), asked_for=True)
        if looked.stopped:
            return  # it is taken in the next round, or at the next start
        close_bundle(self._settings.device.state_dir, looked.result)

    def _look(
        self, announced: str | None, settings: Settings | None = None, *, asked_for: bool = False
    ) -> Looked:
        """Look once and show what came of it."""
        try:
            outcome = self._take_newest(
                settings or self._settings,
                expecting=announced is not None,
                allowed=asked_for or self._settings.update.automatic,
            )
        except RefusedError as e:
            # The channel points to that one now, and not to one that may answer beside.
            refused = self._last_refused()
            with contextlib.suppress(DeviceError):
                self._serving.drop_shadow()
            self.show_slots(last_error=str(e), refused=refused, latest=refused)
            return Looked(BundleResult(message=str(e), error=name_of(e)), settled=True, signed=refused)
        except LookStoppedError as e:
            result = BundleResult(message=str(e), error=name_of(e))
            return Looked(result, settled=False, stopped=True)
        except EdgeError as e:
            logger.warning("no update: %s", e)
            self.show_slots(last_error=str(e))
            result = BundleResult(message=str(e), error=name_of(e))
            return Looked(result, settled=not isinstance(e, TransportError))
        except Exception as e:
            # The serving release is not touched before everything is verified: safe to go on.
            logger.exception("no update")
            text = f"unexpected {type(e).__name__}: {e}"
            self.show_slots(last_error=text)
            return Looked(BundleResult(message=text, error=name_of(e)), settled=True)
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
                control=self._looking,
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

    def _show_outcome(self, outcome: UpdateOutcome, announced: str | None) -> Looked:
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
            last_error=error or self._source_fault,
            refused=refused,
            latest=outcome.release,
            why=why,
            share_percent=outcome.share_percent,
        )
        result = BundleResult(message=f"release {self._serving.release} serves: {why}")
        return Looked(result, settled=announced in {None, outcome.release}, signed=outcome.release)

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
            # Without what anybody may write there: each new text would wear out the card.
            self.board.change(last_error=f"the last announcement on {topic} was none; the log says more")
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
