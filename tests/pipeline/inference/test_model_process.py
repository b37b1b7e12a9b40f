"""Models in a child process: what they do to the runtime is an error that names the file, and no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.release import Normalization
from edge_client.inference.classifier import Classifier
from luigi_tasks.backbone.extractor import open_extractor
from luigi_tasks.inference import model_process
from luigi_tasks.inference.features import FeatureExtractor
from luigi_tasks.inference.model_process import ModelFile, ModelProcess
from luigi_tasks.progress import ignore_progress
from tests.fakes.bad_models import crashing_model, endless_model, expanding_model
from tests.fakes.tiny_model import tiny_labels, tiny_model

PICTURES = np.random.default_rng(3).integers(0, 256, (70, 32, 32, 3), np.uint8)


def file_of(model: bytes, labels: int = 3) -> ModelFile:
    return ModelFile(
        model,
        "work/candidates/7c/model.tflite",
        labels=tiny_labels(labels),
        normalization=Normalization(),
    )


def run(model: bytes):
    with ModelProcess(file_of(model)) as process:
        return process.run(PICTURES, ignore_progress, "")


@pytest.fixture
def short_wait(monkeypatch):
    monkeypatch.setattr(model_process, "ANSWER_LIMIT_S", 1.0)


def test_answers_are_those_of_the_same_file_in_this_process(monkeypatch):
    monkeypatch.setattr(model_process, "BLOCK_BYTES", 20 * 32 * 32 * 3)  # more blocks than two at once
    classifier = Classifier(tiny_model(), tiny_labels(), normalization=Normalization())
    seen: list[int] = []
    with ModelProcess(file_of(tiny_model())) as process:
        rows = process.run(PICTURES, lambda _what, done, _total: seen.append(done), "")
        alone = process.run_alone(PICTURES[:5])
    wanted = np.stack([classifier.classify(one).scores for one in PICTURES])
    assert np.array_equal(rows[:, :-2].astype(np.float32), wanted)
    assert np.array_equal(alone[:, :-2], rows[:5, :-2])
    assert (rows[:, -1] > 0).all(), "milliseconds of each"
    assert (seen[-1], seen) == (len(PICTURES), sorted(seen))


@pytest.mark.parametrize("kind", ["uint8", "float32"])
def test_features_are_those_of_the_same_file_in_this_process(kind):
    model = tiny_model(kind=kind)
    wanted = FeatureExtractor(model)(PICTURES, ignore_progress, "")
    found = open_extractor(model)(PICTURES, ignore_progress, "")
    assert found.dtype == wanted.dtype
    assert np.array_equal(found, wanted)


def test_a_model_that_crashes_the_runtime_is_an_error_that_names_file_and_signal():
    with pytest.raises(InputError, match=r"work/candidates/7c/model.tflite \(SHA-256 .*SIGSEGV.*run again"):
        run(crashing_model())


def test_a_backbone_that_crashes_the_runtime_is_an_error_each_time():
    for _ in range(2):
        with pytest.raises(InputError, match=r"a converted backbone .*SIGSEGV.*work/backbones"):
            open_extractor(crashing_model())


@pytest.mark.usefixtures("short_wait")
def test_a_model_that_never_answers_is_ended():
    with pytest.raises(InputError, match="no answer within 1 s, and was ended"):
        run(endless_model())


@pytest.mark.parametrize("model", [b"", b"x" * 8, tiny_model()[:900], tiny_model(labels=4)])
def test_a_file_that_is_no_such_classifier_is_the_declared_error(model):
    with pytest.raises(EdgeError, match="work/candidates/7c"):
        run(model)


def test_a_model_that_needs_more_memory_than_it_may_have_is_an_error(monkeypatch):
    monkeypatch.setattr(model_process, "MEMORY_SHARE", 0.0)
    with pytest.raises((InputError, DeviceError), match="work/candidates/7c"):
        run(tiny_model())


def test_a_file_is_parsed_in_the_child_before_the_pipeline_parses_it(monkeypatch):
    open_extractor(tiny_model(kind="uint8")).process.check_parsing()
    monkeypatch.setattr(model_process, "PARSING_BYTES", 50 << 20)
    with ModelProcess(file_of(expanding_model(100))) as process:
        assert process.loaded.runtime, "the runtime takes it"
        with pytest.raises(DeviceError, match=r"work/candidates/7c.*out of memory"):
            process.check_parsing()


def test_the_child_has_no_credentials_and_no_paths_of_keys(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "EDGE_KEYS", "LUIGI_CONFIG_PATH"):
        monkeypatch.setenv(name, "secret-7f3a")
    with ModelProcess(file_of(tiny_model())) as process:
        assert process.loaded.given == (32, 32, 3)
        environment = Path(f"/proc/{child_of(process)}/environ").read_bytes()
    assert b"secret-7f3a" not in environment
    assert b"PATH=" in environment


def test_a_child_that_ended_meanwhile_is_started_again():
    with ModelProcess(file_of(tiny_model())) as process:
        before = process.run(PICTURES, ignore_progress, "")
        os.kill(child_of(process), signal.SIGKILL)
        os.waitid(os.P_PID, child_of(process), os.WEXITED | os.WNOWAIT)
        assert np.array_equal(process.run(PICTURES, ignore_progress, "")[:, :-2], before[:, :-2])


def test_a_forked_worker_opens_its_own_child():
    """`luigi --workers 2` forks: two processes must not read each other's answers."""
    extractor = open_extractor(tiny_model(kind="uint8"))
    wanted = extractor(PICTURES, ignore_progress, "")
    worker = os.fork()
    if worker == 0:
        same = open_extractor(tiny_model(kind="uint8"))(PICTURES[::-1], ignore_progress, "")
        os._exit(0 if np.array_equal(same[::-1], wanted) else 1)
    assert np.array_equal(extractor(PICTURES, ignore_progress, ""), wanted)
    assert os.waitpid(worker, 0)[1] == 0
    assert np.array_equal(extractor(PICTURES, ignore_progress, ""), wanted), "the worker's end was its own"


def test_the_child_ends_with_its_parent_however_that_ends():
    program = (
        "import sys; from tests.pipeline.inference.test_model_process import *\n"
        "process = ModelProcess(file_of(tiny_model())); process.loaded\n"
        "print(child_of(process), flush=True); sys.stdin.read()"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.kill()
    assert ended(child)


def child_of(process: ModelProcess) -> int:
    assert process._child is not None
    return process._child._process.pid


def ended(descriptor: int) -> bool:
    """Wait for the end of a process."""
    import select  # noqa: PLC0415 - once

    try:
        return bool(select.select([descriptor], [], [], 20)[0])
    finally:
        os.close(descriptor)
