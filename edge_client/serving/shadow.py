"""Shadow mode: a new release is compared with the serving one on the same live frames before it may serve.

Its predictions are not published; agreement, confidence and latency go into the status. Pure: values in, a
verdict out; no disk, no threads. Probation follows once the release serves.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.messages import Comparison
from edge_client.serving.probation import Breach, RecentPredictions, find_breach, find_failure, find_slow
from edge_client.settings.serving import LEAST_FRAMES, ShadowSettings
from edge_client.settings.serving import ProbationSettings as Limits
from edge_client.update.endings import Ending

if TYPE_CHECKING:
    from edge_client.inference.classifier import Classifier, Prediction
    from edge_client.update.decision import UpdateOutcome

# With few frames, shadow mode ends after so many times `[shadow] seconds`, and an hour.
LONGEST, LEAST_WAIT_S = 4, 3600.0


class Shadow:
    """Comparison of two releases; one thread reports every frame to it.

    Attributes:
        release: The new release.
        over: Whether there is a verdict.
        breach: Why the new release must not serve, once there is a verdict; None if it may.
    """

    def __init__(
        self,
        release: str,
        settings: ShadowSettings,
        limits: Limits,
        started: float,
        *,
        elapsed_s: float = 0.0,
        budget_ms: float = 0.0,
    ) -> None:
        """Start a comparison.

        Args:
            release: The new release.
            settings: Duration and the least agreement.
            limits: How much worse it may be otherwise.
            started: Monotonic seconds.
            elapsed_s: Duration before a restart.
            budget_ms: Longest median latency, whatever the serving release takes; 0: no limit.
        """
        self.release = release
        self._budget_ms = budget_ms
        self._settings = settings
        self._limits = limits
        self._started, self._now = started - elapsed_s, started
        self._before = RecentPredictions(limits.unsure_below)
        self._new = RecentPredictions(limits.unsure_below)
        self._frames = self._agreed = self._failed = self._serving_failures = 0
        self.breach: Breach | None = None
        self.over = False

    def compare(self, before: Prediction, new: Prediction, now: float) -> bool:
        """Add the predictions for a frame at `now` (monotonic seconds); return whether there is a verdict."""
        self._now = now
        self._before.add(before.latency_ms, before.confidence)
        self._new.add(new.latency_ms, new.confidence)
        self._agreed += before.label == new.label
        self._frames += 1
        over = now - self._started >= self._settings.seconds and self._frames >= LEAST_FRAMES
        if not self.over and over:
            self._end(self._judge())
        return self.over

    def failed(self, reason: str, ending: Ending = Ending.FRAMES_FAILED) -> bool:
        """Add a frame that the new release failed on, and how; return whether there is a verdict."""
        self._failed += 1
        if not self.over and (breach := find_failure(self._failed, self._frames, reason, ending)):
            self._end(breach)
        return self.over

    def serving_failed(self) -> bool:
        """Add a frame that the serving release failed on; return whether there is a verdict.

        A serving release that fails on most frames is no standard to compare with: the new one passes.
        """
        self._serving_failures += 1
        fails_mostly = self._serving_failures >= LEAST_FRAMES and self._serving_failures > self._frames
        if not self.over and fails_mostly:
            self._end(None)
        return self.over

    def seconds(self, now: float) -> float:
        """Return the duration so far."""
        return now - self._started

    def give_up_waiting(self, now: float) -> None:
        """Pass a release that saw few frames for so long that more are unlikely."""
        if not self.over and self.seconds(now) > LONGEST * self._settings.seconds + LEAST_WAIT_S:
            self._end(None)

    def metrics(self) -> Comparison:
        """Return the comparison so far, for the status."""
        return Comparison(
            release=self.release,
            frames=self._frames,
            agreement=round(self._agreed / self._frames, 4) if self._frames else None,
            latency_ms=round(self._new.latency_ms, 3) if self._frames else None,
            latency_before_ms=round(self._before.latency_ms, 3) if self._frames else None,
            seconds_left=round(max(self._started + self._settings.seconds - self._now, 0.0), 1),
        )

    def _end(self, breach: Breach | None) -> None:
        self.breach, self.over = breach, True

    def _judge(self) -> Breach | None:
        agreement = self._agreed / self._frames * 100
        if agreement < self._settings.min_agreement_percent:
            return Breach(
                Ending.WORSE,
                f"agreed with the serving release on {agreement:.0f}% of {self._frames} frames "
                "([shadow] min_agreement_percent)",
            )
        if slow := find_slow(self._new, self._budget_ms):
            return slow
        return find_breach(self._before.latency_ms, self._before.unsure_share, self._new, self._limits)


@dataclasses.dataclass(frozen=True)
class ShadowRelease:
    """A release that is compared with the serving one and does not serve yet.

    Attributes:
        classifier: Its model, loaded.
        comparison: Running comparison with the serving release.
        outcome: Outcome of the update check that brought it.
    """

    classifier: Classifier
    comparison: Shadow
    outcome: UpdateOutcome
