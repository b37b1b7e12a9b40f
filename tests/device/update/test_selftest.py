"""The child process that tries a release."""

from __future__ import annotations

import dataclasses
import json
import os
import select
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from edge_client.contract.documents import encode_document
from edge_client.inference.classifier import classifier_from_release
from edge_client.update.endings import Blame, Ending
from edge_client.update.selftest import SelfTestError, find_failure
from tests.fakes.faulty_child import FaultyChild
from tests.fakes.self_test import run_self_test
from tests.fakes.tiny_model import tiny_model
from tests.fakes.tiny_release import write_release

pytestmark = pytest.mark.runtime

REPOSITORY = Path(__file__).resolve().parents[3]
TIMEOUT_S = 60.0


def test_a_good_release_passes_within_the_default_memory(tmp_path):
    from edge_client.settings.update import UpdateSettings  # noqa: PLC0415

    document = write_release(tmp_path / "r")
    memory_bytes = UpdateSettings().self_test_memory_bytes
    assert run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S, memory_bytes=memory_bytes) == len(
        document.self_test
    )


def test_wrong_answers_are_named_with_both_sides(tmp_path):
    write_release(tmp_path / "r", 0, model=tiny_model(1))
    with pytest.raises(SelfTestError, match=r"selftest-red.png: answered '.*' .*the pipeline saw 'red'"):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(("difference", "passes"), [(0.1, True), (0.2, False)])
def test_confidence_may_differ_by_the_signed_tolerance(tmp_path, difference, passes):
    document = write_release(tmp_path / "r")
    cases = tuple(
        msgspec.structs.replace(c, confidence=c.confidence - difference) for c in document.self_test
    )
    changed = msgspec.structs.replace(document, self_test=cases)
    (tmp_path / "r/release.json").write_bytes(encode_document(changed))
    if passes:
        assert run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S) == 3
    else:
        with pytest.raises(SelfTestError, match=r"more than 0\.15 apart"):
            run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


@pytest.mark.parametrize("name", ["model.tflite", "labels.txt", "release.json", "selftest-red.png"])
def test_a_missing_file_is_named(tmp_path, name):
    write_release(tmp_path / "r")
    (tmp_path / "r" / name).unlink()
    with pytest.raises(SelfTestError, match=name):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


@pytest.mark.parametrize(("budget_ms", "passes"), [(0.0, True), (10_000.0, True), (0.0001, False)])
def test_a_model_that_is_too_slow_for_this_device_fails(tmp_path, budget_ms, passes):
    write_release(tmp_path / "r")
    if passes:
        assert run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S, latency_budget_ms=budget_ms) == 3
    else:
        with pytest.raises(SelfTestError, match=r"too slow for this device: .* latency_budget_ms"):
            run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S, latency_budget_ms=budget_ms)


class Timed:
    """A classifier that takes as long as it is told; the last time stands for all further answers."""

    def __init__(self, folder: Path, *latencies_ms: float) -> None:
        self.classifier = classifier_from_release(folder)
        self.latencies_ms = list(latencies_ms)

    def classify(self, pixels):
        answer = self.classifier.classify(pixels)
        latency_ms = self.latencies_ms.pop(0) if len(self.latencies_ms) > 1 else self.latencies_ms[0]
        return dataclasses.replace(answer, latency_ms=latency_ms)


def test_a_device_that_was_busy_for_a_moment_refuses_no_release(tmp_path):
    """Another release serves on the same cores: what counts is the shortest answer."""
    document = write_release(tmp_path / "r")
    busy_at_first = Timed(tmp_path / "r", 90.0, 80.0, 70.0, 20.0)
    assert find_failure(busy_at_first, tmp_path / "r", document, 33.0) is None  # type: ignore[arg-type]
    slow = Timed(tmp_path / "r", 90.0, 40.04)
    failure = find_failure(slow, tmp_path / "r", document, 33.0)  # type: ignore[arg-type]
    assert failure is not None
    assert failure.ending is Ending.TOO_SLOW
    assert "40.0 ms a picture at best, 33 ms are allowed" in failure.reason
    assert find_failure(slow, tmp_path / "r", document) is None  # type: ignore[arg-type]


def test_a_model_that_takes_too_much_memory_fails_alone(tmp_path):
    write_release(tmp_path / "r", size=8192)  # 201 MB of input tensor
    with pytest.raises(SelfTestError):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S, memory_bytes=150_000_000)


def test_a_crash_is_distinguished_from_a_wrong_answer(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_release(tmp_path / "r")
    with pytest.raises(SelfTestError, match="SIGABRT"):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


def test_a_child_that_hangs_is_killed(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import threading; threading.Event().wait()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_release(tmp_path / "r")
    with pytest.raises(SelfTestError, match=r"within 0\.3 s"):
        run_self_test(tmp_path / "r", timeout_s=0.3)


def test_a_child_without_output_has_not_passed(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(0)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_release(tmp_path / "r")
    with pytest.raises(SelfTestError, match="no verdict"):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


def test_talk_of_the_runtime_does_not_hide_the_verdict(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "print('INFO: {Created} TensorFlow Lite delegate', flush=True)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_release(tmp_path / "r")
    assert run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S) == 3


def test_no_interpreter_to_start_is_no_fault_of_the_release(tmp_path, monkeypatch):
    write_release(tmp_path / "r")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(SelfTestError, match="cannot be started") as caught:
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)
    assert caught.value.ending.blame is Blame.ENDLESS


def test_the_child_dies_with_its_parent(tmp_path):
    """The daemon is killed while a self-test runs: no child is left."""
    write_release(tmp_path / "r")
    document = tmp_path / "r/release.json"
    document.unlink()
    os.mkfifo(document)
    code = (
        "import pathlib, sys; from tests.fakes.self_test import run_self_test; "
        "run_self_test(pathlib.Path(sys.argv[1]), timeout_s=60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "r")], cwd=REPOSITORY) as parent:
        writer = os.open(document, os.O_WRONLY)  # returns once the child reads
        watch = select.poll()
        watch.register(writer, 0)
        assert watch.poll(0) == []
        parent.kill()
        assert watch.poll(10_000) == [(writer, select.POLLERR)]  # the reader is gone
        os.close(writer)


@pytest.mark.parametrize(
    ("said", "code"),
    [("{\\n}", 0), ('{\\n "cases": 3\\n}', 0), ('{\\n "cases": 3, "failure": null\\n}', 1)],
)
def test_half_a_verdict_has_not_passed(tmp_path, monkeypatch, said, code):
    (tmp_path / "sitecustomize.py").write_text(f"import os; print('{said}', flush=True); os._exit({code})\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_release(tmp_path / "r")
    with pytest.raises(SelfTestError, match="no verdict"):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


def test_where_memory_runs_out_the_kernel_takes_the_child_first(tmp_path):
    write_release(tmp_path / "r")
    document = tmp_path / "r/release.json"
    document.unlink()
    os.mkfifo(document)
    with ThreadPoolExecutor() as pool:
        verdict = pool.submit(run_self_test, tmp_path / "r", timeout_s=TIMEOUT_S)
        with document.open("wb"):  # returns once the child reads
            own = Path(f"/proc/{os.getpid()}/oom_score_adj").read_text()
            children = {
                Path(f"/proc/{child}/oom_score_adj").read_text().strip()
                for task in Path(f"/proc/{os.getpid()}/task").iterdir()
                for child in (task / "children").read_text().split()
                if "edge_client.update.selftest" in Path(f"/proc/{child}/cmdline").read_text()
            }
        with pytest.raises(SelfTestError):
            verdict.result()
    assert children == {"1000"}
    assert own.strip() != "1000"


def test_a_child_that_the_kernel_killed_points_to_the_memory(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import os; os.kill(os.getpid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    write_release(tmp_path / "r")
    with pytest.raises(SelfTestError, match=r"SIGKILL.*memory"):
        run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)


def test_the_child_has_no_secrets_no_network_and_no_file_to_write(tmp_path, monkeypatch):
    write_release(tmp_path / "r")
    faulty = FaultyChild(tmp_path / "faulty")
    monkeypatch.setenv("PYTHONPATH", str(faulty.folder))
    for name in ("AWS_SECRET_ACCESS_KEY", "MQTT_PASSWORD", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "secret")
    with socket.create_server(("127.0.0.1", 0)) as server, (tmp_path / "open").open("w") as stray:
        os.set_inheritable(stray.fileno(), True)
        monkeypatch.setenv("PYTHON_TEST_PORT", str(server.getsockname()[1]))
        faulty.fail_next("tell")
        with pytest.raises(SelfTestError) as caught:
            run_self_test(tmp_path / "r", timeout_s=TIMEOUT_S)
    told = json.loads(str(caught.value).removeprefix("self-test: "))
    assert "secret" not in told["environment"].values()
    assert (told["folder"], told["file"], told["privileges"]) == ("/", "EFBIG", "1")
    assert told["capabilities"] in {0, 1 << 2}  # root's, to read the files of the daemon's user
    assert len(told["descriptors"]) == 4  # standard streams, and the folder that it lists
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "-Un", "true"], check=False).returncode:
        pytest.skip("this kernel allows no network namespace to a user")
    assert told["network"] in {"ENETUNREACH", "EADDRNOTAVAIL"}
