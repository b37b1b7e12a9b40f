"""Error rates of the judge: rollouts of good and of bad releases through a simulated fleet.

The judge and the stage transitions are the real ones; reports come from `simulated_fleet.py`, with fixed
seeds. A rollout is looked at as by a cron line, until it is done, halted, or paused by a stage's time limit.

    python benchmarks/verdicts.py [--json] [--quick] [--devices 300] [--rollouts 200]
        [--first-seed 0] [--soak-h 2]

    good_halted_share       worst of the good cases: halted, or paused by a soft check, or by a question of it
    good_finished_share     worst of the good cases: on all devices in the end
    bad_finished_share      worst of the bad cases: on all devices, with nobody asked
    bad_past_stage_2_share  worst of the bad cases: reached more than stages 1 and 2
    devices_harmed_median   devices that served a release which is bad on them for over 15 minutes, of the
                            bad cases; `_without_probation`: the same fleets, were there none
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import multiprocessing
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from simulated_fleet import CASES, CHANNEL, HOUR, NEW, OLD, ROLLOUT, Case, SimulatedFleet, places_of  # noqa: E402

from luigi_tasks.fleet.judge import judge  # noqa: E402 - found through the line above
from luigi_tasks.fleet.records import (  # noqa: E402
    DONE,
    ENDED,
    GOING_BACK,
    PASS,
    PAUSED,
    RolloutPlan,
    RolloutRecord,
)
from luigi_tasks.fleet.stages import Moment, look, next_stage  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from luigi_tasks.fleet.records import VerdictRecord

# Minutes after a stage opened at which it is looked at; later every six hours.
LOOKS_MIN = (25, 75, 146, 170, 270, 400, 520, 640, 800, 1020, 1200, 1440)


@dataclasses.dataclass(frozen=True)
class Course:
    """How a rollout went.

    Attributes:
        end: `done`, `hard`, `soft`, `asked` (a person has to look at a soft figure) or `paused` (by a time
            limit).
        stage: Last stage that was opened.
        harmed: See above.
        why: Words of the last verdict.
    """

    end: str
    stage: int
    harmed: int
    why: str


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="25 rollouts a case")
    parser.add_argument("--devices", type=int, default=300, help="size of the fleet (default 300)")
    parser.add_argument("--rollouts", type=int, default=200, help="rollouts of each case (default 200)")
    parser.add_argument("--first-seed", type=int, default=0, help="of each case (default 0)")
    parser.add_argument("--case", choices=[case.name for case in CASES], help="this case only")
    parser.add_argument("--soak-h", type=float, default=2.0, help="hours that each stage soaks (default 2)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--why", action="store_true", help="with the words of each false verdict, to stderr")
    options = parser.parse_args()
    rollouts = 25 if options.quick else options.rollouts
    started = time.perf_counter()
    with multiprocessing.Pool(options.jobs) as pool:
        jobs = [
            (case, options.devices, seed, options.soak_h, has_probation)
            for case in CASES
            if options.case in {None, case.name}
            for has_probation in ((True,) if case.is_good else (True, False))
            for seed in range(
                options.first_seed,
                options.first_seed + (rollouts if has_probation else max(rollouts // 4, 1)),
            )
        ]
        courses = pool.starmap(run, jobs, chunksize=4)
    by_case: dict[tuple[str, bool], list[Course]] = {}
    for job, course in zip(jobs, courses, strict=True):
        by_case.setdefault((job[0].name, job[4]), []).append(course)
        if options.why and (course.end == "done") != job[0].is_good:
            print(job[0].name, job[2], job[4], course, file=sys.stderr)
    figures = {
        **summary(by_case),
        "devices": options.devices,
        "rollouts_a_case": rollouts,
        "seconds": round(time.perf_counter() - started, 1),
    }
    if options.json:
        cases = {name: shares(courses) for (name, has_probation), courses in by_case.items() if has_probation}
        print(json.dumps({"benchmark": "verdicts", "figures": figures, "cases": cases}))
        return 0
    print_table(by_case, figures)
    return 0


def run(case: Case, devices: int, seed: int, soak_h: float, has_probation: bool) -> Course:
    """Run one rollout to its end."""
    fleet = SimulatedFleet(case, devices, seed, has_probation=has_probation)
    plan = RolloutPlan(soak_s=soak_h * HOUR)
    record = RolloutRecord(id=f"{ROLLOUT}-{seed}", channel=CHANNEL, release=NEW, from_release=OLD, plan=plan)
    places, now, verdict = places_of(record, fleet.enrolled), fleet.start, None
    enrolled = list(fleet.enrolled.values())
    while record.state not in (*ENDED, PAUSED, GOING_BACK):
        verdict = _verdict(fleet, record, places, now) if record.stages else None
        is_asked = verdict is None or verdict.result == PASS
        following = next_stage(record, enrolled, now) if is_asked else None
        before = len(record.stages)
        record = look(record, verdict, "", following, Moment(now, ""))
        if len(record.stages) > before:
            times = look_times(now, soak_h)
        now = next(times)
    end = "done" if record.state == DONE else "paused"
    if verdict is not None and verdict.result == "halt":
        end = "hard" if verdict.is_hard else "soft"
    elif verdict is not None and verdict.asks:
        end = "asked"
    if end == "done":  # somebody notices after a day
        now += 24 * HOUR
    return Course(
        end, len(record.stages), fleet.harmed(record, places, now), verdict.words if verdict else ""
    )


def _verdict(
    fleet: SimulatedFleet, record: RolloutRecord, places: NDArray[np.int64], now: float
) -> VerdictRecord:
    """Judge; the sums by period are made only for the look that asks for them, the one after the soak."""
    stage = record.stages[-1]
    with_periods = stage.soaking_since > 0 and now - stage.soaking_since >= record.plan.soak_s
    rows = fleet.rows(record, places, now, with_periods=with_periods)
    return judge(record, stage, fleet.enrolled, rows, fleet.head(now))


def look_times(opened: float, soak_h: float) -> Iterator[float]:
    """Times of looks at a stage."""
    fine = (opened + minutes * 60 for minutes in LOOKS_MIN if minutes < 60 * soak_h * 12)
    coarse = (opened + (24 + 6 * number) * HOUR for number in itertools.count(1))
    return itertools.chain(fine, coarse)


def shares(courses: Sequence[Course]) -> dict[str, float]:
    """Return how the rollouts of a case ended."""
    of = len(courses)
    return {
        "finished": round(sum(one.end == "done" for one in courses) / of, 4),
        "hard": round(sum(one.end == "hard" for one in courses) / of, 4),
        "soft": round(sum(one.end == "soft" for one in courses) / of, 4),
        "asked": round(sum(one.end == "asked" for one in courses) / of, 4),
        "paused": round(sum(one.end == "paused" for one in courses) / of, 4),
        "past_stage_2": round(sum(one.stage > 2 for one in courses) / of, 4),
        "harmed": statistics.median(one.harmed for one in courses),
    }


def summary(by_case: dict[tuple[str, bool], list[Course]]) -> dict[str, float]:
    """Return the figures."""
    good_names = {case.name for case in CASES if case.is_good}
    good = [shares(courses) for (name, _), courses in by_case.items() if name in good_names]
    bad = {key: courses for key, courses in by_case.items() if key[0] not in good_names}
    ended = [shares(courses) for (_, has_probation), courses in bad.items() if has_probation]
    figures: dict[str, float] = {}
    if good:
        figures["good_halted_share"] = max(round(one["hard"] + one["soft"] + one["asked"], 4) for one in good)
        figures["good_finished_share"] = min(one["finished"] for one in good)
    if bad:
        figures["bad_finished_share"] = max(one["finished"] for one in ended)
        figures["bad_past_stage_2_share"] = max(one["past_stage_2"] for one in ended)
        for name, wanted in (("", True), ("_without_probation", False)):
            harmed = [one.harmed for (_, has), courses in bad.items() if has is wanted for one in courses]
            figures[f"devices_harmed_median{name}"] = statistics.median(harmed)
    return figures


def print_table(by_case: dict[tuple[str, bool], list[Course]], figures: dict[str, float]) -> None:
    """Print a line for each case, and the figures."""
    names = ("finished", "hard", "soft", "asked", "paused", "past_stage_2", "harmed")
    print(f"{'case':<34}" + "".join(f"{name:>13}" for name in names) + f"{'no probation':>14}")
    for (name, has_probation), courses in by_case.items():
        if not has_probation:
            continue
        found, without = shares(courses), by_case.get((name, False))
        last = f"{shares(without)['harmed']:>14g}" if without else ""
        print(f"{name:<34}" + "".join(f"{found[column]:>13g}" for column in names) + last)
    width = max(map(len, figures)) + 2
    for name, value in figures.items():
        print(f"{name:<{width}} {value:g}")


if __name__ == "__main__":
    sys.exit(main())
