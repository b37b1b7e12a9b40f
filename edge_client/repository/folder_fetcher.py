"""Reads a signed repository from a local folder: file:///srv/edge-models, or a mounted share."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from edge_client.contract.file_urls import folder_of_url
from edge_client.repository.fetcher import CHUNK_BYTES, Fetcher, absent, broken_off

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO


class FolderFetcher(Fetcher):
    """Reads files in place of objects; nothing in them is trusted."""

    def __init__(self, base_url: str) -> None:
        """Touch nothing yet.

        Raises: SettingsError if `base_url` is not file:///folder.
        """
        self.bytes_pulled = 0
        self._base_url = f"{base_url.rstrip('/')}/"
        self._folder = folder_of_url(base_url)

    def close(self) -> None:
        """See `Fetcher.close`: files are closed once they are read."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        return self.fetch_from(url, 0)[1]

    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """See `Fetcher.fetch_from`; a file that is not longer than `offset` is read from its beginning."""
        try:
            file = self._open(url)
            start = offset if offset < os.fstat(file.fileno()).st_size else 0
            file.seek(start)
        except (FileNotFoundError, NotADirectoryError) as e:
            if not self._folder.is_dir():
                reason = f"there is no folder {self._folder}: mount it, or correct [store] base_url"
                raise broken_off(url, reason) from e
            raise absent(url, "no such file") from e
        except OSError as e:
            raise broken_off(url, e.strerror or str(e)) from e
        return start, self._chunks(url, file)

    def _open(self, url: str) -> BinaryIO:
        """Open a file below the folder; a link may lead elsewhere, a name may not."""
        parts = url.removeprefix(self._base_url).split("/")
        if not url.startswith(self._base_url) or {"", ".", ".."} & set(parts) or "\0" in url:
            raise absent(url, "not the name of a file in the store's folder")
        # A pipe in place of a file must not stop the update check.
        descriptor = os.open(self._folder.joinpath(*parts), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise absent(url, "not a file")
        return os.fdopen(descriptor, "rb")

    def _chunks(self, url: str, file: BinaryIO) -> Iterator[bytes]:
        with file:
            try:
                while chunk := file.read(CHUNK_BYTES):
                    self.bytes_pulled += len(chunk)
                    yield chunk
            except OSError as e:
                raise broken_off(url, e.strerror or str(e)) from e
