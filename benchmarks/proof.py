"""What the pipeline promises of its models, measured on real pictures, beside the released version.

The folder is TensorFlow's flowers (1,200 of them were used), the weights those of MobileNetV2 1.0/160;
strangers are folders of pictures of other things. Everything runs through `luigi_tasks.steps` and the
device's `Classifier`, in a child process for each version; the released one is taken out of git.

    python benchmarks/proof.py PICTURES WEIGHTS --strangers DIGITS CORAL [--json] [--only NAME,NAME]
        [--folds 5] [--quick] [--released REV]

`--only` takes names of figures or of scenarios: burst, constant, gate, doubtful, folds, finetune.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import io
import itertools
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "benchmarks")]

import proof_pictures as data  # noqa: E402 - found through the line above
from proof_measures import (  # noqa: E402 - as above
    Figures,
    accuracy,
    calibration_error,
    compare_doubts,
    judge_folds,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


# The version that every figure is compared with.
RELEASED = "2f42550"
THIS, OLD = "this", "released"
PRECISION = 0.95
BURSTS, FLIPPED_SHARE = 700, 0.05
# Share of the hold-out on which one of two simulated models is right and the other wrong: measured for two
# heads in docs/decisions/0010-gate-evidence.md.
APART_SHARE = 0.05
RANDOM_SHARES = ((0.9, 0.1), (0.95, 0.05), (0.97, 0.03), (0.8, 0.1, 0.1), (0.9, 0.05, 0.05))
EVERY_STRANGER = 4
SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """A bound on a figure.

    Attributes:
        text: The bound as a person reads it.
        holds: Whether a value is within it.
    """

    text: str
    holds: Callable[[float], bool]


WANTED = {
    "burst_gap_points": Wanted("at most 3", lambda one: one <= 3),
    "constant_passed": Wanted("0", lambda one: one == 0),
    "equal_refused_share": Wanted("at most 0.05", lambda one: one <= 0.05),
    "worse_passed_share": Wanted("at most 0.3", lambda one: one <= 0.3),
    "worse_passed_share_2000": Wanted("at most 0.02", lambda one: one <= 0.02),
    "doubtful_recall": Wanted("at least 0.8", lambda one: one >= 0.8),
    "doubtful_precision": Wanted("at least 0.5", lambda one: one >= 0.5),
    "ece": Wanted("at most 0.03", lambda one: one <= 0.03),
    "precision_kept": Wanted("within 2 points", lambda one: abs(one) <= 2),
    "strangers_auroc": Wanted("at least 0.92", lambda one: one >= 0.92),
    "flowers_finetune_gain_points": Wanted("at least 1.5", lambda one: one >= 1.5),
    "flowers_finetune_seconds_ratio": Wanted("at most 1.5", lambda one: one <= 1.5),
}


class Proof:
    """Both versions of the pipeline, and the pictures that they are run on.

    Args:
        options: The command line.
        folder: Gets everything that is written.
    """

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.trees = {THIS: REPOSITORY}
        if released := take_released(options.released, folder / "version"):
            self.trees[OLD] = released
        self._jobs = itertools.count()

    @functools.cached_property
    def paths(self) -> list[Path]:
        """The pictures, in order of their hashes."""
        return data.copy_pictures(self.options.pictures, self.folder / "all")

    @functools.cached_property
    def strangers(self) -> list[str]:
        """Pictures of no class: of a folder with classes every fourth, of a flat one all."""
        found: list[Path] = []
        for folder in self.options.strangers:
            pictures = sorted(
                one for one in folder.rglob("*") if one.suffix.lower() in {".jpg", ".jpeg", ".png"}
            )
            found += pictures if len(pictures) < 100 else pictures[::EVERY_STRANGER]
        return [str(one) for one in found]

    def deploy(self, pictures: Path, mode: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
        """Return a job: the pipeline on a folder of pictures."""
        settings = {
            "model": {"weights": str(self.options.weights.resolve())},
            "training": {"mode": mode},
        }
        return {"kind": "deploy", "pictures": str(pictures), "settings": settings, **more}

    def run(self, version: str, jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Do jobs in one process of a version."""
        own = self.folder / version
        own.mkdir(exist_ok=True)
        for job in jobs:
            job.get("settings", {}).update(
                store={"url": (own / f"store-{next(self._jobs)}").as_uri()},
                dataset={"cache_dir": str(own / "cache")},
            )
        request, answer = own / "request.json", own / "answer.json"
        request.write_text(json.dumps(jobs))
        environment = {name: value for name, value in os.environ.items() if name != "LUIGI_CONFIG_PATH"}
        tree = self.trees[version]
        finished = subprocess.run(
            [sys.executable, str(REPOSITORY / "benchmarks/proof_run.py"), request, answer],
            env={**environment, "PYTHONPATH": str(tree), "TF_CPP_MIN_LOG_LEVEL": "3"},
            cwd=tree,  # where luigi.cfg lies
            check=False,
            capture_output=True,
            text=True,
        )
        if finished.returncode != 0:
            sys.exit(f"{version} version:\n{finished.stdout}{finished.stderr}")
        found: list[dict[str, Any]] = json.loads(answer.read_text())
        for job, one in zip(jobs, found, strict=True):
            note(version, Path(str(job.get("pictures"))).name, one)
        return found


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="folder of flowers")
    parser.add_argument("weights", type=Path, help="no-top ImageNet weights of MobileNetV2 1.0/160")
    parser.add_argument("--strangers", type=Path, nargs="*", default=[], help="folders of other pictures")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    parser.add_argument("--only", default="", help="figures or scenarios, separated by commas")
    parser.add_argument("--folds", type=int, default=5, help="folds of the pictures (default 5)")
    parser.add_argument("--draws", type=int, default=3, help="choices of the unseen, and seeds (default 3)")
    parser.add_argument("--quick", action="store_true", help="two folds, one draw: only shows that it runs")
    parser.add_argument("--released", default=RELEASED, help=f"revision to compare with (default {RELEASED})")
    options = parser.parse_args()
    options.used_folds = 2 if options.quick else options.folds
    options.draws = 1 if options.quick else options.draws
    with tempfile.TemporaryDirectory() as folder:
        proof = Proof(options, Path(folder))
        measured: dict[str, Figures] = {version: {} for version in proof.trees}
        for scenario in chosen(options.only):
            for version, figures in scenario.measure(proof).items():
                measured[version] |= figures
    if THIS in measured and OLD in measured:
        compare_finetuning(measured)
    if options.json:
        print(json.dumps({"benchmark": "proof", "figures": flatten(measured)}))
    else:
        print_table(measured)
    return 0


def take_released(revision: str, folder: Path) -> Path | None:
    """Take a version out of git; None, with a line that says so, where that cannot be."""
    command = ["git", "-C", str(REPOSITORY), "archive", "--format=tar", revision]
    try:
        archive = subprocess.run(command, check=True, capture_output=True).stdout
    except (OSError, subprocess.CalledProcessError) as e:
        reason = getattr(e, "stderr", b"").decode().strip() or e
        sys.stderr.write(
            f"The released version is left out: {revision} cannot be taken out of git: {reason}\n"
        )
        return None
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")
    return folder


# Scenarios


def measure_bursts(proof: Proof) -> dict[str, Figures]:
    """Bursts of a part of the pictures are the data set; the rest was never seen."""
    found: dict[str, list[tuple[float, float]]] = {version: [] for version in proof.trees}
    for draw in range(proof.options.draws):
        order = np.random.default_rng(draw).permutation(len(proof.paths))
        shuffled = [proof.paths[one] for one in order]
        taken, unseen = shuffled[:BURSTS], shuffled[BURSTS:]
        folder = data.write_bursts(taken, proof.folder / f"bursts-{draw}", seed=draw)
        for version, pairs in found.items():
            [answer] = proof.run(version, [proof.deploy(folder, "head", unseen=names(unseen))])
            pairs.append((answer["hold_out"], accuracy(answer["unseen"])))
    return {
        version: {
            "burst_gap_points": 100 * statistics.fmean(hold_out - unseen for hold_out, unseen in pairs),
            "burst_hold_out_accuracy": statistics.fmean(hold_out for hold_out, _ in pairs),
            "burst_unseen_accuracy": statistics.fmean(unseen for _, unseen in pairs),
        }
        for version, pairs in found.items()
    }


def measure_constants(proof: Proof) -> dict[str, Figures]:
    """Nothing can be learned from labels at random, so nothing may be published."""
    folders = [
        data.link_pictures(
            data.label_at_random(proof.paths, shares, seed), proof.folder / f"random-{number}-{seed}"
        )
        for number, shares in enumerate(RANDOM_SHARES)
        for seed in range(proof.options.draws)
    ]
    found = {
        version: proof.run(version, [proof.deploy(one, "head", shares=True) for one in folders])
        for version in proof.trees
    }
    return {
        version: {
            "constant_passed": float(sum(one["published"] for one in answers)),
            "constant_tried": float(len(answers)),
        }
        for version, answers in found.items()
    }


def measure_gate(proof: Proof) -> dict[str, Figures]:
    """Simulate the gate's comparison with the deployed model."""
    jobs = [
        {"kind": "simulate", "pictures": pictures, "apart": APART_SHARE, "worse_points": 3.0}
        for pictures in (400, 2000)
    ]
    measured = {}
    for version in proof.trees:
        few, many = proof.run(version, jobs)
        measured[version] = {
            "equal_refused_share": few["equal_refused"],
            "equal_held_share": few["equal_held"],
            "worse_passed_share": few["worse_passed"],
            "worse_passed_share_2000": many["worse_passed"],
            "apart_share": APART_SHARE,
        }
    return measured


def measure_doubtful(proof: Proof) -> dict[str, Figures]:
    """Flip some labels, and see which pictures the pipeline doubts."""
    jobs, wrong = [], []
    for seed in range(proof.options.draws):
        labels, flipped = data.flip_labels(proof.paths, FLIPPED_SHARE, seed)
        folder = data.link_pictures(labels, proof.folder / f"flipped-{seed}")
        wrong.append({f"{labels[one]}/{one.name}" for one in flipped})
        jobs.append({**proof.deploy(folder, "head", shares=True), "kind": "doubtful"})
    found = {version: proof.run(version, jobs) for version in proof.trees}
    return {
        version: compare_doubts(wrong, [one["paths"] for one in answers])
        for version, answers in found.items()
    }


def measure_folds(proof: Proof) -> dict[str, Figures]:
    """In `head` mode: each fold's pictures are shown to a model of the others, and so are the strangers."""
    found: dict[str, list[dict[str, Any]]] = {version: [] for version in proof.trees}
    for folder, unseen in folds(proof):
        for version, answers in found.items():
            job = proof.deploy(folder, "head", unseen=names(unseen), strangers=proof.strangers)
            answers.extend(proof.run(version, [job]))
    return {version: judge_folds(answers, PRECISION) for version, answers in found.items()}


def measure_finetuning(proof: Proof) -> dict[str, Figures]:
    """In `finetune` mode, both versions in turn: accuracy on what was never seen, and seconds."""
    found: dict[str, list[dict[str, Any]]] = {version: [] for version in proof.trees}
    for folder, unseen in folds(proof):
        for version, answers in found.items():
            answers.extend(proof.run(version, [proof.deploy(folder, "finetune", unseen=names(unseen))]))
    return {
        version: {
            "flowers_finetune_accuracy": statistics.fmean(accuracy(one["unseen"]) for one in answers),
            "flowers_finetune_seconds": statistics.median(one["seconds"] for one in answers),
            "ece_finetune": calibration_error([one["unseen"] for one in answers]),
        }
        for version, answers in found.items()
    }


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A measurement and the figures that it gives."""

    name: str
    figures: tuple[str, ...]
    measure: Callable[[Proof], dict[str, Figures]]


SCENARIOS = (
    Scenario(
        "gate",
        ("equal_refused_share", "equal_held_share", "worse_passed_share", "worse_passed_share_2000"),
        measure_gate,
    ),
    Scenario("constant", ("constant_passed", "constant_tried"), measure_constants),
    Scenario("burst", ("burst_gap_points",), measure_bursts),
    Scenario("doubtful", ("doubtful_recall", "doubtful_precision"), measure_doubtful),
    Scenario(
        "folds",
        ("ece", "precision_kept", "precision_coverage", "strangers_auroc", "flowers_head_accuracy"),
        measure_folds,
    ),
    Scenario(
        "finetune",
        (
            "flowers_finetune_accuracy",
            "flowers_finetune_gain_points",
            "flowers_finetune_seconds",
            "flowers_finetune_seconds_ratio",
            "ece_finetune",
        ),
        measure_finetuning,
    ),
)


def chosen(only: str) -> list[Scenario]:
    """Return the scenarios that give these figures; all where none is named."""
    wanted = {one.strip() for one in only.split(",") if one.strip()}
    known = {one.name for one in SCENARIOS}.union(*(one.figures for one in SCENARIOS))
    if unknown := wanted - known:
        sys.exit(f"--only: no {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}")
    return [one for one in SCENARIOS if not wanted or wanted.intersection({one.name, *one.figures})]


def folds(proof: Proof) -> list[tuple[Path, list[Path]]]:
    """Return for each fold the data set without its pictures, and its pictures."""
    parts = data.divide(proof.paths, proof.options.folds)
    found = []
    for number, unseen in enumerate(parts[: proof.options.used_folds]):
        folder = proof.folder / f"without-fold-{number}"
        if not folder.exists():
            others = [one for part in parts if part is not unseen for one in part]
            data.link_pictures(data.own_labels(others), folder)
        found.append((folder, unseen))
    return found


def compare_finetuning(measured: dict[str, Figures]) -> None:
    """Add what fine-tuning gains on the released version, and what that costs."""
    new, old = measured[THIS], measured[OLD]
    better, worse = (one.get("flowers_finetune_accuracy") for one in (new, old))
    slower, faster = (one.get("flowers_finetune_seconds") for one in (new, old))
    if better is not None and worse is not None:
        new["flowers_finetune_gain_points"] = 100 * (better - worse)
    if slower is not None and faster is not None:
        new["flowers_finetune_seconds_ratio"] = slower / faster


# Output


def names(paths: Sequence[Path]) -> list[str]:
    """Return paths as JSON takes them."""
    return [str(one) for one in paths]


def note(version: str, what: str, answer: dict[str, Any]) -> None:
    """Say on standard error how far the run is."""
    seconds = f"{answer['seconds']:.0f} s, " if "seconds" in answer else ""
    unseen = f"unseen {accuracy(answer['unseen']):.4f}, " if "unseen" in answer else ""
    sys.stderr.write(f"{version}: {what}: {seconds}{unseen}{answer.get('verdict', 'done')}\n")


def flatten(measured: dict[str, Figures]) -> dict[str, float]:
    """Return the figures by name; those of the released version end in `_released`."""
    return {
        name if version == THIS else f"{name}_{version}": round(value, 4)
        for version, figures in measured.items()
        for name, value in figures.items()
        if value is not None
    }


def print_table(measured: dict[str, Figures]) -> None:
    """Print each figure beside the released version's, and the bound."""
    rows = [("figure", "this version", "released", "wanted", "met")]
    for name, value in measured[THIS].items():
        bound = WANTED.get(name)
        met = "" if bound is None or value is None else "yes" if bound.holds(value) else "no"
        rows.append(
            (name, number(value), number(measured.get(OLD, {}).get(name)), bound.text if bound else "", met)
        )
    for row in rows:
        print(f"{row[0]:<32}{row[1]:>13}{row[2]:>10}  {row[3]:<16}{row[4]}")


def number(value: float | None) -> str:
    """Write a figure; a dash where there is none."""
    return "-" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
