"""Opens the store that `[store] url` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luigi_tasks.settings.values import StoreSettings
    from luigi_tasks.storage.store import Store


def open_store(settings: StoreSettings) -> Store:
    """Open a bucket (s3://) or a folder (file://), without touching it yet.

    Each call gives a store with a connection of its own: callers keep and share it.
    Raises: SettingsError for any other url.
    """
    from luigi_tasks.storage.s3_store import S3Store  # noqa: PLC0415 - only the one that is wanted

    return S3Store(settings)
