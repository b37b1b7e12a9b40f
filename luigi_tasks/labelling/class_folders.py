"""Class folders of a dataset that pictures can be added to, on a local disk or below an S3 prefix."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import FILE_SCHEME, folder_of_url
from edge_client.disk import disk_errors, sync_folder, write_durably
from luigi_tasks.dataset.presets import PRESETS
from luigi_tasks.dataset.sources import is_hidden, subfolders
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from luigi_tasks.settings.values import DatasetSettings, StoreSettings
    from luigi_tasks.storage.store import Store


class ClassFolders(Protocol):
    """Class folders of a dataset; a path is `<folder>/<file>`."""

    url: str

    def contents(self) -> dict[str, frozenset[str]]:
        """Return the names of the files in each class folder; empty where there is no dataset yet.

        Raises: InputError; TransportError; SettingsError.
        """

    def read(self, path: str) -> bytes | None:
        """Return a picture, or None if it does not exist."""

    def write(self, path: str, data: bytes) -> None:
        """Add a picture; it appears atomically, and is durable on return.

        Raises: DeviceError; TransportError; SettingsError.
        """


def open_class_folders(settings: DatasetSettings, store: StoreSettings) -> ClassFolders:
    """Return the folders of `settings.url`.

    Raises: SettingsError if no picture can be added there.
    """
    parts = urlsplit(settings.url)
    if parts.scheme == "s3":
        return BucketFolders(open_store(dataclasses.replace(store, url=settings.url)), settings.url)
    if parts.scheme == FILE_SCHEME:
        return LocalFolders(folder_of_url(settings.url))
    if parts.scheme or not settings.url or settings.url in PRESETS:
        msg = (
            f"[dataset] url {settings.url!r}: an archive or a preset never changes, so no labelled pictures "
            "can be added; copy its class folders to a local folder or an s3:// prefix of your own, let "
            "[dataset] url name that, and run again"
        )
        raise SettingsError(msg)
    return LocalFolders(Path(settings.url).expanduser())


class LocalFolders:
    """Class folders on a local disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)

    def contents(self) -> dict[str, frozenset[str]]:
        """List with one scandir a folder."""
        if not self.folder.exists():
            return {}
        try:
            return {
                one.name: frozenset(path.name for path in Path(one.path).iterdir())
                for one in subfolders(self.folder)
            }
        except OSError as e:
            msg = f"{e.filename}: {e.strerror}; repair or remove it"
            raise InputError(msg) from e

    def read(self, path: str) -> bytes | None:
        """Read a picture."""
        place = self.folder / path
        with disk_errors(place):
            return place.read_bytes() if place.exists() else None

    def write(self, path: str, data: bytes) -> None:
        """Write a picture, with the read permissions of its folder."""
        place = self.folder / path
        write_durably(place, data)
        with disk_errors(place):
            place.chmod(place.parent.stat().st_mode & 0o666)
            sync_folder(self.folder)  # the class folder itself may be new


class BucketFolders:
    """Class folders below an S3 prefix."""

    def __init__(self, store: Store, url: str) -> None:
        self.url = url
        self._store = store

    def contents(self) -> dict[str, frozenset[str]]:
        """List with one request a thousand pictures."""
        found: dict[str, set[str]] = {}
        for one in self._store.list_folder(""):
            folder, *below = one.key.split("/")
            if folder and below and not is_hidden(folder):
                found.setdefault(folder, set()).add(below[0])
        return {folder: frozenset(names) for folder, names in found.items()}

    def read(self, path: str) -> bytes | None:
        """Read a picture."""
        found = self._store.get(path)
        return found.data if found is not None else None

    def write(self, path: str, data: bytes) -> None:
        """Write a picture; the store returns when it is durable."""
        self._store.put(path, data, content_type="image/jpeg")
