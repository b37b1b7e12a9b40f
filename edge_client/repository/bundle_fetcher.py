"""Reads a signed repository from an offline bundle: one tar file, read from its beginning.

Whoever made the file may have written anything into its headers, which tarfile unpacks into objects many
times their size: PAX records, names of gigabytes, maps of sparse files. So the headers that it may read are
few bytes, in total and for each file, and nothing of them is kept but name, place and size.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
import tarfile
from typing import TYPE_CHECKING, NamedTuple

from edge_client.contract.errors import InputError
from edge_client.contract.names import METADATA_FOLDER, TARGETS_FOLDER
from edge_client.repository.fetcher import CHUNK_BYTES, Fetcher, absent, broken_off
from edge_client.settings.update import BUNDLE_SCHEME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


# `export` writes about 30 files, and one more for each root that followed the first; 512 bytes of headers
# each.
_MOST_MEMBERS = 2000
_HEADER_BYTES = 4 << 10
_HEADERS_BYTES = 1 << 20
# What tarfile raises on damaged files besides its own errors (found by fuzzing, and read in its source).
_NO_TAR = (OSError, tarfile.TarError, EOFError, ValueError, LookupError, OverflowError, RecursionError)


class _Member(NamedTuple):
    """Place of a file in the bundle, in bytes."""

    offset: int
    size: int


class BundleFetcher(Fetcher):
    """Reads a bundle in place of the store."""

    def __init__(self, bundle: Path, file: BinaryIO | None = None) -> None:
        """Open a bundle.

        Args:
            bundle: The file's path.
            file: The same file, opened before by a user who may; stays open.
        Raises: InputError if it cannot be read or is not a bundle.
        """
        self.bytes_pulled = 0
        self._base_url = f"{BUNDLE_SCHEME}{bundle}/"
        with contextlib.ExitStack() as opened:
            self._file = opened.enter_context(open_bundle(bundle)) if file is None else file
            try:
                self._members = _list_members(self._file)
            except _NO_TAR as e:
                raise _no_bundle(bundle, e) from e
            if f"{METADATA_FOLDER}/timestamp.json" not in self._members:
                msg = f"{bundle}: has no signed metadata; make one with `edge-client export`"
                raise InputError(msg)
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.fetch_from(url, 0)[1]

    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """See `Fetcher.fetch_from`."""
        member = self._members.get(url.removeprefix(self._base_url))
        if member is None:
            raise absent(url, "not in the bundle")
        return offset, self._chunks(url, member, offset)

    def _chunks(self, url: str, member: _Member, offset: int) -> Iterator[bytes]:
        try:
            self._file.seek(member.offset + offset)
            while offset < member.size:
                chunk = self._file.read(min(CHUNK_BYTES, member.size - offset))
                if not chunk:
                    raise broken_off(url, "the bundle ends there")
                offset += len(chunk)
                self.bytes_pulled += len(chunk)
                yield chunk
        except (OSError, ValueError, OverflowError) as e:
            raise broken_off(url, str(e)) from e


def open_bundle(bundle: Path) -> BinaryIO:
    """Open a bundle to read it.

    Raises: InputError.
    """
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(bundle, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError as e:
        msg = f"{bundle}: no such file; check the path"
        raise InputError(msg) from e
    except (OSError, ValueError) as e:
        raise _no_bundle(bundle, e) from e
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _no_bundle(bundle, "not a regular file")
    return os.fdopen(descriptor, "rb")


def _no_bundle(bundle: Path, fault: Exception | str) -> InputError:
    what = str(fault) or type(fault).__name__
    return InputError(f"{bundle}: not a valid bundle ({what}); make one with `edge-client export`")


def _list_members(file: BinaryIO) -> dict[str, _Member]:
    """Return the signed repository's files in a tar.

    Raises: One of _NO_TAR.
    """
    members: dict[str, _Member] = {}
    headers = _Headers(file)
    with tarfile.open(fileobj=headers, mode="r:") as tar:
        for _count in range(_MOST_MEMBERS):
            headers.begin()
            if (member := tar.next()) is None:
                return members
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every header that it read
            # A sparse file holds gigabytes in a few bytes; `export` writes none.
            regular = member.isreg() and not member.issparse() and member.size >= 0
            if regular and member.name.startswith(_FOLDERS):
                members[member.name] = _Member(member.offset_data, member.size)
    msg = f"over {_MOST_MEMBERS} files; no bundle of `edge-client export` has so many"
    raise tarfile.ReadError(msg)


_FOLDERS = (f"{METADATA_FOLDER}/", f"{TARGETS_FOLDER}/")


class _Headers(io.RawIOBase):
    """File of which only little may be read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self._left = _HEADERS_BYTES
        self.begin()

    def begin(self) -> None:
        """Allow the headers of one more file to be read."""
        self._now = min(_HEADER_BYTES, self._left)

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self._now:
            msg = f"over {_HEADER_BYTES} bytes of headers for one file, or {_HEADERS_BYTES} for all"
            raise tarfile.ReadError(msg)
        self._now -= size
        self._left -= size
        return self._file.read(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
