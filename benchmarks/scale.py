"""Time, memory and bytes of a Deploy as the pictures become more: 1,000, 10,000 and 100,000.

Mode `head`, MobileNetV2 1.0/160, ten kinds of generated scenes in JPEGs of 240x180 pixels; everything real:
S3, broker, luigid, one worker. Without WEIGHTS the network has random ones, which cost the same; [gate]
limits are off, so that a release is published whatever its accuracy. Each size starts from nothing.

    python benchmarks/scale.py [WEIGHTS] [--json] [--sizes 1000,10000,100000]

Memory is that of all processes of the run together, sampled; an exponent is the slope between the two largest
sizes on logarithmic scales: 1 is proportional.
"""

from __future__ import annotations

import argparse
import collections
import json
import math
import os
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks"), str(REPOSITORY / "scripts")]

import scale_pictures  # noqa: E402 - found through the lines above
from pipeline_under_test import PipelineUnderTest  # noqa: E402

SIZES = "1000,10000,100000"
INPUT_SIZE = 160
SAMPLE_S = 0.1
PAGE_BYTES, TICKS_A_SECOND = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path, nargs="?", help="no-top weights of MobileNetV2 1.0/160")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--sizes", default=SIZES, help=f"numbers of pictures (default {SIZES})")
    parser.add_argument("--folder", type=Path, help="where the work lies meanwhile (120 kB a picture)")
    options = parser.parse_args()
    sizes = sorted(int(one) for one in options.sizes.split(","))
    measured: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        weights = options.weights or generate_weights(Path(folder))
        for size in sizes:
            measured |= measure(Path(folder) / str(size), size, weights.resolve())
            sys.stderr.write(f"{size} pictures: {measured[f'seconds_{size}']:.0f} s\n")
    measured |= exponents(measured, sizes)
    if options.json:
        print(json.dumps({"benchmark": "scale", "figures": measured}))
    else:
        for name, value in measured.items():
            print(f"{name:<36} {value:>14,.4g}")
    return 0


def generate_weights(folder: Path) -> Path:
    """Return a file of random weights."""
    command = [sys.executable, str(REPOSITORY / "benchmarks/scale_pictures.py"), str(folder), str(INPUT_SIZE)]
    subprocess.run(command, check=True, capture_output=True)
    return folder / scale_pictures.WEIGHTS_NAME.format(size=INPUT_SIZE)


def measure(folder: Path, size: int, weights: Path) -> dict[str, float]:
    """Deploy one set of pictures; return its figures."""
    settings: dict[str, dict[str, object]] = {
        "model": {"architecture": "mobilenet_v2", "alpha": 1.0, "input_size": INPUT_SIZE, "weights": weights},
        "training": {"mode": "head", "epochs": 30},
        "quantization": {"calibration_pictures": 200},
    }
    folder.mkdir()
    with PipelineUnderTest(folder, settings=settings) as pipeline:
        scale_pictures.write_scenes(pipeline.pictures, 0, size)
        deploy = Deploy(pipeline)
        text = deploy.run()
        if "PublishRelease took" not in text:
            sys.exit(f"{size} pictures: nothing was published\n{text[-6000:]}")
        objects = stored_objects(pipeline)
    figures = {
        f"seconds_{size}": deploy.seconds,
        f"cpu_seconds_{size}": deploy.cpu_seconds,
        f"peak_gib_{size}": deploy.peak_bytes / 2**30,
        f"store_bytes_{size}": sum(objects.values()),
        f"store_objects_{size}": len(objects),
        # Documents are read whole, up to DOCUMENT_LIMIT_BYTES of luigi_tasks/storage/documents.py.
        f"largest_document_bytes_{size}": max(own for key, own in objects.items() if key.endswith(".json")),
        f"cache_bytes_{size}": folder_bytes(folder / "cache"),
    }
    figures |= {f"store_bytes_{kind}_{size}": own for kind, own in bytes_by_kind(objects).items()}
    for task, seconds in task_seconds(text).items():
        peak, cpu = deploy.use_during(task)
        figures[f"{task}_seconds_{size}"] = seconds
        figures[f"{task}_cpu_seconds_{size}"] = cpu
        figures[f"{task}_peak_gib_{size}"] = peak / 2**30
    return {name: round(value, 4) for name, value in figures.items()}


class Deploy:
    """One run of `luigi Deploy`, and what it takes.

    Attributes:
        seconds: From its start to its end.
        cpu_seconds: Of all its cores together; depends less on what else the machine does.
        peak_bytes: Resident memory of all its processes together.
    """

    def __init__(self, pipeline: PipelineUnderTest) -> None:
        self._pipeline = pipeline
        self._samples: list[tuple[float, int, float]] = []  # when, bytes, processor seconds
        self._lines: list[tuple[float, str]] = []
        self.seconds = self.cpu_seconds = 0.0

    def run(self) -> str:
        """Run to the end; return the log."""
        started, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
        process = self._pipeline.start_luigi("Deploy")
        sampling = threading.Thread(target=self._sample, args=(process,), daemon=True)
        sampling.start()
        assert process.stdout is not None  # noqa: S101 - `start_luigi` pipes it
        for line in process.stdout:
            self._lines.append((time.monotonic(), line))
        process.wait()
        sampling.join()
        self.seconds = time.monotonic() - started
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu_seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        return "".join(line for _, line in self._lines)

    @property
    def peak_bytes(self) -> int:
        """Largest sample."""
        return max((used for _, used, _ in self._samples), default=0)

    def use_during(self, task: str) -> tuple[int, float]:
        """Return the largest memory and the processor seconds while tasks of this family ran."""
        largest, seconds = 0, 0.0
        for end, line in self._lines:
            if found := re.search(rf"\b{task} took ([0-9.]+) s", line):
                start = end - float(found[1])
                own = [(used, cpu) for at, used, cpu in self._samples if start <= at <= end]
                largest = max([largest, *(used for used, _ in own)])
                seconds += own[-1][1] - own[0][1] if own else 0.0
        return largest, seconds

    def _sample(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            self._samples.append((time.monotonic(), *use_of(process.pid)))
            time.sleep(SAMPLE_S)


def use_of(root: int) -> tuple[int, float]:
    """Return the resident bytes and the processor seconds of a process and of all that descend from it."""
    parents: dict[int, int] = {}
    use: dict[int, tuple[int, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # proc(5): after the name, which may hold blanks, come state, ppid and, from 11 on, four times in
            # ticks: user and system, of the process and of its children that ended.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            pages = int((folder / "statm").read_text().split()[1])
            parents[int(folder.name)] = int(fields[1])
            use[int(folder.name)] = (pages, sum(int(one) for one in fields[11:15]))
        except (OSError, IndexError, ValueError):  # it ended meanwhile
            continue
    family, found = {root}, {root}
    while found:
        found = {child for child, parent in parents.items() if parent in found}
        family |= found
    own = [use.get(one, (0, 0)) for one in family]
    return sum(pages for pages, _ in own) * PAGE_BYTES, sum(ticks for _, ticks in own) / TICKS_A_SECOND


def task_seconds(text: str) -> dict[str, float]:
    """Return the seconds of each family of tasks, in order of their first end."""
    found: dict[str, float] = collections.defaultdict(float)
    for task, seconds in re.findall(r"(\w+) took ([0-9.]+) s", text):
        found[task] += float(seconds)
    return dict(found)


def stored_objects(pipeline: PipelineUnderTest) -> dict[str, int]:
    """Return the bytes of each object in the store, by key without the prefix of the pipeline."""
    prefix = f"{pipeline.name}/"
    pages = pipeline.store.client().get_paginator("list_objects_v2")
    return {
        one["Key"].removeprefix(prefix): one["Size"]
        for page in pages.paginate(Bucket=pipeline.store.bucket, Prefix=prefix)
        for one in page.get("Contents", ())
    }


def bytes_by_kind(objects: dict[str, int]) -> dict[str, int]:
    """Add the bytes up: of each kind of result below work/, and of what devices read."""
    found: dict[str, int] = collections.defaultdict(int)
    for key, size in objects.items():
        found[key.split("/")[1] if key.startswith("work/") else "released"] += size
    return dict(sorted(found.items()))


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(one.stat().st_size for one in folder.rglob("*") if one.is_file())


def exponents(measured: dict[str, float], sizes: list[int]) -> dict[str, float]:
    """Return the growth of time, memory and bytes between the two largest sizes."""
    if len(sizes) < 2:
        return {}
    small, large = sizes[-2:]
    growth = math.log(large / small)
    named = {
        "time_exponent": "seconds",
        "cpu_exponent": "cpu_seconds",
        "memory_exponent": "peak_gib",
        "store_exponent": "store_bytes",
    }
    return {
        name: round(math.log(measured[f"{figure}_{large}"] / measured[f"{figure}_{small}"]) / growth, 3)
        for name, figure in named.items()
    }


if __name__ == "__main__":
    sys.exit(main())
