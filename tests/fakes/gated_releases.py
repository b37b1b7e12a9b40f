"""Releases as the pipeline makes them: judged by the real gate, with signed statements, and published.

Only the training is made up: the model is a tiny one, and the pictures are of one colour each.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edge_client.contract.names import GATE_FILE
from edge_client.contract.preprocessing import PREPROCESSING_ID
from edge_client.contract.release import Normalization, OperatingPoint, Preprocessing, release_id
from luigi_tasks import artifacts, steps
from luigi_tasks.dataset.records import HOLDOUT, TRAIN, Picture, Snapshot
from luigi_tasks.evidence.records import StoredDocument
from luigi_tasks.evidence.release import Evidence
from luigi_tasks.quantization.records import CalibrationSet, Candidate, CandidateRecord, QuantizationRecord
from luigi_tasks.release import publication
from luigi_tasks.release.contents import build_release
from luigi_tasks.workspace import open_workspace
from tests.fakes.heads import head_with
from tests.fakes.tiny_model import TINY_LABELS, plain_picture, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from luigi_tasks.gate.records import Evaluation
    from luigi_tasks.settings.values import PipelineSettings

SIZE = 32


class GatedReleases:
    """What makes releases of the same labels, one after another.

    Args:
        settings: Store, keys, gate.
        labels: Any words, up to eight: the model answers each to another colour.
    """

    def __init__(self, settings: PipelineSettings, labels: Sequence[str]) -> None:
        self.settings = dataclasses.replace(
            settings,
            dataset=dataclasses.replace(settings.dataset, url="preset:digits"),
            release=dataclasses.replace(settings.release, self_test_pictures=2),
        )
        self.labels = tuple(labels)

    def publish(
        self,
        number: int,
        mistakes: int = 2,
        pictures: int = 30,
        *,
        epochs: int = 20,
        has_tasks: bool = True,
        is_old: bool = False,
        channel: str = "stable",
    ) -> str:
        """Judge a candidate and publish it; return its id.

        Args:
            number: Candidates of different numbers have other bytes and the same answers.
            mistakes: Hold-out pictures of the first label that show the colour of the second.
            pictures: Hold-out pictures of each label; as many, and `number` more, were learned from.
            epochs: `[training] epochs`, which is all that differs in the settings.
            has_tasks: Whether the tasks made it, which sign a statement about each step.
            channel: Channel that it is published on.
            is_old: Whether it is published as by versions before the gate's record was a file of a release.
        """
        training = dataclasses.replace(self.settings.training, epochs=epochs)
        release = dataclasses.replace(self.settings.release, channel=channel)
        settings = dataclasses.replace(self.settings, training=training, release=release)
        workspace = open_workspace(settings, f"listing-{number}")
        workspace.pixel_loader = lambda *_: load_plain  # type: ignore[method-assign]
        snapshot, candidate = self._snapshot(number, mistakes, pictures), self._candidate(number)
        held = snapshot.split(HOLDOUT)
        colours = TINY_LABELS[: len(self.labels)]
        scores = np.array(
            [[float(one.path.startswith(f"{colour}/")) for colour in colours] for one in held], np.float32
        )
        evaluated = steps.evaluate(workspace, candidate, snapshot, [head_with(scores)])
        evidence, ledger = None, workspace.ledger
        if has_tasks:
            pictured = StoredDocument(ledger, f"work/snapshots/{snapshot.digest}/summary.json")
            made = StoredDocument(ledger, f"work/candidates/{number}/candidate.json", lambda: [pictured.key])
            judged = StoredDocument(
                ledger, f"work/evaluations/{number}/evaluation.json", lambda: [made.key, pictured.key]
            )
            artifacts.save_snapshot(pictured, snapshot)
            artifacts.save_candidate(made, candidate)
            artifacts.save_evaluation(judged, evaluated)
            evidence = Evidence(ledger, [made.key, judged.key])
        with pytest.MonkeyPatch.context() as patch:
            if is_old:
                patch.setattr(publication, "build_release", build_old_release)
            steps.publish_release(workspace, candidate, evaluated, snapshot, evidence=evidence)
        self.last: Evaluation = evaluated.record
        return candidate.record.release

    def _candidate(self, number: int) -> Candidate:
        model = tiny_model(number * len(self.labels), SIZE, len(self.labels))
        preprocessing = Preprocessing(
            id=PREPROCESSING_ID, height=SIZE, width=SIZE, normalization=Normalization()
        )
        never = [None] * (len(self.labels) > 1)
        point = OperatingPoint(
            precision=0.95, thresholds=(*(0.5,) * (len(self.labels) - len(never)), *never), coverage=0.66
        )
        record = CandidateRecord(
            release=release_id(model, self.labels, preprocessing, "", point),
            model_sha256=hashlib.sha256(model).hexdigest(),
            labels=self.labels,
            preprocessing=preprocessing,
            snapshot=f"snapshot-{number}",
            quantization=QuantizationRecord(
                scheme="int8",
                calibration=(CalibrationSet(backbone="b", scheme="int8", pictures=("c" * 64,)),),
                operators={"MEAN": 2},
                made_with={"code": f"c0de{number}", "numpy": "2.2.0"},
            ),
            operating_point=point,
        )
        return Candidate(record, model)

    def _snapshot(self, number: int, mistakes: int, pictures: int) -> Snapshot:
        rows = []
        for place, label in enumerate(self.labels):
            for split, count in ((HOLDOUT, pictures), (TRAIN, pictures + number)):
                for index in range(count):
                    is_wrong = split == HOLDOUT and place == 0 and index < mistakes
                    colour = TINY_LABELS[1 if is_wrong else place]
                    name = f"{colour}/{split}-{index}.png"
                    digest = hashlib.sha256(f"{label} {name}".encode()).hexdigest()
                    rows.append(Picture(path=name, sha256=digest, label=label, split=split))
        rows.sort(key=lambda one: one.sha256)
        return Snapshot(digest=f"snapshot-{number}", labels=tuple(sorted(self.labels)), pictures=tuple(rows))


def build_old_release(*arguments: Any) -> dict[str, bytes]:
    """Return the files of a release as versions before `gate.json` made them."""
    files = build_release(*arguments)
    return {path: data for path, data in files.items() if not path.endswith(f"/{GATE_FILE}")}


def load_plain(pictures: Sequence[Picture], height: int, width: int) -> NDArray[np.uint8]:
    """Return pictures of the colour that their folder names."""
    pixels = [plain_picture(one.path.partition("/")[0], height, width) for one in pictures]
    return np.array(pixels, np.uint8).reshape(-1, height, width, 3)
