"""The reports of one channel to the fleet's collector: what is in them, and when they go out."""

from __future__ import annotations

import dataclasses
import logging
import random
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from edge_client import __version__
from edge_client.contract.documents import encode_compact
from edge_client.contract.names import report_topic
from edge_client.contract.report import (
    FETCHING,
    IDLE,
    OFFERED,
    PROBATION,
    REPORT_LIMIT_BYTES,
    SHADOW,
    DeviceReport,
)
from edge_client.contract.signed_report import seal_report
from edge_client.contract.text import one_line
from edge_client.contract.times import utc_now
from edge_client.machine import boot_id, machine_facts
from edge_client.reporting.report_schedule import ReportSchedule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from edge_client.contract.messages import DeviceStatus
    from edge_client.contract.signed_report import ReportSigner
    from edge_client.reporting.figures import Figures
    from edge_client.reporting.status import StatusBoard
    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)

# Characters of a text in a report; the status has the whole of it.
TEXT_LIMIT = 1000
# The longest sleep of the thread: the fleet may ask for another interval meanwhile.
_LONGEST_WAIT_S = 60.0
# Decisions on a release that the device may still come to have.
_OPEN = frozenset({"held", "postponed", "install", ""})


def wants_reports(settings: Settings) -> bool:
    """Whether a device reports: a broker and an interval are set."""
    return bool(settings.broker.host) and settings.status.report_interval_s > 0


@dataclasses.dataclass(frozen=True)
class Reported:
    """One channel, as its reports need it.

    Attributes:
        channel: The channel; empty: a model file serves.
        extra: Its name in topics; empty for the main channel.
        board: Its status.
        figures: Figures of its releases.
        interval_s: Returns the interval that the fleet asks for; 0: that of the settings counts.
    """

    channel: str
    extra: str
    board: StatusBoard
    figures: Figures
    interval_s: Callable[[], float] = lambda: 0.0


class Reporter:
    """Reports on one channel."""

    def __init__(self, settings: Settings, reported: Reported, chance: random.Random, now: float) -> None:
        self._settings, self._reported = settings, reported
        self._sequence = 0
        self._boot = boot_id()
        device = settings.device
        self.topic = report_topic(device.fleet, device.id, reported.extra)
        self.schedule = ReportSchedule(settings.status.report_interval_s, now, chance.uniform)

    def renew_interval(self, now: float) -> None:
        """Take the interval that the fleet asks for."""
        self.schedule.set_interval(
            self._reported.interval_s() or self._settings.status.report_interval_s, now
        )

    def describe(self) -> DeviceReport:
        """Return the next report."""
        self._sequence += 1
        status, device = self._reported.board.status, self._settings.device
        figures = self._reported.figures
        return _fitting(
            DeviceReport(
                fleet=device.fleet,
                device=device.id,
                channel=self._reported.channel,
                reported_at=utc_now(),
                start=figures.start,
                sequence=self._sequence,
                boot_id=self._boot,
                interval_s=self.schedule.interval_s,
                client=__version__,
                runtime=status.runtime,
                operators=figures.operators,
                machine=machine_facts(device.fleet),
                site=device.site,
                device_class=device.device_class,
                tags=device.tags,
                state=status.state,
                decision=status.decision,
                stage=stage_of(status),
                release=status.release or "",
                previous=status.previous or "",
                rollout=status.rollout,
                steady=status.steady or "",
                offered=status.intended or status.latest or "",
                waits_for=status.waits_for,
                retry_at=status.retry_at or "",
                releases=figures.report(),
                drift_alarm=status.drift is not None and status.drift.alarm,
                warning=_cut(status.warning),
                last_error=_cut(status.last_error),
            )
        )


class Reports:
    """Reports on all channels of a device, in a thread of its own."""

    def __init__(
        self,
        settings: Settings,
        channels: Sequence[Reported],
        *,
        connected: Callable[[], bool],
        send: Callable[[str, bytes], bool],
        signer: Callable[[], ReportSigner | None] = lambda: None,
        chance: random.Random | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare; `run` sends.

        Args:
            settings: Settings of the device.
            channels: What is reported on.
            connected: Returns whether there is a connection to the broker.
            send: Sends a payload on a topic; False if it cannot go out now.
            signer: Returns what signs the reports; None: nothing does.
            chance: Spreads reports over time; None: seeded by the system.
            clock: Monotonic seconds.
        """
        self._connected, self._send, self._signer, self._clock = connected, send, signer, clock
        chance = chance or random.Random()  # noqa: S311 - no secret
        self._wake = threading.Condition()
        self._woken = False
        self._reporters = [Reporter(settings, one, chance, clock()) for one in channels]
        for one, reporter in zip(channels, self._reporters, strict=True):
            one.board.on_change = _noting(self, reporter)

    def note_connection(self) -> None:
        """Report soon: there is a connection to the broker."""
        with self._wake:
            for one in self._reporters:
                one.schedule.note_connection(self._clock())
            self._rouse()

    def request(self, _payload: bytes = b"") -> None:
        """Report within a while: somebody asks, whoever that is."""
        now = self._clock()
        with self._wake:
            answered = [one.schedule.note_request(now) for one in self._reporters]
            if any(answered):
                self._rouse()

    def note_change(self, reporter: Reporter) -> None:
        """Report the change of a channel's state."""
        with self._wake:
            reporter.schedule.note_change(self._clock())
            self._rouse()

    def run(self, stop: threading.Event) -> None:
        """Send what is due, until the daemon stops."""
        while not stop.is_set():
            self.step(stop)

    def end(self) -> None:
        """Let `run` see that the daemon stops."""
        with self._wake:
            self._rouse()

    def step(self, stop: threading.Event) -> None:
        """Wait until a report is due, or something has changed, and send what is due."""
        with self._wake:
            now = self._renew_intervals()
            wait_s = min(one.schedule.due_in(now) for one in self._reporters)
            self._wake.wait_for(lambda: self._woken or stop.is_set(), min(wait_s, _LONGEST_WAIT_S))
            self._woken = False
            now = self._renew_intervals()  # a report must not promise the next one for the old interval
            due = [one for one in self._reporters if one.schedule.due_in(now) <= 0]
            for one in due:
                one.schedule.note_report(now)
        for one in due:
            if not (self._connected() and self._report(one)):
                with self._wake:
                    one.schedule.note_failed(self._clock())

    def _renew_intervals(self) -> float:
        """Take the intervals that the fleet asks for; return the time."""
        now = self._clock()
        for one in self._reporters:
            one.renew_interval(now)
        return now

    def _report(self, reporter: Reporter) -> bool:
        """Send a report; return whether nothing is to be tried again soon."""
        try:
            return self._send(reporter.topic, seal_report(reporter.describe(), self._signer()))
        except Exception:
            # Serving does not depend on reports; the next heartbeat tries again.
            logger.exception("%s: no report", reporter.topic)
            return True

    def _rouse(self) -> None:
        self._woken = True
        self._wake.notify_all()


def stage_of(status: DeviceStatus) -> str:
    """Return how far the update is to the release that the device is to have in the end."""
    offered = status.intended or status.latest
    if offered is None or status.release == offered:
        return PROBATION if status.probation and offered is not None else IDLE
    if status.shadow is not None and status.shadow.release == offered:
        return SHADOW
    if status.state == "updating" and status.latest == offered:
        return FETCHING
    return OFFERED if status.decision in _OPEN or status.latest != offered else IDLE


def _noting(reports: Reports, reporter: Reporter) -> Callable[[], None]:
    return lambda: reports.note_change(reporter)


def _cut(text: str | None) -> str:
    return one_line(text or "")[:TEXT_LIMIT]


def _fitting(report: DeviceReport) -> DeviceReport:
    """Return a report that is not too large to be read: label counts go first, of the old releases first."""
    shorter = report
    for place in reversed(range(len(report.releases))):
        if len(encode_compact(shorter)) <= REPORT_LIMIT_BYTES:
            return shorter
        releases = list(shorter.releases)
        releases[place] = msgspec.structs.replace(releases[place], labels={}, reason="")
        shorter = msgspec.structs.replace(shorter, releases=tuple(releases))
    return shorter
