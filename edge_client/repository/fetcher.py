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
    """Build the error that means to python-tuf: there is no such object."""
    return DownloadHTTPError(f"{url}: {reason}", 404)


def broken_off(url: str, reason: str) -> Exception:
    """Build the error that means to python-tuf: it could not be read to its end."""
    return DownloadError(f"{url}: {reason}")


class Fetcher(FetcherInterface):
    """What `trust.py` reads through.

    Attributes:
        bytes_pulled: Bytes read so far, metadata and targets.
    """

    bytes_pulled: int

    @abc.abstractmethod
    def fetch_from(self, url: str, offset: int) -> tuple[int, Iterator[bytes]]:
        """Start to read what follows the first `offset` bytes of an object.

        Returns: Where the chunks begin, which is 0 in a store that cannot begin elsewhere; the chunks.
        Raises: DownloadError, from here or from the chunks.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of connections and files."""
