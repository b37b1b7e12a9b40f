"""A bundle on its way to the daemon; `bundle.py` reads it, in the child that looks."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from typing import TYPE_CHECKING

from edge_client.files import disk_errors

if TYPE_CHECKING:
    from pathlib import Path

    from edge_client.settings import Settings

# Where a running daemon finds a bundle that it shall take.
BUNDLE_FILE = "bundle.tar"
BUNDLE_SCHEME = "bundle:"


def of_bundle(settings: Settings, bundle: Path) -> Settings:
    """Return settings of a device whose store is a bundle."""
    return dataclasses.replace(
        settings, store=dataclasses.replace(settings.store, base_url=f"{BUNDLE_SCHEME}{bundle}")
    )


def hand_over(bundle: Path, state_dir: Path) -> Path:
    """Copy a bundle to where the daemon looks for one, whole or not at all; returns its place there.

    Raises: DeviceError.
    """
    place = state_dir / BUNDLE_FILE
    partial = place.with_name(f".{BUNDLE_FILE}.partial")
    with disk_errors(place):
        state_dir.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(bundle, partial)
            partial.replace(place)
        except OSError:
            partial.unlink(missing_ok=True)  # the disk may be full: it must not stay so
            raise
    return place


def forget_bundle(state_dir: Path) -> None:
    """Remove a bundle that was dealt with; never fails."""
    with contextlib.suppress(OSError):
        (state_dir / BUNDLE_FILE).unlink()
