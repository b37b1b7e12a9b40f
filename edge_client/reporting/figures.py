"""Figures of a channel's releases on this device since their activation, kept over restarts.

Per frame, two numbers are put into a table in memory. The file is written at a start (it counts the starts),
at a verdict, at a requested stop, and at most every `KEEP_EVERY_S` besides, sooner after a start: writing
wears out an SD card. So whoever kills the daemon, or pulls the plug, takes at most the figures of so long,
and a release that crashes every few minutes is seen to have served meanwhile.

Totals never fall within one start. After a kill they go on from the file, below what was reported last, and
`start` is another one: a reader that adds up differences adds nothing for a total that fell. They go on where
a device goes back to a release. One that failed and is tried again, or was dropped from the device and comes
back, begins anew, with another `activated_at`.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_compact
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.report import (
    FETCHING,
    LABELS_AT_MOST,
    LATENCY_BINS,
    PASSED,
    PROBATION,
    RUNNING,
    SENT_BACK,
    SHADOW,
    ReleaseFigures,
    latency_bin,
)
from edge_client.contract.text import one_line
from edge_client.contract.times import utc_now
from edge_client.disk import write_durably
from edge_client.rate_limit import RateLimit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

logger = logging.getLogger(__name__)

FIGURES_FILE = "figures.json"
# 3 kB a time, 1 MB a day; 10 more at once for verdicts, and one in 2 minutes after these.
FIRST_KEEP_S, KEEP_EVERY_S = 30.0, 300.0
KEPT_AT_ONCE, KEEP_INTERVAL_S = 10, 120.0
CONFIDENCE_BINS = 10
# A reason is cut to so many characters: three of them are in a report.
REASON_LIMIT = 500
_LABEL_LIMIT_BYTES = 64
_FILE_LIMIT_BYTES = 1 << 18


class FiguresDocument(Document, frozen=True, kw_only=True):
    """`figures.json`.

    Attributes:
        start: Number of the daemon's last start.
        stopped: Whether that run ended because somebody asked for it.
        serving: Release that served then; empty: none.
        shadow: Release in shadow mode then; empty: none.
        releases: Figures.
        runtime: Name and version of the TFLite runtime.
        operators: Highest version of each operator of the releases that served with it.
    """

    start: int = 0
    stopped: bool = True
    serving: str = ""
    shadow: str = ""
    releases: tuple[ReleaseFigures, ...] = ()
    runtime: str = ""
    operators: dict[str, int] = {}


@dataclasses.dataclass(frozen=True)
class Failed:
    """How a release failed on this device.

    Attributes:
        reason: For people.
        code: `Ending` of the client, in lower case.
        at: UTC, ISO 8601.
    """

    reason: str
    code: str
    at: str


@dataclasses.dataclass(frozen=True)
class Held:
    """The releases of a channel at one moment, as far as figures go.

    Attributes:
        serving: Serving release; empty: none.
        since: When it was activated, UTC, ISO 8601; empty if unknown.
        probation: Release on probation, whether or not it can serve now; empty: none.
        previous: Release kept for a rollback; empty: none.
        shadow: Release in shadow mode; empty: none.
        refused: Release that failed last, whether or not it is tried again; empty: none.
        failures: How releases failed.
        runtime: Name and version of the TFLite runtime; empty: there is none.
        operators: Highest version of each operator of the serving release.
    """

    serving: str = ""
    since: str = ""
    probation: str = ""
    previous: str = ""
    shadow: str = ""
    refused: str = ""
    failures: Mapping[str, Failed] = dataclasses.field(default_factory=dict)
    runtime: str = ""
    operators: Mapping[str, int] = dataclasses.field(default_factory=dict)


class _Tally:
    """Figures of one release, as they are counted."""

    def __init__(self, base: ReleaseFigures) -> None:
        self.base = base
        self.seconds, self.latency_ms = base.seconds, base.latency_ms
        self.frames, self.failed, self.unsure = base.frames, base.failed, base.unsure
        self.bins = [0] * LATENCY_BINS
        for name, count in base.latency.items():
            if name.isdecimal() and int(name) < LATENCY_BINS:
                self.bins[int(name)] = count
        self.confidence = [*base.confidence, *[0] * CONFIDENCE_BINS][:CONFIDENCE_BINS]
        self.labels = dict(base.labels)

    def count(self, latency_ms: float, confidence: float, label: str, *, unsure: bool) -> None:
        self.frames += 1
        self.latency_ms += latency_ms
        self.unsure += unsure
        self.bins[latency_bin(latency_ms)] += 1
        place = confidence * CONFIDENCE_BINS
        self.confidence[int(min(place, CONFIDENCE_BINS - 1)) if place > 0 else 0] += 1
        known = self.labels.get(label)
        if known is None and not self._has_place_for(label):
            label, known = "", self.labels.get("")
        self.labels[label] = (known or 0) + 1

    def _has_place_for(self, label: str) -> bool:
        return len(self.labels) < LABELS_AT_MOST - 1 and len(label.encode()) <= _LABEL_LIMIT_BYTES

    def figures(self) -> ReleaseFigures:
        return msgspec.structs.replace(
            self.base,
            seconds=round(self.seconds, 1),
            frames=self.frames,
            failed=self.failed,
            unsure=self.unsure,
            latency_ms=round(self.latency_ms, 3),
            latency={str(place): count for place, count in enumerate(self.bins) if count},
            confidence=tuple(self.confidence) if any(self.confidence) else (),
            labels=dict(self.labels),
        )


class Figures:
    """The figures of one channel. The thread of the frames counts; others read and write them."""

    def __init__(
        self,
        file: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_time: Callable[[], float] = time.time,
        now: Callable[[], str] = utc_now,
    ) -> None:
        """Go on with the figures of the last run, and count this start.

        Args:
            file: File of the figures; None: they are not kept.
            clock: Monotonic seconds.
            unix_time: Seconds since 1970: where the file was lost, starts are numbered from there on.
            now: Returns the time, UTC, ISO 8601.
        """
        self._file, self._clock, self._now = file, clock, now
        self._lock = threading.Lock()
        self._writes = RateLimit(KEPT_AT_ONCE, KEEP_INTERVAL_S, clock)
        before = read_figures(file) if file is not None else FiguresDocument()
        self._tallies = {one.release: _Tally(one) for one in before.releases}
        self._held = Held(serving=before.serving, shadow=before.shadow)
        self._runtime, self._operators = before.runtime, dict(before.operators)
        self._counted_at: float | None = None  # until `show` is called, it is not known what serves
        self._kept_at = clock()
        self._keep_after_s = FIRST_KEEP_S
        self._counted = False
        # Of a card that was written anew, or cannot be written, the clock alone tells that this is later.
        self.start = max(before.start + 1, int(unix_time()))
        if before.serving and not before.stopped:
            tally = self._tally(before.serving)
            tally.base = msgspec.structs.replace(tally.base, restarts=tally.base.restarts + 1)
        if file is not None:
            self._keep(stopped=False)

    def count(
        self, release: str | None, latency_ms: float, confidence: float, label: str, *, unsure: bool
    ) -> None:
        """Count a frame that a release classified."""
        with self._lock:
            self._counted = True
            self._tally(release or "").count(latency_ms, confidence, label, unsure=unsure)

    def count_failed(self, release: str | None) -> None:
        """Count a frame that a release failed on."""
        with self._lock:
            self._counted = True
            self._tally(release or "").failed += 1

    def show(self, held: Held) -> bool:
        """Note which releases there are; return whether a verdict fell, or another release serves."""
        with self._lock:
            self._pass_time()
            self._counted_at = self._clock()
            before, self._held = self._held, held
            self._ran(held)
            self._note_beginning(held)
            told = held.serving != before.serving
            for release, tally in self._tallies.items():
                if release and (verdict := self._verdict(release, tally.base, held, before)) is not None:
                    told = told or verdict.probation != tally.base.probation
                    tally.base = verdict
            if held.refused and held.refused in held.failures and held.refused not in self._tallies:
                self._note_refused(held.refused, held.failures[held.refused], before)
                told = True
            self._drop_others(held)
        if told and self._file is not None and self._writes.allows():
            self._keep(stopped=False)
        return told

    def report(self) -> tuple[ReleaseFigures, ...]:
        """Return the figures of the serving release, the previous one and the one that failed last."""
        with self._lock:
            self._pass_time()
            held = self._held
            wanted = dict.fromkeys((held.serving, held.previous, held.refused))
            return tuple(self._tallies[one].figures() for one in wanted if one and one in self._tallies)

    @property
    def operators(self) -> dict[str, int]:
        """Highest version of each operator of the releases that served with this runtime."""
        with self._lock:
            return dict(self._operators)

    def keep_if_due(self) -> None:
        """Write the file if frames were counted, and it is time; not in the thread of the frames."""
        if self._file is None or self._clock() - self._kept_at < self._keep_after_s:
            return
        if self._counted:
            self._keep_after_s = min(2 * self._keep_after_s, KEEP_EVERY_S)
            self._keep(stopped=False)

    def close(self) -> None:
        """Write the file, and that the daemon ends on request."""
        if self._file is not None:
            self._keep(stopped=True)

    def _tally(self, release: str) -> _Tally:
        tally = self._tallies.get(release)
        if tally is None:
            tally = self._tallies[release] = _Tally(ReleaseFigures(release=release, activated_at=self._now()))
        return tally

    def _pass_time(self) -> None:
        now = self._clock()
        if self._held.serving and self._counted_at is not None:
            self._tally(self._held.serving).seconds += now - self._counted_at
            self._counted_at = now

    def _ran(self, held: Held) -> None:
        """Note the operators that this runtime runs; another runtime may have others."""
        if held.runtime != self._runtime:
            self._runtime, self._operators = held.runtime, {}
        for name, version in held.operators.items():
            self._operators[name] = max(version, self._operators.get(name, 0))

    def _note_beginning(self, held: Held) -> None:
        for release in filter(None, dict.fromkeys((held.serving, held.probation))):
            known = self._tallies.get(release)
            if known is None or self._failed_before(known.base, held):
                since = (held.since if release == held.serving else "") or self._now()
                known = self._tallies[release] = _Tally(ReleaseFigures(release=release, activated_at=since))
            if release == held.probation and known.base.probation != RUNNING:
                known.base = msgspec.structs.replace(known.base, probation=RUNNING, ended_at="")

    def _failed_before(self, base: ReleaseFigures, held: Held) -> bool:
        """Return whether a release has failed before, and is tried anew: its totals begin anew, too."""
        forgiven = base.release not in held.failures
        return bool(base.reason_code) and (forgiven or base.release == held.probation)

    def _verdict(self, release: str, base: ReleaseFigures, held: Held, before: Held) -> ReleaseFigures | None:
        """Return the figures with what became of a release; None: nothing new."""
        failed = held.failures.get(release)
        if base.probation == RUNNING and release != held.probation:
            if release == held.serving:
                return msgspec.structs.replace(base, probation=PASSED, ended_at=self._now())
            if failed is None:  # another release took its place before it was judged
                return msgspec.structs.replace(base, probation="")
            return _sent_back(base, failed)
        is_over = release not in {held.serving, held.probation}
        if failed is not None and failed.at != base.ended_at and is_over:
            if before.serving == release:
                return _sent_back(base, failed)
            return _refused(base, failed, SHADOW if before.shadow == release else FETCHING)
        return None

    def _note_refused(self, release: str, failed: Failed, before: Held) -> None:
        """Begin the figures of a release that never served."""
        base = ReleaseFigures(release=release)
        stage = SHADOW if before.shadow == release else FETCHING
        self._tallies[release] = _Tally(_refused(base, failed, stage))

    def _drop_others(self, held: Held) -> None:
        kept = {held.serving, held.previous, held.refused, held.shadow, held.probation}
        self._tallies = {one: tally for one, tally in self._tallies.items() if one in kept}

    def _keep(self, *, stopped: bool) -> None:
        """Write the file; where the disk does not take it, a restart goes on from an older one."""
        with self._lock:
            self._pass_time()
            document = FiguresDocument(
                start=self.start,
                stopped=stopped,
                serving=self._held.serving,
                shadow=self._held.shadow,
                releases=tuple(tally.figures() for one, tally in self._tallies.items() if one),
                runtime=self._runtime,
                operators=self._operators,
            )
            self._kept_at, self._counted = self._clock(), False
        try:
            write_durably(self._file, encode_compact(document))  # type: ignore[arg-type]
        except DeviceError as e:
            logger.warning("%s; after a restart the figures of this device's reports begin anew", e)


def read_figures(file: Path) -> FiguresDocument:
    """Return the figures of the last run; none if they cannot be read."""
    try:
        return decode_document(
            FiguresDocument, file.read_bytes(), source=str(file), limit_bytes=_FILE_LIMIT_BYTES
        )
    except FileNotFoundError:
        return FiguresDocument()
    except (OSError, InputError) as e:
        logger.warning("%s; the figures of this device's reports begin anew", e)
        return FiguresDocument()


def _sent_back(base: ReleaseFigures, failed: Failed) -> ReleaseFigures:
    return msgspec.structs.replace(_refused(base, failed, PROBATION), probation=SENT_BACK)


def _refused(base: ReleaseFigures, failed: Failed, stage: str) -> ReleaseFigures:
    return msgspec.structs.replace(
        base,
        reason=one_line(failed.reason[:REASON_LIMIT]),
        reason_code=failed.code,
        failed_stage=stage,
        ended_at=failed.at,
    )
