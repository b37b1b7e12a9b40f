"""From an announcement to the first prediction of the new model, compared with the minimum that is safe.

A device classifies 30 frames a second while one release after the other is announced, all of them
MobileNetV2 1.0/160 in int8, from a real S3 server and a real broker. The floor, measured in turn with
it: one GET of the model, its SHA-256, a child process that imports the runtime, loads the model and
invokes it once, and then the same load and invocation in the process that serves.

    python benchmarks/update.py WEIGHTS [--json] [--updates 9]
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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

FRAMES_PER_SECOND = 30
FRAMES = 6000
CHILD = (
    "import sys, numpy as np; from ai_edge_litert.interpreter import Interpreter\n"
    "it = Interpreter(model_content=open(sys.argv[1], 'rb').read(), num_threads=1)\n"
    "it.allocate_tensors(); given = it.get_input_details()[0]\n"
    "it.set_tensor(given['index'], np.zeros(given['shape'], given['dtype'])); it.invoke()\n"
)


def main() -> int:
    """Measure and print."""
    parser = weights_parser(__doc__)
    parser.add_argument("--updates", type=int, default=9, help="updates to measure (default 9)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, DeviceBench(Path(folder)) as bench:
        measured = measure(bench, options.weights, options.updates)
    print_measurements("update", measured, as_json=options.json)
    return 0


def measure(bench: DeviceBench, weights: Path, updates: int) -> dict[str, float]:
    """Run the device through the updates; return the measurements."""
    backbone = make_backbone(weights)
    releases = [make_release(backbone, number) for number in range(updates + 1)]
    frames = bench.folder / "frames"
    frames.mkdir()
    picture = bench.write_picture()
    for number in range(FRAMES):
        (frames / f"{number:06}.jpg").hardlink_to(picture)
    log = bench.folder / "results.jsonl"
    settings = bench.write_settings(
        source={"kind": "files", "path": str(frames), "frames_per_second": FRAMES_PER_SECOND},
        sinks={"mqtt": False, "json_lines": str(log), "json_lines_max_bytes": 100_000_000},
    )
    bench.publish(*releases[0])
    seconds, floors, pulled = [], [], []
    with (
        DeviceWatcher(bench.broker, FLEET, DEVICE) as watcher,
        running_device(settings, bench.folder / "log", bench.store),
    ):
        watcher.wait_for(lambda status: status.update is not None, "the first release")
        for release, files in releases[1:]:
            bench.publish(release, files)
            time.sleep(1.5)  # let the frames settle
            bench.announce(release)
            status = watcher.wait_for(
                lambda status, release=release: (
                    status.update is not None and status.update.release == release
                ),
                f"release {release}",
            )
            assert status.update is not None  # noqa: S101 - waited for
            seconds.append(status.update.seconds)
            pulled.append(status.update.bytes_pulled)
            time.sleep(0.5)
            floors.append(floor(bench, release))
    return {
        "update_seconds": round(statistics.median(seconds), 4),
        "update_seconds_slowest": max(seconds),
        "floor_seconds": round(statistics.median(floors), 4),
        "update_ratio": round(statistics.median(seconds) / statistics.median(floors), 3),
        "bytes_pulled": statistics.median(pulled),
        **judge_frames(log.read_text().splitlines()),
    }


def floor(bench: DeviceBench, release: str) -> float:
    """Seconds of the least that is safe."""
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    from edge_client.repository.http_fetcher import StoreFetcher  # noqa: PLC0415
    from edge_client.settings.update import StoreCredentials, StoreSettings  # noqa: PLC0415

    keys = StoreCredentials(bench.store.device_access_key, bench.store.device_secret_key)
    fetcher = StoreFetcher(StoreSettings(base_url=bench.base_url), keys)
    key = next(key for key in keys_of(bench) if release in key and key.endswith("model.tflite"))
    url = f"{bench.store.endpoint_url}/{bench.store.bucket}/{key}"
    path = bench.folder / "floor.tflite"
    started = time.perf_counter()
    model = b"".join(fetcher.fetch(url))
    hashlib.sha256(model).hexdigest()
    path.write_bytes(model)
    subprocess.run([sys.executable, "-c", CHILD, str(path)], check=True, stderr=subprocess.DEVNULL)
    interpreter: Any = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.invoke()
    return time.perf_counter() - started


def keys_of(bench: DeviceBench) -> list[str]:
    """Return the store's keys."""
    pages = bench.store.client().get_paginator("list_objects_v2").paginate(Bucket=bench.store.bucket)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def judge_frames(lines: list[str]) -> dict[str, float]:
    """Return lost frames and the longest gap, in frame times, over the whole run after its first second."""
    results = [json.loads(line) for line in lines]
    numbers = [int(Path(one["source"]).stem) for one in results]
    times = [datetime.datetime.fromisoformat(one["at"]).timestamp() for one in results]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    lost = numbers[-1] - numbers[0] + 1 - len(numbers)
    return {
        "frames": len(numbers),
        "frames_lost": lost,
        "longest_gap_frames": round(max(gaps[FRAMES_PER_SECOND:]) * FRAMES_PER_SECOND, 2),
    }


if __name__ == "__main__":
    sys.exit(main())
