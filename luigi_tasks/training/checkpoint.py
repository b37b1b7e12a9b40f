"""Checkpoint of an unfinished fine-tuning: weights, optimizer and epoch in one file with its digest."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from luigi_tasks.storage.arrays import unpack_arrays

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

DIGEST_BYTES = 32

logger = logging.getLogger("luigi-interface")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """State of a training after an epoch.

    Attributes:
        epoch: Epochs done.
        history: Values of each epoch, by the name of the metric.
        arrays: The variables of network and optimizer, in their order.
    """

    epoch: int
    history: dict[str, list[float]]
    arrays: Sequence[NDArray[Any]]


def pack_checkpoint(checkpoint: Checkpoint, fingerprint: str) -> bytes:
    """Return the checkpoint as an npz behind its SHA-256.

    Args:
        checkpoint: What to keep.
        fingerprint: Names the pictures and settings of the training.
    """
    state = {"fingerprint": fingerprint, "epoch": checkpoint.epoch, "history": checkpoint.history}
    file = io.BytesIO()
    np.savez(file, *checkpoint.arrays, state=np.frombuffer(json.dumps(state).encode(), np.uint8))
    data = file.getvalue()
    return hashlib.sha256(data).digest() + data


def parse_checkpoint(saved: bytes | None, fingerprint: str) -> Checkpoint | None:
    """Return what `pack_checkpoint` kept; None, with a warning, where it is broken or of another training."""
    if not saved:
        return None
    digest, data = saved[:DIGEST_BYTES], saved[DIGEST_BYTES:]
    if hashlib.sha256(data).digest() != digest:
        logger.warning("Checkpoint of the fine-tuning is broken; starting from the first epoch")
        return None
    arrays = unpack_arrays(data)
    state = json.loads(arrays["state"].tobytes())
    if state["fingerprint"] != fingerprint:
        logger.warning("Checkpoint of the fine-tuning is of another training; starting from the first epoch")
        return None
    variables = [arrays[f"arr_{number}"] for number in range(len(arrays) - 1)]
    return Checkpoint(state["epoch"], state["history"], variables)
