"""What serves on one channel, and whether it shall: the releases on the disk, loaded, watched and compared.

    taken -> [shadow] answers beside the serving one -> serves, on [probation] -> serves
    refused <- does worse there    or    sent back <- does worse here

One thread asks `answer` and `compare` for each frame. Another changes what serves: `take`, `settle`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from typing import TYPE_CHECKING, Any

import msgspec

from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.machine import boot_id
from edge_client.releases import read_release
from edge_client.serving.activation import let_serve, open_best_slot, open_slot
from edge_client.serving.drift import DriftWatch
from edge_client.serving.holder import ClassifierHolder
from edge_client.serving.probation import STOPPED, Probation, RecentAnswers, begun_again, find_loop
from edge_client.serving.shadow import Shadow
from edge_client.update.refusals import RefusedError, refusing
from edge_client.update.slots import ProbationRecord, Slots

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from edge_client.inference.classifier import Classifier, Prediction
    from edge_client.settings.file import Settings
    from edge_client.update.check import UpdateOutcome

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Beside:
    """A release that answers beside the serving one.

    Attributes:
        classifier: It, loaded.
        shadow: How it does.
        outcome: Of the look that took it.
    """

    classifier: Classifier
    shadow: Shadow
    outcome: UpdateOutcome


class Serving:
    """The releases of one channel.

    Attributes:
        slots: They, on the disk.
        sent_back: What the status has to say of a release that was sent back at this start; else empty.
    """

    def __init__(self, settings: Settings, software: str, on_verdict: Callable[[bool], None]) -> None:
        """Load the release on the disk.

        Args:
            settings: Of the channel.
            software: See `this_software`.
            on_verdict: Called by the thread that asks `answer` and `compare`, when `settle` has work; is told
                whether that is urgent, because frames fail or are answered badly.
        Raises: DeviceError.
        """
        self._settings = settings
        self._software = software
        self._on_verdict = on_verdict
        self._boot = boot_id()
        self._beside: Beside | None = None
        self._compare_after = float("-inf")
        self._drift: DriftWatch | None = None
        self.sent_back: dict[str, Any] = {}
        self.slots = Slots(settings.device.state_dir)
        self._recent = RecentAnswers(settings.probation.unsure_below)
        self._probation = self._resume_probation()
        self._holder = ClassifierHolder(open_best_slot(self.slots, settings.device.threads))
        self.slots.clean()
        self._watch_drift()

    @property
    def serves(self) -> bool:
        """Whether a release serves."""
        return self._holder.current is not None

    @property
    def release(self) -> str | None:
        """The release that serves."""
        return None if self._holder.current is None else self._holder.current.release

    @property
    def newest(self) -> str | None:
        """The release that answers beside the serving one, else the serving one."""
        return self.slots.current if self._beside is None else self._beside.shadow.release

    def moment(self) -> dict[str, Any]:
        """Return what of the status is read when it is sent."""
        beside, drift = self._beside, self._drift
        return {
            "shadow": beside.shadow.figures() if beside is not None else None,
            "drift": drift.figures() if drift is not None else None,
        }

    def close(self) -> None:
        """The daemon ends because it was told to, and not because of a release."""
        with contextlib.suppress(DeviceError):
            if record := self.slots.probation:
                self.slots.keep_probation(msgspec.structs.replace(record, crashes=STOPPED))
            if record := self.slots.shadow:
                seconds = self._beside.shadow.seconds(time.monotonic()) if self._beside else record.seconds
                self.slots.keep_shadow(msgspec.structs.replace(record, crashes=STOPPED, seconds=seconds))

    # Frames

    def answer(self, pixels: NDArray[np.uint8]) -> tuple[Prediction, str | None] | None:
        """Return what the serving release says, and its id; None if none serves yet.

        Args:
            pixels: (H, W, 3) uint8 RGB.
        Raises: InputError, DeviceError if it fails on this frame.
        """
        classifier, probation = self._holder.current, self._probation
        if classifier is None:
            return None
        watched = probation if probation is not None and probation.release == classifier.release else None
        try:
            answer = classifier.classify(pixels)
        except EdgeError as e:
            if watched is not None and watched.failed(str(e)):
                self._tell(watched)
            if (beside := self._beside) is not None and beside.shadow.unanswered():
                self._on_verdict(False)
            raise
        self._recent.take(answer.latency_ms, answer.confidence)
        drift = self._drift
        if drift is not None and drift.release == classifier.release:
            drift.take(answer.index, answer.confidence)
        if watched is not None and watched.answered(answer.latency_ms, answer.confidence, time.monotonic()):
            self._tell(watched)
        return answer, classifier.release

    def compare(self, pixels: NDArray[np.uint8], before: Prediction) -> Prediction | None:
        """Let a release that is beside the serving one answer too, if there is one and time for it.

        Comparing takes half of the time at most: a camera's next frame must not wait for it.

        Args:
            pixels: (H, W, 3) uint8 RGB.
            before: What the serving release says of them.
        Returns: What the other one says.
        """
        beside, started = self._beside, time.monotonic()
        if beside is None or beside.shadow.breach is not None or started < self._compare_after:
            return None
        try:
            new = beside.classifier.classify(pixels)
        except EdgeError as e:
            if beside.shadow.failed(str(e)):
                self._on_verdict(False)
            return None
        now = time.monotonic()
        self._compare_after = now + 2 * (now - started)
        if beside.shadow.compare(before, new, now):
            self._on_verdict(False)
        return new

    def _tell(self, probation: Probation) -> None:
        self._on_verdict(probation.verdict is not None and bool(probation.verdict.breach))

    # Changes

    def take(self, outcome: UpdateOutcome, before_swap: Callable[[UpdateOutcome], None]) -> None:
        """Let a release that a look took serve, or first answer beside the one that serves.

        Args:
            outcome: Of the look.
            before_swap: Called right before the first frame can see the release.
        Raises: RefusedError; DeviceError, with the old release serving.
        """
        if self._settings.shadow.seconds > 0 and self.serves and outcome.release != self.slots.previous:
            self._begin_shadow(outcome)
        else:  # also on the way back, which is short
            self._beside = None
            self._let_serve(outcome, before_swap)

    def settle(self, before_swap: Callable[[UpdateOutcome], None]) -> dict[str, Any] | None:
        """Carry out the verdicts that are there.

        Args:
            before_swap: As for `take`.
        Returns: Changes to the status; None if there was no verdict.
        Raises: DeviceError or InputError if one cannot be carried out; what served goes on serving.
        """
        if self._probation is not None and self._probation.verdict is not None:
            return self._settle_probation(self._probation)
        if self._beside is not None:
            self._beside.shadow.give_up_waiting(time.monotonic())
            if self._beside.shadow.breach is not None:
                return self._settle_shadow(self._beside, before_swap)
        return None

    def drop_shadow(self) -> None:
        """The channel moved on: nothing answers beside the serving release any more.

        Raises: DeviceError.
        """
        self._beside = None
        if self.slots.shadow is not None:
            self.slots.keep_shadow(None)
            self.slots.clean_slots()

    def _let_serve(
        self,
        outcome: UpdateOutcome,
        before_swap: Callable[[UpdateOutcome], None],
        loaded: Classifier | None = None,
    ) -> None:
        def begin() -> None:
            self._begin_watching()
            before_swap(outcome)

        let_serve(
            outcome.release,
            self.slots,
            self._holder,
            software=self._software,
            threads=self._settings.device.threads,
            loaded=loaded,
            probation=self._begin_probation(outcome.release),
            before_swap=begin,
        )
        logger.info("release %s serves; %d bytes pulled", outcome.release, outcome.bytes_pulled)

    def _begin_watching(self) -> None:
        """Watch the release that has just become current."""
        self._recent = RecentAnswers(self._settings.probation.unsure_below)
        self._watch_drift()
        record = self.slots.probation
        self._probation = self._watch(record) if record is not None else None

    def _watch(self, record: ProbationRecord) -> Probation:
        budget_ms = self._settings.device.latency_budget_ms
        return Probation(record, self._settings.probation, time.monotonic(), budget_ms)

    def _watch_drift(self) -> None:
        """Compare the current release's answers with those on its hold-out, where they are known."""
        self._drift = None
        if self.slots.current is None:
            return
        with contextlib.suppress(EdgeError):  # a release that cannot be read does not serve either
            document = read_release(self.slots.folder(self.slots.current))
            hold_out = document.hold_out
            if hold_out is not None and len(hold_out.labels) == len(document.labels) and hold_out.confidence:
                self._drift = DriftWatch(document.release, hold_out)

    # Shadow

    def _begin_shadow(self, outcome: UpdateOutcome) -> None:
        """Load a release beside the serving one.

        Raises: RefusedError, also if the daemon did not survive it before; DeviceError.
        """
        release = outcome.release
        if self._beside is not None and self._beside.shadow.release == release:
            return
        self._beside = None
        known = self.slots.shadow
        if known is None or known.release != release:
            known = ProbationRecord(release=release, crashes=STOPPED)
        record = begun_again(known, self._boot)
        with refusing(self.slots, release, self._software):
            if loop := find_loop(record):
                msg = f"{loop} while it answered beside another"
                raise InputError(msg)
            self.slots.keep_shadow(record)
            classifier = open_slot(self.slots.folder(release), self._settings.device.threads)
        shadow = Shadow(
            release,
            self._settings.shadow,
            self._settings.probation,
            time.monotonic(),
            elapsed_s=record.seconds,
            budget_ms=self._settings.device.latency_budget_ms,
        )
        self._beside = Beside(classifier, shadow, outcome)
        logger.info("release %s answers beside %s", release, self.slots.current)
        self.slots.clean_slots()

    def _settle_shadow(self, beside: Beside, before_swap: Callable[[UpdateOutcome], None]) -> dict[str, Any]:
        figures = beside.shadow.figures()
        try:
            with refusing(self.slots, figures.release, self._software):
                if beside.shadow.breach:
                    msg = f"beside the serving release it {beside.shadow.breach}"
                    raise InputError(msg)
        except RefusedError as e:
            self._beside = None
            self.slots.clean_slots()
            return {"last_error": str(e), "refused": figures.release, "why": str(e)}
        agreed = (
            f"agreed with the release before on {figures.agreement or 0:.0%} of {figures.frames} frames, at "
            f"{figures.latency_ms} ms a frame beside {figures.latency_before_ms}"
        )
        logger.info("release %s %s", figures.release, agreed)
        self._let_serve(beside.outcome, before_swap, beside.classifier)
        self._beside = None
        return {
            "last_error": None,
            "why": f"channel {self._settings.device.channel} points to it; it {agreed}",
        }

    # Probation

    def _begin_probation(self, release: str) -> ProbationRecord | None:
        """Compare a new release with the serving one; there must be one to go back to."""
        if self.slots.current is None or not self._settings.probation.frames:
            return None
        record, watched = self._recent.as_record(release, self._boot), self.slots.probation
        if watched is None or self.slots.previous in {None, release}:
            return record
        # What serves has proven nothing itself: the one before both is what counts, and stays the way back.
        return msgspec.structs.replace(
            record, latency_ms=watched.latency_ms, unsure_share=watched.unsure_share
        )

    def _resume_probation(self) -> Probation | None:
        """Go on after a restart; a release whose probation the daemon did not survive goes back."""
        record = self.slots.probation
        if record is None:
            return None
        try:
            return self._count_start(record)
        except DeviceError as e:
            logger.warning("%s; release %s serves on, its probation is not counted", e, record.release)
            return None

    def _count_start(self, record: ProbationRecord) -> Probation | None:
        record = begun_again(record, self._boot)
        if (loop := find_loop(record)) and self.slots.previous is not None:
            reason = f"{loop} in its probation"
            logger.error("release %s goes back: %s", record.release, reason)
            self.slots.send_back(f"sent back: {reason}", self._software)
            self.sent_back = _sent_back(record.release, reason)
            return None
        self.slots.keep_probation(record)
        return self._watch(record)

    def _settle_probation(self, probation: Probation) -> dict[str, Any]:
        """Carry out a verdict; it stays where that fails."""
        if probation.verdict is not None and probation.verdict.breach and self.slots.previous is not None:
            changes = self._send_back(probation.release, probation.verdict.breach)
        else:
            self.slots.keep_probation(None)
            logger.info("release %s has passed its probation", probation.release)
            changes = {}
        self._probation = None
        return changes

    def _send_back(self, broken: str, breach: str) -> dict[str, Any]:
        """Let the previous release serve again, also if the disk refuses to remember that.

        Raises: DeviceError or InputError if it cannot be loaded or remembered.
        """
        reason = f"{breach} in its probation"
        logger.error("release %s is sent back: %s", broken, reason)
        old = open_slot(self.slots.folder(self.slots.previous or ""), self._settings.device.threads)
        self._holder.swap(old)
        self._recent = RecentAnswers(self._settings.probation.unsure_below)
        self.slots.send_back(f"sent back: {reason}", self._software)
        self.drop_shadow()  # it was compared with another; the next look begins anew
        self._watch_drift()
        self.slots.clean_slots()
        return _sent_back(broken, reason)


def _sent_back(release: str, reason: str) -> dict[str, Any]:
    why = f"release {release} was sent back: {reason}"
    return {"last_error": why, "refused": release, "why": why}
