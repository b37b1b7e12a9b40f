"""A fleet of 100, 1,000 and 3,000 devices on one broker and one store: one release through all stages.

Devices run the code of the device (`fleet_devices.py`), twelve of them real interpreters on real pictures;
Mosquitto, SeaweedFS, `edge-fleet collect` and the looks of `AdvanceRollout` are the real ones. A subscriber
that reads 20 reports a second listens, too. Times are compressed: stages do not soak, and snapshots and looks
come every second, from 300 devices on every two.

    python benchmarks/fleet.py [--json] [--quick] [--sizes 100,1000,3000] [--no-collector]

    growth_exponent          largest exponent of the fleet's totals over the number of devices, by a fit over
                             all sizes and from each size to the next: seconds; messages (PUBLISH packets that
                             the broker took and delivered) and their bytes, without heartbeats, whose number
                             goes by time, and without what the slow reader got; bytes from the store; peak
                             memory of the simulated devices' processes beyond what they have without a device
    devices_without_release  devices that do not serve the release in the end
    reports_lost             reports that the broker acknowledged, and that the collector neither took nor got
                             a newer one of the same device for
    collector_reports_per_s  and collector_rss_mb: the collector alone, heartbeats of 100,000 devices
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fleet_site import FleetSite

STAGES = "1d,3d,10%,50%,100%"
ROLLOUT = {"stages": STAGES, "soak": "0s", "stage_timeout": "1h"}
# Devices that are switched on in a second.
SWITCHED_ON_PER_S = 60.0
LIMIT_S = 900.0
GROWING = ("seconds", "messages", "message_bytes", "store_bytes", "memory_bytes")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="100 and 300 devices, and a small collector")
    parser.add_argument("--sizes", default="", help="numbers of devices (default 100,1000,3000)")
    parser.add_argument("--no-collector", action="store_true", help="without the collector alone")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return 0
    chosen = options.sizes or ("100,300" if options.quick else "100,1000,3000")
    sizes = [int(one) for one in chosen.split(",")]
    runs = {size: in_process("fleet.py", "--one", str(size)) for size in sizes}
    figures = summary(runs)
    if not options.no_collector:
        heartbeats = ["--devices", "10000" if options.quick else "100000", "--rounds", "2", "--signed", "0"]
        alone = in_process("fleet_collector.py", "--json", *heartbeats)
        figures |= {name: alone[name] for name in ("collector_reports_per_s", "collector_rss_mb")}
    if options.json:
        print(json.dumps({"benchmark": "fleet", "figures": figures, "sizes": runs}))
        return 0
    print_table(runs, figures)
    return 0


def in_process(program: str, *arguments: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name(program)), *arguments]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return found


def measure(devices: int) -> dict[str, float]:
    """Bring a release through all stages of a fleet; return the figures."""
    from fleet_site import FleetSite, SlowReader, make_release  # noqa: PLC0415 - in the process that needs it

    with contextlib.ExitStack() as stack:
        site = FleetSite(devices, stack, ROLLOUT)
        steady, new = (make_release(site.pictures, bias) for bias in (0, 8))
        site.publish(steady, move=True)
        site.enroll()
        site.start_collector()
        reader = stack.enter_context(SlowReader(site.broker))
        begun = time.monotonic()
        site.start_devices([steady, new], devices / SWITCHED_ON_PER_S, {})
        wait_for(lambda: serving(site, steady.name) == devices, f"{devices} devices to serve", LIMIT_S)
        installed = time.monotonic()
        site.publish(new, move=False)
        course = roll_out(site, new.name)
        with contextlib.suppress(TimeoutError):
            wait_for(lambda: serving(site, new.name) == devices, "the last devices", 60)
        ended = time.monotonic()
        told = site.order("devices")
        snapshot = site.snapshot(newer_than=time.time())
        taken = {row.device: (row.report.start, row.report.sequence) for row in snapshot.rows if row.report}
        counts = site.broker_counts()
        all_messages = counts["messages/received"] + counts["messages/sent"]
        all_bytes = counts["bytes/received"] + counts["bytes/sent"]
        memory_bytes = 1024 * (told["peak_kb"] - told["base_kb"])
        figures = {
            "devices": devices,
            "seconds": round(ended - begun, 1),
            "seconds_first_release": round(installed - begun, 1),
            "seconds_rollout": round(ended - installed, 1),
            "messages": all_messages - 2 * told["heartbeats"] - reader.heard,
            "message_bytes": all_bytes - 2 * told["heartbeat_bytes"] - reader.heard_bytes,
            "heartbeats": told["heartbeats"],
            "all_messages": all_messages,
            "all_message_bytes": all_bytes,
            "messages_dropped_for_slow_reader": counts.get("messages/dropped", 0),
            "store_bytes": told["bytes_pulled"],
            "memory_bytes": memory_bytes,
            "connects": told["connects"],
            "checks": told["checks"],
            "reports_sent": told["acknowledged"],
            "reports_lost": count_lost(told["newest"], taken),
            "devices_without_release": devices - told["releases"].get(new.name, 0),
            "stages": len(course["stages"]),
            "looks": course["looks"],
            "device_cpu_s": round(told["cpu_s"], 1),
            "collector_peak_mb": round(site.collector_rss_mb()),
            "broker_peak_mb": round(site.broker_rss_mb()),
            "slow_reader_heard": reader.heard,
        }
        collected = site.stop_collector()
        return {
            **figures,
            "collector_messages": collected["reports"],
            "collector_rejected": sum(collected["rejected"].values()),
        }


def roll_out(site: FleetSite, release: str) -> dict[str, Any]:
    """Start a rollout and look until it has ended; return what became of it."""
    from fleet_site import look_s  # noqa: PLC0415 - in the process that needs it

    from luigi_tasks.fleet.actions import open_fleet  # noqa: PLC0415 - in the process that needs it
    from luigi_tasks.fleet.plans import plan_of  # noqa: PLC0415 - as above
    from luigi_tasks.fleet.records import ENDED, HALTED, PAUSED  # noqa: PLC0415 - as above

    fleet = open_fleet(site.settings)
    record = fleet.start("stable", release, plan_of(site.settings.rollout), "bench")
    looks, limit = 0, time.monotonic() + LIMIT_S
    while record.state not in (*ENDED, HALTED, PAUSED):
        if time.monotonic() > limit:
            msg = f"rollout {record.id} is {record.state} after {LIMIT_S:.0f} s: {record.events[-1].why}"
            raise TimeoutError(msg)
        site.check_collector()
        look = fleet.advance("stable")
        looks += 1
        record = look.record or record
        tell(f"{len(site.names)} devices: {record.state}, stage {len(record.stages)}")
        time.sleep(look_s(len(site.names)))
    return {"state": record.state, "stages": [one.size for one in record.stages], "looks": looks}


def tell(text: str) -> None:
    """Say how far it is, to standard error."""
    print(f"{time.strftime('%X')} {text}", file=sys.stderr, flush=True)


def serving(site: FleetSite, release: str) -> int:
    """Return how many devices serve a release."""
    return int(site.order("describe")["releases"].get(release, 0))


def wait_for(condition: Callable[[], bool], what: str, limit_s: float) -> None:
    """Wait for the devices.

    Raises: TimeoutError that names `what`.
    """
    limit = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > limit:
            msg = f"waited {limit_s:.0f} s for {what}"
            raise TimeoutError(msg)
        time.sleep(0.5)


def count_lost(sent: Mapping[str, Sequence[int]], taken: Mapping[str, tuple[int, int]]) -> int:
    """Return the reports that are newer than the newest which was taken of their device.

    Args:
        sent: (start, sequence) of the newest report of each device that the broker acknowledged.
        taken: The same of the newest that the collector has.
    """
    lost = 0
    for device, (start, sequence) in sent.items():
        has = taken.get(device, (0, 0))
        if (start, sequence) > has:
            lost += sequence - has[1] if has[0] == start else sequence
    return lost


def exponent(sizes: Sequence[float], totals: Sequence[float]) -> float:
    """Return the slope of a line through the logarithms."""
    x, y = [math.log(one) for one in sizes], [math.log(max(one, 1e-9)) for one in totals]
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    over = sum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True))
    return over / sum((one - middle_x) ** 2 for one in x)


def growth(runs: Mapping[int, Mapping[str, float]], name: str) -> float:
    """Return how a total grows with the fleet: by all sizes, or from one to the next larger, the worse."""
    sizes = sorted(runs)
    pairs = list(itertools.pairwise(sizes))
    return max(
        exponent(some, [runs[size][name] for size in some]) for some in (sizes, *pairs) if len(some) > 1
    )


def summary(runs: Mapping[int, Mapping[str, float]]) -> dict[str, float]:
    """Return the figures of all sizes."""
    largest = runs[max(runs)]
    figures: dict[str, float] = {}
    if len(runs) > 1:
        grown = {name: round(growth(runs, name), 3) for name in GROWING}
        figures["growth_exponent"] = max(grown.values())
        figures |= {f"growth_exponent_{name}": value for name, value in grown.items()}
    devices = largest["devices"]
    return {
        **figures,
        "devices_without_release": sum(run["devices_without_release"] for run in runs.values()),
        "reports_lost": sum(run["reports_lost"] for run in runs.values()),
        "messages_a_device": round(largest["messages"] / devices, 1),
        "message_bytes_a_device": round(largest["message_bytes"] / devices),
        "store_bytes_a_device": round(largest["store_bytes"] / devices),
        "memory_kb_a_device": round(largest["memory_bytes"] / devices / 1024, 1),
    }


def print_table(runs: Mapping[int, Mapping[str, float]], figures: Mapping[str, float]) -> None:
    """Print a column for each size, and the figures."""
    print(f"{'devices':<36}" + "".join(f"{size:>16,}" for size in runs))
    for name in next(iter(runs.values())):
        if name != "devices":
            print(f"{name:<36}" + "".join(f"{run[name]:>16,}" for run in runs.values()))
    print()
    for name, value in figures.items():
        print(f"{name:<36}{value:>16,}")


if __name__ == "__main__":
    sys.exit(main())
