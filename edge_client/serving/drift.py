"""Drift: distance between a camera's answers and those on the hold-out that the release was evaluated on.

Labels and confidence are compared by the population stability index: sum of (p - q) ln(p / q) over the bins
of two distributions. Below 0.1 is usually called stable, above 0.25 a shift. A camera that sees one kind of
thing all day has a high index of labels without anything being wrong; a change in it means more than its
level. Source: Yurdakul, "Statistical Properties of Population Stability Index", 2018.

The alarm is a test of its own, of the confidence alone: see `drift_alarm`. The watch survives a restart.
"""

from __future__ import annotations

import collections
import logging
import math
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_compact
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.messages import Drift
from edge_client.disk import write_durably
from edge_client.serving.drift_alarm import DriftAlarm

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from edge_client.contract.release import HoldOut
    from edge_client.settings.serving import DriftSettings

logger = logging.getLogger(__name__)

WINDOW = 1000
# With fewer answers, chance varies as much as a shift.
LEAST_ANSWERS = 200
# In the state folder of the channel.
DRIFT_FILE = "drift.json"
# The file is written at the end, and at most so often before: about 10 kB, 1 MB a day.
KEEP_EVERY_S = 900.0
# Added to every bin: one that is empty on one side would make the index infinite.
_PRIOR = 0.5
_FILE_LIMIT_BYTES = 100_000


class DriftRecord(Document, frozen=True, kw_only=True):
    """A watch over a restart.

    Attributes:
        release: The release whose answers these are.
        answers: Index of the label, and bin of the confidence, of the last answers.
        spaced: Bins of the answers that count for the alarm.
        fresh: Answers of these since the last test.
        since: When the alarm was raised, UTC, ISO 8601; None without one.
        shift: Of the last test.
    """

    release: str
    answers: tuple[tuple[int, int], ...] = ()
    spaced: tuple[int, ...] = ()
    fresh: int = 0
    since: str | None = None
    shift: float | None = None


class DriftWatch:
    """The last answers of one release."""

    def __init__(
        self,
        release: str,
        hold_out: HoldOut,
        settings: DriftSettings | None = None,
        *,
        every_s: float = 0.0,
        record: DriftRecord | None = None,
    ) -> None:
        """Start, or go on where a record ends.

        Args:
            release: The release.
            hold_out: Its predictions on the hold-out.
            settings: Of the alarm; None: no alarm.
            every_s: Seconds between two answers that count for the alarm.
            record: Of an earlier run; ignored if it is of another release, or does not fit.
        """
        self.release = release
        self._hold_out = hold_out
        self._answers: collections.deque[tuple[int, int]] = collections.deque()
        self._labels = [0] * len(hold_out.labels)
        self._confidence = [0] * len(hold_out.confidence)
        self._every_s = every_s
        self._counted_at = float("-inf")
        self.alarm = None if settings is None else DriftAlarm(release, hold_out.confidence, settings)
        if record is not None and record.release == release:
            self._resume(record)

    def add(self, index: int, confidence: float, now: float = 0.0) -> None:
        """Add an answer: the index of its label, and its score in [0, 1], at `now`, monotonic seconds."""
        bins = len(self._confidence)
        answer = (index, min(max(int(confidence * bins), 0), bins - 1))
        self._append(answer)
        if self.alarm is not None and now - self._counted_at >= self._every_s:
            self._counted_at = now
            self.alarm.add(answer[1])

    def metrics(self) -> Drift | None:
        """Return both indices and the alarm; None while there are too few answers."""
        if len(self._answers) < LEAST_ANSWERS:
            return None
        return Drift(
            answers=len(self._answers),
            labels=round(stability_index(self._hold_out.labels, self._labels), 4),
            confidence=round(stability_index(self._hold_out.confidence, self._confidence), 4),
            shift=None if self.alarm is None else self.alarm.shift,
            alarm=self.alarm is not None and self.alarm.since is not None,
            since=None if self.alarm is None else self.alarm.since,
        )

    def record(self) -> DriftRecord:
        """Return what a restart goes on with."""
        alarm = self.alarm
        return DriftRecord(
            release=self.release,
            answers=tuple(self._answers),
            spaced=() if alarm is None else tuple(alarm.bins),
            fresh=0 if alarm is None else alarm.fresh,
            since=None if alarm is None else alarm.since,
            shift=None if alarm is None else alarm.shift,
        )

    def _resume(self, record: DriftRecord) -> None:
        labels, bins = range(len(self._labels)), range(len(self._confidence))
        if not all(index in labels and one in bins for index, one in record.answers):
            return
        for answer in record.answers[-WINDOW:]:
            self._append(answer)
        if self.alarm is not None and all(one in bins for one in record.spaced):
            self.alarm.resume(record.spaced, record.fresh, record.since, record.shift)

    def _append(self, answer: tuple[int, int]) -> None:
        self._answers.append(answer)
        self._count(answer, 1)
        if len(self._answers) > WINDOW:
            self._count(self._answers.popleft(), -1)

    def _count(self, answer: tuple[int, int], by: int) -> None:
        self._labels[answer[0]] += by
        self._confidence[answer[1]] += by


def read_record(file: Path) -> DriftRecord | None:
    """Return the record of an earlier run; None without one that can be read: the watch begins anew."""
    try:
        return decode_document(
            DriftRecord, file.read_bytes(), source=str(file), limit_bytes=_FILE_LIMIT_BYTES
        )
    except FileNotFoundError:
        return None
    except (OSError, InputError) as e:
        logger.warning("%s; drift is watched from now on", e)
        return None


def keep_record(file: Path, record: DriftRecord) -> None:
    """Write a record; where the disk does not take it, a restart begins anew."""
    try:
        write_durably(file, encode_compact(record))
    except DeviceError as e:
        logger.warning("%s; drift would be watched anew after a restart", e)


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Return the index of two histograms over the same bins; 0 if they are equal, see the source above."""
    p, q = _shares(expected), _shares(found)
    return sum((b - a) * math.log(b / a) for a, b in zip(p, q, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _PRIOR * len(counts)
    return [(count + _PRIOR) / total for count in counts]
