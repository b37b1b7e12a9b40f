"""Cost of the daemon on a device: memory, start, disk, processor, and the size of its installation.

MobileNetV2 1.0/160 in int8, from a real S3 server and a real broker. The release is pulled first, so
that what an update needs had its chance to stay in memory; then the daemon classifies one frame a
second, is measured, is restarted, and waits for frames that do not come.

    python benchmarks/footprint.py WEIGHTS [--json] [--seconds 60]
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path

from device_under_test import (
    DEVICE,
    FLEET,
    DeviceBench,
    make_backbone,
    make_release,
    print_measurements,
    weights_parser,
)
from device_watcher import DeviceWatcher, running_device
from local_services import wait_until

STARTS = 5
DAY_S = 86400
MEGABYTE = 1_000_000


def main() -> int:
    """Measure and print."""
    parser = weights_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each measurement (default 60)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, DeviceBench(Path(folder)) as bench:
        measured = measure(bench, options.weights, options.seconds)
    print_measurements("footprint", measured, as_json=options.json)
    return 0


def measure(bench: DeviceBench, weights: Path, seconds: float) -> dict[str, float]:
    """Return the measurements."""
    backbone = make_backbone(weights)
    bench.publish(*make_release(backbone, 0))
    frames = bench.folder / "frames"
    frames.mkdir()
    picture = bench.write_picture()
    for number in range(round(seconds) + 30):
        (frames / f"{number:06}.jpg").hardlink_to(picture)
    results = bench.folder / "results.jsonl"
    settings = bench.write_settings(
        source={"kind": "files", "path": str(frames), "frames_per_second": 1},
        sinks={"json_lines": str(results)},
    )
    with (
        DeviceWatcher(bench.broker, FLEET, DEVICE) as watcher,
        running_device(settings, bench.folder / "log", bench.store) as daemon,
    ):
        watcher.wait_for(lambda status: status.update is not None, "the first release")
        bench.publish(*make_release(backbone, 1))
        release, files = make_release(backbone, 2)
        bench.publish(release, files)
        bench.announce(release)
        watcher.wait_for(
            lambda status: status.update is not None and status.update.release == release,
            "the second release",
        )
        time.sleep(3)
        before = written_bytes(daemon.pid)
        time.sleep(seconds)
        written = written_bytes(daemon.pid) - before
        memory = resident_bytes(daemon.pid)
    starts = [start_once(bench, settings, results) for _ in range(STARTS)]
    (bench.folder / "empty").mkdir()
    idle = bench.write_settings(source={"kind": "folder", "path": str(bench.folder / "empty")})
    with running_device(idle, bench.folder / "log", bench.store) as daemon:
        time.sleep(5)
        busy = processor_seconds(daemon.pid)
        time.sleep(seconds)
        busy = processor_seconds(daemon.pid) - busy
    return {
        "rss_mb": round(memory / MEGABYTE, 1),
        "start_seconds": round(statistics.median(starts), 3),
        "disk_mb_per_day": round(written / seconds * DAY_S / MEGABYTE, 1),
        "idle_cpu_percent": round(100 * busy / seconds, 3),
        "install_mb": round(installed_bytes("edge-fleet") / MEGABYTE, 1),
    }


def start_once(bench: DeviceBench, settings: Path, results: Path) -> float:
    """Return the seconds from the start of the process to its first answer."""
    results.unlink()
    started = time.time()
    with running_device(settings, bench.folder / "log", bench.store):
        wait_until(lambda: results.exists() and results.stat().st_size > 0, "the first answer")
        return time.time() - started


def resident_bytes(pid: int) -> int:
    """Return VmRSS."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None  # noqa: S101 - the kernel writes it
    return int(found[1]) * 1024


def written_bytes(pid: int) -> int:
    """Return the bytes that the process had the disk write."""
    found = re.search(r"^write_bytes: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)
    assert found is not None  # noqa: S101 - the kernel writes it
    return int(found[1])


def processor_seconds(pid: int) -> float:
    """Return user and system time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def installed_bytes(name: str) -> int:
    """Return the size of a distribution's files and of all that it needs, without extras."""
    seen: set[str] = set()
    waiting, total = [name], 0
    while waiting:
        one = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if one in seen:
            continue
        seen.add(one)
        try:
            distribution = importlib.metadata.distribution(one)
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        for file in distribution.files or []:
            path = Path(str(file.locate()))
            total += path.stat().st_size if path.is_file() else 0
        waiting += [
            re.split(r"[ ;\[(<>=!~]", need)[0]
            for need in distribution.requires or []
            if "extra ==" not in need
        ]
    return total


if __name__ == "__main__":
    sys.exit(main())
