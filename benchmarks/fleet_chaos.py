"""The verdicts of a fleet in trouble, compared with those of a quiet one.

A good release goes through all stages, then a bad one, a thousand times as slow, until it is sent back: once
in peace, and once while devices lose their power, broker, store and collector are killed and started again,
and a third of the devices has no network. The devices are those of `fleet.py`.

    python benchmarks/fleet_chaos.py [--json] [--devices 60]

    verdicts_differ          decisions that are others than in the quiet run; the exit code is 1 if any are
    devices_without_release  devices that do not serve the good release when it is done
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import time
from typing import TYPE_CHECKING, Any

from fleet import LIMIT_S, SWITCHED_ON_PER_S, in_process, serving, tell, wait_for

from edge_client.contract.errors import TransportError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fleet_site import FleetSite

    from luigi_tasks.fleet.records import RolloutRecord

STAGES = "1d,3d,10%,50%,100%"
ROLLOUT = {"stages": STAGES, "soak": "4s", "stage_timeout": "1h"}
# The bad release begins with a stage that can show a share of failures.
BAD_STAGES = ("10%", "50%", "100%")
SLOWER = 1000.0
LOOK_S = 1.0
AWAY_S, DOWN_S, OFF_S = 20.0, 3.0, 2.0
KILLED_A_LOOK = 3


def main() -> int:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="one JSON object instead of words")
    parser.add_argument("--devices", type=int, default=60, help="devices (default 60)")
    parser.add_argument("--one", choices=["quiet", "chaos"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(run(options.devices, in_trouble=options.one == "chaos")))
        return 0
    quiet, chaos = (
        in_process("fleet_chaos.py", "--one", one, "--devices", str(options.devices))
        for one in ("quiet", "chaos")
    )
    figures = {
        "devices": options.devices,
        "decisions": len(quiet["decisions"]),
        "verdicts_differ": count_differences(quiet["decisions"], chaos["decisions"]),
        "devices_without_release": chaos["without_release"],
        "reports_lost": chaos["reports_lost"],
        **chaos["troubles"],
    }
    if options.json:
        print(json.dumps({"benchmark": "fleet_chaos", "figures": figures, "quiet": quiet, "chaos": chaos}))
    else:
        for name, value in figures.items():
            print(f"{name:<28}{value:>8}")
        for name, course in (("quiet", quiet), ("chaos", chaos)):
            print(f"{name}: {'; '.join(map(' '.join, course['decisions']))}")
    return int(figures["verdicts_differ"] > 0)


def count_differences(quiet: Sequence[Sequence[str]], chaos: Sequence[Sequence[str]]) -> int:
    """Return how many decisions differ, those that only one of the runs has among them."""
    same = sum(list(one) == list(other) for one, other in zip(quiet, chaos, strict=False))
    return max(len(quiet), len(chaos)) - same


def run(devices: int, *, in_trouble: bool) -> dict[str, Any]:
    """Roll out the good and the bad release; return what was decided."""
    from fleet import count_lost  # noqa: PLC0415 - with the others
    from fleet_site import FleetSite, make_release  # noqa: PLC0415 - in the process that needs it

    with contextlib.ExitStack() as stack:
        site = FleetSite(devices, stack, ROLLOUT)
        steady, good, bad = (make_release(site.pictures, bias) for bias in (0, 8, 16))
        site.publish(steady, move=True)
        site.enroll()
        site.start_collector()
        site.start_devices([steady, good, bad], devices / SWITCHED_ON_PER_S, {bad.name: SLOWER})
        wait_for(lambda: serving(site, steady.name) == devices, f"{devices} devices to serve", LIMIT_S)
        trouble = Trouble(site) if in_trouble else None
        site.publish(good, move=False)
        decisions = roll_out(site, good.name, STAGES.split(","), trouble)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: serving(site, good.name) == devices, "the last devices", 90)
        without = devices - serving(site, good.name)
        site.publish(bad, move=False)
        decisions += roll_out(site, bad.name, BAD_STAGES, trouble)
        told = site.order("devices")
        taken = {
            row.device: (row.report.start, row.report.sequence)
            for row in site.snapshot(newer_than=time.time()).rows
            if row.report
        }
        return {
            "decisions": decisions,
            "without_release": without,
            "reports_lost": count_lost(told["newest"], taken),
            "troubles": trouble.counts if trouble is not None else {},
        }


class Trouble:
    """What goes wrong: each stage has its own, and devices lose their power all the time."""

    def __init__(self, site: FleetSite) -> None:
        self._site = site
        self._chance = random.Random(13)
        self._stages = 0
        self._away: list[str] = []
        self._back_at = 0.0
        self.counts = dict.fromkeys(
            ("devices_killed", "devices_offline", "broker_restarts", "store_restarts", "collector_kills"), 0
        )

    def look(self, record: RolloutRecord) -> None:
        """Cause what is due after a look."""
        site = self._site
        killed = self._chance.sample(site.names, KILLED_A_LOOK)
        site.order("kill", killed, for_s=OFF_S)
        self.counts["devices_killed"] += len(killed)
        if self._away and time.monotonic() > self._back_at:
            site.order("online", self._away)
            self._away = []
        if len(record.stages) == self._stages:
            return
        self._stages = len(record.stages)
        troubles = (self._collector, self._broker, self._network, self._store, self._all)
        troubles[max(self._stages - 1, 0)]()

    def _all(self) -> None:
        self._collector()
        self._broker()
        self._store()

    def _collector(self) -> None:
        self._site.kill_collector()
        time.sleep(DOWN_S)
        self._site.start_collector()
        self.counts["collector_kills"] += 1

    def _broker(self) -> None:
        self._site.broker.stop()
        time.sleep(DOWN_S)
        self._site.broker.start()
        self.counts["broker_restarts"] += 1

    def _store(self) -> None:
        self._site.store.stop()
        time.sleep(DOWN_S)
        self._site.store.start()
        self.counts["store_restarts"] += 1

    def _network(self) -> None:
        self._away = self._chance.sample(self._site.names, len(self._site.names) // 3)
        self._back_at = time.monotonic() + AWAY_S
        self._site.order("offline", self._away)
        self.counts["devices_offline"] += len(self._away)


def roll_out(
    site: FleetSite, release: str, stages: Sequence[str], trouble: Trouble | None
) -> list[tuple[str, ...]]:
    """Bring a release as far as it goes; return stage by stage what was decided, and by which verdict."""
    import msgspec  # noqa: PLC0415 - in the process that needs it

    from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.plans import plan_of  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.records import ENDED, GOING_BACK, HALTED, PAUSED  # noqa: PLC0415 - as above

    plan = msgspec.structs.replace(plan_of(site.settings.rollout), stages=tuple(stages))
    fleet = open_fleet(site.settings)
    record = fleet.start("stable", release, plan, "bench")
    limit = time.monotonic() + LIMIT_S
    while record.state not in (*ENDED, GOING_BACK, HALTED, PAUSED):
        if time.monotonic() > limit:
            break
        site.check_collector()
        try:
            record = fleet.advance("stable").record or record
        except TransportError as e:
            tell(f"no look: {e}"[:110])
        tell(f"{'trouble' if trouble else 'quiet'}: {record.state}, stage {len(record.stages)}")
        if trouble is not None:
            trouble.look(record)
        time.sleep(LOOK_S)
    decided = []
    for event in record.events:
        verdict = fleet.rollouts.verdict(event.verdict) if event.verdict else None
        result = (verdict.result, "hard" if verdict.is_hard else "soft") if verdict is not None else ()
        if event.what != "opened":
            decided.append((str(event.stage), event.what, *result))
    if record.state not in (*ENDED, GOING_BACK, HALTED, PAUSED):
        decided.append((str(len(record.stages)), f"still {record.state}"))
    if record.state == GOING_BACK:
        wait_until_back(site, release)
    return decided


def wait_until_back(site: FleetSite, release: str) -> None:
    """Wait until no device serves a release any more."""
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: serving(site, release) == 0, "the way back", 90)


if __name__ == "__main__":
    sys.exit(main())
