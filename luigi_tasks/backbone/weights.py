"""Initial and fine-tuned weights of a backbone: where they come from, and their digest."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import InputError, SettingsError

if TYPE_CHECKING:
    from luigi_tasks.settings.values import ModelSettings

NO_WEIGHTS, IMAGENET = "none", "imagenet"


def pack_weights(network: Any) -> bytes:  # noqa: ANN401 - Keras has no types
    """Return all weights as one npz, the same bytes for the same weights."""
    import numpy as np  # noqa: PLC0415 - a run with nothing to do asks for the digest alone

    file = io.BytesIO()
    np.savez(file, *network.get_weights())
    return file.getvalue()


def load_tuned(backbone: Any, packed: bytes) -> None:  # noqa: ANN401
    """Load what `pack_weights` wrote into an equal network.

    Raises: InputError if it is not equal.
    """
    from luigi_tasks.storage.arrays import unpack_arrays  # noqa: PLC0415 - as above

    try:
        arrays = unpack_arrays(packed)
        backbone.set_weights([arrays[f"arr_{number}"] for number in range(len(arrays))])
    except (InputError, ValueError, KeyError) as e:
        msg = f"tuned weights are of another [model] ({e}); run without [training] warm_start"
        raise InputError(msg) from e


def weights_digest(model: ModelSettings) -> str:
    """Return an identifier of the initial weights: their file's SHA-256, `imagenet` or `none`.

    Raises: SettingsError if the file is missing.
    """
    if model.weights in {NO_WEIGHTS, IMAGENET}:
        return model.weights
    return hashlib.sha256(weights_path(model).read_bytes()).hexdigest()


def weights_path(model: ModelSettings) -> Path:
    """Return the file of the initial weights.

    Raises: SettingsError if it is missing.
    """
    path = Path(model.weights).expanduser()
    if not path.is_file():
        msg = f"[model] weights {model.weights}: no such file; give none, imagenet or a no-top .h5 of Keras"
        raise SettingsError(msg)
    return path
