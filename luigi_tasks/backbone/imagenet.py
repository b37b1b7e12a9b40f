"""ImageNet weights of Keras: downloaded once, and never changed unnoticed.

Keras has a SHA-256 for each file of MobileNet V3, and none for V1 and V2. So the digest of what was
downloaded first is noted beside the file in Keras's cache, and another content is refused from then on.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract.errors import DeviceError, TrustError
from edge_client.disk import write_durably
from luigi_tasks.settings.values import IMAGENET_WIDTHS

if TYPE_CHECKING:
    from luigi_tasks.settings.values import ModelSettings

# Sizes and widths that the files were made for, in tf_keras; the largest size serves others.
_SIZES = {"mobilenet_v1": (128, 160, 192, 224), "mobilenet_v2": (96, 128, 160, 192, 224)}
_WIDTHS = {
    "mobilenet_v1": {0.25: "2_5", 0.5: "5_0", 0.75: "7_5", 1.0: "1_0"},
    "mobilenet_v2": {one: str(one) for one in IMAGENET_WIDTHS["mobilenet_v2"]},
}
_FOLDERS = {"mobilenet_v1": "mobilenet", "mobilenet_v2": "mobilenet_v2"}
BASE_URL = "https://storage.googleapis.com/tensorflow/keras-applications"
DIGEST_SUFFIX = ".sha256"


def imagenet_file(model: ModelSettings) -> tuple[str, str] | None:
    """Return name and address of the weights; None where Keras has none, or checks their hash itself."""
    width = _WIDTHS.get(model.architecture, {}).get(model.alpha)
    if width is None:
        return None
    sizes = _SIZES[model.architecture]
    size = model.input_size if model.input_size in sizes else sizes[-1]
    name = (
        f"mobilenet_{width}_{size}_tf_no_top.h5"
        if model.architecture == "mobilenet_v1"
        else f"mobilenet_v2_weights_tf_dim_ordering_tf_kernels_{width}_{size}_no_top.h5"
    )
    return name, f"{BASE_URL}/{_FOLDERS[model.architecture]}/{name}"


def fetch_imagenet(keras: Any, name: str, url: str) -> Path:  # noqa: ANN401 - Keras has no types
    """Return the file of the weights, from Keras's cache where it is there.

    Raises: TrustError if it is not what was downloaded first; whatever Keras raises for a failed download.
    """
    path = Path(keras.utils.get_file(name, url, cache_subdir="models"))
    check_unchanged(path)
    return path


def check_unchanged(path: Path) -> str:
    """Return the SHA-256 of a file that was downloaded, which is noted beside it the first time.

    Raises: TrustError if it has changed since.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    note = path.with_name(path.name + DIGEST_SUFFIX)
    try:
        noted = note.read_text(encoding="ascii").split()[0]
    except (OSError, ValueError, IndexError):
        with contextlib.suppress(DeviceError):  # a cache that others fill: then there is no note
            write_durably(note, f"{found}  {path.name}\n".encode(), mode=0o644)
        return found
    if found != noted:
        msg = (
            f"{path}: not the ImageNet weights that were downloaded first (SHA-256 {found[:12]}, {note.name} "
            f"has {noted[:12]}); find out who changed them. To accept them, remove {note}"
        )
        raise TrustError(msg)
    return found
