"""Probation: a release that was swapped in is watched beside the one before, and sent back if it does worse.

The self-test knows a few pictures; only this camera's own frames show what a release is worth here.
Values in, a verdict out: no disk, no threads.
"""

from __future__ import annotations

import collections
import dataclasses
import statistics

import msgspec

from edge_client.settings.serving import LEAST_FRAMES, ProbationSettings
from edge_client.update.slots import ProbationRecord

# Answers of the serving release that the next one is compared with.
RECENT_FRAMES = 200
# Failed frames: so many, and such a share of all.
FAILURES, FAILED_SHARE = 5, 0.05
# Timers and other processes; below it nobody feels a difference.
LATENCY_GRACE_MS = 2.0
# Unclean ends of the daemon in one probation; with the whole machine, as where somebody pulls the plug, more.
CRASHES, POWER_CUTS = 3, 10
# What a clean end leaves: the next start adds one.
STOPPED = -1


def begun_again(record: ProbationRecord, boot: str) -> ProbationRecord:
    """Count a start of the daemon after an end that nobody may have wanted.

    Args:
        record: As it was left.
        boot: The boot of now.
    """
    if record.crashes != STOPPED and record.boot and boot and record.boot != boot:
        return msgspec.structs.replace(record, power_cuts=record.power_cuts + 1, boot=boot)
    return msgspec.structs.replace(record, crashes=record.crashes + 1, boot=boot)


def find_loop(record: ProbationRecord) -> str:
    """Say that the daemon does not survive a release; empty if it does."""
    if record.crashes >= CRASHES:
        return f"the daemon ended {record.crashes} times without warning"
    if record.power_cuts >= POWER_CUTS:
        return f"the machine went down {record.power_cuts} times"
    return ""


class RecentAnswers:
    """The last answers of the serving release."""

    def __init__(self, unsure_below: float) -> None:
        self._unsure_below = unsure_below
        self._answers: collections.deque[tuple[float, bool]] = collections.deque(maxlen=RECENT_FRAMES)

    def take(self, latency_ms: float, confidence: float) -> None:
        """Count one answer."""
        self._answers.append((latency_ms, confidence < self._unsure_below))

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def latency_ms(self) -> float:
        """Median."""
        return statistics.median(latency for latency, _ in self._copy())

    @property
    def unsure_share(self) -> float:
        """0 to 1."""
        return statistics.fmean(unsure for _, unsure in self._copy())

    def _copy(self) -> tuple[tuple[float, bool], ...]:
        """Return the answers as of now, in one step: another thread may add to them meanwhile."""
        return tuple(self._answers)

    def as_record(self, release: str, boot: str = "") -> ProbationRecord:
        """Begin the probation of the release that follows."""
        if len(self) < LEAST_FRAMES:
            return ProbationRecord(release=release, boot=boot)
        return ProbationRecord(
            release=release,
            boot=boot,
            latency_ms=round(self.latency_ms, 4),
            unsure_share=round(self.unsure_share, 4),
        )


@dataclasses.dataclass(frozen=True)
class ProbationVerdict:
    """How it ended; `breach` is why the release goes back, empty if it passed."""

    breach: str = ""


class Probation:
    """Watches one release; one thread tells it of every frame."""

    def __init__(
        self, record: ProbationRecord, settings: ProbationSettings, started: float, budget_ms: float = 0.0
    ) -> None:
        """Begin.

        Args:
            record: Which release, and how the one before did.
            settings: The limits.
            started: Monotonic seconds.
            budget_ms: Longest median latency, whatever the release before took; 0: none.
        """
        self._budget_ms = budget_ms
        self.release = record.release
        self._record = record
        self._settings = settings
        self._started = started
        self._recent = RecentAnswers(settings.unsure_below)
        self._answered = self._failed = 0
        self.verdict: ProbationVerdict | None = None

    def answered(self, latency_ms: float, confidence: float, now: float) -> bool:
        """Take an answer at `now` (monotonic seconds); True once there is a verdict."""
        self._recent.take(latency_ms, confidence)
        self._answered += 1
        over = self._answered >= self._settings.frames or now - self._started >= self._settings.seconds
        if self.verdict is None and (over or self._answered % LEAST_FRAMES == 0):
            breach = self._compare()
            if breach or over:
                self.verdict = ProbationVerdict(breach)
        return self.verdict is not None

    def failed(self, reason: str) -> bool:
        """Take a frame that the release could not answer; True once there is a verdict."""
        self._failed += 1
        breach = find_failure(self._failed, self._answered, reason)
        if self.verdict is None and breach:
            self.verdict = ProbationVerdict(breach)
        return self.verdict is not None

    def _compare(self) -> str:
        before = self._record
        if len(self._recent) < LEAST_FRAMES:
            return ""
        if slow := find_slow(self._recent, self._budget_ms):
            return slow
        if before.latency_ms is None or before.unsure_share is None:
            return ""
        return find_breach(before.latency_ms, before.unsure_share, self._recent, self._settings)


def find_slow(now: RecentAnswers, budget_ms: float) -> str:
    """Say that a release takes longer than this device may; empty if it does not, or there is no limit."""
    if budget_ms and now.latency_ms > budget_ms:
        return f"{now.latency_ms:.1f} ms a frame ([device] latency_budget_ms is {budget_ms:g})"
    return ""


def find_breach(latency_ms: float, unsure_share: float, now: RecentAnswers, limits: ProbationSettings) -> str:
    """Say in what a release does worse than the one before; empty if it does not.

    Args:
        latency_ms: Median of the release before.
        unsure_share: Share of its answers that were unsure.
        now: Answers of the release that is judged.
        limits: What may be worse.
    """
    if now.latency_ms > latency_ms * limits.max_slowdown + LATENCY_GRACE_MS:
        return (
            f"{now.latency_ms:.1f} ms a frame, the release before took {latency_ms:.1f} ms "
            "([probation] max_slowdown)"
        )
    if (now.unsure_share - unsure_share) * 100 > limits.max_unsure_points:
        return (
            f"unsure of {now.unsure_share:.0%} of the frames, the release before of {unsure_share:.0%} "
            "([probation] max_unsure_points)"
        )
    return ""


def find_failure(failed: int, answered: int, reason: str) -> str:
    """Say that too many frames failed; empty if they did not."""
    frames = failed + answered
    if failed >= FAILURES and failed / frames > FAILED_SHARE:
        return f"{failed} of {frames} frames failed: {reason}"
    return ""
