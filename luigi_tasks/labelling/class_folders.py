"""Class folders of a dataset that pictures can be added to, on a local disk or below an S3 prefix."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import FILE_SCHEME, folder_of_url
from edge_client.contract.text import excerpt
from edge_client.disk import disk_errors, sync_folder, write_durably
from luigi_tasks.dataset.archive_members import is_archive_name
from luigi_tasks.dataset.bucket_source import list_objects, place_of_pictures
from luigi_tasks.dataset.layout import Layout
from luigi_tasks.dataset.presets import is_preset
from luigi_tasks.dataset.sources import FolderSource, open_source
from luigi_tasks.labelling.leftovers import without_leftovers
from luigi_tasks.settings.urls import S3_SCHEME, scheme_of
from luigi_tasks.settings.values import NO_PICTURES
from luigi_tasks.storage.opening import open_store

if TYPE_CHECKING:
    from luigi_tasks.dataset.listing import Listing
    from luigi_tasks.settings.values import DatasetSettings, StoreSettings
    from luigi_tasks.storage.store import Store

_CONTENT_TYPES = {"jpg": "image/jpeg", "jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}
# Names of frames in the dataset, see `intake.py`.
HALF_WRITTEN = r"inbox-[0-9a-f]{16}[^/]*\.jpg"


class ClassFolders(Protocol):
    """Class folders of a dataset; a path is `<class folder>/<file>`, wherever the class folders lie.

    Where folders give the split, pictures are added to the training pictures. The methods whose names end in
    `path` or `paths` take and return paths in the dataset itself, as a snapshot has them.
    """

    url: str

    def contents(self) -> dict[str, frozenset[str]]:
        """Return the names of the pictures of each class; empty where there is no dataset yet.

        Raises: InputError; TransportError; SettingsError.
        """

    def read(self, path: str) -> bytes | None:
        """Return a picture, or None if it does not exist."""

    def write(self, path: str, data: bytes) -> None:
        """Add a picture; it appears atomically, and is durable on return.

        Raises: DeviceError; TransportError; SettingsError.
        """

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Give a block in which pictures are written; what a killed one left is removed first."""

    def paths(self) -> dict[str, str]:
        """Return the class folder of each picture, by its path in the dataset; raises as `contents`."""

    def place_of(self, path: str, folder: str) -> str:
        """Return the path of a picture if it were in another class, on its side of the split."""

    def read_path(self, path: str) -> bytes | None:
        """Return a picture, or None if it does not exist."""

    def write_path(self, path: str, data: bytes) -> None:
        """Add a picture; as `write`."""

    def remove_path(self, path: str) -> None:
        """Remove a picture that was read; one that is gone is not an error."""

    def why_not_removable(self, path: str) -> str:
        """Return why a picture cannot be removed; empty: it can be."""


def open_class_folders(settings: DatasetSettings, store: StoreSettings) -> ClassFolders:
    """Return the folders of `settings.url`.

    Raises: SettingsError if no picture can be added there.
    """
    scheme = scheme_of(settings.url)
    if scheme == S3_SCHEME and not is_archive_name(settings.url):
        place = place_of_pictures(settings, store)
        return BucketFolders(open_store(dataclasses.replace(place, url=settings.url)), settings.url)
    if not settings.url:
        raise SettingsError(NO_PICTURES)
    path = folder_of_url(settings.url) if scheme == FILE_SCHEME else Path(settings.url).expanduser()
    is_archive = path.is_file() or (is_archive_name(path.name) and not path.is_dir())
    if scheme not in {"", FILE_SCHEME} or is_preset(settings.url) or is_archive:
        msg = (
            f"[dataset] url {settings.url!r}: an archive or a preset never changes, so no labelled pictures "
            "can be added; copy its class folders to a local folder or an s3:// prefix of your own, let "
            "[dataset] url name that, and run again"
        )
        raise SettingsError(msg)
    return LocalFolders(path)


def read_picture(settings: DatasetSettings, store: StoreSettings, path: str) -> bytes | None:
    """Return a picture of a dataset, also of one that cannot be changed; None if it is gone.

    Args:
        settings: Of the dataset.
        store: Where s3:// addresses lead.
        path: Path in the dataset.
    Raises: InputError; TransportError; SettingsError.
    """
    try:
        folders = open_class_folders(settings, store)
    except SettingsError:  # an archive or a preset: looked at, though not changed
        return open_source(settings, store).read(path)
    return folders.read_path(path)


class LocalFolders:
    """Class folders on a local disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = str(folder)
        self._layout: Layout | None = None

    def contents(self) -> dict[str, frozenset[str]]:
        """List as a snapshot does."""
        if not self.folder.exists():
            return {}
        listing = FolderSource(self.folder).listing()
        self._layout = _layout_of(listing, self.url)
        return _names_by_class(listing, self._layout)

    def read(self, path: str) -> bytes | None:
        """Read a picture."""
        place = self._place(path)
        with disk_errors(place):
            return place.read_bytes() if place.exists() else None

    def write(self, path: str, data: bytes) -> None:
        """Write a picture, with the read permissions of its folder."""
        self._write(self._place(path), data)

    def _write(self, place: Path, data: bytes) -> None:
        write_durably(place, data)
        with disk_errors(place):
            place.chmod(place.parent.stat().st_mode & 0o666)
            sync_folder(place.parent.parent)  # the class folder itself may be new

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Remove hidden copies of frames, unless another run is writing."""
        return without_leftovers(self.folder, self._picture_folders, HALF_WRITTEN)

    def paths(self) -> dict[str, str]:
        """List as a snapshot does."""
        if not self.folder.exists():
            return {}
        listing = FolderSource(self.folder).listing()
        self._layout = _layout_of(listing, self.url)
        return {one.path: self._layout.class_folder(one.path) for one in listing.pictures}

    def place_of(self, path: str, folder: str) -> str:
        """Replace the class folder in a path."""
        return _in_class(path, folder, self._layout)

    def read_path(self, path: str) -> bytes | None:
        """Read a picture, below the folder."""
        place = self.folder / _inside(path)
        with disk_errors(place):
            return place.read_bytes() if place.is_file() else None

    def write_path(self, path: str, data: bytes) -> None:
        """Write a picture, with the read permissions of its folder."""
        self._write(self.folder / _inside(path), data)

    def remove_path(self, path: str) -> None:
        """Remove a picture; of a link to one, the link."""
        place = self.folder / _inside(path)
        with disk_errors(place):
            place.unlink(missing_ok=True)
            sync_folder(place.parent)

    def why_not_removable(self, path: str) -> str:
        """Refuse what lies elsewhere: others may use it there."""
        real = (self.folder / _inside(path)).parent.resolve()
        if real.is_relative_to(self.folder.resolve()):
            return ""
        return f"lies in {real}, behind a link; move it there by hand, or copy that folder into the dataset"

    def _picture_folders(self) -> list[Path]:
        return [self.folder / one for one in FolderSource(self.folder).listing().folders]

    def _place(self, path: str) -> Path:
        if self._layout is None:
            self.contents()
        return self.folder / _place_of(path, self._layout)


class BucketFolders:
    """Class folders below an S3 prefix."""

    def __init__(self, store: Store, url: str) -> None:
        self.url = url
        self._store = store
        self._layout: Layout | None = None

    def contents(self) -> dict[str, frozenset[str]]:
        """List as a snapshot does, with one request a thousand pictures."""
        objects = self._store.list_folder("")
        listing = list_objects(objects)
        self._layout = _layout_of(listing, self.url)
        return _names_by_class(listing, self._layout)

    def read(self, path: str) -> bytes | None:
        """Read a picture."""
        found = self._store.get(self._key(path))
        return found.data if found is not None else None

    def write(self, path: str, data: bytes) -> None:
        """Write a picture; the store returns when it is durable."""
        self._store.put(self._key(path), data, content_type="image/jpeg")

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Do nothing: an object appears whole, or not at all."""
        return contextlib.nullcontext()

    def paths(self) -> dict[str, str]:
        """List as a snapshot does."""
        listing = list_objects(self._store.list_folder(""))
        self._layout = layout = _layout_of(listing, self.url)
        return {one.path: layout.class_folder(one.path) for one in listing.pictures}

    def place_of(self, path: str, folder: str) -> str:
        """Replace the class folder in a key."""
        return _in_class(path, folder, self._layout)

    def read_path(self, path: str) -> bytes | None:
        """Read a picture."""
        found = self._store.get(_inside(path))
        return found.data if found is not None else None

    def write_path(self, path: str, data: bytes) -> None:
        """Write a picture; the store returns when it is durable."""
        self._store.put(_inside(path), data, content_type=_content_type(path))

    def remove_path(self, path: str) -> None:
        """Remove a picture."""
        self._store.delete(_inside(path))

    def why_not_removable(self, path: str) -> str:
        """Return nothing: an object lies where its key says."""
        del path
        return ""

    def _key(self, path: str) -> str:
        if self._layout is None:
            self.contents()
        return _place_of(path, self._layout)


def _content_type(path: str) -> str:
    return _CONTENT_TYPES.get(path.rpartition(".")[2].lower(), "application/octet-stream")


def _inside(path: str) -> str:
    """Return a path if it leads to a file below the dataset.

    Raises: InputError.
    """
    if "\0" in path or any(part in {"", ".", ".."} for part in path.split("/")):
        msg = f"{excerpt(path)!r} is no path of a picture of the dataset"
        raise InputError(msg)
    return path


def _in_class(path: str, folder: str, layout: Layout | None) -> str:
    parts = path.split("/")
    parts[(layout or Layout()).class_at] = folder
    return "/".join(parts)


def _layout_of(listing: Listing, url: str) -> Layout:
    """Return the layout of a dataset; one without pictures gets one folder a class."""
    return listing.find_layout(url) if listing.pictures else Layout()


def _names_by_class(listing: Listing, layout: Layout) -> dict[str, frozenset[str]]:
    found: dict[str, set[str]] = {folder: set() for folder in listing.classes(layout)}
    for one in listing.pictures:
        if folder := layout.class_folder(one.path):
            found[folder].add(one.path.rpartition("/")[2])
    return {folder: frozenset(names) for folder, names in found.items()}


def _place_of(path: str, layout: Layout | None) -> str:
    """Return where a picture `<class folder>/<file>` lies in the dataset."""
    folder, _, name = path.partition("/")
    return f"{(layout or Layout()).folder_of(folder)}/{name}"
