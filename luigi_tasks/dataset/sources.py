"""Sources of pictures: a folder, an S3 prefix, an archive or a preset. One folder a class.

A listing is cheap: names, sizes and versions, and no picture is read. It decides whether a run has anything
to do.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_client.contract.errors import InputError, SettingsError
from edge_client.contract.file_urls import FILE_SCHEME, folder_of_url
from luigi_tasks.dataset.archive import Archive, shown_archive, unpack_archive, unpack_file, unpack_stream
from luigi_tasks.dataset.archive_members import is_archive_name
from luigi_tasks.dataset.bucket_source import BucketSource, place_of_pictures
from luigi_tasks.dataset.file_names import is_hidden
from luigi_tasks.dataset.found import DamagedFileError, Found, not_listed, read_within
from luigi_tasks.dataset.left_out import UNREADABLE
from luigi_tasks.dataset.presets import (
    DIGITS_FOLDER,
    FLOWERS,
    is_preset,
    preset_hint,
    preset_of,
    write_digits,
)
from luigi_tasks.settings.urls import S3_SCHEME, scheme_of
from luigi_tasks.settings.values import NO_PICTURES, PICTURES_COME_FROM
from luigi_tasks.storage.s3_client import split_url

if TYPE_CHECKING:
    from luigi_tasks.dataset.listing import Listing
    from luigi_tasks.settings.values import DatasetSettings, StoreSettings

_WEB_SCHEMES = frozenset({"http", "https"})
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


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
    check_address(settings)
    cache_dir, scheme = settings.cache_dir.expanduser(), scheme_of(settings.url)
    if is_preset(settings.url):
        if preset_of(settings.url) == "digits":
            return FolderSource(write_digits(cache_dir), version=DIGITS_FOLDER)
        return _open_archive(FLOWERS, cache_dir, settings.max_unpacked_bytes)
    if scheme == S3_SCHEME:
        return _open_bucket(settings, store)
    if scheme in _WEB_SCHEMES:
        return _open_archive(
            Archive(settings.url, _expected_sha256(settings)), cache_dir, settings.max_unpacked_bytes
        )
    if scheme == FILE_SCHEME:
        return _open_path(folder_of_url(settings.url), settings)
    return _open_path(Path(settings.url).expanduser(), settings)


def check_address(settings: DatasetSettings) -> None:
    """Check the address of pictures as far as it tells by itself; nothing is looked for.

    Raises: SettingsError for an address of no known kind, a preset that is none, or a missing digest.
    """
    url, scheme = settings.url, scheme_of(settings.url)
    if not url:
        raise SettingsError(NO_PICTURES)
    if is_preset(url):
        preset_of(url)
    elif scheme == FILE_SCHEME:
        folder_of_url(url)
    elif scheme == S3_SCHEME:
        split_url(url)
    elif scheme and scheme not in _WEB_SCHEMES:
        msg = f"[dataset] url {url!r}: give {PICTURES_COME_FROM}"
        raise SettingsError(msg)
    sha256 = _expected_sha256(settings)
    if (scheme in _WEB_SCHEMES or sha256) and not re.fullmatch("[0-9a-f]{64}", sha256):
        msg = (
            f"[dataset] url {shown_archive(url)}: give [dataset] sha256, the archive's 64 hex digits "
            f"(sha256sum FILE), not {settings.sha256!r}"
        )
        raise SettingsError(msg)


def _open_archive(archive: Archive, cache_dir: Path, max_unpacked_bytes: int) -> FolderSource:
    return FolderSource(unpack_archive(archive, cache_dir, max_unpacked_bytes), version=archive.sha256)


def _open_path(path: Path, settings: DatasetSettings) -> FolderSource:
    """Open a folder, or unpack a file: an archive, by its content."""
    if not path.is_file():
        return FolderSource(path)
    sha256, cache_dir = _expected_sha256(settings), settings.cache_dir.expanduser()
    unpacked = unpack_file(path, sha256, cache_dir, settings.max_unpacked_bytes)
    return FolderSource(unpacked.folder, version=unpacked.sha256)


def _open_bucket(settings: DatasetSettings, store: StoreSettings) -> PictureSource:
    """Open a prefix, or unpack an object whose key is that of an archive."""
    place = place_of_pictures(settings, store)
    source = BucketSource(settings.url, place, requester_pays=settings.requester_pays)
    archive = source.find_archive() if is_archive_name(settings.url) else None
    if archive is None:
        return source
    unpacked = unpack_stream(
        settings.url,
        archive.version,
        archive.chunks,
        _expected_sha256(settings),
        settings.cache_dir.expanduser(),
        settings.max_unpacked_bytes,
    )
    return FolderSource(unpacked.folder, version=unpacked.sha256)


def _expected_sha256(settings: DatasetSettings) -> str:
    """Return the expected digest; empty: none is given, which is enough for files that the user owns."""
    return settings.sha256.strip().lower()


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
            kind = "file" if is_archive_name(self.folder.name) else "folder"
            msg = f"{self.folder}: no such {kind}; give one that holds one folder of pictures a class"
            raise InputError(msg + preset_hint(self.folder.name))
        found = Found()
        try:
            self._scan(str(self.folder), "", found, {os.path.realpath(self.folder)})
        except OSError as e:
            msg = f"{e.filename}: {e.strerror}; repair or remove it, or let this user read it"
            raise InputError(msg) from e
        listing = found.listing()
        self._listed = {one.path: one.path in found.through_links for one in listing.pictures}
        return listing

    def _scan(self, folder: str, prefix: str, found: Found, linked: set[str]) -> None:
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

    def _follow(self, link: os.DirEntry[str], path: str, found: Found, linked: set[str]) -> None:
        """Follow a link to a folder, unless it leads into what is listed anyway, perhaps without end."""
        target = os.path.realpath(link.path)
        if any(os.path.commonpath([target, one]) in {target, one} for one in linked):
            found.leave_out(path, UNREADABLE, "a link to a folder of the same pictures; remove it")
            return
        found.add_folder(path)
        self._scan(link.path, f"{path}/", found, {*linked, target})

    def _add(self, one: os.DirEntry[str], path: str, found: Found) -> None:
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
