"""Provenance of a model: package versions, code version, settings."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_client.contract import preprocessing

if TYPE_CHECKING:
    from luigi_tasks.settings.values import PipelineSettings


# Code that decides the bytes of a model: wings, and the constants among the settings.
MODEL_CODE = (
    "dataset",
    "backbone",
    "inference/features.py",
    "training",
    "quantization",
    "settings/values.py",
)

# Among the settings of each release that was split by groups.
GROUP_SETTING = "dataset.group"


@functools.cache
def package_versions() -> dict[str, str]:
    """Return the versions that decide the bytes of a model."""
    from importlib import metadata  # noqa: PLC0415 - reads the file system

    # The runtime too: it computes the features that a head is trained on; OpenCV makes the augmented copies.
    names = (
        "tensorflow",
        "tf_keras",
        "ai-edge-litert",
        "numpy",
        "pillow",
        "opencv-python-headless",
        "pi-heif",
        "flatbuffers",
        "edge-fleet",
    )
    versions = {"python": platform.python_version(), "machine": platform.machine(), "code": code_version()}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def code_version(
    package: Path = Path(__file__).parent, contract: Path = Path(preprocessing.__file__).parent
) -> str:
    """Return 12 hex digits that change with the source that makes a model, also between two releases.

    Args:
        package: This package.
        contract: The contract with the device: pictures are decoded and fitted there.
    """
    digest = hashlib.sha256()
    for place in (*(package / one for one in MODEL_CODE), contract):
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def flatten_settings(settings: PipelineSettings) -> dict[str, str]:
    """Return the settings that make a model, e.g. {"training.epochs": "20"}; no secrets, paths or hosts."""
    sections: dict[str, Any] = {
        "model": settings.model,
        "training": settings.training,
        "quantization": settings.quantization,
        "gate": settings.gate,
    }
    flat = {
        f"{section}.{name}": str(value)
        for section, values in sections.items()
        for name, value in dataclasses.asdict(values).items()
    }
    del flat["training.cluster"]
    del flat["quantization.calibration"]  # the release has its own list
    dataset = settings.dataset
    flat["dataset.holdout_percent"] = str(dataset.holdout_percent)
    # Also where nothing names groups: that the setting is there says that the release was split by groups.
    flat[GROUP_SETTING] = Path(dataset.group).name if dataset.group.endswith(".csv") else dataset.group
    flat["dataset.burst_s"] = str(dataset.burst_s)
    flat["dataset.near_duplicates"] = str(dataset.near_duplicates)
    flat["model.weights"] = settings.model.weights.rsplit("/", 1)[-1]
    return flat
