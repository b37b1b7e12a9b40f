"""Serving of one channel: its releases on the disk, loaded, watched and compared.

    installed -> [shadow] compared with the serving release -> serves, on [probation] -> serves
    refused <- does worse in shadow mode    or    rolled back <- does worse on probation

One thread calls `predict` and `compare` for each frame. Another changes what serves: `install`, `settle`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.machine import boot_id
from edge_client.serving import activation
from edge_client.serving.held import HeldReleases
from edge_client.serving.holder import ClassifierHolder
from edge_client.serving.other_process import OtherProcess
from edge_client.serving.probation import (
    STOPPED,
    Breach,
    LastEnd,
    Probation,
    RecentPredictions,
    count_restart,
    find_loop,
)
from edge_client.serving.shadow import Shadow, ShadowRelease
from edge_client.serving.watches import Watches
from edge_client.update.decision import Decision
from edge_client.update.endings import Blame, Ending, find_ending
from edge_client.update.explanations import explain_outcome
from edge_client.update.refusals import PostponedError, RefusedError, fail_try, refusing
from edge_client.update.slots import PatientSlots
from edge_client.update.slots_document import ProbationRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inference.classifier import Classifier, Prediction
    from edge_client.settings.file import Settings
    from edge_client.update.decision import UpdateOutcome

logger = logging.getLogger(__name__)


class Serving(HeldReleases):
    """The releases of one channel; the only owner of its slots in the daemon.

    Attributes:
        rolled_back: Changes to the status if a release was rolled back at this start; else empty.
    """

    def __init__(
        self,
        settings: Settings,
        software: str,
        on_verdict: Callable[[bool], None],
        clock: Callable[[], float] = time.monotonic,
        *,
        last_end: LastEnd = LastEnd.UNKNOWN,
    ) -> None:
        """Load the release on the disk.

        Args:
            settings: Settings of the channel.
            software: See `this_software`.
            on_verdict: Called by the thread that calls `predict` and `compare`, when `settle` has work; gets
                whether the verdict is urgent, because frames fail or are predicted badly.
            clock: Monotonic seconds.
            last_end: How the last run of the daemon ended, if nobody requested it.
        Raises: DeviceError.
        """
        self._last_end = self._last_shadow_end = last_end
        self._settings = settings
        self._software = software
        self._on_verdict = on_verdict
        self._clock = clock
        self._boot = boot_id()
        self._compare_after = float("-inf")
        self._watches = Watches(settings, clock())
        self.rolled_back: dict[str, Any] = {}
        super().__init__(PatientSlots(settings.device.state_dir))
        self._recent = RecentPredictions(settings.probation.unsure_below)
        self._probation: Probation | None = None
        self._verified: dict[str, str] = {}
        self._other_process = OtherProcess(settings, self._slots, self._verified)
        # A release that crashes this process while it is loaded would keep it from every update.
        crashed = last_end is LastEnd.SERVING_MODEL
        self._probe = self._other_process.try_at_start if crashed else _trust
        self._open()
        if self.serves:
            self._slots.clean_slots()
        self._slots.clean_leftovers()

    def end_try(self) -> None:
        """Record that a self-test did not end by itself, which is no failure; never fails."""
        with contextlib.suppress(DeviceError):
            self._slots.keep_trying("")

    @property
    def operators(self) -> dict[str, int]:
        """Highest version of each operator that the serving release uses."""
        return self._watches.operators

    def live_fields(self) -> dict[str, Any]:
        """Return the status fields that are read at the time of sending."""
        shadow = self._shadow
        return {
            "shadow": shadow.comparison.metrics() if shadow is not None else None,
            **self._watches.live_fields(self.release),
        }

    def reload(self) -> None:
        """Read what the child process of an update check wrote.

        Raises: DeviceError.
        """
        self._slots.reload()

    def note_verified(self, digests: Mapping[str, str]) -> bool:
        """Compare the serving release with what the child of an update check found signed.

        Args:
            digests: Hex SHA-256 of the release document by release.
        Returns: Whether something else, or nothing, serves now.
        """
        self._verified.update(digests)
        return self.reopen()

    def reopen(self) -> bool:
        """Open the current release if it does not serve; return whether something else serves now."""
        serving = self._holder.current
        if serving is not None and not self._fault and self._is_signed(serving):
            return False
        with contextlib.suppress(DeviceError):
            self._slots.reload()  # the disk may have been unreadable before
        if serving is None and self._slots.current is None and not self._slots.fault:
            return False
        self._open()
        return self._holder.current is not serving

    def opens_elsewhere(self) -> bool:
        """Return whether a new process can serve a release of the disk."""
        return self._other_process.opens_any()

    def _is_signed(self, classifier: Classifier) -> bool:
        return activation.is_signed(classifier, self._verified.get(classifier.release or ""))

    def _open(self) -> None:
        """Open the best release on the disk; a start of which the release dies is counted."""
        before, record = self._holder.current, self._slots.probation
        self._probation = self._resume_probation()
        threads = self._settings.device.threads
        opened = activation.open_best_slot(self._slots, threads, self._verified, before, probe=self._probe)
        fault = opened.fault or self._slots.fault
        if fault and fault != self._fault:
            logger.error("%s", fault)
        self._fault = fault
        if record is not None and opened.fault and self._slots.probation is not None:
            # The daemon did not die of it: no crash of the release.
            with contextlib.suppress(DeviceError):
                self._slots.keep_probation(record)
            self._probation = None
        if (new := opened.classifier) is not before:
            self._holder = ClassifierHolder(new)
            self._recent = RecentPredictions(self._settings.probation.unsure_below)
            self._watch_predictions(self.release)
        if new is not None and new.release is not None:
            self._slots.secure(new.release, new.document_sha256)

    def keep_drift(self) -> None:
        """Keep the watch of drift for a restart now and then; not in the thread of the frames."""
        self._watches.keep(self._clock())

    def close(self) -> None:
        """Record that the daemon ends on request, and not because of a release."""
        self.end_try()
        self._watches.keep(self._clock(), every_s=0.0)
        with contextlib.suppress(DeviceError):
            if record := self._slots.probation:
                self._slots.keep_probation(msgspec.structs.replace(record, crashes=STOPPED))
            if record := self._slots.shadow:
                shadow = self._shadow
                seconds = shadow.comparison.seconds(self._clock()) if shadow else record.seconds
                self._slots.keep_shadow(msgspec.structs.replace(record, crashes=STOPPED, seconds=seconds))

    # Frames

    def predict(self, pixels: NDArray[np.uint8]) -> tuple[Prediction, str | None] | None:
        """Return the serving release's prediction, and its id; None if no release serves yet.

        Args:
            pixels: (H, W, 3) uint8 RGB.
        Raises: InputError, DeviceError if it fails on this frame.
        """
        classifier, probation = self._holder.current, self._probation
        if classifier is None:
            return None
        watched = probation if probation is not None and probation.release == classifier.release else None
        try:
            prediction = classifier.classify(pixels)
        except EdgeError as e:
            if watched is not None and watched.failed(str(e), find_ending(e, Ending.FRAMES_FAILED)):
                self._report_verdict(watched)
            if (shadow := self._shadow) is not None and shadow.comparison.serving_failed():
                self._on_verdict(False)
            raise
        self._recent.add(prediction.latency_ms, prediction.confidence)
        self._watches.add(classifier.release, prediction, self._clock())
        if watched is not None and watched.predicted(
            prediction.latency_ms, prediction.confidence, self._clock()
        ):
            self._report_verdict(watched)
        return prediction, classifier.release

    def compare(self, pixels: NDArray[np.uint8], before: Prediction) -> Prediction | None:
        """Let the shadow release predict too, if there is one and time for it.

        Comparing takes half of the time at most: a camera's next frame must not wait for it.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            before: Prediction of the serving release.
        Returns: Prediction of the shadow release.
        """
        shadow, started = self._shadow, self._clock()
        if shadow is None or shadow.comparison.over or started < self._compare_after:
            return None
        try:
            new = shadow.classifier.classify(pixels)
        except EdgeError as e:
            if shadow.comparison.failed(str(e), find_ending(e, Ending.FRAMES_FAILED)):
                self._on_verdict(False)
            return None
        now = self._clock()
        self._compare_after = now + 2 * (now - started)
        if shadow.comparison.compare(before, new, now):
            self._on_verdict(False)
        return new

    def _report_verdict(self, probation: Probation) -> None:
        self._on_verdict(probation.verdict is not None and bool(probation.verdict.breach))

    # Changes

    def install(self, outcome: UpdateOutcome, before_swap: Callable[[UpdateOutcome], None]) -> None:
        """Let the release of an update check serve, or first compare it with the serving one in shadow mode.

        If the decision is not INSTALL, the serving release stays, and shadow mode ends: the channel moved on.

        Args:
            outcome: Outcome of the check.
            before_swap: Called right before the first frame can see the release.
        Raises: RefusedError; DeviceError, with the old release serving.
        """
        try:
            if self._comes_into_shadow(outcome):
                self._begin_shadow(outcome)
                return
            self._shadow = None
            if not self._activate(outcome, before_swap):
                self.drop_shadow()
        finally:
            self.end_try()  # the daemon lives: no release has ended it

    def settle(self, before_swap: Callable[[UpdateOutcome], None]) -> dict[str, Any] | None:
        """Carry out the verdicts that were reached.

        Args:
            before_swap: As for `install`.
        Returns: Changes to the status; None if there was no verdict.
        Raises: DeviceError or InputError if one cannot be carried out; the serving release goes on.
        """
        if self._probation is not None and self._probation.verdict is not None:
            return self._settle_probation(self._probation)
        if self._shadow is not None:
            self._shadow.comparison.give_up_waiting(self._clock())
            if self._shadow.comparison.over:
                return self._settle_shadow(self._shadow, before_swap)
        return None

    def drop_shadow(self) -> None:
        """End shadow mode.

        Raises: DeviceError.
        """
        self._shadow = None
        if self._slots.shadow is not None:
            self._slots.keep_shadow(None)
            self._slots.clean_slots()

    def _activate(
        self,
        outcome: UpdateOutcome,
        before_swap: Callable[[UpdateOutcome], None],
        loaded: Classifier | None = None,
    ) -> bool:
        def begin() -> None:
            self._begin_watching()
            before_swap(outcome)

        activated = activation.install(
            outcome,
            self._slots,
            self._holder,
            software=self._software,
            threads=self._settings.device.threads,
            loaded=loaded,
            probation=None if outcome.returns else self._begin_probation(outcome.release),
            before_swap=begin,
        )
        if activated:
            logger.info("release %s serves; %d bytes pulled", outcome.release, outcome.bytes_pulled)
        return activated

    def _begin_watching(self) -> None:
        """Watch the release that has just become current."""
        self._recent = RecentPredictions(self._settings.probation.unsure_below)
        self._watch_predictions(self._slots.current)
        record = self._slots.probation
        self._probation = self._watch(record) if record is not None else None

    def _watch(self, record: ProbationRecord) -> Probation:
        budget_ms = self._settings.device.latency_budget_ms
        return Probation(record, self._settings.probation, self._clock(), budget_ms)

    def _watch_predictions(self, release: str | None) -> None:
        """Compare a release's predictions with what its document promises of them."""
        self._watches.begin(None if release is None else self._slots.folder(release))

    # Shadow

    def _comes_into_shadow(self, outcome: UpdateOutcome) -> bool:
        """Return whether a release is to be compared first; not the previous one, whose way is short."""
        wanted = self._settings.shadow.seconds > 0 and self.serves and not outcome.returns
        return wanted and outcome.decision is Decision.INSTALL and outcome.release != self._slots.previous

    def _begin_shadow(self, outcome: UpdateOutcome) -> None:
        """Load a release next to the serving one.

        Raises: RefusedError, also if the daemon did not survive the release before; DeviceError.
        """
        release = outcome.release
        if self.shadow_release == release:
            return
        self._shadow = None
        known = self._slots.shadow
        if known is None or known.release != release:
            known = ProbationRecord(release=release, crashes=STOPPED)
        record = count_restart(known, self._boot, self._last_shadow_end, LastEnd.SHADOW_MODEL)
        self._last_shadow_end = LastEnd.COUNTED
        if loop := find_loop(record):
            ending, reason = loop
            fail_try(self._slots, release, ending, f"{reason} while it ran in shadow mode", self._software)
        with refusing(self._slots, release, self._software):
            self._slots.keep_shadow(record)
            classifier = self._open_shadow(release, known)
        comparison = Shadow(
            release,
            self._settings.shadow,
            self._settings.probation,
            self._clock(),
            elapsed_s=record.seconds,
            budget_ms=self._settings.device.latency_budget_ms,
        )
        self._shadow = ShadowRelease(classifier, comparison, outcome)
        logger.info("release %s runs in shadow mode, compared with %s", release, self._slots.current)
        self._slots.clean_slots()

    def _open_shadow(self, release: str, before: ProbationRecord) -> Classifier:
        try:
            threads = self._settings.device.threads
            return activation.open_installed(self._slots, release, self._software, threads)
        except PostponedError:
            self._slots.keep_shadow(before)  # the daemon did not die of it
            raise

    def _settle_shadow(
        self, shadow: ShadowRelease, before_swap: Callable[[UpdateOutcome], None]
    ) -> dict[str, Any]:
        metrics = shadow.comparison.metrics()
        try:
            if breach := shadow.comparison.breach:
                reason = f"in shadow mode: {breach.reason}"
                fail_try(self._slots, metrics.release, breach.ending, reason, self._software)
        except (RefusedError, PostponedError) as e:
            self._shadow = None
            self._slots.clean_slots()
            return self._failed_fields(metrics.release, str(e))
        agreed = (
            f"agreed with the release before on {metrics.agreement or 0:.0%} of {metrics.frames} frames, at "
            f"{metrics.latency_ms} ms a frame instead of {metrics.latency_before_ms} ms"
        )
        logger.info("release %s %s", metrics.release, agreed)
        self._activate(shadow.outcome, before_swap, shadow.classifier)
        self._shadow = None
        why = explain_outcome(shadow.outcome, self._settings.device.channel)
        return {"last_error": None, "why": f"{why}; it {agreed}"}

    # Probation

    def _begin_probation(self, release: str) -> ProbationRecord | None:
        """Return what a new release is compared with; None without a release to go back to."""
        if self._slots.current is None or not self._settings.probation.frames:
            return None
        record, watched = self._recent.as_record(release, self._boot), self._slots.probation
        if watched is None or self._slots.previous in {None, release}:
            return record
        # The serving release is on probation itself: the proven one before it is the standard, and is kept
        # for a rollback.
        return msgspec.structs.replace(
            record, latency_ms=watched.latency_ms, unsure_share=watched.unsure_share
        )

    def _resume_probation(self) -> Probation | None:
        """Continue a probation after a restart; a release that the daemon did not survive is rolled back."""
        record = self._slots.probation
        if record is None:
            return None
        try:
            return self._count_start(record)
        except DeviceError as e:
            logger.warning("%s; release %s serves on, its probation is not counted", e, record.release)
            return None

    def _count_start(self, record: ProbationRecord) -> Probation | None:
        record = count_restart(record, self._boot, self._last_end)
        self._last_end = LastEnd.COUNTED
        if (loop := find_loop(record)) and self._may_go_back(loop[0]):
            reason = f"{loop[1]} during its probation"
            logger.error("release %s is rolled back: %s", record.release, reason)
            self._slots.roll_back(f"rolled back: {reason}", self._software, loop[0])
            self.rolled_back = self._failed_fields(record.release, _rolled_back(record.release, reason))
            return None
        self._slots.keep_probation(record)
        return self._watch(record)

    def _may_go_back(self, ending: Ending) -> bool:
        """Return whether the previous release can take over; it need not where the model ends the daemon."""
        if self._slots.previous is None or ending.blame is not Blame.LIMITED:
            return self._slots.previous is not None
        return activation.can_open(
            self._slots, self._slots.previous, self._settings.device.threads, self._verified
        )

    def _settle_probation(self, probation: Probation) -> dict[str, Any]:
        """Carry out a verdict; it stays where that fails."""
        if probation.verdict is not None and probation.verdict.breach and self._slots.previous is not None:
            changes = self._roll_back(probation.release, probation.verdict.breach)
        else:
            self._slots.keep_probation(None)
            logger.info("release %s has passed its probation", probation.release)
            changes = {}
        self._probation = None
        return changes

    def _roll_back(self, broken: str, breach: Breach) -> dict[str, Any]:
        """Let the previous release serve again, also if the disk refuses to record that.

        Raises: DeviceError or InputError if it cannot be loaded or recorded.
        """
        reason = f"{breach.reason} during its probation"
        logger.error("release %s is rolled back: %s", broken, reason)
        previous, threads = self._slots.previous or "", self._settings.device.threads
        self._holder.swap(activation.open_kept(self._slots, previous, threads, self._verified))
        self._recent = RecentPredictions(self._settings.probation.unsure_below)
        self._slots.roll_back(f"rolled back: {reason}", self._software, breach.ending)
        self.drop_shadow()  # it was compared with another release; the next check starts the comparison again
        self._watch_predictions(self.release)
        self._slots.clean_slots()
        return self._failed_fields(broken, _rolled_back(broken, reason))

    def _failed_fields(self, release: str, why: str) -> dict[str, Any]:
        """Return the status fields after a release has failed; it may be tried again."""
        refused = release if release in self._slots.refused else None
        return {"last_error": why, "refused": refused, "why": why}


def _trust(_release: str) -> None:
    """Expect no crash."""


def _rolled_back(release: str, reason: str) -> str:
    return f"release {release} was rolled back: {reason}"
