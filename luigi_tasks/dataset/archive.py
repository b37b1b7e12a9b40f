"""Archives of pictures, local, in S3 or on a web server: unpacked once into the cache, by their digest."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from edge_client.contract.addresses import shown_address, without_secrets
from edge_client.contract.errors import InputError, TransportError
from luigi_tasks.dataset.archive_members import BROKEN, JOIN_PARTS, is_zstd, members
from luigi_tasks.storage.cache import DISK_FAULTS, ContentCache, scratch_folder, staged_folder
from luigi_tasks.storage.documents import content_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

CHUNK_BYTES = 1 << 20
DOWNLOAD_TIMEOUT_S = 60
# A JPEG hardly compresses; only text and decompression bombs shrink a hundredfold. Small archives are exempt.
MAX_RATIO = 200
RATIO_FREE_BYTES = 100 << 20
# Digests of archives whose address and state were seen before: a run with nothing to do reads none.
DIGESTS_FOLDER = "archive-digests"


@dataclasses.dataclass(frozen=True)
class Archive:
    """An http(s) archive and its expected digest.

    Attributes:
        url: http(s) address.
        sha256: 64 lower-case hex digits.
    """

    url: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Unpacked:
    """Folder with an archive's content, and the archive's digest."""

    folder: Path
    sha256: str


def shown_archive(url: str) -> str:
    """Return an archive's address without what may be secret in it: user, password, query."""
    if not url.startswith(("http://", "https://")):
        return url
    return shown_address(url) if "@" in url else urlsplit(url)._replace(query="", fragment="").geturl()


def unpack_archive(archive: Archive, cache_dir: Path, max_unpacked_bytes: int) -> Path:
    """Return the folder that holds the content of an http(s) archive, downloading at first use.

    Raises: TransportError if the download fails; InputError on a wrong digest, another format,
        or an archive that reaches outside its folder or unpacks to more than is allowed;
        SettingsError if the cache cannot be written.
    """
    folder = _folder_of(cache_dir, archive.sha256)
    if not folder.is_dir():
        with staged_folder(folder) as staging:
            file = staging / "archive"
            found = _receive(archive.url, _stream(archive.url), file, max_unpacked_bytes)
            _check_digest(archive.url, found, archive.sha256)
            _unpack(archive.url, file, staging, max_unpacked_bytes)
    return folder


def unpack_file(path: Path, sha256: str, cache_dir: Path, max_unpacked_bytes: int) -> Unpacked:
    """Unpack a local archive at first use; it is read again only where it changed.

    Args:
        path: The archive.
        sha256: Expected digest; empty: any.
        cache_dir: Holds what is unpacked.
        max_unpacked_bytes: Limit.
    Raises: as `unpack_archive`; InputError if it cannot be read.
    """
    digests = ContentCache(cache_dir / DIGESTS_FOLDER)
    with _readable(path):
        state = _state_of(path)
        name = content_key(str(path.resolve()), state)
        known = digests.get(name)
        found = known.decode() if known is not None else _digest_of(path)
        _check_digest(str(path), found, sha256)
        folder = _folder_of(cache_dir, found)
        if not folder.is_dir():
            with staged_folder(folder) as staging:
                _unpack(str(path), path, staging, max_unpacked_bytes)
                if _state_of(path) != state:
                    msg = f"{path}: changed while it was read; run again when it is written"
                    raise InputError(msg)
    if known is None:
        digests.put(name, found.encode())
    return Unpacked(folder, found)


def unpack_stream(
    url: str,
    version: str,
    chunks: Callable[[], Iterable[bytes]],
    sha256: str,
    cache_dir: Path,
    max_unpacked_bytes: int,
) -> Unpacked:
    """Unpack an archive in a store at first use; it is read again only where its version is another.

    Args:
        url: The archive.
        version: Text that changes with its content, such as an ETag.
        chunks: Reads it.
        sha256: Expected digest; empty: any.
        cache_dir: Holds what is unpacked.
        max_unpacked_bytes: Limit.
    Raises: as `unpack_archive`, and what `chunks` raises.
    """
    digests = ContentCache(cache_dir / DIGESTS_FOLDER)
    name = content_key(url, version)
    known = (digests.get(name) or b"").decode()
    if known and _folder_of(cache_dir, known).is_dir():
        _check_digest(url, known, sha256)
        return Unpacked(_folder_of(cache_dir, known), known)
    with scratch_folder(_folder_of(cache_dir, "")) as scratch:
        file = scratch / "archive"
        found = _receive(url, chunks(), file, max_unpacked_bytes)
        _check_digest(url, found, sha256)
        folder = _folder_of(cache_dir, found)
        if not folder.is_dir():
            with staged_folder(folder) as staging:
                _unpack(url, file, staging, max_unpacked_bytes)
    digests.put(name, found.encode())
    return Unpacked(folder, found)


def _folder_of(cache_dir: Path, sha256: str) -> Path:
    return cache_dir / "archives" / sha256


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        msg = f"{path}: {e.strerror}; repair it, or let this user read it"
        raise InputError(msg) from e


def _state_of(path: Path) -> tuple[int, ...]:
    """Return numbers that change when a file is written or replaced; inodes change on sshfs for nothing."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _check_digest(url: str, found: str, expected: str) -> None:
    if expected and found != expected:
        msg = (
            f"{shown_archive(url)}: has SHA-256 {found}, [dataset] sha256 is {expected}; the file changed, "
            "or the setting is wrong. Nothing was unpacked"
        )
        raise InputError(msg)


def _receive(url: str, chunks: Iterable[bytes], file: Path, limit_bytes: int) -> str:
    """Write an archive to a file; return its digest."""
    digest, received = hashlib.sha256(), 0
    with file.open("wb") as out:
        for chunk in chunks:
            received += len(chunk)
            if received > limit_bytes:
                msg = (
                    f"{shown_archive(url)}: over {limit_bytes} bytes; raise [dataset] max_unpacked_bytes if "
                    "it is genuine"
                )
                raise InputError(msg)
            digest.update(chunk)
            out.write(chunk)
    return digest.hexdigest()


def _stream(url: str) -> Iterator[bytes]:
    """Yield the content of a URL in chunks."""
    import urllib3  # noqa: PLC0415 - only a first use downloads

    try:
        with contextlib.closing(
            urllib3.request(
                "GET",
                url,
                preload_content=False,
                timeout=urllib3.Timeout(DOWNLOAD_TIMEOUT_S),
                retries=urllib3.Retry(3, redirect=5),
            )
        ) as answer:
            if answer.status != 200:
                msg = (
                    f"{shown_archive(url)}: the server answered {answer.status}; check [dataset] url, then "
                    "run again"
                )
                raise TransportError(msg)
            # Not decoded: a server may label a .tgz "Content-Encoding: gzip", and the digest is of the file.
            yield from answer.stream(CHUNK_BYTES, decode_content=False)
    except urllib3.exceptions.HTTPError as e:
        words = without_secrets(str(e))
        msg = f"{shown_archive(url)}: download failed: {words}; check the network, then run again"
        raise TransportError(msg) from e


def _unpack(url: str, file: Path, staging: Path, max_unpacked_bytes: int) -> None:
    """Unpack an archive into `content` of a staging folder."""
    limit = min(max_unpacked_bytes, max(file.stat().st_size * MAX_RATIO, RATIO_FREE_BYTES))
    shown = shown_archive(url)
    try:
        if is_zstd(file):
            file = _without_zstd(shown, file, staging / "tar", limit)
        _write_members(shown, file, staging / "content", limit)
    except OSError as e:
        if e.errno in DISK_FAULTS:
            raise
        # bad names, broken gzip or bzip2, and the last part of a zip
        msg = f"{shown}: cannot be unpacked: {e}; pack it again, and {JOIN_PARTS}"
        raise InputError(msg) from e
    except EOFError as e:
        msg = f"{shown}: {e or 'breaks off'}; it was not copied whole: download or copy it again"
        raise InputError(msg) from e
    except BROKEN as e:
        msg = f"{shown}: cannot be unpacked: {e}; download or copy it again, or pack it again"
        raise InputError(msg) from e


def _write_members(shown: str, file: Path, folder: Path, limit: int) -> None:
    written = 0
    for name, content in members(shown, file):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with content, path.open("wb") as out:
            while chunk := content.read(CHUNK_BYTES):
                written += len(chunk)
                _check_unpacked(shown, written, limit)
                out.write(chunk)


def _without_zstd(shown: str, file: Path, plain: Path, limit: int) -> Path:
    """Write what Zstandard compressed to a file of its own; return that."""
    import zstandard  # noqa: PLC0415 - seldom used

    written = 0
    try:
        with file.open("rb") as packed, plain.open("wb") as out:
            reader = zstandard.ZstdDecompressor().stream_reader(packed, read_across_frames=True)
            while chunk := reader.read(CHUNK_BYTES):
                written += len(chunk)
                _check_unpacked(shown, written, limit)
                out.write(chunk)
    except zstandard.ZstdError as e:
        msg = f"{shown}: cannot be unpacked: {e}; download or copy it again, or pack it again, without --long"
        raise InputError(msg) from e
    if not written:  # a later end of the file is one of the tar's, which is noticed there
        msg = "breaks off"
        raise EOFError(msg)
    return plain


def _check_unpacked(shown: str, written: int, limit: int) -> None:
    if written > limit:
        msg = (
            f"{shown}: unpacks to more than {limit} bytes: possibly a decompression bomb. If it is genuine, "
            "raise [dataset] max_unpacked_bytes, or pack it again"
        )
        raise InputError(msg)
