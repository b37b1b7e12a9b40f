"""Two processes that tune one backbone together, as two machines would."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import NamedTuple

import pytest
from local_services import free_ports

from edge_client.contract.errors import SettingsError
from luigi_tasks.edge_tune import check_place, tune
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.training.cluster import parse_cluster
from luigi_tasks.workspace import open_workspace
from tests.fakes.datasets import write_tree

WORKER = """
import dataclasses, hashlib, json, sys
from pathlib import Path
import numpy as np
from luigi_tasks.training.cluster import parse_cluster
from luigi_tasks.progress import ignore_progress
from luigi_tasks.settings.sections import ModelSettings, load_settings
from luigi_tasks.training.finetune import TrainingImages, tune_backbone

class Shelf:
    def load(self): return None
    def save(self, data): pass

workers, index, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
rng = np.random.default_rng(0)
targets = np.arange(90) % 3
pixels = np.clip(rng.normal(0, 30, (90, 32, 32, 3)) + np.eye(3)[targets][:, None, None] * 200, 0, 255)
names = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(90)]
asked = []

def read(rows):
    asked.extend(rows.tolist())
    return pixels.astype(np.uint8)[rows]

training = dataclasses.replace(
    load_settings().training, mode="finetune", epochs=2, batch_size=16, learning_rate=0.01
)
tuned = tune_backbone(
    TrainingImages(read, targets, names, 3),
    ModelSettings("mobilenet_v1", 0.25, 32, 0, "none"),
    training, None, folder, Shelf(), ignore_progress, parse_cluster(workers, index),
)
print(json.dumps({"weights": hashlib.sha256(tuned.weights).hexdigest(), "rows": asked}))
"""


class Tuning(NamedTuple):
    """What a worker process ended with.

    Attributes:
        weights: Digest of the weights.
        rows: Pictures that it read, in the order of reading.
    """

    weights: str
    rows: list[int]


def start(workers: str, index: int, folder) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, workers, str(index), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> Tuning:
    out, err = process.communicate(timeout=250)
    assert process.returncode == 0, err[-3000:]
    return Tuning(**json.loads(out.strip().splitlines()[-1]))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_workers_with_different_pictures_end_with_the_same_weights(tmp_path):
    """That these are as good as those of one machine: tests/end_to_end/test_workers.py."""
    workers = ",".join(f"127.0.0.1:{port}" for port in free_ports(2))
    both = [start(workers, index, tmp_path / str(index)) for index in range(2)]
    first, second = (finish(process) for process in both)
    # Each reads its own share only, so equal weights are not those of two machines that trained alone.
    assert not set(first.rows) & set(second.rows)
    assert sorted(first.rows + second.rows) == list(range(90))
    assert first.weights == second.weights


@pytest.mark.parametrize(
    ("workers", "index", "complaint"),
    [("host", 0, "not host:port"), ("a:1,b:x", 0, "'b:x'"), ("a:1,b:2", 2, "no worker number 2")],
)
def test_cluster_that_cannot_be_is_named(workers, index, complaint):
    with pytest.raises(SettingsError, match=complaint):
        parse_cluster(workers, index)


@pytest.mark.parametrize(
    ("workers", "index", "complaint"),
    [
        ("", 1, r"\[training\] cluster is empty"),
        ("a:1,b:2", 0, "a:1, which runs luigi; count helpers from 1"),
        ("a:1,b:2", 2, "no worker number 2"),
        ("a:1,b:2", -1, "no worker number -1"),
    ],
)
def test_helper_without_a_place_of_its_own_is_refused(workers, index, complaint):
    with pytest.raises(SettingsError, match=complaint):
        check_place(workers, index)


def test_no_list_is_no_cluster():
    assert parse_cluster("", 0) is None


def test_a_machine_that_waits_for_the_first_one_says_so(tmp_path, monkeypatch, capsys):
    folder = write_tree(tmp_path / "pictures", {"a/1.png": b"x", "b/1.png": b"y"})
    (tmp_path / "store").mkdir()
    settings = load_settings(
        str(folder), store={"url": (tmp_path / "store").as_uri()}, training={"cluster": "one:1, two:2"}
    )

    def end(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("luigi_tasks.edge_tune.time.sleep", end)
    with pytest.raises(KeyboardInterrupt):
        tune(open_workspace(settings), 1)
    assert "waits for luigi on one:1 to list the same 2 pictures" in capsys.readouterr().err
