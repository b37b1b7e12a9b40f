"""One channel on this device: which of its releases serves, which comes next, and its status.

A daemon has one follower for each channel. Its frames thread calls `classify` and `compare`; `follow` runs
in a thread of its own, and so does sending the status. Only `follow` changes what serves.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError, EdgeError, TransportError
from edge_client.contract.messages import DeviceStatus
from edge_client.contract.times import seconds_until, utc_now
from edge_client.daemon.announcements import Announcements
from edge_client.daemon.check_result import CheckResult, RunningUpdate
from edge_client.daemon.decisions import (
    UNDECIDED,
    decision_after_verdict,
    decision_of,
    name_of,
    next_look_s,
    rollout_fields,
)
from edge_client.daemon.follower import Follower
from edge_client.daemon.held_figures import held_by
from edge_client.daemon.reopening import Reopening
from edge_client.daemon.software import find_runtime, find_software
from edge_client.offline.handover import BUNDLE_FILE, BundleResult, close_bundle, of_bundle
from edge_client.reporting.status import STATUS_FILE, StatusBoard
from edge_client.serving.probation import LastEnd
from edge_client.serving.serving import Serving
from edge_client.update.check_process import CheckCancelledError, CheckEndedError, UpdateCheck, error_kind
from edge_client.update.decision import RETRY, Decision, UpdateOutcome
from edge_client.update.endings import Retry
from edge_client.update.explanations import (
    explain_outcome,
    explain_problem,
    explain_shadow,
    explain_unrecorded,
)
from edge_client.update.refusals import PostponedError, RefusedError
from edge_client.update.schedule import SHORTEST_INTERVAL_S, CheckSchedule
from edge_client.update.triggers import UpdateTriggers

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Generator

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inbox.selection import ChannelAnswer
    from edge_client.inference.classifier import Prediction
    from edge_client.serving.held import HeldLabels
    from edge_client.settings.file import Settings
    from edge_client.sources.source import Frame
    from edge_client.update.triggers import Trigger

logger = logging.getLogger(__name__)

SETTLE_RETRY_S = 10.0
# A release in shadow mode is judged at least so often, also where no frames come.
LONGEST_WAIT_S = 600.0


class ChannelFollower(Follower):
    """Serves one channel and follows it."""

    def __init__(
        self,
        settings: Settings,
        *,
        stop: threading.Event,
        may_serve: threading.Event,
        publish_status: Callable[[bytes], bool],
        live_fields: Callable[[], dict[str, Any]] = dict,
        last_end: LastEnd = LastEnd.UNKNOWN,
        on_renewal: Callable[[], None] = lambda: None,
        chance: random.Random | None = None,
        check: UpdateCheck | None = None,
    ) -> None:
        """Load the release on the disk; touch no network.

        Args:
            settings: Settings of this channel, see `settings.file.of_channels`.
            stop: Set when the daemon ends.
            may_serve: To be set once a release serves.
            publish_status: Sends one retained payload; False if it could not go out now.
            live_fields: More status fields that are read at the time of sending.
            last_end: How the last run of the daemon ended, if nobody requested it.
            on_renewal: Called if a new process can serve what this one cannot.
            chance: Spreads update checks over time; None: seeded by the system.
            check: Runs update checks; None: in a child process.
        Raises: SettingsError, DeviceError.
        """
        super().__init__(settings)
        self._stop = stop
        self._on_renewal = on_renewal
        self._may_serve = may_serve
        self._announcements = Announcements(settings.device)
        self.triggers = UpdateTriggers(self._announcements.read)
        self._chance = chance or random.Random()  # noqa: S311 - no secret
        self._software = find_software(self._settings)
        self._check = check or UpdateCheck()
        self._doubt = ""
        self._serving = Serving(settings, self._software, on_verdict=self._on_verdict, last_end=last_end)
        self._running_update: RunningUpdate | None = None
        self._update_started = float("-inf")
        self._settle_after = float("inf")
        self._reopening = Reopening(time.monotonic())
        if self.serves:
            self._may_serve.set()
        self.board = StatusBoard(
            self._first_status(),
            file=settings.device.state_dir / STATUS_FILE,
            publish=publish_status,
            interval_s=settings.status.interval_s,
            live_fields=lambda: self._with_fault({**self._serving.live_fields(), **live_fields()}),
        )

    def _first_status(self) -> DeviceStatus:
        device = self._settings.device
        changes = {
            "why": "it was on the disk; the store was not checked yet",
            "last_error": self._serving.fault or None,
            **self._serving.rolled_back,
        }
        return DeviceStatus(
            device=device.id,
            channel=device.channel,
            state="starting",
            runtime=find_runtime(),
            changed_at=utc_now(),
            **changes,
        )

    def _with_fault(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Add what does not stop the device from serving; `last_error` may be of another release."""
        faults = (self._serving.fault, self._doubt, fields.get("warning"))
        warnings = [text for text in faults if text]
        return {**fields, "warning": "; ".join(warnings) or None}

    @property
    def serves(self) -> bool:
        """Whether a release serves."""
        return self._serving.serves

    @property
    def release(self) -> str | None:
        """The serving release."""
        return self._serving.release

    @property
    def labels(self) -> HeldLabels | None:
        """See `HeldReleases.labels`."""
        return self._serving.labels

    @property
    def has_release(self) -> bool:
        """Whether a release serves, or is on the disk and may serve once this machine can run it."""
        return self.serves or bool(self._serving.fault)

    @property
    def channel(self) -> str:
        """The channel's name."""
        return self._settings.device.channel

    def describe(self) -> str:
        """Return the serving release and the channel, for the log."""
        serving = f"serving release {self._serving.release}" if self.serves else "waiting for a first release"
        return f"{serving}, channel {self._settings.device.channel}"

    def request_update(self, *, forgiving: bool = False) -> None:
        """Install the channel's release now, also without `[update] automatic`.

        Args:
            forgiving: Whether a release that was refused is tried again, too.
        """
        self.triggers.request(forgiving=forgiving)

    def wake(self) -> None:
        """Let `follow` read a bundle that was left here."""
        self.triggers.wake()

    def end(self) -> None:
        """End `follow`; a running update is abandoned, which is as safe as a power cut."""
        self._check.cancel()
        self.triggers.close()

    def keep_drift(self) -> None:
        """Keep the watch of drift for a restart now and then; not in the thread of the frames."""
        self._serving.keep_drift()

    def close(self) -> None:
        """Record that the daemon ends on request; once `follow` has ended, or was never started."""
        self._serving.close()
        super().close()

    # Frames

    def predict(self, pixels: NDArray[np.uint8]) -> tuple[Prediction, str | None] | None:
        """See `Serving.predict`."""
        return self._serving.predict(pixels)

    def compare(self, frame: Frame, answer: ChannelAnswer) -> Prediction | None:
        """Let the shadow release predict too, see `Serving.compare`."""
        return self._serving.compare(frame.pixels, answer.prediction)

    def results_published(self, answer: ChannelAnswer) -> None:
        """Note that the result was handed to all sinks."""
        super().results_published(answer)
        update = self._running_update
        if update is not None and update.release == answer.result.release:
            self._running_update = None
            self.board.change(update=update.metrics(time.monotonic()))

    # Status

    def show_releases(self, **changes: object) -> None:
        """Show which release serves, and whatever else changed."""
        self.figures.show(held_by(self._serving, self.board.plain.runtime))
        self.board.change(
            state="serving" if self.serves else "waiting",
            release=self._serving.release,
            serving_since=self._serving.serving_since,
            previous=self._serving.previous,
            retry_at=self._serving.retry_at,
            probation=self._serving.on_probation,
            **changes,
        )

    # Updates

    def follow(self) -> None:
        """Check at the start, at each announcement or request, and at each poll interval; until closed."""
        rounds = self.rounds()
        wait_s = next(rounds)
        while True:
            trigger = self.triggers.wait(wait_s)
            if self._stop.is_set():
                return
            wait_s = rounds.send(trigger)

    def rounds(self) -> Generator[float, Trigger, None]:
        """Do what is due, in rounds; yields the seconds to wait for the trigger that is sent for the next."""
        schedule = CheckSchedule(
            self._settings.update,
            time.monotonic(),
            self._chance.uniform,
            serves=self.serves,
            start_spread_s=self.pace.start_spread_s,
            fleet_spread_s=lambda: self.pace.spread_s,
        )
        requested, retry = False, Retry.RESTART
        while True:
            trigger = yield self._wait_s(schedule, time.monotonic())
            if self._serving.fault:
                self._reopen_if_due(requested=trigger.requested)
            if self._settle():
                schedule.request(time.monotonic())
            self._import_bundle()
            if trigger.requested:
                requested = True
                retry = Retry.FORGIVE if trigger.forgiving or retry is Retry.FORGIVE else Retry.REQUESTED
            now = time.monotonic()
            if requested:
                schedule.request(now)
            if fault := self._announcements.describe_fault(trigger):
                self.board.change(last_error=fault)
            if self._announcements.is_noise(trigger, schedule, self._serving.newest, now):
                # A flood of announcements must not keep this device busy.
                self._stop.wait(min(schedule.due_in(now), SHORTEST_INTERVAL_S))
            if schedule.due_in(time.monotonic()) > 0:
                continue
            awaited = schedule.awaited
            self._update_started = awaited.since if awaited else time.monotonic()
            result = self._run_check(awaited.release if awaited else None, requested=requested, retry=retry)
            requested, retry = False, Retry.DUE if result.settled else retry
            schedule.note_check(time.monotonic(), settled=result.settled, signed=result.signed)
            self._schedule_next(schedule, result)

    def _schedule_next(self, schedule: CheckSchedule, result: CheckResult) -> None:
        retry_at = self._serving.retry_at
        retry_in_s = seconds_until(retry_at) if retry_at is not None else 0.0
        for wait_s in (retry_in_s if retry_in_s > 0 else None, result.next_in_s):
            if wait_s is not None:
                schedule.request(time.monotonic() + wait_s)

    def _wait_s(self, schedule: CheckSchedule, now: float) -> float:
        reopen_in = self._reopening.due_in(now) if self._serving.fault else LONGEST_WAIT_S
        return min(schedule.due_in(now), self._settle_after - now, reopen_in, LONGEST_WAIT_S)

    def _reopen_if_due(self, *, requested: bool) -> None:
        """Try again to open the release that cannot serve.

        What a process has imported stays as it was, also after NumPy or the runtime were mended: if a new
        process can serve the release, this one is replaced by a new one.
        """
        if requested:
            self._reopening.request(time.monotonic())
        if self._reopening.due_in(time.monotonic()) > 0:
            return
        changed = self._serving.reopen()
        if not self.serves and self._reopening.needs_probe() and self._serving.opens_elsewhere():
            logger.warning("another process can serve what this one cannot: a new one is due")
            self._on_renewal()
        self._reopening.note_try(time.monotonic(), changed=changed)
        if changed:
            self._show_reopened()

    def _show_reopened(self) -> None:
        if self.serves:
            logger.info("release %s serves", self._serving.release)
            self._may_serve.set()
        self.show_releases(last_error=self._serving.fault or None, runtime=find_runtime())

    def _settle(self) -> bool:
        """Carry out a verdict: of a probation, or of shadow mode; return whether it voided a decision."""
        now = time.monotonic()
        if now < self._settle_after and self._settle_after != float("inf"):
            return False
        self._settle_after = float("inf")
        try:
            changes = self._serving.settle(self._begin_measuring)
        except EdgeError as e:
            logger.exception("the verdict on a release cannot be carried out; it will be tried again")
            self._settle_after = now + SETTLE_RETRY_S
            changes = {"last_error": str(e)}
        if changes is None:
            return False
        decided = decision_after_verdict(
            self.board.status, changes, self._serving.release, self._serving.shadow_release
        )
        self.show_releases(**changes, **decided)
        return decided.get("decision") == UNDECIDED

    def _on_verdict(self, urgent: bool) -> None:
        """Wake `follow` for a verdict; an urgent one interrupts a running update check."""
        if urgent:
            self._check.cancel()
        self.triggers.wake()

    def _import_bundle(self) -> None:
        """Check a bundle that was left here, in place of the store."""
        state_dir = self._settings.device.state_dir
        bundle = state_dir / BUNDLE_FILE
        if not bundle.exists():
            return
        self._update_started = time.monotonic()
        settings = of_bundle(self._settings, bundle)
        result = self._run_check(None, settings, requested=True, retry=Retry.REQUESTED)
        if result.next_in_s == 0.0:  # the channel's release, and then its rollout's
            result = self._run_check(None, settings, requested=True, retry=Retry.REQUESTED)
        if not result.cancelled:  # else the bundle is read in the next round, or at the next start
            close_bundle(state_dir, BundleResult(message=result.message, error=result.error))

    def _run_check(
        self, announced: str | None, settings: Settings | None = None, *, requested: bool, retry: Retry
    ) -> CheckResult:
        """Check once and show the result."""
        try:
            outcome = self._install_newest(
                settings or self._settings,
                expecting=announced is not None,
                requested=requested,
                retry=retry,
            )
        except RefusedError as e:
            return self._show_refusal(e, self._serving.last_refused, Decision.REFUSED)
        except PostponedError as e:
            return self._show_refusal(e, self._serving.last_postponed, Decision.POSTPONED)
        except CheckCancelledError as e:
            return CheckResult(str(e), error_kind(e), settled=False, cancelled=True)
        except EdgeError as e:
            logger.warning("no update: %s", e)
            self.show_releases(last_error=str(e))
            settled = not isinstance(e, (TransportError, CheckEndedError))
            return CheckResult(str(e), error_kind(e), settled=settled)
        except Exception as e:
            # The serving release is not touched before everything is verified: safe to go on.
            logger.exception("no update")
            text = f"unexpected {type(e).__name__}: {e}"
            self.show_releases(last_error=text)
            return CheckResult(text, error_kind(e))
        return self._show_outcome(outcome, announced)

    def _install_newest(
        self, settings: Settings, *, expecting: bool, requested: bool, retry: Retry
    ) -> UpdateOutcome:
        """Check in a child process; a release that it installed serves afterwards, or is in shadow mode."""
        self._software = self._software or find_software(self._settings)
        if not self._software:
            msg = "no update without a TFLite runtime: pip install ai-edge-litert; see `edge-client doctor`"
            raise DeviceError(msg)
        try:
            outcome = self._check.run(
                settings,
                self._software,
                self._show_update,
                expecting=expecting,
                requested=requested,
                retry=retry,
            )
        except CheckCancelledError:
            self._serving.reload()
            self._serving.end_try()
            raise
        finally:
            self._note_signed(self._check.decided)
            self._serving.reload()  # refusals, too
            if self._serving.note_verified(self._check.signed):
                self._show_reopened()
        self._serving.install(outcome, self._begin_measuring)
        if self.serves:
            self._may_serve.set()
        return outcome

    def _show_update(self, outcome: UpdateOutcome) -> None:
        """Show which release is being fetched and tried."""
        self.board.change(
            state="updating",
            latest=outcome.release,
            decision=UNDECIDED,
            offered=None,
            **rollout_fields(outcome),
        )

    def _note_signed(self, decided: UpdateOutcome | None) -> None:
        """Note what is signed for this device, also where that could not be carried out."""
        if decided is not None:
            self._doubt = decided.warning
            self.pace.note(decided.heartbeat_s)
            self.board.change(**rollout_fields(decided))

    def _begin_measuring(self, outcome: UpdateOutcome) -> None:
        self._running_update = RunningUpdate(outcome.release, outcome.bytes_pulled, self._update_started)

    def _show_refusal(self, error: EdgeError, release: str | None, decision: Decision) -> CheckResult:
        with contextlib.suppress(DeviceError):
            self._serving.drop_shadow()  # the channel points to the failed release now
        self.show_releases(
            last_error=str(error),
            refused=release if decision is Decision.REFUSED else None,
            latest=release,
            decision=name_of(decision),
            offered=None,
            waits_for=RETRY if decision is Decision.POSTPONED else "",
        )
        decided = self._check.decided
        if decided is None:
            return CheckResult(str(error), error_kind(error), signed={release or ""})
        another = not self.serves and decided.intended != decided.release  # for a device that has nothing
        next_in_s = 0.0 if another else None
        return CheckResult(str(error), error_kind(error), signed=decided.named, next_in_s=next_in_s)

    def _show_outcome(self, outcome: UpdateOutcome, announced: str | None) -> CheckResult:
        channel = self._settings.device.channel
        expected = announced is None or announced in outcome.named
        decision = decision_of(outcome, self._serving.release, self._serving.shadow_release)
        if decision == UNDECIDED:
            why = self._serving.fault or explain_unrecorded(outcome, channel)
            error: str | None = why
        else:
            in_shadow = self._serving.shadow_release == outcome.release
            why = explain_shadow(outcome, channel) if in_shadow else explain_outcome(outcome, channel)
            error = explain_problem(outcome, announced, channel)
        if error is not None and outcome.decision not in {Decision.REFUSED, Decision.POSTPONED}:
            logger.warning("%s", error)
        self.show_releases(
            last_error=error or self._source_fault,
            refused=outcome.release if outcome.decision is Decision.REFUSED else None,
            latest=outcome.release,
            decision=decision,
            offered=outcome.release if outcome.decision is Decision.HELD else None,
            why=why,
            share_percent=outcome.share_percent,
        )
        message = f"release {self._serving.release} serves: {why}"
        return CheckResult(message, settled=expected, signed=outcome.named, next_in_s=next_look_s(outcome))
