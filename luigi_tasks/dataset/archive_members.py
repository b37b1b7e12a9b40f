"""Members of zip and tar archives: regular files by a safe name; no name in an archive is trusted.

Names are those that whoever packed them meant: Windows tools write backslashes (python/cpython#91036), and
names in the code page of the machine, or in UTF-8 without saying so.
"""

from __future__ import annotations

import logging
import lzma
import re
import tarfile
import zipfile
import zlib
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.text import one_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIXES = tuple(".zip .tar .tar.gz .tgz .tar.bz2 .tbz .tbz2 .tar.xz .txz .tar.zst .tzst".split())  # noqa: SIM905
FORMATS = "a zip or tar archive (.zip, .tar, .tar.gz, .tar.bz2, .tar.xz, .tar.zst)"
# Files and folders; a folder of ImageNet's size has 1.3 million.
MAX_MEMBERS = 2_000_000

# What the readers of the formats raise on broken content (zipfile also on rare compression:
# NotImplementedError, and on encryption: RuntimeError).
BROKEN = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    ValueError,
    RuntimeError,
    NotImplementedError,
)
JOIN_PARTS = (
    "parts of a split archive are joined first (zip -s 0 parts.zip --out whole.zip, or cat whole.zip.0* > "
    "whole.zip)"
)
# First bytes of what is often taken for a zip or a tar.
_OTHER_FORMATS = (
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"\x1f\x9d", "compressed by compress"),
    (b"\x04\x22\x4d\x18", "compressed by LZ4"),
    (b"LZIP", "compressed by lzip"),
)
_ZIP_START, _ZIP_PARTS = b"PK\x03\x04", b"PK\x07\x08"
_ZSTD = b"\x28\xb5\x2f\xfd"
# End of a zip: its last record and a comment (APPNOTE 4.3.16).
_ZIP_END, _ZIP_END_BYTES = b"PK\x05\x06", 22 + 65535
_ENCRYPTED, _UTF8 = 0x1, 0x800  # general purpose flags, APPNOTE 4.4.4
_METHODS = {
    zipfile.ZIP_STORED,
    zipfile.ZIP_DEFLATED,
    zipfile.ZIP_BZIP2,
    zipfile.ZIP_LZMA,
}
_DOS_FOLDER = 0x10
_DRIVE = re.compile(r"[A-Za-z]:")

logger = logging.getLogger("luigi-interface")


def is_archive_name(name: str) -> bool:
    """Whether a file of this name is an archive that can be unpacked, by its name."""
    return name.lower().endswith(SUFFIXES)


def is_zstd(file: Path) -> bool:
    """Whether a file is compressed by Zstandard, which tarfile does not read before Python 3.14."""
    return _start_of(file).startswith(_ZSTD)


def members(url: str, file: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Yield name and content of the regular files; links and devices are refused.

    Raises: InputError; what is in `BROKEN`, EOFError or OSError on broken content.
    """
    # Tar first: a tar whose last member is a zip looks like a zip, but a zip never looks like a tar.
    if tarfile.is_tarfile(file):
        yield from _tar_members(url, file)
    elif zipfile.is_zipfile(file):
        _refuse_parts(url, file)
        yield from _zip_members(url, file)
    else:
        msg = f"{url}: {_what_it_is(file)}"
        raise InputError(msg)


class _WholeTar(tarfile.TarInfo):
    """Header of a member; where the archive breaks off, tarfile itself would take that as its end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> _WholeTar:
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]  # not in the type stubs
            raise  # blocks of zeros: the end
        except tarfile.HeaderError as e:
            if archive.offset == 0:
                raise
            msg = "breaks off, or is damaged, between two files"
            raise EOFError(msg) from e


def _tar_members(url: str, file: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with tarfile.open(file, tarinfo=_WholeTar) as archive:
        for number, member in enumerate(archive, start=1):
            _check_count(url, number)
            if member.isdir():
                continue
            content = archive.extractfile(member) if member.isreg() else None
            if content is None:
                raise InputError(_not_a_plain_file_message(url, member.name))
            yield _safe_name(url, member.name), content


def _zip_members(url: str, file: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    with zipfile.ZipFile(file) as archive:
        _warn_of_guessed_names(url, archive)
        for number, entry in enumerate(archive.infolist(), start=1):
            _check_count(url, number)
            kind = entry.external_attr >> 28  # file type bits of the Unix mode; 0 where Windows made it
            if kind not in {0, 0o10, 0o4}:
                raise InputError(_not_a_plain_file_message(url, entry.filename))
            name = (_zip_name(entry) or entry.filename).replace("\\", "/")
            is_folder = entry.external_attr & _DOS_FOLDER and not entry.file_size
            if name.endswith("/") or is_folder:
                continue
            _refuse_unreadable(url, entry)
            yield _safe_name(url, name), archive.open(entry)


def _warn_of_guessed_names(url: str, archive: zipfile.ZipFile) -> None:
    guessed = [one.filename for one in archive.infolist() if _zip_name(one) is None]
    if guessed:
        logger.warning(
            "%s: %d names are in a code page that the archive does not name; read in that of MS-DOS (437), "
            "as %r. If class names look wrong, pack it again with UTF-8 names",
            url,
            len(guessed),
            guessed[0],
        )


def _zip_name(entry: zipfile.ZipInfo) -> str | None:
    """Return the name of an entry; None: it is in no known encoding, and zipfile took code page 437."""
    if entry.flag_bits & _UTF8 or entry.filename.isascii():
        return entry.filename
    try:
        return entry.orig_filename.encode("cp437").decode()  # macOS and others do not mark it
    except UnicodeError:
        return None


def _refuse_unreadable(url: str, entry: zipfile.ZipInfo) -> None:
    if entry.flag_bits & _ENCRYPTED:
        msg = f"{url}: {entry.filename!r} is encrypted; pack it again, without a password"
        raise InputError(msg)
    if entry.compress_type not in _METHODS:
        named = " (Deflate64, which Windows takes for large files)" if entry.compress_type == 9 else ""
        msg = (
            f"{url}: {entry.filename!r} is compressed by method {entry.compress_type}{named}, which is not "
            "read; pack it again (7-Zip: method Deflate; or as .tar.gz)"
        )
        raise InputError(msg)


def _refuse_parts(url: str, file: Path) -> None:
    """Refuse the last part of a split zip, which has the table of contents of all parts."""
    with file.open("rb") as opened:
        opened.seek(0, 2)
        opened.seek(max(opened.tell() - _ZIP_END_BYTES, 0))
        end = opened.read()
    record = end[end.rfind(_ZIP_END) :]
    if record[4:6] not in {b"\0\0", b"\xff\xff"}:  # number of the part that it is in; zip64 has another place
        msg = f"{url}: the last part of a split archive; {JOIN_PARTS}"
        raise InputError(msg)


def _what_it_is(file: Path) -> str:
    """Return what is the matter with a file that is no archive, and the way out."""
    start = _start_of(file)
    for magic, named in _OTHER_FORMATS:
        if start.startswith(magic):
            return f"{named}, which is not read; pack the pictures as {FORMATS}"
    if start.startswith((_ZIP_START, _ZIP_PARTS)):
        return (
            "a zip archive without its end, where the table of contents is; download or copy it again, and "
            f"{JOIN_PARTS}"
        )
    said = f"but begins with {start[:8]!r}" if start else "but empty"
    return f"no folder, and neither a zip nor a tar archive, {said}; give a folder, or {FORMATS}"


def _start_of(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(16)


def _check_count(url: str, number: int) -> None:
    if number > MAX_MEMBERS:
        msg = f"{url}: over {MAX_MEMBERS} files and folders; refused. Pack fewer, or unpack it yourself"
        raise InputError(msg)


def _not_a_plain_file_message(url: str, name: str) -> str:
    return (
        f"{url}: {name!r} is a link or a device; refused. Pack plain files and folders only (tar: with "
        "--dereference --hard-dereference)"
    )


def _safe_name(url: str, name: str) -> PurePosixPath:
    """Return a path below the archive's folder; backslashes separate, as in what Windows tools pack."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts or _DRIVE.match(name):
        msg = f"{url}: {one_line(name)!r} reaches outside the archive's folder; refused"
        raise InputError(msg)
    return path
