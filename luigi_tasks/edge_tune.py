"""`edge-tune`: command of the machines of `[training] cluster` other than the one that runs luigi."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError, SettingsError
from edge_client.contract.text import one_line
from luigi_tasks.settings.files import check_before_luigi
from luigi_tasks.training.cluster import parse_cluster

if TYPE_CHECKING:
    from luigi_tasks.workspace import Workspace

POLL_S = 1.0


def main(arguments: list[str] | None = None) -> int:
    """Wait for the snapshot, then fine-tune with the other machines; the first one keeps the result.

    Returns: 0; exits with 2 and one paragraph on stderr where it cannot.
    """
    parser = argparse.ArgumentParser(prog="edge-tune", description=__doc__)
    parser.add_argument(
        "--index", type=int, required=True, help="which of [training] cluster this is, from 1"
    )
    parser.add_argument("--pictures", default="", help="as for luigi")
    options = parser.parse_args(arguments)
    try:
        check_before_luigi()
        from luigi_tasks.settings.sections import load_settings  # noqa: PLC0415 - --help needs none of it
        from luigi_tasks.workspace import open_workspace  # noqa: PLC0415 - as above

        workspace = open_workspace(load_settings(pictures=options.pictures))
        check_place(workspace.settings.training.cluster, options.index)
        tune(workspace, options.index)
    except EdgeError as e:
        parser.exit(2, f"edge-tune: {one_line(str(e))}\n")
    return 0


def tune(workspace: Workspace, index: int) -> None:
    """Wait for the snapshot and fine-tune on this machine's share of it, unless the result exists."""
    from luigi_tasks import addresses, artifacts, steps  # noqa: PLC0415 - as in main
    from luigi_tasks.evidence.records import StoredDocument  # noqa: PLC0415 - as in main

    document = StoredDocument(workspace.ledger, addresses.snapshot(workspace.identity))
    if not document.exists():
        first = workspace.settings.training.cluster.partition(",")[0].strip()
        sys.stderr.write(
            f"edge-tune: waits for luigi on {first} to list the same {len(workspace.entries)} pictures "
            f"({workspace.shown_url}). If it trains already, its pictures or settings are others than here\n"
        )
    while not document.exists():
        time.sleep(POLL_S)
    snapshot = artifacts.load_snapshot(document)
    key = addresses.tuned(workspace.identity, snapshot.digest)
    tuned = None if key is None else StoredDocument(workspace.ledger, key)
    if tuned is None or tuned.exists():
        return
    checkpoint = artifacts.StoredCheckpoint(tuned)
    warm = workspace.settings.training.warm_start
    parent = artifacts.find_parent(workspace) if warm else None
    steps.tune_backbone(workspace, snapshot, parent, checkpoint, index)


def check_place(workers: str, index: int) -> None:
    """Refuse an index that no helper has: outside the cluster, or its first, which runs luigi.

    Raises: SettingsError.
    """
    cluster = parse_cluster(workers, index)
    if cluster is None:
        raise SettingsError("[training] cluster is empty; list host:port of each machine that tunes")
    if index == 0:
        msg = f"--index 0 is {cluster.workers[0]}, which runs luigi; count helpers from 1"
        raise SettingsError(msg)


if __name__ == "__main__":
    sys.exit(main())
