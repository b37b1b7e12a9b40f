"""Retraining, compared with TensorFlow's transfer-learning guide on the same pictures and split.

Sign digits, MobileNetV2 1.0/160 with ImageNet weights; everything real: S3, broker, luigid. One run is
timed, from its first access to the store to the gate's verdict on the int8 file; of the guide, only the
seconds of `fit`. The backbone's conversion, once for architecture and weights, is timed separately.

    python benchmarks/retrain.py PICTURES WEIGHTS [--json] [--runs 3]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "scripts")]

from pipeline_under_test import PipelineUnderTest  # noqa: E402 - found through the line above

from edge_client.contract.documents import Document, decode_document  # noqa: E402
from luigi_tasks.dataset.records import Snapshot  # noqa: E402
from luigi_tasks.gate.records import Evaluation  # noqa: E402

NEW_SHARE = 0.05
LUIGID_COOLDOWN_S = 11
RECIPE = REPOSITORY / "benchmarks/transfer_learning_guide.py"
DocumentT = TypeVar("DocumentT", bound=Document)
# What a run leaves behind, but for the converted backbone.
TRACES = ("batches", "candidates", "evaluations", "features", "heads", "inventories", "plans", "snapshots")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pictures", type=Path, help="folder of sign digits")
    parser.add_argument("weights", type=Path, help="no-top ImageNet weights of MobileNetV2 1.0/160")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--runs", type=int, default=3, help="runs of each but the recipe (default 3)")
    parser.add_argument("--no-finetune", action="store_true", help="leave fine-tuning out")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        measured = measure(options, folder, stack)
    if options.json:
        print(json.dumps({"benchmark": "retrain", "figures": measured}))
    else:
        for name, value in measured.items():
            print(f"{name:<28} {value:g}")
    return 0


def measure(options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack) -> dict[str, float]:
    """Run everything; return the measurements."""
    pipeline = stack.enter_context(PipelineUnderTest(folder, settings=mobilenet_v2(options.weights)))
    paths = sorted(one for one in options.pictures.glob("*/*") if one.is_file())
    add(paths, options.pictures, pipeline.pictures)
    asset = run(pipeline, "ConvertBackbone")
    cold, peaks = [], [asset["peak_gib"]]
    for _ in range(options.runs):
        forget(pipeline, folder)
        found = run(pipeline, "EvaluateModel")
        cold.append(found["seconds"])
        peaks.append(found["peak_gib"])
    evaluation, snapshot = read(pipeline)
    shutil.copytree(pipeline.pictures, folder / "all")
    incremental = []
    step = round(len(paths) * NEW_SHARE)
    # Every twentieth is new: of each class some, as in life.
    parts = [paths[number :: round(1 / NEW_SHARE)] for number in range(options.runs)]
    for part in parts:
        for path in part:
            (pipeline.pictures / path.relative_to(options.pictures)).unlink()
    forget(pipeline, folder)
    run(pipeline, "EvaluateModel")
    for part in parts:
        add(part, options.pictures, pipeline.pictures)
        incremental.append(run(pipeline, "EvaluateModel")["seconds"])
    split = folder / "split.json"
    split.write_text(json.dumps([one.path for one in snapshot.pictures if one.split == "holdout"]))
    recipe = json.loads(
        subprocess.run(
            [
                sys.executable,
                str(REPOSITORY / "benchmarks/transfer_learning_guide.py"),
                folder / "all",
                options.weights,
                split,
            ]
            + ["--frozen-only"] * options.no_finetune,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
    )
    measured = {
        "backbone_seconds": asset["seconds"],
        "head_cold_seconds": statistics.median(cold),
        "head_incremental_seconds": statistics.median(incremental),
        "new_pictures": step,
        "recipe_frozen_seconds": recipe["frozen_seconds"],
        "recipe_frozen_accuracy": recipe["frozen_accuracy"],
        "head_cold_speedup": recipe["frozen_seconds"] / statistics.median(cold),
        "head_incremental_speedup": recipe["frozen_seconds"] / statistics.median(incremental),
        "head_accuracy": evaluation.candidate.accuracy,
        "head_float_accuracy": evaluation.float_model.accuracy,
        **drops(evaluation, ""),
    }
    if not options.no_finetune:
        pipeline.configure(training={"mode": "finetune", "epochs": 30})
        forget(pipeline, folder)  # its pictures are decoded again too, as those of the recipe
        found = run(pipeline, "EvaluateModel")
        peaks.append(found["peak_gib"])
        tuned, _ = read(pipeline)
        whole = recipe["frozen_seconds"] + recipe["finetune_seconds"]
        measured |= {
            "recipe_seconds": whole,
            "recipe_accuracy": recipe["accuracy"],
            "finetune_seconds": found["seconds"],
            "finetune_speedup": whole / found["seconds"],
            "finetune_accuracy": tuned.candidate.accuracy,
            **drops(tuned, "finetune_"),
        }
    measured["peak_memory_gib"] = max(peaks)
    return {name: round(value, 4) for name, value in measured.items()}


def mobilenet_v2(weights: Path) -> dict[str, dict[str, object]]:
    """Return the settings: everything as in luigi.cfg but for the address of the weights."""
    return {
        "model": {
            "architecture": "mobilenet_v2",
            "alpha": 1.0,
            "input_size": 160,
            "weights": weights.resolve(),
        },
        "training": {"mode": "head", "epochs": 30},
        "quantization": {"calibration_pictures": 200},
        "dataset": {"min_images_per_class": 15},
    }


def run(pipeline: PipelineUnderTest, task: str) -> dict[str, Any]:
    """Run a task as `luigi` does; return seconds after the imports, and the peak of memory."""
    program = (
        "import json, resource, time, luigi, luigi_tasks.pipeline as p\n"
        "started = time.perf_counter()\n"
        f"done = luigi.build([p.{task}()], no_lock=True, log_level='INFO', "
        f"scheduler_host='127.0.0.1', scheduler_port={pipeline.scheduler.port})\n"
        "peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20\n"
        "print(json.dumps({'done': done, 'seconds': time.perf_counter() - started, 'peak_gib': peak}))"
    )
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env=pipeline.environment(),
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
    )
    if finished.returncode != 0 or '"done": true' not in finished.stdout:
        sys.exit(finished.stdout + finished.stderr)
    print(task, *re.findall(r"(\w+ took [0-9.]+ s)", finished.stderr), sep="; ", file=sys.stderr)
    found: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return found


def forget(pipeline: PipelineUnderTest, folder: Path) -> None:
    """Remove all traces of pictures: this machine's cache, and the store's but for the backbone."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    for kind in TRACES:
        for key in keys_below(pipeline, f"{pipeline.name}/work/{kind}/"):
            pipeline.store.client().delete_object(Bucket=pipeline.store.bucket, Key=key)
    # luigid takes a task that was just done for done, whatever became of its target.
    time.sleep(LUIGID_COOLDOWN_S)


def read(pipeline: PipelineUnderTest) -> tuple[Evaluation, Snapshot]:
    """Return the newest evaluation and snapshot."""
    return (
        load(pipeline, "evaluations", "evaluation.json", Evaluation),
        load(pipeline, "snapshots", "pictures.json", Snapshot),
    )


def load(pipeline: PipelineUnderTest, kind: str, name: str, form: type[DocumentT]) -> DocumentT:
    """Return the newest document of its kind."""
    key = [one for one in keys_below(pipeline, f"{pipeline.name}/work/{kind}/") if one.endswith(name)][-1]
    found = pipeline.store.client().get_object(Bucket=pipeline.store.bucket, Key=key)["Body"].read()
    return decode_document(form, found, source=key, limit_bytes=1 << 28)


def keys_below(pipeline: PipelineUnderTest, prefix: str) -> list[str]:
    """Return the store's keys, the oldest first."""
    pages = pipeline.store.client().get_paginator("list_objects_v2")
    found = [
        (one["LastModified"], one["Key"])
        for page in pages.paginate(Bucket=pipeline.store.bucket, Prefix=prefix)
        for one in page.get("Contents", ())
    ]
    return [key for _, key in sorted(found)]


def add(paths: list[Path], source: Path, target: Path) -> None:
    """Copy pictures into the dataset."""
    for path in paths:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, copy)


def drops(evaluation: Evaluation, prefix: str) -> dict[str, float]:
    """Loss of int8 against the float network, in percentage points: overall, and of the worst class."""
    pairs = zip(evaluation.candidate.classes, evaluation.float_model.classes, strict=True)
    return {
        f"{prefix}int8_drop_points": (evaluation.float_model.accuracy - evaluation.candidate.accuracy) * 100,
        f"{prefix}int8_worst_class_drop_points": max((two.recall - one.recall) * 100 for one, two in pairs),
    }


if __name__ == "__main__":
    sys.exit(main())
