"""Snapshots of small datasets on a local disk, taken as ReadShard and DatasetSnapshot do."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luigi_tasks.dataset.pixel_cache import PixelCache
from luigi_tasks.dataset.pixels import read_pictures
from luigi_tasks.dataset.snapshot import make_snapshot
from luigi_tasks.dataset.sources import FolderSource
from luigi_tasks.progress import ignore_progress
from tests.fakes.datasets import dataset_settings, write_tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from luigi_tasks.dataset.records import Snapshot
    from luigi_tasks.dataset.sources import PictureSource
    from luigi_tasks.progress import Progress
    from luigi_tasks.settings.values import DatasetSettings

SIZE = 8


def take_snapshot(
    source: PictureSource, settings: DatasetSettings, progress: Progress = ignore_progress
) -> Snapshot:
    """List, read and put together."""
    cache = PixelCache(settings.cache_dir / "pixels", SIZE, SIZE)
    listing = source.listing()
    passed_over = listing.passed_over(listing.find_layout(source.url))
    read = read_pictures(source, listing.pictures, "b", SIZE, SIZE, progress, cache)
    return make_snapshot(read, source.url, settings, passed_over, lambda _left_out: "left-out.csv")


def snap(folder: Path, tree: Mapping[str, bytes] | None = None, **changes) -> Snapshot:
    """Return the snapshot of a folder, into which the files are written first."""
    if tree is not None:
        write_tree(folder, tree)
    return take_snapshot(FolderSource(folder), dataset_settings(folder.parent, **changes))


def reasons(snapshot: Snapshot) -> dict[str, str]:
    """What is left out, as path -> reason."""
    return {one.path: one.reason for one in snapshot.left_out}
