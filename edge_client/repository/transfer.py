"""Resumable download of one signed file.

What an earlier try left, in this process or one before it, is trusted only once the whole file has the signed
hash. Raises python-tuf's errors, as the fetcher does; `trusted.py` turns them into the project's.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    LengthOrHashMismatchError,
    SlowRetrievalError,
)

from edge_client.disk import sync_folder

if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO

    from tuf.api.metadata import TargetFile

    from edge_client.repository.fetcher import Fetcher

# A power cut costs at most this much of a long download.
SYNC_BYTES = 4 << 20
# A connection that delivered this much is replaced at once when it breaks.
MIN_PROGRESS_BYTES = 65536


def download(fetcher: Fetcher, url: str, signed: TargetFile, incoming: Path) -> None:
    """Download a signed file to `incoming` and verify it; not synced.

    Raises: DownloadError, with the received part kept for the next try; LengthOrHashMismatchError or
        DownloadLengthMismatchError if it is not what was signed, OSError: nothing of it is kept.
    """
    try:
        is_resumed = _complete(fetcher, url, signed, incoming)
        try:
            _verify(signed, incoming)
        except LengthOrHashMismatchError:
            if not is_resumed:
                raise
            # The first part was damaged on this disk, or came from a store that lied: download all of it
            # again.
            incoming.unlink()
            _complete(fetcher, url, signed, incoming)
            _verify(signed, incoming)
    except (OSError, LengthOrHashMismatchError, DownloadLengthMismatchError):
        incoming.unlink(missing_ok=True)
        raise


def _complete(fetcher: Fetcher, url: str, signed: TargetFile, incoming: Path) -> bool:
    """Download the missing part; return whether the file consists of more than one download."""
    with incoming.open("ab") as file:
        is_resumed = file.tell() > 0
        if file.tell() > signed.length:
            file.truncate(0)
        while file.tell() < signed.length:
            offset = file.tell()
            try:
                _append(fetcher, url, signed, incoming, file)
                break
            except (SlowRetrievalError, DownloadHTTPError, DownloadLengthMismatchError):
                raise
            except DownloadError:
                if file.tell() - offset < MIN_PROGRESS_BYTES:
                    raise
                is_resumed = True
    return is_resumed


def _append(fetcher: Fetcher, url: str, signed: TargetFile, incoming: Path, file: BinaryIO) -> None:
    start, chunks = fetcher.fetch_from(url, file.tell())
    if start != file.tell():
        file.truncate(start)
    synced = start
    for chunk in chunks:
        if file.tell() + len(chunk) > signed.length:
            msg = f"{url}: more than {signed.length} bytes"
            raise DownloadLengthMismatchError(msg)
        file.write(chunk)
        if file.tell() - synced >= SYNC_BYTES:
            file.flush()
            os.fsync(file.fileno())
            sync_folder(incoming.parent)
            synced = file.tell()


def _verify(signed: TargetFile, incoming: Path) -> None:
    with incoming.open("rb") as file:
        signed.verify_length_and_hashes(file)
