"""Cost of a Deploy with nothing to do, compared with importing Luigi and boto3 alone.

Everything real: S3, broker, luigid. One run deploys; then the same command, with nothing new, and
`python -c "import luigi, boto3"` take turns. Figures are medians of wall-clock seconds.

    python benchmarks/noop.py [--json] [--runs 7]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

from pipeline_under_test import PipelineUnderTest  # noqa: E402 - found through the line above

FLOOR = [sys.executable, "-c", "import luigi, boto3"]


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--runs", type=int, default=7, help="runs of each (default 7)")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        pipeline = stack.enter_context(PipelineUnderTest(folder))
        pipeline.write_digits(per_class=40)
        first = pipeline.luigi("Deploy")
        if first.returncode != 0:
            sys.exit(first.stderr)
        floor, noop, tensorflow = [], [], []
        for _ in range(options.runs):
            started = time.perf_counter()
            subprocess.run(FLOOR, check=True)
            floor.append(time.perf_counter() - started)
            started = time.perf_counter()
            run = pipeline.luigi("Deploy", report_imports=True)
            noop.append(time.perf_counter() - started)
            if run.returncode != 0:
                sys.exit(run.stderr)
            tensorflow.append("tensorflow imported: True" in run.stdout)
    measured = {
        "noop_seconds": round(statistics.median(noop), 3),
        "floor_seconds": round(statistics.median(floor), 3),
        "noop_ratio": round(statistics.median(noop) / statistics.median(floor), 2),
        "tensorflow_imported": int(any(tensorflow)),
    }
    if options.json:
        print(json.dumps({"benchmark": "noop", "figures": measured}))
    else:
        print(f"import luigi, boto3        {measured['floor_seconds']:.3f} s")
        print(f"Deploy with nothing to do  {measured['noop_seconds']:.3f} s")
        print(f"ratio                      {measured['noop_ratio']:.2f}")
        print(f"TensorFlow imported        {'yes' if measured['tensorflow_imported'] else 'no'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
