"""Several workers, as on several machines: own folders and caches, one luigid, one store."""

from __future__ import annotations

import collections
import importlib.util
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from local_services import Scheduler, free_ports
from pipeline_under_test import REPOSITORY, PipelineUnderTest

pytest.importorskip("luigi", reason="the device's environments have no Luigi")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# luigi_tasks.task's; a step that failed so often is given up.
KEEP_ALIVE_TRIES = 3
DONE = re.compile(r"\] Worker .* done +(\w+)\(.*?(?:shard=(\w+))?\)$")
RUNNING = re.compile(r"\] Worker .* running +(\w+)\(")
# By default, luigid looks for lost workers and failed steps once a minute; here, at each request for work. A
# lost one is missed sooner than luigi.cfg has it, but late enough for workers that a busy machine holds up.
FORGETS_SOON = {"prune_on_get_work": "true", "worker_disconnect_delay": "15", "retry_delay": "1"}
FORGOTTEN_S = 300


class Machine:
    """A worker process in a folder of its own, and what it logged so far."""

    def __init__(self, pipeline: PipelineUnderTest, folder: Path, at_features: queue.Queue[Machine]) -> None:
        folder.mkdir()
        shutil.copy(REPOSITORY / "luigi.cfg", folder)
        settings = folder / "settings.cfg"
        text = pipeline.configuration.read_text()
        settings.write_text(re.sub(r"(?m)^cache_dir = .*$", f"cache_dir = {folder / 'cache'}", text))
        self.lines: list[str] = []
        self._at_features = at_features
        # On machines of their own no lock would hold them apart.
        waiting = ["--no-lock", "--worker-keep-alive", "--worker-wait-interval", "1"]
        self._process = subprocess.Popen(
            pipeline.command("EvaluateModel", *waiting),
            env={**pipeline.environment(), "LUIGI_CONFIG_PATH": str(settings)},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))
            found = RUNNING.search(line)
            if found and found[1] == "BackboneFeatures":
                self._at_features.put(self)

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        try:
            return self._process.wait(timeout=FORGOTTEN_S)
        except subprocess.TimeoutExpired:
            pytest.fail("\n".join(self.lines[-60:]))
        finally:
            self._reader.join(5)

    def done(self) -> list[tuple[str, str | None]]:
        return [(found[1], found[2]) for line in self.lines if (found := DONE.search(line))]


def test_three_workers_share_the_batches_and_survive_the_loss_of_one(
    tmp_path, object_store, mqtt_broker, small_weights
):
    settings = PipelineUnderTest.head_on(small_weights, dataset={"shard_pictures": 20})
    with (
        Scheduler(settings=FORGETS_SOON) as scheduler,
        PipelineUnderTest(
            tmp_path / "p", scheduler=scheduler, store=object_store, broker=mqtt_broker, settings=settings
        ) as pipeline,
    ):
        pipeline.write_digits(per_class=30)
        at_features: queue.Queue[Machine] = queue.Queue()
        machines = [Machine(pipeline, tmp_path / f"machine {number}", at_features) for number in range(3)]
        victim = at_features.get(timeout=FORGOTTEN_S)
        victim.kill()
        codes = [machine.wait() for machine in machines if machine is not victim]
        logs = "\n".join(line for machine in machines for line in machine.lines)
        # 10 and 25: nothing left to do for this worker, others are at the rest.
        assert set(codes) <= {0, 10, 25}, logs
        done = collections.Counter(one for machine in machines for one in machine.done())
        shards = {
            name: {shard for task, shard in done if task == name}
            for name in ("ReadShard", "BackboneFeatures")
        }
        assert len(shards["ReadShard"]) == 15, logs
        assert shards["BackboneFeatures"] == shards["ReadShard"], logs
        # The task of the command line is another one in each process; its work is done once.
        assert done.pop(("EvaluateModel", None)) >= 1
        assert logs.count("EvaluateModel took ") == 1, logs
        assert set(done.values()) == {1}, f"each piece of work is done once: {done}"
        readers = [one for one in machines if any(task == "ReadShard" for task, _ in one.done())]
        assert len(readers) > 1, logs
        again = pipeline.luigi("EvaluateModel")
        assert again.returncode == 0
        assert " took " not in again.stderr


def accuracy_of(pipeline: PipelineUnderTest, monkeypatch: pytest.MonkeyPatch) -> float:
    """Hold-out accuracy of the pipeline's only candidate, measured on its int8 file."""
    from edge_client.contract.documents import decode_document  # noqa: PLC0415 - as above
    from luigi_tasks.gate.records import Evaluation  # noqa: PLC0415
    from luigi_tasks.settings.values import StoreSettings  # noqa: PLC0415
    from luigi_tasks.storage.s3_store import S3Store  # noqa: PLC0415

    for name, value in pipeline.store.credentials().items():
        monkeypatch.setenv(name, value)
    url = f"s3://{pipeline.store.bucket}/{pipeline.name}"
    store = S3Store(StoreSettings(url, pipeline.store.endpoint_url, "us-east-1", "when_required", True))
    listed = store.client.list_objects_v2(Bucket=store.bucket, Prefix=f"{store.prefix}work/evaluations/")
    [key] = [one["Key"] for one in listed["Contents"] if one["Key"].endswith("evaluation.json")]
    data = store.read(key.removeprefix(store.prefix))
    return decode_document(Evaluation, data, source=key, limit_bytes=1 << 24).candidate.accuracy


def test_two_machines_tune_one_network_as_well_as_one_does(
    tmp_path, scheduler, object_store, mqtt_broker, monkeypatch
):
    """`luigi` on one, `edge-tune` on the other; what is compared is the int8 file on the hold-out."""
    accuracies = []
    for machines in (1, 2):
        ports = free_ports(machines)
        cluster = ",".join(f"127.0.0.1:{port}" for port in ports) if machines > 1 else ""
        settings: dict[str, dict[str, object]] = {
            "training": {
                "cluster": cluster,
                "epochs": 12,
                "learning_rate": 0.01,
                "batch_size": 32,
                "horizontal_flip": "false",
            },
        }
        folder = tmp_path / f"with {machines}"
        with PipelineUnderTest(
            folder, scheduler=scheduler, store=object_store, broker=mqtt_broker, settings=settings
        ) as pipeline:
            pipeline.write_digits(per_class=80)
            others = [
                subprocess.Popen(
                    [sys.executable, "-m", "luigi_tasks.edge_tune", "--index", str(index)],
                    env=pipeline.environment(),
                    cwd=folder,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                for index in range(1, machines)
            ]
            run = pipeline.luigi("EvaluateModel")
            for other in others:
                told, _ = other.communicate(timeout=120)
                assert other.returncode == 0, told
            assert run.returncode == 0, run.stderr
            accuracies.append(accuracy_of(pipeline, monkeypatch))
    alone, together = accuracies
    assert alone > 0.7, accuracies
    # About 140 pictures judge: the difference of two networks has a standard error of 0.05.
    assert together > alone - 0.1, accuracies


def test_what_a_pod_runs_ends_well_also_where_others_did_the_work(
    tmp_path, object_store, mqtt_broker, small_weights
):
    """The command of configs/kubernetes_workers.py; a pod that ends with another code has failed."""
    example = load_example("kubernetes_workers").KubernetesWorker
    settings = PipelineUnderTest.head_on(small_weights, dataset={"shard_pictures": 50})
    with (
        Scheduler(settings=FORGETS_SOON) as scheduler,
        PipelineUnderTest(
            tmp_path / "p", scheduler=scheduler, store=object_store, broker=mqtt_broker, settings=settings
        ) as pipeline,
    ):
        pod = example(
            number=0,
            pictures=str(tmp_path / "p/pictures"),
            scheduler="127.0.0.1",
            scheduler_port=scheduler.port,
        )
        pipeline.write_digits(per_class=20)
        codes, log = run_pods(pipeline, pod.command, 3)
        assert codes == [0, 0, 0], log
        assert len(re.findall("AnnounceRelease took ", log)) == 1
        codes, log = run_pods(pipeline, pod.command, 1)
        assert codes == [0], log
        assert " took " not in log

        # Workers that wait for each other do not try for ever what cannot work.
        pipeline.configure(dataset={"min_images_per_class": 500})
        codes, log = run_pods(pipeline, pod.command, 2)
        assert 30 in codes, log
        assert set(codes) <= {0, 30}, log
        assert log.count("failed    DatasetSnapshot(") == KEEP_ALIVE_TRIES


def run_pods(pipeline: PipelineUnderTest, command: list[str], count: int) -> tuple[list[int], str]:
    """Run a command some times at once; return the exit codes and all that was logged."""
    # On machines of their own no lock would hold them apart.
    here = [str(Path(sys.executable).with_name(command[0])), *command[1:], "--no-lock"]
    pods = [
        subprocess.Popen(
            here,
            env=pipeline.environment(),
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for _ in range(count)
    ]
    try:
        logs = [one.communicate(timeout=FORGOTTEN_S)[0] for one in pods]
    finally:
        for one in pods:
            one.kill()
    return [one.returncode for one in pods], "\n".join(logs)


def load_example(name: str) -> Any:
    """Import a file of configs/ as a user does who copied it."""
    contrib = f"luigi.contrib.{name.partition('_')[0]}"
    pytest.importorskip(contrib, reason=f"this Luigi has no {contrib}")
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "configs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
