"""Opens the store that `[store] url` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edge_client.contract.file_urls import is_file_url

if TYPE_CHECKING:
    from luigi_tasks.settings.values import StoreSettings
    from luigi_tasks.storage.store import Store


def open_store(settings: StoreSettings) -> Store:
    """Open a bucket (s3://) or a folder (file://), without touching it yet.

    Each call opens another store with connections of its own: callers keep and share it.
    Raises: SettingsError for any other url.
    """
    if is_file_url(settings.url):
        from luigi_tasks.storage.folder_store import FolderStore  # noqa: PLC0415 - only the one in use

        return FolderStore(settings)
    from luigi_tasks.storage.s3_store import S3Store  # noqa: PLC0415 - as above

    return S3Store(settings)
