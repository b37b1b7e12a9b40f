"""Settings of the signing side, with the pipeline's lifetimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.settings.values import TrustSettings

if TYPE_CHECKING:
    from pathlib import Path


def trust_settings(keys: Path, *, keep_releases: int = 50) -> TrustSettings:
    """Return settings for the keys that `make_keys` wrote into a folder."""
    return TrustSettings(
        root=keys / "device" / "root.json",
        keys=str(keys / "pipeline"),
        timestamp_days=14,
        snapshot_days=90,
        targets_days=365,
        keep_releases=keep_releases,
    )
