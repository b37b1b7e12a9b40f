"""Interface of what downloads metadata and targets: an HTTP store, a folder, or an offline bundle."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

from tuf.api.exceptions import DownloadError, DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 65536


def absent(url: str, reason: str) -> Exception:
    """Return python-tuf's error for a missing object."""
    return DownloadHTTPError(f"{url}: {reason}", 404)


def broken_off(url: str, reason: str) -> Exception:
    """Return python-tuf's error for an object that could not be read to its end."""
    return DownloadError(f"{url}: {reason}")


class Fetcher(FetcherInterface):
    """Downloader that `TrustedRepository` reads through.

    Attributes:
        bytes_pulled: Bytes read so far, metadata and targets.
    """

    bytes_pulled: int

    @abc.abstractmethod
    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """Start to read an object after its first `offset` bytes.

        Returns: Offset of the first chunk, which is 0 in a store without ranges; the chunks.
        Raises: DownloadError, from here or from the chunks.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Close connections and files."""
