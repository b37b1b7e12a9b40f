"""Downloads an archive, checks its digest, and unpacks it without trusting a single name in it."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from edge_client.contract.errors import InputError, TransportError
from luigi_tasks.dataset import Archive, move_into_place

if TYPE_CHECKING:
    from collections.abc import Iterator

CHUNK_BYTES = 1 << 20
DOWNLOAD_TIMEOUT_S = 60
MAX_MEMBERS = 2_000_000
# A JPEG hardly shrinks; only text and bombs shrink a hundredfold. Small files are let off.
MAX_RATIO = 200
RATIO_FREE_BYTES = 100 << 20


def unpack_archive(archive: Archive, cache_dir: Path, max_unpacked_bytes: int) -> Path:
    """Return the folder that holds the archive's class folders, downloading at first use.

    The folder appears whole, in one rename, or not at all; two processes may do this at once.
    Raises: TransportError if the download fails; InputError on a wrong digest, another format,
        or an archive that reaches outside its folder or unpacks to more than is allowed.
    """
    folder = cache_dir / "archives" / archive.sha256
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".unpacking."))
        try:
            file = temporary / "archive"
            _download(archive, file)
            (temporary / "content").mkdir()
            _unpack(archive.url, file, temporary / "content", max_unpacked_bytes)
            move_into_place(temporary / "content", folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return _descend(folder)


def _descend(folder: Path) -> Path:
    """Step into a single top folder that only wraps the class folders."""
    inside = [path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if len(inside) == 1 and any(path.is_dir() for path in inside[0].iterdir()):
        return inside[0]
    return folder


def _download(archive: Archive, file: Path) -> None:
    import urllib3  # noqa: PLC0415 - only a first use downloads

    digest = hashlib.sha256()
    try:
        with (
            file.open("wb") as out,
            contextlib.closing(
                urllib3.request(
                    "GET",
                    archive.url,
                    preload_content=False,
                    timeout=urllib3.Timeout(DOWNLOAD_TIMEOUT_S),
                    retries=urllib3.Retry(3, redirect=5),
                )
            ) as answer,
        ):
            if answer.status != 200:
                msg = (
                    f"{archive.url}: the server answered {answer.status}; check [dataset] url, then run again"
                )
                raise TransportError(msg)
            for chunk in answer.stream(CHUNK_BYTES):
                digest.update(chunk)
                out.write(chunk)
    except urllib3.exceptions.HTTPError as e:
        msg = f"{archive.url}: download failed: {e}; check the network, then run again"
        raise TransportError(msg) from e
    if digest.hexdigest() != archive.sha256:
        msg = (
            f"{archive.url}: has SHA-256 {digest.hexdigest()}, [dataset] sha256 says {archive.sha256}; "
            "the file changed, or the setting is wrong. Nothing was unpacked"
        )
        raise InputError(msg)


def _unpack(url: str, file: Path, folder: Path, max_unpacked_bytes: int) -> None:
    limit = min(max_unpacked_bytes, max(file.stat().st_size * MAX_RATIO, RATIO_FREE_BYTES))
    written = 0
    try:
        for number, (name, content) in enumerate(_members(url, file)):
            if number >= MAX_MEMBERS:
                msg = f"{url}: over {MAX_MEMBERS} files; refused"
                raise InputError(msg)
            path = folder / _safe_name(url, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with content, path.open("wb") as out:
                while chunk := content.read(CHUNK_BYTES):
                    written += len(chunk)
                    if written > limit:
                        msg = (
                            f"{url}: unpacks to over {limit} bytes, which smells of a bomb; raise [dataset] "
                            "max_unpacked_bytes if it is right, or pack it anew"
                        )
                        raise InputError(msg)
                    out.write(chunk)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, NotImplementedError) as e:
        msg = f"{url}: cannot be unpacked: {e}"
        raise InputError(msg) from e


def _members(url: str, file: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yield the regular files; anything that could point elsewhere is refused."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                kind = entry.external_attr >> 28  # file type bits of the Unix mode
                if kind not in {0, 0o10, 0o4}:
                    msg = f"{url}: {entry.filename!r} is a link or a device; refused"
                    raise InputError(msg)
                if not entry.is_dir():
                    yield entry.filename, archive.open(entry)
        return
    if not tarfile.is_tarfile(file):
        msg = f"{url}: neither a zip nor a tar archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz)"
        raise InputError(msg)
    with tarfile.open(file) as archive_file:
        for member in archive_file:
            if member.isdir():
                continue
            content = archive_file.extractfile(member) if member.isreg() else None
            if content is None:
                msg = f"{url}: {member.name!r} is a link or a device; refused"
                raise InputError(msg)
            yield member.name, content


def _safe_name(url: str, name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name or not path.parts:
        msg = f"{url}: {name!r} reaches outside the archive's folder; refused"
        raise InputError(msg)
    return path
