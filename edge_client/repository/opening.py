"""Opens the signed repository of `[store]`, with the fetcher for its kind of address."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.file_urls import is_file_url
from edge_client.disk import SCRATCH_PATTERNS
from edge_client.repository.folder_fetcher import FolderFetcher
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.keys import open_keys
from edge_client.repository.trusted import METADATA_DIR, TrustedRepository
from edge_client.settings.update import BUNDLE_SCHEME, read_root

if TYPE_CHECKING:
    from edge_client.repository.fetcher import Fetcher
    from edge_client.settings.update import CheckSettings, StoreSettings


def open_repository(settings: CheckSettings, *, remember: bool = True) -> TrustedRepository:
    """Open the repository for one update check.

    Raises: SettingsError if root or credentials cannot be read; TrustError if the root is invalid.
    """
    return TrustedRepository(
        read_root(settings.trust),
        settings.store.base_url,
        settings.device.state_dir / METADATA_DIR,
        open_fetcher(settings.store),
        remember=remember,
    )


def open_fetcher(store: StoreSettings) -> Fetcher:
    """Return the fetcher for the kind of address in `[store] base_url`.

    Raises: SettingsError if the store's keys cannot be read; TransportError if temporary ones cannot be had;
        InputError if a bundle is unusable.
    """
    if store.base_url.startswith(BUNDLE_SCHEME):
        from edge_client.repository.bundle_fetcher import BundleFetcher  # noqa: PLC0415 - tarfile, seldom used

        return BundleFetcher(Path(store.base_url.removeprefix(BUNDLE_SCHEME)))
    if is_file_url(store.base_url):
        return FolderFetcher(store.base_url)
    keys = open_keys(store)
    if keys is not None:
        keys.current()  # what is wrong with them is said before anything is asked for
    return StoreFetcher(store, keys)


def sweep_scratch(state_dir: Path) -> None:
    """Remove the scratch folders of checks that were killed; never fails. Only one check may be running."""
    for folder in itertools.chain.from_iterable(map(state_dir.glob, SCRATCH_PATTERNS)):
        shutil.rmtree(folder, ignore_errors=True)
