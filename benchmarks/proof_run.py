"""The child of proof.py: runs the pipeline of whichever version is on PYTHONPATH, and answers in JSON.

    python benchmarks/proof_run.py REQUEST ANSWER

REQUEST is a JSON list of jobs, ANSWER gets the list of their results. What only some versions have is asked
for by name and is null where it is missing.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_client.contract.errors import EdgeError
from edge_client.contract.preprocessing import decode_picture
from edge_client.inference.classifier import Classifier
from luigi_tasks import steps
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.workspace import open_workspace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from luigi_tasks.workspace import Workspace

SCHEME = "int8"
# Comparisons of each kind of model, where the version has no simulation of its own.
BARE_DRAWS = 4000


@dataclasses.dataclass
class Shared:
    """What jobs on the same pictures with other labels need only once: backbone and features.

    Attributes:
        backbone: Converted for the first of them.
        rows: Features by name and content hash.
    """

    backbone: Any = None
    rows: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


def main() -> int:
    """Do the jobs in their order."""
    jobs = json.loads(Path(sys.argv[1]).read_text())
    shared = Shared()
    kinds = {"deploy": deploy, "doubtful": find_doubtful, "simulate": simulate}
    answers = [kinds[job["kind"]](job, shared) for job in jobs]
    Path(sys.argv[2]).write_text(json.dumps(answers))
    return 0


def deploy(job: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    """Run the pipeline up to the verdict, then show its file other pictures, as a device would."""
    started = time.perf_counter()
    workspace = open_workspace(load_settings(job["pictures"], **job["settings"]))
    try:
        candidate, evaluated = train(workspace, shared if job.get("shares") else Shared())
    except EdgeError as e:
        return {"published": False, "verdict": f"stopped: {e}"}
    evaluation = evaluated.record
    answer: dict[str, Any] = {
        "seconds": time.perf_counter() - started,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "hold_out": evaluation.candidate.accuracy,
        "hold_out_pictures": evaluation.candidate.pictures,
        "float_accuracy": evaluation.float_model.accuracy,
        "published": evaluation.verdict.passed,
        "verdict": evaluation.verdict.in_words(),
    }
    for name in ("unseen", "strangers"):
        if job.get(name):
            answer[name] = classify(candidate, [Path(one) for one in job[name]])
    return answer


def train(workspace: Workspace, shared: Shared) -> tuple[Any, Any]:
    """Return candidate and evaluation."""
    settings = workspace.settings
    snapshot = steps.take_snapshot(workspace)
    tuned = steps.tune_backbone(workspace, snapshot) if settings.tunes else None
    features = extract(workspace, snapshot, tuned, shared)
    head = steps.train_head(settings.training, snapshot, shared.backbone, [features], SCHEME)
    candidate = steps.assemble_candidate(settings, snapshot, [shared.backbone], [head])
    record = tuned.record if tuned is not None else None
    return candidate, steps.evaluate(workspace, candidate, snapshot, [head], tuned=record)


def extract(workspace: Workspace, snapshot: Any, tuned: Any, shared: Shared) -> Any:  # noqa: ANN401 - see `train`
    """Return the features of a snapshot; backbone and features are kept in `shared`."""
    if shared.backbone is None:
        shared.backbone = steps.convert_backbone(workspace, snapshot, SCHEME, tuned)
    features = steps.extract_features(
        workspace, snapshot.pictures, shared.backbone, SCHEME, known=shared.rows
    )
    for name in features.rows:
        shared.rows.setdefault(name, {}).update(features.find(name))
    return features


def classify(candidate: Any, paths: Sequence[Path]) -> dict[str, Any]:  # noqa: ANN401 - see above
    """Return the answers to pictures; a picture's folder is its true class."""
    record = candidate.record
    point = getattr(record, "operating_point", None)
    # As a device opens a release: where there is an operating point, the classifier says what is sure.
    more: dict[str, Any] = {} if point is None else {"operating_point": point}
    classifier = Classifier(
        candidate.model, record.labels, normalization=record.preprocessing.normalization, **more
    )
    found = [classifier.classify(decode_picture(one)) for one in paths]
    known = [getattr(one, "known", None) for one in found]
    return {
        "truths": [one.parent.name for one in paths],
        "labels": [one.label for one in found],
        "scores": [one.scores.tolist() for one in found],
        "known": None if any(one is None for one in known) else known,
        "sure": None if point is None else [one.sure for one in found],
    }


def find_doubtful(job: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    """Return the paths that the pipeline holds for wrongly labelled; null where it does not look for them."""
    find: Any = getattr(steps, "find_doubtful", None)
    if find is None:
        return {"paths": None}
    workspace = open_workspace(load_settings(job["pictures"], **job["settings"]))
    snapshot = steps.take_snapshot(workspace)
    features = extract(workspace, snapshot, None, shared)
    found = find(workspace.settings.training, snapshot, shared.backbone, [features], SCHEME)
    return {"paths": [one.path for one in found.doubtful], "verdict": f"{len(found.doubtful)} doubtful"}


def simulate(job: Mapping[str, Any], shared: Shared) -> dict[str, Any]:
    """Return what the gate does with models that are as good as the deployed one, and with worse ones."""
    del shared
    settings = load_settings().gate
    try:
        found = importlib.import_module("luigi_tasks.gate.simulation").simulate(
            job["pictures"],
            apart=job["apart"],
            worse_points=job["worse_points"],
            allowed_points=settings.max_champion_drop_points,
            margin_points=settings.champion_margin_points,
        )
    except ModuleNotFoundError:
        return simulate_bare_difference(job)
    return {name: getattr(found, name) for name in ("equal_refused", "equal_held", "worse_passed")}


def simulate_bare_difference(job: Mapping[str, Any]) -> dict[str, Any]:
    """Do the same for a gate that compares two accuracies."""
    judge: Any = importlib.import_module("luigi_tasks.gate.verdict").judge
    settings = dataclasses.replace(load_settings().gate, min_accuracy=0.0)
    pictures, apart, random = job["pictures"], job["apart"], np.random.default_rng(1)
    passed = {}
    for loss in (0.0, job["worse_points"] / 100):
        shares = [(apart + loss) / 2, (apart - loss) / 2, 1 - apart]
        lost, gained, _ = random.multinomial(pictures, shares, BARE_DRAWS).T
        verdicts = [
            judge(
                accuracy=1.0,
                float_accuracy=1.0,
                classes=(),
                champion=(0.0, difference / pictures),
                model_bytes=0,
                settings=settings,
            )
            for difference in (lost - gained).tolist()
        ]
        passed[loss] = sum(one.passed for one in verdicts) / BARE_DRAWS
    equal, worse = passed.values()
    return {"equal_refused": 1 - equal, "equal_held": 0.0, "worse_passed": worse}


if __name__ == "__main__":
    sys.exit(main())
