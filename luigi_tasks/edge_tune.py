"""`edge-tune`: what the other machines of `[training] cluster` run beside the one that runs luigi."""

from __future__ import annotations

import argparse
import sys
import time

from edge_client.contract.errors import EdgeError, SettingsError
from luigi_tasks.progress import ignore_progress
from luigi_tasks.training.cluster import parse_cluster

POLL_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Wait for the snapshot, then tune with the others; the result is the chief's to keep.

    Returns: 0; exits with 2 and one paragraph on stderr where it cannot.
    """
    parser = argparse.ArgumentParser(prog="edge-tune", description=__doc__)
    parser.add_argument(
        "--index", type=int, required=True, help="which of [training] cluster this is, from 1"
    )
    parser.add_argument("--pictures", default="", help="as for luigi")
    options = parser.parse_args(arguments)
    from luigi_tasks.pipeline import DatasetSnapshot, TuneBackbone  # noqa: PLC0415
    from luigi_tasks.quantization.candidate import tune_on_snapshot  # noqa: PLC0415 - --help needs none of it
    from luigi_tasks.targets import PendingTarget  # noqa: PLC0415

    try:
        task = TuneBackbone(pictures=options.pictures)
        check_place(task.settings.training.cluster, options.index)
        snapshot = task.clone(DatasetSnapshot).output()
        while not snapshot.exists():
            time.sleep(POLL_S)
        target = task.output()
        if isinstance(target, PendingTarget) or target.exists():
            return 0
        task.progress = ignore_progress
        tune_on_snapshot(task, target, options.index)
    except EdgeError as e:
        parser.exit(2, f"edge-tune: {e}\n")
    return 0


def check_place(workers: str, index: int) -> None:
    """Refuse a place that no helper has: outside the cluster, or its first, which runs luigi.

    Raises: SettingsError.
    """
    cluster = parse_cluster(workers, index)
    if cluster is None:
        msg = "[training] cluster is empty, so there is nobody to tune with; list host:port of each machine"
        raise SettingsError(msg)
    if index == 0:
        msg = f"--index 0 is {cluster.workers[0]}, which runs luigi; count helpers from 1"
        raise SettingsError(msg)


if __name__ == "__main__":
    sys.exit(main())
