"""Settings of the signing side."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from luigi_tasks.release.keys import make_keys
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.settings.values import TrustSettings

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.settings.values import PipelineSettings, StoreSettings


def trust_settings(keys: Path, *, keep_releases: int = 50) -> TrustSettings:
    """Return settings for the keys that `make_keys` wrote into a folder, with the pipeline's lifetimes."""
    return TrustSettings(
        root=keys / "device" / "root.json",
        keys=str(keys / "pipeline"),
        timestamp_days=14,
        snapshot_days=90,
        targets_days=365,
        keep_releases=keep_releases,
    )


def settings_with_keys(store: StoreSettings, folder: Path) -> PipelineSettings:
    """Make keys in a folder; return the pipeline's settings with them and with a store."""
    make_keys(folder)
    return dataclasses.replace(load_settings("preset:digits"), store=store, trust=trust_settings(folder))
