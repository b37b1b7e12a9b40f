"""Cost of a second snapshot of 100,000 pictures, 100 of them new, compared with the first.

Pictures are JPEGs of 240x180 pixels with noise, each different (a camera's are larger, and flatter the
share); the store is real. Timed is `luigi
DatasetSnapshot` in its own process, from the listing to the snapshot's record.

    python benchmarks/snapshot_scale.py [--json] [--pictures 100000] [--new 100] [--alike]

Each picture is a scene of its own, as in a dataset worth learning from; with --alike all show the same scene,
and the search for near-duplicates finds all of them.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), str(REPOSITORY / "scripts")]

from pipeline_under_test import PipelineUnderTest  # noqa: E402 - found through the lines above
from retrain import run  # noqa: E402

CLASSES, WIDTH, HEIGHT, AGAIN = 10, 240, 180, 3


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--pictures", type=int, default=100_000, help="default 100000")
    parser.add_argument("--new", type=int, default=100, help="more of them each time (default 100)")
    parser.add_argument("--alike", action="store_true", help="near-duplicates of one scene")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, PipelineUnderTest(Path(folder)) as pipeline:
        write(pipeline.pictures, 0, options.pictures, alike=options.alike)
        first = run(pipeline, "DatasetSnapshot")["seconds"]
        again = []
        for number in range(AGAIN):
            start = options.pictures + number * options.new
            write(pipeline.pictures, start, start + options.new, alike=options.alike)
            again.append(run(pipeline, "DatasetSnapshot")["seconds"])
    second = statistics.median(again)
    measured = {
        "pictures": options.pictures,
        "new_pictures": options.new,
        "first_seconds": round(first, 2),
        "second_seconds": round(second, 2),
        "resnapshot_share": round(second / first, 4),
    }
    if options.json:
        print(json.dumps({"benchmark": "snapshot_scale", "figures": measured}))
    else:
        for name, value in measured.items():
            print(f"{name:<18} {value:>10}")
    return 0


def write(folder: Path, start: int, stop: int, *, alike: bool) -> None:
    """Write pictures of these numbers, in classes by turns: all of one scene, or each of its own."""
    for label in range(CLASSES):
        (folder / f"class {label}").mkdir(parents=True, exist_ok=True)

    def one(number: int) -> None:
        scene = np.random.default_rng(0 if alike else number).integers(0, 256, (8, 8, 3), np.uint8)
        base = np.asarray(Image.fromarray(scene).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), np.int16)
        noise = np.random.default_rng([number, 1]).integers(-20, 20, base.shape, np.int16)
        pixels = np.clip(base + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"class {number % CLASSES}" / f"{number:07}.jpg", quality=80)

    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(one, range(start, stop)))


if __name__ == "__main__":
    sys.exit(main())
