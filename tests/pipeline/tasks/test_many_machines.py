"""The examples for clusters in configs/: what they ask of Kubernetes and AWS Batch, without either.

Luigi's own contrib tasks run; the API servers are fakes on loopback that keep what they were asked.
"""

from __future__ import annotations

import contextlib
import http.server
import importlib.util
import json
import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

luigi = pytest.importorskip("luigi", reason="the device's environments have no Luigi")

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
JOB_DEFINITION = json.loads((CONFIGS / "batch_job_definition.json").read_text())
CONTAINER = JOB_DEFINITION["containerProperties"]


def load(name: str) -> Any:
    """Import an example as a user does who copied it."""
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def api(answer: Callable[[str, str, Any], Any]) -> Iterator[str]:
    """Serve JSON on loopback: `answer` gets method, path and body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def _serve(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"null")
            data = json.dumps(answer(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815 - the library's names

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


# --- Kubernetes ---------------------------------------------------------------------------------


@pytest.fixture
def pods(monkeypatch):
    module = load("kubernetes_workers")
    monkeypatch.setattr(module, "Deploy", lambda pictures: SimpleNamespace(complete=lambda: True))
    workers = module.KubernetesWorkers(
        count=3, pictures="s3://bucket/orchard", image="registry/pipeline:7", scheduler="luigid.edge"
    )
    return workers.requires()


def test_every_pod_runs_the_same_command_and_is_a_task_of_its_own(pods):
    assert len({pod.task_id for pod in pods}) == 3
    [command] = {tuple(pod.spec_schema["containers"][0]["command"]) for pod in pods}
    assert command[:4] == ("luigi", "--module", "luigi_tasks", "Deploy")
    options = dict(zip(command[4::2], command[5::2], strict=False))
    assert options["--pictures"] == "s3://bucket/orchard"
    assert options["--scheduler-host"] == "luigid.edge"
    assert "--worker-keep-alive" in command


def test_a_pod_mounts_what_it_has_and_asks_for_memory(pods):
    spec = pods[0].spec_schema
    [container] = spec["containers"]
    assert container["image"] == "registry/pipeline:7"
    assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in spec["volumes"]}
    assert spec["restartPolicy"] == "Never", "a container that starts again by itself is not counted"
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    json.dumps(spec)


class Cluster:
    """Kubernetes' API as far as a Job needs it: its pod runs once, and succeeds or fails."""

    def __init__(self, **status: int) -> None:
        self.status = status
        self.jobs: list[dict[str, Any]] = []
        self.deleted: list[str] = []

    def __call__(self, method: str, path: str, body: Any) -> Any:
        if method == "POST" and path.endswith("/jobs"):
            self.jobs.append(body)
            return body
        if method == "DELETE":
            self.deleted.append(path)
            return {}
        if "/pods" in path:
            pod = {"metadata": {"name": "pod", "namespace": "default"}, "status": {"phase": "Running"}}
            return {"items": [pod]}
        job = {**self.jobs[-1], "status": self.status}
        job["metadata"] = {"namespace": "default", **job["metadata"]}
        job["spec"] = {"parallelism": 0, **job["spec"]}
        return {"items": [job]} if "?" in path else job


@pytest.fixture
def kubeconfig(tmp_path, monkeypatch):
    """Make luigi's contrib task talk to a server."""
    pytest.importorskip("pykube", reason="`pip install pykube-ng` to run Luigi's Kubernetes task")
    from luigi.contrib.kubernetes import kubernetes  # noqa: PLC0415

    def point_to(url: str) -> None:
        path = tmp_path / "kubeconfig"
        context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
        path.write_text(
            json.dumps(  # which is YAML
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "clusters": [{"name": "c", "cluster": {"server": url}}],
                    "users": [{"name": "u", "user": {}}],
                    "contexts": [context],
                }
            )
        )
        monkeypatch.setattr(
            "luigi.contrib.kubernetes.KubernetesJobTask._kubernetes_config",
            kubernetes(kubeconfig_path=str(path)),
        )

    return point_to


def test_the_job_of_a_pod_is_made_followed_and_removed(pods, kubeconfig):
    cluster = Cluster(succeeded=1)
    with api(cluster) as url:
        kubeconfig(url)
        pods[0].run()
    [job] = cluster.jobs
    assert job["spec"]["template"]["spec"] == pods[0].spec_schema
    assert job["spec"]["backoffLimit"] == 2
    assert re.fullmatch(r"edge-worker-\d{14}-\w{16}", job["metadata"]["name"])
    assert len(cluster.deleted) == 1


def test_pods_that_died_more_often_than_allowed_fail_the_task(pods, kubeconfig):
    with api(Cluster(failed=3)) as url:
        kubeconfig(url)
        with pytest.raises(AssertionError, match="failed"):
            pods[0].run()


# --- AWS Batch ----------------------------------------------------------------------------------


class Batch:
    """AWS Batch's API as far as `luigi.contrib.batch` uses it."""

    def __init__(self, status: str) -> None:
        self.status = status
        self.submitted: list[dict[str, Any]] = []

    def __call__(self, _method: str, path: str, body: Any) -> Any:
        if path == "/v1/describejobqueues":
            return {"jobQueues": [{"jobQueueName": "first", "state": "ENABLED", "status": "VALID"}]}
        if path == "/v1/submitjob":
            self.submitted.append(body)
            return {"jobName": body["jobName"], "jobId": "1"}
        if path == "/v1/describejobs":
            attempts = [{"container": {"logStreamName": "stream"}}]
            return {"jobs": [{"jobId": "1", "status": self.status, "attempts": attempts}]}
        return {"events": [{"message": "what the worker said last"}]}  # CloudWatch


@pytest.fixture
def jobs(monkeypatch):
    pytest.importorskip("boto3", reason="the device's environments have no boto3")
    module = load("batch_workers")
    monkeypatch.setattr(module, "Deploy", lambda pictures: SimpleNamespace(complete=lambda: True))
    return module.BatchWorkers(count=2, pictures="s3://bucket/orchard").requires()


@pytest.fixture
def batch(monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")

    @contextlib.contextmanager
    def serving(status: str) -> Iterator[Batch]:
        found = Batch(status)
        with api(found) as url:
            for service in ("BATCH", "LOGS", "CLOUDWATCH_LOGS"):
                monkeypatch.setenv(f"AWS_ENDPOINT_URL_{service}", url)
            yield found

    return serving


def test_a_job_is_submitted_and_waited_for(jobs, batch):
    with batch("SUCCEEDED") as found:
        for job in jobs:
            job.run()
    for submitted in found.submitted:
        assert submitted["jobDefinition"] == JOB_DEFINITION["jobDefinitionName"]
        assert submitted["jobQueue"] == "first"
        assert submitted["parameters"] == {"pictures": "s3://bucket/orchard", "scheduler": "luigid.example"}
    assert len(found.submitted) == 2


def test_a_job_that_failed_fails_the_task_with_its_last_words(jobs, batch):
    with batch("FAILED"), pytest.raises(Exception, match="what the worker said last"):
        jobs[0].run()


@pytest.mark.parametrize("deployed", [True, False], ids=["nothing new", "jobs that left work undone"])
def test_a_run_ends_well_only_if_everything_is_done(batch, monkeypatch, deployed):
    pytest.importorskip("boto3", reason="the device's environments have no boto3")
    module = load("batch_workers")
    deploy = SimpleNamespace(complete=lambda: deployed)
    monkeypatch.setattr(module, "Deploy", lambda pictures: deploy)
    workers = module.BatchWorkers(count=2, pictures="s3://bucket/orchard")
    with batch("SUCCEEDED") as found:
        assert luigi.build([workers], local_scheduler=True, no_lock=True) == deployed
    assert len(found.submitted) == (0 if deployed else 2)


def test_the_job_definition_is_one_that_batch_takes(jobs):
    from botocore.session import get_session  # noqa: PLC0415
    from botocore.validate import ParamValidator  # noqa: PLC0415

    shape = get_session().get_service_model("batch").operation_model("RegisterJobDefinition").input_shape
    assert ParamValidator().validate(JOB_DEFINITION, shape).generate_report() == ""


def test_every_place_in_the_job_definition_is_filled(jobs):
    places = {one.removeprefix("Ref::") for one in CONTAINER["command"] if one.startswith("Ref::")}
    assert places == set(jobs[0].parameters)


def test_both_clusters_run_the_same_worker(jobs, pods):
    def options(command):
        return {one for one in command if one.startswith("--")} - {"--scheduler-port"}

    assert options(CONTAINER["command"]) == options(pods[0].command)
