"""Sources of pictures: a folder, an S3 prefix, an archive or a preset. One folder a class.

A listing is cheap: names, sizes and versions, and no picture is read. It decides whether a run has anything
to do.
"""

from __future__ import annotations

import errno
import operator
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol
from urllib.parse import urlsplit

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import FILE_SCHEME, folder_of_url
from edge_client.contract.picture_file import MAX_FILE_BYTES
from luigi_tasks.dataset.archive import Archive, unpack_archive
from luigi_tasks.dataset.file_names import has_picture_suffix, is_foreign, is_hidden
from luigi_tasks.dataset.left_out import FOREIGN, UNREADABLE
from luigi_tasks.dataset.listing import Listing
from luigi_tasks.dataset.presets import (
    DIGITS_FOLDER,
    FLOWERS,
    is_preset,
    preset_hint,
    preset_of,
    write_digits,
)
from luigi_tasks.dataset.records import Entry, LeftOut
from luigi_tasks.settings.values import NO_PICTURES, PICTURES_COME_FROM
from luigi_tasks.storage.s3_client import open_client, split_url
from luigi_tasks.storage.s3_errors import s3_errors
from luigi_tasks.storage.s3_store import read_body
from luigi_tasks.storage.store import TooLargeError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from luigi_tasks.settings.values import DatasetSettings, StoreSettings

SHOWN_CHARACTERS = 200
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
CONNECTIONS = 10  # the size of boto3's connection pool


class DamagedFileError(InputError):
    """A file whose content the disk does not give back; the others are readable."""


class PictureSource(Protocol):
    """A dataset that can be listed and read; reading is fastest with `threads` threads."""

    url: str
    threads: int

    def listing(self) -> Listing:
        """List all files, without reading one.

        Raises: InputError if a folder cannot be listed; TransportError; SettingsError.
        """

    def read(self, path: str) -> bytes:
        """Return the content of one picture.

        Raises: DamagedFileError; InputError if it is gone, or all of them may be lost; TransportError.
        """


def open_source(settings: DatasetSettings, store: StoreSettings) -> PictureSource:
    """Return the source that `settings.url` names; an archive or preset is unpacked at first use.

    Raises: SettingsError for an address of no known kind; InputError; TransportError.
    """
    cache_dir = settings.cache_dir.expanduser()
    if is_preset(settings.url):
        if preset_of(settings.url) == "digits":
            return FolderSource(write_digits(cache_dir), version=DIGITS_FOLDER)
        return _open_archive(FLOWERS, cache_dir, settings.max_unpacked_bytes)
    if not settings.url:
        raise SettingsError(NO_PICTURES)
    parts = urlsplit(settings.url)
    if parts.scheme == "s3":
        return BucketSource(settings.url, store)
    if parts.scheme in {"http", "https"}:
        archive = Archive(settings.url, _checked_sha256(settings))
        return _open_archive(archive, cache_dir, settings.max_unpacked_bytes)
    if parts.scheme == FILE_SCHEME:
        return FolderSource(folder_of_url(settings.url))
    if parts.scheme:
        msg = f"[dataset] url {settings.url!r}: give {PICTURES_COME_FROM}"
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

    Links to files and folders are followed, as people make datasets of them, where the listing found one.

    It is read by as many threads as there are cores: decoding, not reading, takes the time.

    Args:
        folder: Holds one folder a class.
        version: Version of every entry where the folder's content cannot change, so that its listing is the
            same on every machine; None: each file's mtime.
    """

    def __init__(self, folder: Path, *, version: str | None = None) -> None:
        self.folder = folder
        self.url = str(folder)
        self.threads = os.cpu_count() or 1
        self._version = version
        self._lock = threading.Lock()
        # Paths of the last listing, and whether a link leads there.
        self._listed: dict[str, bool] | None = None

    def listing(self) -> Listing:
        """List with one scandir a folder: 100,000 pictures take well under a second."""
        if not self.folder.is_dir():
            msg = f"{self.folder}: no such folder; give one that holds one folder of pictures a class"
            raise InputError(msg + preset_hint(self.folder.name))
        found = _Found()
        try:
            self._scan(str(self.folder), "", found, {os.path.realpath(self.folder)})
        except OSError as e:
            msg = f"{e.filename}: {e.strerror}; repair or remove it, or let this user read it"
            raise InputError(msg) from e
        listing = found.listing()
        self._listed = {one.path: one.path in found.through_links for one in listing.pictures}
        return listing

    def _scan(self, folder: str, prefix: str, found: _Found, linked: set[str]) -> None:
        """Add what lies in a folder.

        Args:
            folder: Its path.
            prefix: Its path in the dataset, ending in /.
            found: Gets it.
            linked: Real paths of the dataset and of the folders that links in it point to.
        """
        with os.scandir(folder) as inside:
            for one in inside:
                path = prefix + one.name
                if is_hidden(one.name):
                    continue
                if one.is_dir(follow_symlinks=False):
                    found.add_folder(path)
                    self._scan(one.path, f"{path}/", found, linked)
                elif one.is_symlink() and os.path.isdir(one.path):  # noqa: PTH112 - a text; no error on a loop
                    self._follow(one, path, found, linked)
                elif found.wants(one.name, prefix):
                    self._add(one, path, found)
                    if one.is_symlink() or len(linked) > 1:
                        found.through_links.add(path)

    def _follow(self, link: os.DirEntry[str], path: str, found: _Found, linked: set[str]) -> None:
        """Follow a link to a folder, unless it leads into what is listed anyway, perhaps without end."""
        target = os.path.realpath(link.path)
        if any(os.path.commonpath([target, one]) in {target, one} for one in linked):
            found.leave_out(path, UNREADABLE, "a link to a folder of the same pictures; remove it")
            return
        found.add_folder(path)
        self._scan(link.path, f"{path}/", found, {*linked, target})

    def _add(self, one: os.DirEntry[str], path: str, found: _Found) -> None:
        try:
            status = one.stat()
        except OSError as e:  # a link to nowhere or to itself
            found.leave_out(path, UNREADABLE, f"{e.strerror}; repair or remove it")
            return
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
            found.leave_out(path, UNREADABLE, "not a file; remove it")
            return
        found.add(path, status.st_size, self._version or str(status.st_mtime_ns))

    def read(self, path: str) -> bytes:
        """Read one picture that the listing has: a regular file, through links only where it had them."""
        through_link = self._find_listed(path)
        try:
            descriptor = self._open(path, through_link=through_link)
            with os.fdopen(descriptor, "rb") as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode):
                    msg = f"{path}: not a file any more; remove it"
                    raise DamagedFileError(msg)
                return read_within(file, status.st_size, path)
        except FileNotFoundError as e:
            msg = f"{self.folder / path}: {e.strerror}; it was there when the pictures were listed. Run again"
            raise InputError(msg) from e
        except OSError as e:
            if e.errno == errno.EIO:
                msg = f"{path}: {e.strerror}, where it lies on the disk; replace or remove it"
                raise DamagedFileError(msg) from e
            msg = f"{self.folder / path}: {e.strerror}; repair or remove it, or let this user read it"
            raise InputError(msg) from e

    def _find_listed(self, path: str) -> bool:
        """Return whether a link leads to a picture of the listing.

        Raises: InputError if the listing has no such path: whatever names it, it is not opened.
        """
        with self._lock:
            listed = self._listed
            if listed is None:
                self.listing()
                listed = self._listed or {}
        if path not in listed:
            raise not_listed(self.url, path)
        return listed[path]

    def _open(self, path: str, *, through_link: bool) -> int:
        """Open a file: without waiting for the writer of a pipe, nor through a link that was not listed."""
        if through_link:
            return os.open(self.folder / path, _READ)
        *folders, name = path.split("/")
        at = os.open(self.folder, _READ | os.O_DIRECTORY)
        try:
            for folder in folders:
                below = os.open(folder, _READ | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=at)
                os.close(at)
                at = below
            return os.open(name, _READ | os.O_NOFOLLOW, dir_fd=at)
        finally:
            os.close(at)


def not_listed(url: str, path: str) -> InputError:
    """Return the error about a path that the listing of the run does not have."""
    return InputError(
        f"{url}: {path[:SHOWN_CHARACTERS]!r} is not in the listing of the pictures, so it is not read; "
        "run again"
    )


def read_within(file: BinaryIO, size_bytes: int, path: str) -> bytes:
    """Read a picture file of a possible size.

    Raises: DamagedFileError.
    """
    data = file.read(MAX_FILE_BYTES + 1) if size_bytes <= MAX_FILE_BYTES else b""
    if max(len(data), size_bytes) > MAX_FILE_BYTES:
        msg = f"{path}: {max(len(data), size_bytes)} bytes, at most {MAX_FILE_BYTES} are read; scale it down"
        raise DamagedFileError(msg)
    return data


class BucketSource:
    """An S3 prefix, with the credentials and endpoint of the store."""

    def __init__(self, url: str, store: StoreSettings) -> None:
        self.url = url
        self.threads = CONNECTIONS
        self.bucket, self.prefix = split_url(url)
        self._settings = store
        self._clients: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._listing_lock = threading.Lock()
        self._listed: frozenset[str] | None = None

    def listing(self) -> Listing:
        """List with one request a thousand pictures."""
        with s3_errors(self.url):
            pages = self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            listing = list_objects(
                (found["Key"][len(self.prefix) :], found["Size"], found["ETag"].strip('"'))
                for page in pages
                for found in page.get("Contents", ())
            )
        self._listed = frozenset(one.path for one in listing.pictures)
        return listing

    def read(self, path: str) -> bytes:
        """Read one picture that the listing has."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - 0.1 s that local folders do not need

        with self._listing_lock:
            if self._listed is None:
                self.listing()
        if path not in (self._listed or ()):
            raise not_listed(self.url, path)
        with s3_errors(f"{self.url.rstrip('/')}/{path}"):
            try:
                answer = self.client.get_object(Bucket=self.bucket, Key=self.prefix + path)
                return read_body(answer, MAX_FILE_BYTES, path)
            except TooLargeError as e:
                raise DamagedFileError(str(e)) from e
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
    return FolderSource(unpack_archive(archive, cache_dir, max_unpacked_bytes), version=archive.sha256)


def list_objects(objects: Iterable[tuple[str, int, str]]) -> Listing:
    """Return the listing of objects in a bucket: key below the dataset's prefix, size and ETag of each."""
    found, folders = _Found(), set()
    for key, size, etag in objects:
        folder, slash, name = key.rpartition("/")
        parts = folder.split("/") if folder else []
        if any(map(is_hidden, parts)):
            continue
        if "" in parts:
            found.leave_out(key, UNREADABLE, "an empty name between two /; rename it")
            continue
        folders.add(folder)
        if name and not is_hidden(name) and found.wants(name, folder + slash):
            found.add(key, size, etag)
    for folder in sorted(folders - {""}):
        found.add_folder(folder)
    return found.listing()


class _Found:
    """A listing in the making."""

    def __init__(self) -> None:
        self._pictures: list[Entry] = []
        self._left_out: list[LeftOut] = []
        self._folders: list[str] = []
        self.through_links: set[str] = set()

    def wants(self, name: str, prefix: str) -> bool:
        """Whether a file may be a picture by its name; what evidently is none is left out."""
        if has_picture_suffix(name):
            return True
        if not prefix:  # next to the class folders: a README, a licence
            return False
        if is_foreign(name):
            self.leave_out(prefix + name, FOREIGN, "no picture, by its name")
            return False
        return True

    def add(self, path: str, size: int, version: str) -> None:
        if path.isascii() or _is_utf8(path):
            self._pictures.append(Entry(path, size, version))
        else:
            self.leave_out(path, UNREADABLE, "its name is not UTF-8; rename it")

    def add_folder(self, path: str) -> None:
        if _is_utf8(path):
            self._folders.append(path)

    def leave_out(self, path: str, reason: str, words: str) -> None:
        self._left_out.append(LeftOut(path.encode(errors="backslashreplace").decode(), reason, words))

    def listing(self) -> Listing:
        by_path = operator.attrgetter("path")
        return Listing(
            tuple(sorted(self._pictures, key=by_path)),
            tuple(sorted(self._left_out, key=by_path)),
            tuple(sorted(self._folders)),
        )


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
