"""A fleet of cameras, as the collector sees it while a release is rolled out. Simulated, with the noise of a
real one: devices differ, nights, sales and heat come and go, shops switch their cameras off, power fails,
some devices are dead and nobody told.

The figures that the noise stands on: a label is a tenth to a fifth of a device's frames, and its share of an
hour varies by 10% of itself (3,600 frames that resemble each other), that of a day by 3% besides; unsure
answers by 25% an hour and 10% a day, latency by 3% and 2%.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from edge_client.contract.report import DeviceReport, MachineFacts, ReleaseFigures
from luigi_tasks.fleet.records import DeviceRow, EnrolledDevice, PeriodSum, SnapshotHead

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from luigi_tasks.fleet.records import RolloutRecord

    Numbers = NDArray[np.float64]

HOUR, DAY, DAYS = 3600.0, 86400.0, 8
OLD, NEW, CHANNEL, ROLLOUT = "r1", "r2", "stable", "rollout"
INTERVAL_S, PROBATION_S, FETCH_S, JITTER_S = 60.0, 600.0, 90.0, 300.0
LABELS = ("anchor", "bolt", "cap", "gear", "nut", "pin", "rivet", "washer")
RUNTIMES, CLASSES, MACHINES = (
    ("litert 2.1", "tflite-runtime 2.14"),
    ("zoom", "wide"),
    ("Pi 4", "Pi 5", "Zero 2 W"),
)
FRAMES_PER_HOUR = 3600
# Spread of an hour's and of a day's noise: latency, unsure answers, confidence, each label.
HOURLY = np.array([0.03, 0.25, 0.01, *[0.10] * len(LABELS)])
DAILY = np.array([0.02, 0.10, 0.005, *[0.03] * len(LABELS)])


@dataclasses.dataclass(frozen=True)
class Case:
    """What a simulated rollout meets.

    Attributes:
        name: In the table.
        is_good: Whether the release is one that should finish.
        failing: Share of the devices on which the release fails.
        slower: Factor of the latency on one runtime, three devices in ten.
        recall_points: Points of recall that two of eight classes lose on one kind of camera, a third of all.
        crash_every_s: Seconds after which it crashes, again and again; 0: never.
        drift: Whether the world changes for all devices meanwhile.
        outage: Whether the broker is down for 45 minutes.
        offline: Share of the devices that go offline for half a day.
    """

    name: str
    is_good: bool
    failing: float = 0.0
    slower: float = 1.0
    recall_points: float = 0.0
    crash_every_s: float = 0.0
    drift: bool = False
    outage: bool = False
    offline: float = 0.0


CASES = (
    Case("good", is_good=True),
    Case("drift_everywhere", is_good=True, drift=True),
    Case("broker_outage", is_good=True, outage=True),
    Case("third_offline", is_good=True, offline=1 / 3),
    Case("fails_on_one_in_five", is_good=False, failing=0.2),
    Case("five_points_worse_on_one_camera", is_good=False, recall_points=5.0),
    Case("slower_on_one_runtime", is_good=False, slower=1.3),
    Case("crashes_after_40_min", is_good=False, crash_every_s=2400.0),
)


class SimulatedFleet:
    """Devices with their luck; time is in seconds since the first stage may open, on a clock of 1970."""

    def __init__(self, case: Case, devices: int, seed: int, *, has_probation: bool) -> None:
        self.case, self.size, self.has_probation = case, devices, has_probation
        self._chance = chance = np.random.default_rng(seed)
        self.start = float(480_000 * HOUR + chance.integers(0, 24) * HOUR + 600)
        self.names = [f"camera-{number:05}" for number in range(devices)]
        sites = chance.integers(0, max(devices // 6, 1), devices)
        self.runtime, self.kind, self.machine = (
            chance.choice(2, devices, p=[0.7, 0.3]),
            chance.choice(2, devices, p=[2 / 3, 1 / 3]),
            chance.choice(3, devices, p=[0.5, 0.4, 0.1]),
        )
        self.enrolled = {
            name: EnrolledDevice(
                device=name,
                key="PEM",
                site=f"shop-{sites[n]}",
                device_class=CLASSES[self.kind[n]],
                tags=(f"line={n % 4}",),
            )
            for n, name in enumerate(self.names)
        }
        self.place = {name: number for number, name in enumerate(self.names)}
        self._draw_luck(sites)
        self._draw_figures()
        self._reports: dict[tuple[int, str, int, int, int], DeviceReport] = {}

    def _draw_luck(self, sites: NDArray[np.int64]) -> None:
        chance, n, start = self._chance, self.size, self.start
        self.phase = chance.uniform(0, INTERVAL_S, n)
        self.jitter = chance.uniform(0, JITTER_S, n)
        self.fetch = chance.uniform(30, 2 * FETCH_S, n)
        self.ends_at = chance.uniform(60, PROBATION_S, n)
        # One device in a hundred is dead; one in five hundred has a fault of its own that no release passes.
        self.is_dead = chance.random(n) < 0.01
        self.is_affected = chance.random(n) < self.case.failing
        self.fails = self.is_affected | (chance.random(n) < 0.002)
        self.crash_s = self.case.crash_every_s * chance.uniform(0.9, 1.1, n)
        away: list[tuple[NDArray[np.bool_], float, float]] = []
        midnight = start - start % DAY
        sleeps = chance.random(sites.max() + 1)[sites] < 0.1
        away += [(sleeps, midnight + (day - 0.125) * DAY, midnight + (day + 0.29) * DAY) for day in range(6)]
        for _ in range(4):  # power fails for a minute or three
            lucky = chance.random(n) < 0.3
            at = start + chance.uniform(0, 2 * DAY)
            away.append((lucky, at, at + chance.uniform(60, 180)))
        if self.case.offline:
            at = start + chance.uniform(0, 6 * HOUR)
            away.append((chance.random(n) < self.case.offline, at, at + 12 * HOUR))
        self.outage = (0.0, 0.0)
        if self.case.outage:
            at = start + chance.uniform(0.3 * HOUR, 8 * HOUR)
            self.outage = (at, at + 0.75 * HOUR)
        who = np.array([one for one, _, _ in away]).T  # (N, K)
        self.away_from = np.where(who, [at for _, at, _ in away], np.inf)
        self.away_to = np.where(who, [until for _, _, until in away], np.inf)

    def _draw_figures(self) -> None:
        chance, n, case = self._chance, self.size, self.case
        self.latency = 40 * chance.lognormal(0, 0.4, n)
        self.unsure = 0.05 * chance.lognormal(0, 0.5, n)
        mix = chance.lognormal(0, 0.4, (n, len(LABELS)))
        self.mix = mix / mix.sum(axis=1, keepdims=True)
        # What the release does on every device, and a little differently on each.
        common = chance.uniform(0.95, 1.05)
        self.new_latency = (common if case.slower == 1 else 1.0) * chance.lognormal(0, 0.02, n)
        self.new_unsure = chance.uniform(0.85, 1.05) * chance.lognormal(0, 0.05, n)
        self.new_mix = chance.lognormal(0, 0.006, len(LABELS)) * chance.lognormal(0, 0.01, (n, len(LABELS)))
        self.new_lost = np.zeros(n)
        self.new_latency[self.runtime == 1] *= case.slower
        if case.recall_points:
            two = chance.choice(len(LABELS), 3, replace=False)
            lost = case.recall_points / 95 * (self.kind == 1)
            self.new_mix[:, two[:2]] *= (1 - lost)[:, None]
            self.new_lost = lost * self.mix[:, two[:2]].sum(axis=1)
            self.new_mix[:, two[2]] += self.new_lost / self.mix[:, two[2]]
        if case.slower > 1 or case.recall_points or case.crash_every_s:
            hit = (
                self.runtime == 1
                if case.slower > 1
                else self.kind == 1
                if case.recall_points
                else self.kind >= 0
            )
            self.is_affected = np.asarray(hit)
        # Noise of each hour and of each day, in units: latency, unsure answers, confidence, labels.
        width = 3 + len(LABELS)
        self._hourly = chance.standard_normal((DAYS * 24, n, width), np.float32)
        self._daily = chance.standard_normal((DAYS + 1, n, width), np.float32)
        self._before = chance.normal(0, 1, (n, width)) / np.sqrt(24)
        # What the world does meanwhile, on every device, and rather differently on each.
        scale = 1.0 if case.drift else 0.2
        each = chance.lognormal(0, 0.2, n)
        self.world_latency = np.exp(0.15 * scale * each * chance.choice([-1, 1]))
        self.world_unsure = np.exp(0.7 * scale * each * chance.choice([-1, 1]))
        self.world_mix = np.exp(0.3 * scale * each[:, None] * chance.normal(0, 1, len(LABELS)))

    # What happens

    def opened(self, record: RolloutRecord, places: NDArray[np.int64]) -> Numbers:
        """When each device's stage opened, seconds since 1970; infinite: not yet."""
        at = np.full(self.size, np.inf)
        for stage in reversed(record.stages):
            at[places < stage.threshold] = stage.opened_at
        return at

    def heard_at(self, now: float) -> Numbers:
        """When the last report of each device arrived."""
        at = now - self.phase
        for start, end in zip(self.away_from.T, self.away_to.T, strict=True):
            at = np.where((at >= start) & (at < end), start - self.phase, at)
        if self.outage[0] <= now < self.outage[1] + INTERVAL_S:
            at = np.minimum(at, self.outage[0] - self.phase)
        return np.where(self.is_dead, self.start - 9 * DAY, at)

    def served(self, opened: Numbers, until: Numbers) -> Numbers:
        """Seconds since the release was activated on each device, without those when it was away."""
        on = until - opened
        for start, end in zip(self.away_from.T, self.away_to.T, strict=True):
            with np.errstate(invalid="ignore"):
                overlap = np.minimum(until, end) - np.maximum(opened, start)
            on = on - np.clip(np.nan_to_num(overlap, nan=0.0), 0, None)
        return on - self.jitter - self.fetch

    def harmed(self, record: RolloutRecord, places: NDArray[np.int64], until: float) -> int:
        """Devices on which the release is bad, and that served it for longer than a probation takes."""
        served = self.served(self.opened(record, places), np.full(self.size, until))
        is_sent_back = self.fails & self.has_probation
        is_bad = self.is_affected & ~is_sent_back & ~self.is_dead
        return int((is_bad & (served > PROBATION_S + JITTER_S)).sum())

    # What the collector knows

    def head(self, now: float) -> SnapshotHead:
        """The head of a snapshot; a collector that has lost the broker does not know it at once."""
        since = self.outage[1] if 0 < self.outage[1] <= now else 0.0
        return SnapshotHead(fleet="f", taken_at=now, listening_since=since)

    def rows(
        self, record: RolloutRecord, places: NDArray[np.int64], now: float, *, with_periods: bool
    ) -> list[DeviceRow]:
        """Rows of a snapshot; the sums by period only where they are asked for."""
        heard, opened = self.heard_at(now), self.opened(record, places)
        served = self.served(opened, heard)
        sums = self._periods(served > 0, now, record) if with_periods else [()] * self.size
        return [
            DeviceRow(
                device=name,
                channel=CHANNEL,
                enrolled=True,
                is_signed=True,
                last_seen=heard[n],
                report=self._report(n, served[n], opened[n] <= heard[n]),
                periods=sums[n],
            )
            for n, name in enumerate(self.names)
        ]

    def _report(self, n: int, served: float, is_open: bool) -> DeviceReport:
        state, seconds, restarts, failed = "waiting", 0, 0, 0
        if is_open and served <= 0:
            state = "offered" if served < -self.fetch[n] else "fetching"
        elif is_open:
            seconds, restarts, failed = self._life(n, served)
            if self.has_probation and self.fails[n]:
                state = "sent_back" if served > self.ends_at[n] else "probation"
            else:
                state = "passed" if served > PROBATION_S else "probation"
        key = n, state, seconds, restarts, failed
        if key not in self._reports:
            self._reports[key] = self._make_report(*key)
        return self._reports[key]

    def _life(self, n: int, served: float) -> tuple[int, int, int]:
        seconds = int(served // 600) * 600
        restarts = int(served // self.crash_s[n]) if self.crash_s[n] else 0
        fails_on = int(0.6 * seconds) if self.fails[n] and not self.has_probation else 0
        return seconds, restarts, fails_on

    def _make_report(self, n: int, state: str, seconds: int, restarts: int, failed: int) -> DeviceReport:
        serves = state in {"probation", "passed"}
        verdict = {"probation": "running", "passed": "passed", "sent_back": "sent_back"}.get(state, "")
        figures = [ReleaseFigures(release=OLD, seconds=7 * DAY, frames=7 * 24 * 3600, restarts=3)]
        if verdict:
            new = ReleaseFigures(
                release=NEW,
                seconds=seconds,
                frames=seconds - failed,
                failed=failed,
                restarts=restarts,
                probation=verdict if self.has_probation else "",
                reason="too many frames failed" if state == "sent_back" else "",
            )
            figures.append(new)
        return DeviceReport(
            fleet="f",
            device=self.names[n],
            channel=CHANNEL,
            interval_s=INTERVAL_S,
            client="1.0",
            runtime=RUNTIMES[self.runtime[n]],
            machine=MachineFacts(model=MACHINES[self.machine[n]], architecture="aarch64"),
            stage=state if state in {"offered", "fetching"} else "",
            release=NEW if serves else OLD,
            rollout=ROLLOUT,
            offered=NEW if state != "waiting" else OLD,
            releases=tuple(figures),
        )

    def _periods(
        self, is_new: NDArray[np.bool_], now: float, record: RolloutRecord
    ) -> list[tuple[PeriodSum, ...]]:
        """A day before, in one sum, and what came since the soak began, in another: sums of sums are sums."""
        since = record.stages[-1].soaking_since
        hours = max((now - since) / HOUR, 0.5)
        first = record.stages[0].opened_at
        before = self._sums(int(first - 25 * HOUR), 24.0, np.zeros(self.size, bool), is_later=False)
        after = self._sums(int(since), hours, is_new, is_later=True)
        return list(zip(before, after, strict=True))

    def _noise(self, start: int, hours: float, *, is_later: bool) -> Numbers:
        """Mean noise of some hours, as a logarithm: the same hours have the same at each look."""
        if not is_later:
            return np.asarray(self._before * HOURLY + self._daily[DAYS] * DAILY, np.float64)
        first = int((start - self.start) // HOUR)
        last = min(max(first + round(hours), first + 1), DAYS * 24)
        day = min(max(first, 0) // 24, DAYS - 1)
        return np.asarray(
            self._hourly[first:last].mean(axis=0) * HOURLY + self._daily[day] * DAILY, np.float64
        )

    def _sums(
        self, start: int, hours: float, is_new: NDArray[np.bool_], *, is_later: bool
    ) -> list[PeriodSum]:
        chance, n = self._chance, self.size
        noise = np.exp(self._noise(start, hours, is_later=is_later))
        latency, unsure, mix = self.latency * noise[:, 0], self.unsure * noise[:, 1], self.mix * noise[:, 3:]
        if is_later:
            latency, unsure, mix = (
                latency * self.world_latency,
                unsure * self.world_unsure,
                mix * self.world_mix,
            )
        latency = np.where(is_new, latency * self.new_latency, latency)
        unsure = np.where(is_new, unsure * self.new_unsure + self.new_lost / 2, unsure)
        mix = np.where(is_new[:, None], mix * self.new_mix, mix)
        frames = int(FRAMES_PER_HOUR * hours)
        counts = (mix / mix.sum(axis=1, keepdims=True) * frames).round().astype(int)
        unsure = np.clip(unsure, 0, 0.6)
        sure = np.clip(0.93 - 0.6 * unsure - 0.3 * np.where(is_new, self.new_lost, 0), 0.55, 0.95)
        sure_frames = (frames * np.clip((sure + noise[:, 2] - 1 - 0.55) / 0.4, 0, 1)).astype(int)
        restarts = chance.poisson(0.02 * hours, n)
        if self.case.crash_every_s:
            restarts = restarts + np.where(is_new, hours * HOUR / np.maximum(self.crash_s, 1), 0).astype(int)
        failed = chance.poisson(1e-4 * frames, n)
        if not self.has_probation:
            failed = np.where(is_new & self.fails, int(0.6 * frames), failed)
        return [
            PeriodSum(
                start=start,
                release=NEW if is_new[i] else OLD,
                seconds=hours * HOUR,
                frames=frames,
                failed=int(failed[i]),
                unsure=int(unsure[i] * frames),
                restarts=int(restarts[i]),
                latency_ms=float(latency[i] * frames),
                confidence=(0, 0, 0, 0, 0, frames - int(sure_frames[i]), 0, 0, 0, int(sure_frames[i])),
                labels=dict(zip(LABELS, counts[i].tolist(), strict=True)),
            )
            for i in range(n)
        ]


def places_of(record: RolloutRecord, enrolled: Mapping[str, EnrolledDevice]) -> NDArray[np.int64]:
    """Return each device's place in the rollout's order."""
    from luigi_tasks.fleet.stages import place  # noqa: PLC0415 - the simulation itself moves nothing

    return np.array([place(record, one) for one in enrolled.values()], np.int64)
