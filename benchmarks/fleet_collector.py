"""The fleet's collector alone: heartbeats of 100,000 devices from a file, and the snapshot of them.

Each device reports `--rounds` times; the figures count from the second round on, when the collector knows the
devices. Reports are of two releases with all their figures, 2.3 kB each. Collector and reader are processes
of their own, whose peak memory is read from the kernel; the registry is in the collector's memory.

    python benchmarks/fleet_collector.py [--json] [--devices 100000] [--rounds 3] [--signed 10000]
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

import msgspec  # noqa: E402 - found through the line above

from edge_client.contract.report import DeviceReport, MachineFacts, ReleaseFigures  # noqa: E402
from edge_client.contract.signed_report import seal_report  # noqa: E402
from luigi_tasks.fleet.records import EnrolledDevice  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from securesystemslib.signer import CryptoSigner

FLEET, BEGAN = "fleet", 1_795_820_400
RELEASES = ("20261120T101500Z-4f2c9a1b", "20261101T091000Z-77aa03cd")
LABELS = tuple(f"class-{number}" for number in range(10))
OPERATORS = dict.fromkeys(("ADD", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "MEAN", "SOFTMAX"), 3)
HEARTBEAT_S = 3600


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=100_000, help="devices (default 100,000)")
    parser.add_argument("--rounds", type=int, default=3, help="reports of each (default 3)")
    parser.add_argument("--signed", type=int, default=10_000, help="devices with a key (default 10,000)")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--collect", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.collect:
        print(json.dumps(collect(options.collect, options.devices, options.rounds)))
        return 0
    if options.read:
        print(json.dumps(read(options.read)))
        return 0
    measured = measure(options.devices, options.rounds, options.signed)
    print(json.dumps(measured) if options.json else "\n".join(f"{k:36} {v:,}" for k, v in measured.items()))
    return 0


def measure(devices: int, rounds: int, signed: int) -> dict[str, float]:
    """Return the figures of collectors that hear unsigned and signed reports."""
    figures = measure_once(devices, rounds, with_keys=False)
    if signed:
        signed_figures = measure_once(signed, rounds, with_keys=True)
        for name in ("reports_per_s", "reports_per_cpu_s"):
            figures[f"collector_signed_{name}"] = signed_figures[f"collector_{name}"]
    return figures


def measure_once(devices: int, rounds: int, *, with_keys: bool) -> dict[str, float]:
    """Return the figures of one collector, and of a reader of its snapshot."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_messages(folder, devices, rounds, with_keys=with_keys)
        collected = in_process("--collect", folder, devices, rounds)
        return {**collected, **in_process("--read", folder, devices, rounds)}


def in_process(what: str, folder: Path, devices: int, rounds: int) -> dict[str, float]:
    """Do a part in a process of its own."""
    command = [sys.executable, __file__, what, str(folder)]
    command += ["--devices", str(devices), "--rounds", str(rounds)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return found


def write_messages(folder: Path, devices: int, rounds: int, *, with_keys: bool) -> None:
    """Write the heartbeats of each round into a file of its own, as they would come over the broker."""
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415 - in the process that needs it

    names = [f"cam-{one:06}" for one in range(devices)]
    signers = {one: CryptoSigner.generate_ed25519() for one in names} if with_keys else {}
    keys = {one: public_pem(signer) for one, signer in signers.items()}
    members = [
        EnrolledDevice(
            device=one,
            site=f"shop-{one[-3:]}",
            device_class="pi4",
            tags=("outdoor",),
            key=keys.get(one, ""),
            enrolled_at="2026-11-27T10:00:00Z",
            enrolled_by="ann",
        )
        for one in names
    ]
    (folder / "members.json").write_bytes(msgspec.json.encode(members))
    for number in range(rounds):
        with (folder / f"{number}.jsonl").open("wb") as file:
            for device, report in heartbeats(devices, number):
                topic = f"edge/{FLEET}/devices/{device}/report"
                at_ms = (BEGAN + number * HEARTBEAT_S) * 1000
                payload = seal_report(report, signers.get(device))
                file.write(b'{"topic":"%s","at_ms":%d,"payload":%s}\n' % (topic.encode(), at_ms, payload))


def heartbeats(devices: int, number: int) -> Iterator[tuple[str, DeviceReport]]:
    """Yield the reports of a round, in an order of its own; each device's figures grow."""
    order = list(range(devices))
    random.Random(number).shuffle(order)
    for one in order:
        report = heartbeat(one, number)
        yield report.device, report


def heartbeat(one: int, number: int) -> DeviceReport:
    """Return the report of a device in a round."""
    draw = random.Random(one)
    machine = MachineFacts(
        model=f"Raspberry Pi {draw.choice((3, 4, 5))} Model B Rev 1.{draw.randrange(5)}",
        architecture="aarch64",
        cores=4,
        memory_bytes=draw.choice((1, 2, 4, 8)) * 1_000_000_000,
        system="Debian GNU/Linux 12 (bookworm)",
        fingerprint=f"{draw.getrandbits(256):064x}",
    )
    return DeviceReport(
        fleet=FLEET,
        device=f"cam-{one:06}",
        channel="stable",
        reported_at="2026-11-27T10:00:00Z",
        start=draw.randrange(1, 90),
        sequence=number + 1,
        boot_id=f"{draw.getrandbits(128):032x}",
        interval_s=float(HEARTBEAT_S),
        client="0.1.0",
        runtime="ai-edge-litert 2.1.0",
        operators=OPERATORS,
        machine=machine,
        site=f"shop-{one % 3000}",
        device_class=draw.choice(("pi3", "pi4", "pi5")),
        tags=("outdoor",) if one % 3 else ("indoor", "line=2"),
        state="serving",
        decision="serves",
        release=RELEASES[0],
        previous=RELEASES[1],
        rollout="20261120-1",
        steady=RELEASES[0],
        offered=RELEASES[0],
        releases=(grown(draw, RELEASES[0], number), grown(draw, RELEASES[1], 0)),
    )


def grown(draw: random.Random, release: str, number: int) -> ReleaseFigures:
    """Figures of a release after so many hours of one frame a second."""
    frames = draw.randrange(1000, 500_000) + 3600 * number
    middle = draw.randrange(70, 110)
    shares = [draw.random() ** 3 for _ in range(10)]
    part = frames / sum(shares)
    counts = [int(part * share) for share in shares]
    return ReleaseFigures(
        release=release,
        activated_at="2026-11-20T10:20:00Z",
        seconds=round(frames * 1.01, 1),
        frames=frames,
        failed=frames // 9000,
        unsure=frames // 20,
        restarts=draw.randrange(3),
        latency_ms=round(frames * draw.uniform(20, 200), 1),
        latency={str(middle + step): count for step, count in enumerate(counts)},
        confidence=tuple(sorted(counts)),
        labels=dict(zip(LABELS, counts, strict=True)),
        probation="passed",
    )


def collect(folder: Path, devices: int, rounds: int) -> dict[str, float]:
    """Feed a collector; return its figures."""
    from securesystemslib.signer import CryptoSigner  # noqa: PLC0415 - in the process that needs it

    from luigi_tasks.fleet.clerk import Clerk, Office  # noqa: PLC0415
    from luigi_tasks.fleet.collector import Collector, CollectorScope  # noqa: PLC0415
    from luigi_tasks.fleet.recorded import take_file  # noqa: PLC0415
    from luigi_tasks.fleet.registry import Registry  # noqa: PLC0415
    from luigi_tasks.settings.values import FleetSettings  # noqa: PLC0415

    enrolled = msgspec.json.decode((folder / "members.json").read_bytes(), type=list[EnrolledDevice])
    members = {one.device: one for one in enrolled}
    now = [float(BEGAN)]
    settings = FleetSettings(database_file=str(folder / "collector.sqlite"))
    collector = Collector(CollectorScope(settings, FLEET, lambda: now[0]))
    signer = CryptoSigner.generate_ed25519()
    (folder / "collector.pem").write_text(public_pem(signer))
    clerk = Clerk(collector, Office(open_folder(folder), lambda _: Registry(1, members, {}), signer))
    clerk.open()
    seconds = busy = 0.0
    for number in range(rounds):
        now[0] = BEGAN + number * HEARTBEAT_S + 60.0
        begun, worked = time.perf_counter(), time.process_time()
        take_file(collector, folder / f"{number}.jsonl")
        if number or rounds == 1:
            seconds += time.perf_counter() - begun
            busy += time.process_time() - worked
    heard = peak_mb()
    counted = max(1, rounds - 1) * devices
    begun = time.perf_counter()
    written = clerk.write_snapshot()
    size = (folder / "store" / written).stat().st_size
    return {
        "collector_reports_per_s": round(counted / seconds),
        "collector_reports_per_cpu_s": round(counted / busy),
        "collector_rss_mb": round(heard),
        "collector_rejected": sum(collector.intake.rejections.by_reason().values()),
        "collector_database_mb": round((folder / "collector.sqlite").stat().st_size / 1e6),
        "snapshot_write_s": round(time.perf_counter() - begun, 1),
        "snapshot_mb": round(size / 1e6, 1),
        "snapshot_write_rss_mb": round(peak_mb()),
    }


def read(folder: Path) -> dict[str, float]:
    """Read the snapshot as a verdict does; return the figures."""
    from luigi_tasks.fleet.snapshots import read_newest_snapshot  # noqa: PLC0415 - in the process that needs it

    begun = time.perf_counter()
    trusted = {"collector": (folder / "collector.pem").read_text()}
    snapshot = read_newest_snapshot(open_folder(folder), FLEET, trusted)
    if snapshot is None:
        raise SystemExit("no snapshot was written")
    return {
        "snapshot_read_s": round(time.perf_counter() - begun, 1),
        "snapshot_read_rss_mb": round(peak_mb()),
        "snapshot_rows": len(snapshot.rows),
        "snapshot_rows_with_sums": sum(bool(row.periods) for row in snapshot.rows),
    }


def open_folder(folder: Path) -> Any:  # noqa: ANN401 - a store
    """Open the folder that stands for the bucket."""
    from luigi_tasks.settings.values import StoreSettings  # noqa: PLC0415 - in the processes that need it
    from luigi_tasks.storage.folder_store import FolderStore  # noqa: PLC0415

    return FolderStore(StoreSettings(f"file://{folder}/store", "", "", "", conditional_writes=True))


def public_pem(signer: CryptoSigner) -> str:
    """Return the public half of a key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat  # noqa: PLC0415

    public = signer._private_key.public_key()  # noqa: SLF001 - it has no door for this
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def peak_mb() -> float:
    """Return the largest resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(main())
