"""Fine-tuning of one backbone on several machines, by `tf.distribute.MultiWorkerMirroredStrategy`.

Each machine holds a copy of the network and trains on its share of the pictures; gradients are added up after
each step. tf_keras runs under it, Keras 3 does not (docs/decisions/0001-tf-keras.md).
"""

from __future__ import annotations

import dataclasses
import json
import os
from typing import Any

from edge_client.contract.errors import SettingsError
from luigi_tasks.backbone.tensorflow_runtime import set_environment


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The machines that train together.

    Attributes:
        workers: host:port of each; the first is the chief, which keeps checkpoints and the result.
        index: Position of this machine among them.
    """

    workers: tuple[str, ...]
    index: int

    @property
    def size(self) -> int:
        """Number of machines."""
        return len(self.workers)

    def start(self) -> Any:  # noqa: ANN401 - TensorFlow has no types
        """Return the strategy once all workers are connected. To be called before TensorFlow runs anything.

        Source: TF_CONFIG, https://www.tensorflow.org/tutorials/distribute/multi_worker_with_keras.
        """
        task = {"type": "worker", "index": self.index}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": list(self.workers)}, "task": task})
        set_environment()
        import tensorflow as tf  # noqa: PLC0415 - only where several machines train

        return tf.distribute.MultiWorkerMirroredStrategy()


def cluster_size(workers: str) -> int:
    """Return the number of machines in a list.

    Raises: SettingsError as `parse_cluster`.
    """
    cluster = parse_cluster(workers, 0)
    return cluster.size if cluster is not None else 0


def parse_cluster(workers: str, index: int) -> Cluster | None:
    """Return the cluster of a comma-separated list, or None if the list is empty.

    Raises: SettingsError if an entry is not host:port, or the list has no such index.
    """
    names = tuple(one.strip() for one in workers.split(",") if one.strip())
    if not names:
        return None
    for name in names:
        host, _, port = name.rpartition(":")
        if not host or not port.isdigit():
            msg = f"[training] cluster: {name!r} is not host:port"
            raise SettingsError(msg)
    if not 0 <= index < len(names):
        msg = f"[training] cluster: no worker number {index}, it lists {len(names)}; count from 0"
        raise SettingsError(msg)
    return Cluster(names, index)
