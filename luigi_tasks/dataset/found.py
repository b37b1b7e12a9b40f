"""Listing of a source in the making, and the errors about its files."""

from __future__ import annotations

import operator
from typing import BinaryIO

from edge_client.contract.errors import InputError
from edge_client.contract.picture_file import MAX_FILE_BYTES
from luigi_tasks.dataset.archive_members import is_archive_name
from luigi_tasks.dataset.file_names import has_picture_suffix, is_foreign
from luigi_tasks.dataset.left_out import FOREIGN, UNREADABLE
from luigi_tasks.dataset.listing import Listing
from luigi_tasks.dataset.records import Entry, LeftOut

SHOWN_CHARACTERS = 200


class DamagedFileError(InputError):
    """A file whose content the disk does not give back; the others are readable."""


def not_listed(url: str, path: str) -> InputError:
    """Return the error about a path that the listing of the run does not have."""
    return InputError(
        f"{url}: {path[:SHOWN_CHARACTERS]!r} is not in the listing of the pictures, so it is not read; run "
        "again"
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


class Found:
    """A listing in the making."""

    def __init__(self) -> None:
        self._pictures: list[Entry] = []
        self._left_out: list[LeftOut] = []
        self._folders: list[str] = []
        self._archives: list[str] = []
        self.through_links: set[str] = set()

    def wants(self, name: str, prefix: str) -> bool:
        """Whether a file may be a picture by its name; what evidently is none is left out."""
        if has_picture_suffix(name):
            return True
        if is_archive_name(name):
            self._archives.append(prefix + name)
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
            tuple(sorted(self._archives)),
        )


def _is_utf8(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
