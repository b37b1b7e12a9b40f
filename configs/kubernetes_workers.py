"""Workers of one pipeline in a Kubernetes cluster, as Jobs of Luigi's own contrib task. Copy and edit it.

Needs `pip install pykube-ng` where it is started, and the settings and credentials of the pipeline there:

    luigi --module kubernetes_workers KubernetesWorkers --count 4 --workers 4 --scheduler-host luigid.example

What the cluster must have is in docs/many-machines.md.
"""

from __future__ import annotations

from typing import Any

import luigi
from luigi.contrib.kubernetes import KubernetesJobTask

from luigi_tasks import Deploy


class KubernetesRun(luigi.Task):
    """What all workers of a run share."""

    pictures = luigi.Parameter(default="", description="as for Deploy; empty: [dataset] url")
    image = luigi.Parameter(
        default="registry.example/edge-pipeline:1", description="has `pip install edge-fleet[pipeline]`"
    )
    scheduler = luigi.Parameter(default="luigid", description="host of luigid, as pods see it")
    scheduler_port = luigi.IntParameter(default=8082, description="its port")


class KubernetesWorker(KubernetesJobTask, KubernetesRun):
    """One pod that takes a share of the work and ends when nothing is left."""

    number = luigi.IntParameter(description="which of them this is")

    @property
    def name(self) -> str:
        """Of the Job; the contrib task adds time and chance."""
        return "edge-worker"

    @property
    def max_retrials(self) -> int:
        """How many pods of a Job may die; Kubernetes starts another."""
        return 2

    @property
    def backoff_limit(self) -> int:
        """The same, for Kubernetes."""
        return self.max_retrials

    @property
    def command(self) -> list[str]:
        """What the pod runs. That nothing is left for it (10, 25) is no failure here."""
        return [
            *("luigi", "--module", "luigi_tasks", "Deploy", "--pictures", str(self.pictures)),
            *("--scheduler-host", str(self.scheduler), "--scheduler-port", str(self.scheduler_port)),
            *("--worker-keep-alive", "--retcode-already-running", "0", "--retcode-not-run", "0"),
        ]

    @property
    def spec_schema(self) -> dict[str, Any]:
        """The pod."""
        container = {
            "name": "worker",
            "image": str(self.image),
            "command": self.command,
            "env": [{"name": "LUIGI_CONFIG_PATH", "value": "/etc/edge-pipeline/luigi.cfg"}],
            # AWS_ACCESS_KEY_ID and the like, where the service account has no role.
            "envFrom": [{"secretRef": {"name": "edge-pipeline", "optional": True}}],
            "resources": {"requests": {"cpu": "2", "memory": "3Gi"}, "limits": {"memory": "3Gi"}},
            "volumeMounts": [
                {"name": "settings", "mountPath": "/etc/edge-pipeline", "readOnly": True},
                {"name": "keys", "mountPath": "/keys", "readOnly": True},
                {"name": "cache", "mountPath": "/cache"},
            ],
        }
        return {
            "restartPolicy": "Never",
            "serviceAccountName": "edge-pipeline",
            "containers": [container],
            "volumes": [
                {"name": "settings", "configMap": {"name": "edge-pipeline"}},
                {"name": "keys", "secret": {"secretName": "edge-keys", "defaultMode": 0o400}},
                {"name": "cache", "emptyDir": {"sizeLimit": "20Gi"}},
            ],
        }

    def complete(self) -> bool:
        """Whether there is nothing to do: then no pod is started."""
        return bool(Deploy(pictures=self.pictures).complete())

    def run(self) -> None:
        """Run the pod; that it ended well says only that nothing was left for it.

        Raises: RuntimeError if work is left; else Luigi would find this task undone, and run the pod again.
        """
        super().run()  # type: ignore[no-untyped-call]
        if not self.complete():
            msg = f"{self.task_id}: the pod ended and left work undone; see luigid's page, and run again"
            raise RuntimeError(msg)


class KubernetesWorkers(KubernetesRun, luigi.WrapperTask):
    """Some pods; give luigi as many --workers, since each waits for one."""

    count = luigi.IntParameter(default=2, description="how many")

    def requires(self) -> list[KubernetesWorker]:
        """One task for each pod."""
        return [
            self.clone(KubernetesWorker, number=number)  # type: ignore[no-untyped-call]
            for number in range(int(self.count))
        ]
