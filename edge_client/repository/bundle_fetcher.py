"""Reads a signed repository from an offline bundle: one tar file, read from its beginning."""

from __future__ import annotations

import contextlib
import io
import tarfile
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.names import METADATA_FOLDER
from edge_client.repository.fetcher import CHUNK_BYTES, Fetcher, absent, broken_off
from edge_client.settings.update import BUNDLE_SCHEME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from typing import BinaryIO


_MOST_MEMBERS = 10_000
# Largest piece that is read at once; a chunk of content, or a header with a name, is far below.
_LARGEST_READ = 1 << 20
# What tarfile raises on damaged files besides its own errors (found by fuzzing, and read in its source).
_NO_TAR = (OSError, tarfile.TarError, EOFError, ValueError, LookupError, OverflowError, RecursionError)


class BundleFetcher(Fetcher):
    """Reads a bundle in place of the store."""

    def __init__(self, bundle: Path) -> None:
        """Open a bundle.

        Raises: InputError if it cannot be read or is not a bundle.
        """
        self.bytes_pulled = 0
        self._base_url = f"{BUNDLE_SCHEME}{bundle}/"
        self._members: dict[str, tarfile.TarInfo] = {}
        with contextlib.ExitStack() as opened:
            try:
                file = opened.enter_context(bundle.open("rb"))
                self._tar = opened.enter_context(tarfile.open(fileobj=_Gradual(file), mode="r:"))
                self._list_members(bundle)
            except _NO_TAR as e:
                fault = str(e) or type(e).__name__
                msg = f"{bundle}: not a valid bundle ({fault}); make one with `edge-client export`"
                raise InputError(msg) from e
            self._opened = opened.pop_all()

    def _list_members(self, bundle: Path) -> None:
        for count, member in enumerate(self._tar):
            if count == _MOST_MEMBERS:
                msg = f"{bundle}: over {_MOST_MEMBERS} files; no bundle of `edge-client export` has so many"
                raise InputError(msg)
            # A sparse file holds gigabytes in a few bytes; `export` writes none.
            if member.isreg() and not member.issparse():
                self._members[member.name] = member
        if f"{METADATA_FOLDER}/timestamp.json" not in self._members:
            msg = f"{bundle}: has no signed metadata; make one with `edge-client export`"
            raise InputError(msg)

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

    def _chunks(self, url: str, member: tarfile.TarInfo, offset: int) -> Iterator[bytes]:
        try:
            file = self._tar.extractfile(member)
            if file is None:
                raise broken_off(url, "not a regular file in the bundle")
            file.seek(offset)
            while chunk := file.read(CHUNK_BYTES):
                self.bytes_pulled += len(chunk)
                yield chunk
        except _NO_TAR as e:
            raise broken_off(url, str(e)) from e


class _Gradual(io.RawIOBase):
    """File that refuses large reads: a tar header may ask for a name of gigabytes.

    Every member's content is read in chunks anyway.
    """

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _LARGEST_READ:
            msg = f"a piece of {size} bytes in its headers"
            raise tarfile.ReadError(msg)
        return self._file.read(size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()
