"""Workers of one pipeline as AWS Batch jobs, by Luigi's own contrib task. Copy and edit it.

Once, and after every change of it:

    aws batch register-job-definition --cli-input-json file://batch_job_definition.json

Then, with the settings and credentials of the pipeline, and leave to submit jobs:

    luigi --module batch_workers BatchWorkers --count 4 --workers 4 --scheduler-host luigid.example

What Batch must have is in docs/many-machines.md.
"""

from __future__ import annotations

import luigi
from luigi.contrib.batch import BatchTask

from luigi_tasks import Deploy


class BatchRun(luigi.Task):
    """What all workers of a run share."""

    pictures = luigi.Parameter(description="as for Deploy, s3://bucket/prefix")
    job_definition = luigi.Parameter(default="edge-pipeline-worker", description="as it was registered")
    job_queue = luigi.OptionalParameter(default=None, description="empty: the first that is enabled")
    scheduler = luigi.Parameter(default="luigid.example", description="host of luigid, as jobs see it")


class BatchWorker(BatchTask, BatchRun):
    """One job that takes a share of the work and ends when nothing is left."""

    number = luigi.IntParameter(description="which of them this is")

    @property
    def parameters(self) -> dict[str, str]:
        """What fills the Ref:: places in the job definition's command."""
        return {"pictures": str(self.pictures), "scheduler": str(self.scheduler)}

    def complete(self) -> bool:
        """Whether there is nothing to do: then no job is submitted."""
        return bool(Deploy(pictures=self.pictures).complete())

    def run(self) -> None:
        """Run the job; that it ended well says only that nothing was left for it.

        Raises: RuntimeError if work is left; else Luigi would find this task undone, and run the job again.
        """
        super().run()  # type: ignore[no-untyped-call]
        if not self.complete():
            msg = f"{self.task_id}: the job ended and left work undone; see luigid's page, and run again"
            raise RuntimeError(msg)


class BatchWorkers(BatchRun, luigi.WrapperTask):
    """Some jobs; give luigi as many --workers, since each waits for one."""

    count = luigi.IntParameter(default=2, description="how many")

    def requires(self) -> list[BatchWorker]:
        """One task for each job."""
        return [
            self.clone(BatchWorker, number=number)  # type: ignore[no-untyped-call]
            for number in range(int(self.count))
        ]
