"""Download of an archive: its digest is verified, and no name in it is trusted when it is unpacked."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import lzma
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from edge_client.contract.errors import InputError, TransportError
from luigi_tasks.storage.cache import DISK_FAULTS, staged_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK_BYTES = 1 << 20
DOWNLOAD_TIMEOUT_S = 60
# Files and folders; a folder of ImageNet's size has 1.3 million.
MAX_MEMBERS = 2_000_000
# A JPEG hardly compresses; only text and decompression bombs shrink a hundredfold. Small archives are exempt.
MAX_RATIO = 200
RATIO_FREE_BYTES = 100 << 20

# What the readers of the formats raise on broken content (zipfile also on encryption: RuntimeError,
# and on rare compression: NotImplementedError).
_BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)


@dataclasses.dataclass(frozen=True)
class Archive:
    """An http(s) archive and its expected digest.

    Attributes:
        url: http(s) address.
        sha256: 64 lower-case hex digits.
    """

    url: str
    sha256: str


def unpack_archive(archive: Archive, cache_dir: Path, max_unpacked_bytes: int) -> Path:
    """Return the folder that holds the archive's content, downloading at first use.

    Raises: TransportError if the download fails; InputError on a wrong digest, another format,
        or an archive that reaches outside its folder or unpacks to more than is allowed;
        SettingsError if the cache cannot be written.
    """
    folder = cache_dir / "archives" / archive.sha256
    if not folder.is_dir():
        with staged_folder(folder) as staging:
            file = staging / "archive"
            _download(archive, file, max_unpacked_bytes)
            _unpack(archive.url, file, staging / "content", max_unpacked_bytes)
    return folder


def _download(archive: Archive, file: Path, limit_bytes: int) -> None:
    """Write the archive to a file and verify its digest."""
    digest, received = hashlib.sha256(), 0
    with file.open("wb") as out:
        for chunk in _stream(archive.url):
            received += len(chunk)
            _check_size(archive.url, received, limit_bytes)
            digest.update(chunk)
            out.write(chunk)
    if digest.hexdigest() != archive.sha256:
        msg = (
            f"{archive.url}: has SHA-256 {digest.hexdigest()}, [dataset] sha256 is {archive.sha256}; "
            "the file changed, or the setting is wrong. Nothing was unpacked"
        )
        raise InputError(msg)


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
                msg = f"{url}: the server answered {answer.status}; check [dataset] url, then run again"
                raise TransportError(msg)
            # Not decoded: a server may label a .tgz "Content-Encoding: gzip", and the digest is of the file.
            yield from answer.stream(CHUNK_BYTES, decode_content=False)
    except urllib3.exceptions.HTTPError as e:
        msg = f"{url}: download failed: {e}; check the network, then run again"
        raise TransportError(msg) from e


def _check_size(url: str, received: int, limit_bytes: int) -> None:
    if received > limit_bytes:
        msg = f"{url}: over {limit_bytes} bytes; raise [dataset] max_unpacked_bytes if it is genuine"
        raise InputError(msg)


def _unpack(url: str, file: Path, folder: Path, max_unpacked_bytes: int) -> None:
    limit = min(max_unpacked_bytes, max(file.stat().st_size * MAX_RATIO, RATIO_FREE_BYTES))
    written = 0
    try:
        for name, content in _members(url, file):
            path = folder / _safe_name(url, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as out:
                while chunk := content.read(CHUNK_BYTES):
                    written += len(chunk)
                    if written > limit:
                        msg = (
                            f"{url}: unpacks to more than {limit} bytes: possibly a decompression bomb. If "
                            "it is genuine, raise [dataset] max_unpacked_bytes, or pack it again"
                        )
                        raise InputError(msg)
                    out.write(chunk)
    except OSError as e:
        if e.errno in DISK_FAULTS:
            raise
        msg = f"{url}: cannot be unpacked: {e}; pack it again"  # bad names, and broken gzip or bzip2
        raise InputError(msg) from e
    except _BROKEN as e:
        msg = f"{url}: cannot be unpacked: {e}; pack it again, without a password"
        raise InputError(msg) from e


def _members(url: str, file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield name and content of the regular files; links and devices are refused."""
    # Tar first: a tar whose last member is a zip looks like a zip, but a zip never looks like a tar.
    if tarfile.is_tarfile(file):
        yield from _tar_members(url, file)
    elif zipfile.is_zipfile(file):
        yield from _zip_members(url, file)
    else:
        msg = f"{url}: neither a zip nor a tar archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz)"
        raise InputError(msg)


def _tar_members(url: str, file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with tarfile.open(file) as archive:
        for number, member in enumerate(archive, start=1):
            _check_count(url, number)
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise InputError(_not_a_plain_file_message(url, member.name))
            yield member.name, content


def _zip_members(url: str, file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        for number, entry in enumerate(archive.infolist(), start=1):
            _check_count(url, number)
            kind = entry.external_attr >> 28  # file type bits of the Unix mode; 0 where Windows made it
            if kind not in {0, 0o10, 0o4}:
                raise InputError(_not_a_plain_file_message(url, entry.filename))
            if not entry.is_dir():
                yield entry.filename, archive.open(entry)


def _check_count(url: str, number: int) -> None:
    if number > MAX_MEMBERS:
        msg = f"{url}: over {MAX_MEMBERS} files and folders; refused. Pack fewer, or unpack it yourself"
        raise InputError(msg)


def _not_a_plain_file_message(url: str, name: str) -> str:
    return f"{url}: {name!r} is a link or a device; refused. Pack plain files and folders only"


def _safe_name(url: str, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        msg = f"{url}: {name!r} reaches outside the archive's folder; refused"
        raise InputError(msg)
    return path
