"""Probation: a new serving release is compared with the one before, and rolled back if it does worse.

The self-test has a few pictures; only this camera's own frames show how good a release is here.
Pure: values in, a verdict out; no disk, no threads.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import statistics

import msgspec

from edge_client.settings.serving import LEAST_FRAMES, ProbationSettings
from edge_client.update.endings import Ending
from edge_client.update.slots_document import ProbationRecord

# Predictions of the serving release that the next release is compared with.
RECENT_FRAMES = 200
# Failed frames that roll a release back: at least so many, and more than this share of all.
FAILURES, FAILED_SHARE = 5, 0.05
# Noise of timers and other processes.
LATENCY_GRACE_MS = 2.0
# Crashes inside a release's model that refuse it.
MODEL_CRASHES = 2
# Ends of the daemon for an unknown reason, in a row, and power cuts. Both prove little: whoever kills a
# process or pulls a plug says nothing. But a release under which nothing works must end, as one that takes
# all memory.
ENDS, POWER_CUTS = 10, 10
# Recorded by a requested stop: the next start adds one.
STOPPED = -1


class LastEnd(enum.Enum):
    """How the last run of the daemon ended, as far as this start can tell."""

    UNKNOWN = "killed, by whomever, or the power went"
    PICTURE = "it died at a picture that it was decoding"
    SOURCE = "it was aborted while a camera or disk did not answer"
    SERVING_MODEL = "it crashed inside the model of the serving release"
    SHADOW_MODEL = "it crashed inside the model of the release in shadow mode"
    COUNTED = "this start has counted it already"


def count_restart(
    record: ProbationRecord, boot: str, end: LastEnd = LastEnd.UNKNOWN, own: LastEnd = LastEnd.SERVING_MODEL
) -> ProbationRecord:
    """Count a restart.

    Args:
        record: Record that the last run of the daemon left.
        boot: Id of this boot.
        end: How that run ended.
        own: The end that is this release's fault. The model of another one, or a picture, is not.
    """
    if end is own:
        return msgspec.structs.replace(record, model_crashes=record.model_crashes + 1, boot=boot)
    if end is not LastEnd.UNKNOWN:
        return msgspec.structs.replace(record, crashes=max(record.crashes, 0), boot=boot)
    if record.crashes != STOPPED and record.boot and boot and record.boot != boot:
        return msgspec.structs.replace(record, power_cuts=record.power_cuts + 1, boot=boot)
    return msgspec.structs.replace(record, crashes=record.crashes + 1, boot=boot)


def find_loop(record: ProbationRecord) -> tuple[Ending, str] | None:
    """Return how a release failed if the daemon ended too often under it, and the reason; else None."""
    if record.model_crashes >= MODEL_CRASHES:
        return Ending.CRASHED_SERVING, f"the daemon crashed inside its model {record.model_crashes} times"
    if record.crashes >= ENDS:
        return Ending.DAEMON_ENDED, f"the daemon ended {record.crashes} times in a row without a request"
    if record.power_cuts >= POWER_CUTS:
        return Ending.DAEMON_ENDED, f"the machine lost power or rebooted {record.power_cuts} times"
    return None


class RecentPredictions:
    """The last predictions of the serving release."""

    def __init__(self, unsure_below: float) -> None:
        self._unsure_below = unsure_below
        self._predictions: collections.deque[tuple[float, bool]] = collections.deque(maxlen=RECENT_FRAMES)

    def add(self, latency_ms: float, confidence: float) -> None:
        """Add one prediction."""
        self._predictions.append((latency_ms, confidence < self._unsure_below))

    def __len__(self) -> int:
        return len(self._predictions)

    @property
    def latency_ms(self) -> float:
        """Median latency."""
        return statistics.median(latency for latency, _ in self._copy())

    @property
    def unsure_share(self) -> float:
        """Share of unsure predictions, 0 to 1."""
        return statistics.fmean(unsure for _, unsure in self._copy())

    def _copy(self) -> tuple[tuple[float, bool], ...]:
        """Return a snapshot of the predictions, in one step: another thread may be adding to them."""
        return tuple(self._predictions)

    def as_record(self, release: str, boot: str = "") -> ProbationRecord:
        """Return the record that the probation of the next release starts with."""
        if len(self) < LEAST_FRAMES:
            return ProbationRecord(release=release, boot=boot)
        return ProbationRecord(
            release=release,
            boot=boot,
            latency_ms=round(self.latency_ms, 4),
            unsure_share=round(self.unsure_share, 4),
        )


@dataclasses.dataclass(frozen=True)
class Breach:
    """How a release is worse than it may be, and what that says of it."""

    ending: Ending
    reason: str


@dataclasses.dataclass(frozen=True)
class ProbationVerdict:
    """Verdict of a probation; `breach` is why the release is rolled back, None if it passed."""

    breach: Breach | None = None


class Probation:
    """Watches one release; one thread reports every frame to it."""

    def __init__(
        self, record: ProbationRecord, settings: ProbationSettings, started: float, budget_ms: float = 0.0
    ) -> None:
        """Start a probation.

        Args:
            record: The release, and measurements of the one before.
            settings: Limits.
            started: Monotonic seconds.
            budget_ms: Longest median latency, whatever the release before took; 0: no limit.
        """
        self._budget_ms = budget_ms
        self.release = record.release
        self._record = record
        self._settings = settings
        self._started = started
        self._recent = RecentPredictions(settings.unsure_below)
        self._predicted = self._failed = 0
        self.verdict: ProbationVerdict | None = None

    def predicted(self, latency_ms: float, confidence: float, now: float) -> bool:
        """Add a prediction at `now` (monotonic seconds); return whether there is a verdict."""
        self._recent.add(latency_ms, confidence)
        self._predicted += 1
        over = self._predicted >= self._settings.frames or now - self._started >= self._settings.seconds
        if self.verdict is None and (over or self._predicted % LEAST_FRAMES == 0):
            breach = self._compare()
            if breach or over:
                self.verdict = ProbationVerdict(breach)
        return self.verdict is not None

    def failed(self, reason: str, ending: Ending = Ending.FRAMES_FAILED) -> bool:
        """Add a frame that the release failed on, and how; return whether there is a verdict."""
        self._failed += 1
        breach = find_failure(self._failed, self._predicted, reason, ending)
        if self.verdict is None and breach:
            self.verdict = ProbationVerdict(breach)
        return self.verdict is not None

    def _compare(self) -> Breach | None:
        before = self._record
        if len(self._recent) < LEAST_FRAMES:
            return None
        if slow := find_slow(self._recent, self._budget_ms):
            return slow
        if before.latency_ms is None or before.unsure_share is None:
            return None
        return find_breach(before.latency_ms, before.unsure_share, self._recent, self._settings)


def find_slow(now: RecentPredictions, budget_ms: float) -> Breach | None:
    """Return the breach if a release exceeds the latency budget, else None."""
    if budget_ms and now.latency_ms > budget_ms:
        reason = f"{now.latency_ms:.1f} ms a frame ([device] latency_budget_ms is {budget_ms:g})"
        return Breach(Ending.SLOWER, reason)
    return None


def find_breach(
    latency_ms: float, unsure_share: float, now: RecentPredictions, limits: ProbationSettings
) -> Breach | None:
    """Return how a release is worse than the one before; None if it is not.

    Args:
        latency_ms: Median latency of the release before.
        unsure_share: Share of unsure predictions of the release before.
        now: Predictions of the new release.
        limits: How much worse a release may be.
    """
    if now.latency_ms > latency_ms * limits.max_slowdown + LATENCY_GRACE_MS:
        return Breach(
            Ending.SLOWER,
            f"{now.latency_ms:.1f} ms a frame, the release before took {latency_ms:.1f} ms "
            "([probation] max_slowdown)",
        )
    if (now.unsure_share - unsure_share) * 100 > limits.max_unsure_points:
        return Breach(
            Ending.WORSE,
            f"unsure of {now.unsure_share:.0%} of the frames, the release before of {unsure_share:.0%} "
            "([probation] max_unsure_points)",
        )
    return None


def find_failure(failed: int, predicted: int, reason: str, ending: Ending) -> Breach | None:
    """Return the breach if too many frames failed, the last one with this reason, else None."""
    frames = failed + predicted
    if failed >= FAILURES and failed / frames > FAILED_SHARE:
        return Breach(ending, f"{failed} of {frames} frames failed: {reason}")
    return None
