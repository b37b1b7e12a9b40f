"""Opens the signed repository that `[store]` names, with the fetcher for its kind of address."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.file_urls import is_file_url
from edge_client.repository.folder_fetcher import FolderFetcher
from edge_client.repository.http_fetcher import StoreFetcher
from edge_client.repository.trusted import _SCRATCH, METADATA_DIR, TrustedRepository
from edge_client.settings.update import BUNDLE_SCHEME, read_credentials, read_root

if TYPE_CHECKING:
    from edge_client.repository.fetcher import Fetcher
    from edge_client.settings.update import LookSettings, StoreSettings


def open_repository(settings: LookSettings, *, remember: bool = True) -> TrustedRepository:
    """Open a fresh look at the store.

    Raises: SettingsError if root or credentials cannot be read; TrustError if the root is invalid.
    """
    return TrustedRepository(
        read_root(settings.trust),
        settings.store.base_url,
        settings.device.state_dir / METADATA_DIR,
        open_fetcher(settings.store),
        remember=remember,
    )


def sweep_scratch(state_dir: Path) -> None:
    """Remove the scratch copies of looks that were killed; never fails. Only one look may be under way."""
    for folder in state_dir.glob(f"{_SCRATCH}*"):
        shutil.rmtree(folder, ignore_errors=True)


def open_fetcher(store: StoreSettings) -> Fetcher:
    """Open what reads the store: a bundle, a folder, or HTTP.

    Raises: SettingsError if credentials cannot be read; InputError if a bundle cannot.
    """
    from edge_client.repository.bundle_fetcher import BundleFetcher  # noqa: PLC0415 - it imports this

    if store.base_url.startswith(BUNDLE_SCHEME):
        return BundleFetcher(Path(store.base_url.removeprefix(BUNDLE_SCHEME)))
    if is_file_url(store.base_url):
        return FolderFetcher(store.base_url)
    return StoreFetcher(store, read_credentials(store))
