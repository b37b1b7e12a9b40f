"""Sources of pictures: a folder, an S3 prefix, an archive or a preset. One folder a class.

A listing is cheap: names, sizes and versions, and no picture is read. It decides whether a run has anything
to do.
"""

from __future__ import annotations

import itertools
import operator
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import FILE_SCHEME, folder_of_url
from luigi_tasks.dataset.archive import Archive, unpack_archive
from luigi_tasks.dataset.presets import DIGITS_FOLDER, FLOWERS, write_digits
from luigi_tasks.dataset.records import Entry
from luigi_tasks.storage.s3_store import open_client, s3_errors, split_url

if TYPE_CHECKING:
    from collections.abc import Iterator

    from luigi_tasks.settings.values import DatasetSettings, StoreSettings

PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})

# Folders that macOS and Synology add next to pictures: resource forks and thumbnails.
SIDE_FOLDERS = frozenset({"__MACOSX", "@eaDir"})
NAMED_AT_MOST = 10
CONNECTIONS = 10  # the size of boto3's connection pool


class PictureSource(Protocol):
    """A dataset that can be listed and read; reading is fastest with `threads` threads."""

    url: str
    threads: int

    def listing(self) -> tuple[Entry, ...]:
        """Return all pictures, sorted by path, without reading one.

        Raises: InputError if there is no picture, or a class folder without one;
            TransportError; SettingsError.
        """

    def read(self, path: str) -> bytes:
        """Return the content of one picture.

        Raises: InputError if it is gone, TransportError.
        """


def open_source(settings: DatasetSettings, store: StoreSettings) -> PictureSource:
    """Return the source that `settings.url` names; an archive or preset is unpacked at first use.

    Raises: SettingsError for an address of no known kind; InputError; TransportError.
    """
    cache_dir = settings.cache_dir.expanduser()
    if settings.url == "digits":
        return FolderSource(write_digits(cache_dir), version=DIGITS_FOLDER)
    if settings.url == "flowers":
        return _open_archive(FLOWERS, cache_dir, settings.max_unpacked_bytes)
    parts = urlsplit(settings.url)
    if parts.scheme == "s3":
        return BucketSource(settings.url, store)
    if parts.scheme in {"http", "https"}:
        archive = Archive(settings.url, _checked_sha256(settings))
        return _open_archive(archive, cache_dir, settings.max_unpacked_bytes)
    if parts.scheme == FILE_SCHEME:
        return FolderSource(folder_of_url(settings.url))
    if parts.scheme or not settings.url:
        msg = (
            f"[dataset] url {settings.url!r}: give a folder, s3://bucket/prefix, an http(s) archive, or a "
            "preset (digits, flowers)"
        )
        raise SettingsError(msg)
    return FolderSource(Path(settings.url).expanduser())


def _checked_sha256(settings: DatasetSettings) -> str:
    sha256 = settings.sha256.strip().lower()
    if not re.fullmatch("[0-9a-f]{64}", sha256):
        msg = (
            f"[dataset] url {settings.url}: give [dataset] sha256, the archive's 64 hex digits "
            f"(sha256sum FILE), not {settings.sha256!r}"
        )
        raise SettingsError(msg)
    return sha256


class FolderSource:
    """A local folder.

    It is read by as many threads as there are cores: decoding, not reading, takes the time.

    Args:
        folder: Holds one folder a class.
        version: Version of every entry where the folder's content cannot change, so that its listing is the
            same on every machine; None: each file's mtime.
        without: Paths to leave out.
    """

    def __init__(
        self, folder: Path, *, version: str | None = None, without: frozenset[str] = frozenset()
    ) -> None:
        self.folder = folder
        self.url = str(folder)
        self.threads = os.cpu_count() or 1
        self._version = version
        self._without = without

    def listing(self) -> tuple[Entry, ...]:
        """List with one scandir a folder: 100,000 pictures take well under a second."""
        if not self.folder.is_dir():
            msg = f"{self.folder}: no such folder; give one that holds one folder of pictures a class"
            raise InputError(msg)
        try:
            classes = {
                label.name: [
                    entry for entry in self._scan(label, label.name) if entry.path not in self._without
                ]
                for label in subfolders(self.folder)
            }
        except OSError as e:
            msg = f"{e.filename}: {e.strerror}; repair or remove it"
            raise InputError(msg) from e
        return _finish(classes, self.url)

    def _scan(self, folder: os.DirEntry[str], prefix: str) -> Iterator[Entry]:
        with os.scandir(folder) as found:
            for one in found:
                name = one.name
                if is_hidden(name):
                    continue
                path = f"{prefix}/{name}"
                if one.is_dir(follow_symlinks=False):
                    yield from self._scan(one, path)
                elif _is_picture_name(name):
                    yield self._entry(one, path)
                elif one.is_symlink() and one.is_dir():
                    # It may point to a parent folder, without end; a link that is a whole class folder is
                    # followed.
                    msg = f"{one.path}: a link to a folder inside a class; put the pictures there instead"
                    raise InputError(msg)

    def _entry(self, one: os.DirEntry[str], path: str) -> Entry:
        status = one.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            msg = f"{one.path}: named like a picture, but not a file; remove it"
            raise InputError(msg)
        return Entry(path, status.st_size, self._version or str(status.st_mtime_ns))

    def read(self, path: str) -> bytes:
        """Read one picture."""
        try:
            return (self.folder / path).read_bytes()
        except OSError as e:
            msg = f"{self.folder / path}: {e.strerror}; it was there when the pictures were listed. Run again"
            raise InputError(msg) from e


class BucketSource:
    """An S3 prefix, with the credentials and endpoint of the store."""

    def __init__(self, url: str, store: StoreSettings) -> None:
        self.url = url
        self.threads = CONNECTIONS
        self.bucket, self.prefix = split_url(url)
        self._settings = store
        self._clients: dict[int, Any] = {}
        self._lock = threading.Lock()

    def listing(self) -> tuple[Entry, ...]:
        """List with one request a thousand pictures."""
        classes: dict[str, list[Entry]] = {}
        with s3_errors(self.url):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for found in (found for page in pages for found in page.get("Contents", ())):
                path = found["Key"][len(self.prefix) :]
                label, *below = path.split("/")
                if not below or any(is_hidden(part) for part in (label, *below[:-1])) or not label:
                    continue
                entries = classes.setdefault(label, [])
                if "" not in below and not is_hidden(below[-1]) and _is_picture_name(below[-1]):
                    entries.append(Entry(path, found["Size"], found["ETag"].strip('"')))
        return _finish(classes, self.url)

    def read(self, path: str) -> bytes:
        """Read one picture."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - 0.1 s that local folders do not need

        with s3_errors(f"{self.url.rstrip('/')}/{path}"):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
                return bytes(answer["Body"].read())
            except ClientError as e:
                if e.response["Error"]["Code"] not in {"NoSuchKey", "404"}:
                    raise
                msg = f"{self.url.rstrip('/')}/{path}: gone since the pictures were listed. Run again"
                raise InputError(msg) from e

    @property
    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its classes at run time
        """This process's boto3 client: threads may share it, forked workers of Luigi may not."""
        with self._lock:
            if os.getpid() not in self._clients:
                self._clients[os.getpid()] = open_client(self._settings)
            return self._clients[os.getpid()]


def _open_archive(archive: Archive, cache_dir: Path, max_unpacked_bytes: int) -> FolderSource:
    folder = _descend(unpack_archive(archive, cache_dir, max_unpacked_bytes))
    return FolderSource(folder, version=archive.sha256, without=archive.without)


def _descend(folder: Path) -> Path:
    """Return the folder of the class folders: an archive often wraps them in a single top folder."""
    inside = [Path(one.path) for one in subfolders(folder)]
    if len(inside) == 1 and next(subfolders(inside[0]), None):
        return inside[0]
    return folder


def subfolders(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Yield the class folders of a local dataset; links to folders count."""
    with os.scandir(folder) as found:
        yield from (one for one in found if one.is_dir() and not is_hidden(one.name))


def is_hidden(name: str) -> bool:
    """Whether a folder or file of this name is not part of a dataset."""
    return name[:1] == "." or name in SIDE_FOLDERS


def _is_picture_name(name: str) -> bool:
    return name[name.rfind(".") :].lower() in PICTURE_SUFFIXES


def _finish(classes: dict[str, list[Entry]], url: str) -> tuple[Entry, ...]:
    """Return the sorted listing; refuse empty class folders, which would be dropped silently."""
    suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
    if not any(classes.values()):
        msg = f"{url}: no pictures found; put them into one folder a class, as {suffixes}"
        raise InputError(msg)
    empty = sorted(label for label, entries in classes.items() if not entries)
    if empty:
        named = ", ".join(repr(label) for label in empty[:NAMED_AT_MOST])
        msg = f"{url}: no pictures in {named}; add some ({suffixes}), or remove the folder"
        raise InputError(msg)
    listing = sorted(itertools.chain.from_iterable(classes.values()), key=operator.attrgetter("path"))
    for entry in listing:
        if not entry.path.isascii():
            _check_name(entry.path, url)
    return tuple(listing)


def _check_name(path: str, url: str) -> None:
    try:
        path.encode()
    except UnicodeEncodeError as e:
        msg = f"{url}: the name {path!r} is not UTF-8; rename it"
        raise InputError(msg) from e
