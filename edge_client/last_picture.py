"""The picture that is being decoded, noted so that the next start knows which one the last run died at.

A decoder that runs out of memory, or into a defect of its own, ends the whole process without a word: the
next start would decode the same file, and end in the same way. The note is written for every picture, so it
must cost nothing: two writes of a few bytes into a file in memory, without fsync. It survives any end of the
process; a power cut, which it does not survive, is not the picture's doing.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import EdgeError
from edge_client.contract.text import text_of
from edge_client.disk import write_durably

if TYPE_CHECKING:
    from collections.abc import Iterator

logger = logging.getLogger(__name__)

GIVEN_UP_FILE = "given_up.json"
_LIMIT_BYTES = 1 << 20
_MOST_FILES = 500
# In memory, so that a card is not written to for each picture.
_IN_MEMORY = Path("/dev/shm")  # noqa: S108 - the file's owner and kind are checked
# In a container this folder goes with the container: there the note lies in the state folder.
_CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
_LENGTH_BYTES = 2
_NOTHING = bytes(_LENGTH_BYTES)


class GivenUpFile(Document, frozen=True, kw_only=True):
    """One file that is not decoded again, while it stays as it is.

    Attributes:
        path: See `text_of`.
        size_bytes: Its size.
        mtime_ns: When it was changed.
    """

    path: str
    size_bytes: int
    mtime_ns: int


class GivenUpFiles(Document, frozen=True, kw_only=True):
    """`given_up.json`: files that a run of the daemon died at, the oldest first."""

    files: tuple[GivenUpFile, ...] = ()


class LastPicture:
    """Note of the picture that is being decoded, and the files that earlier runs died at.

    Attributes:
        died_at: Picture that the last run was decoding when it died; "" if it was decoding none. Such an end
            says nothing about the release that served.
    """

    def __init__(self, state_dir: Path, in_memory: Path = _IN_MEMORY) -> None:
        """Read what the last run left; never fails.

        Args:
            state_dir: State folder, which this process holds.
            in_memory: Folder of a file system in memory.
        """
        self._file = state_dir / GIVEN_UP_FILE
        self._files = self._read_files()
        self._path, self._descriptor = _open_note(state_dir, in_memory)
        self.died_at = self._take_note()

    @contextlib.contextmanager
    def decoding(self, picture: Path | str) -> Iterator[None]:
        """Note a picture, by its path or a name for people, while the block decodes it."""
        name = os.fsencode(picture)[:4000]
        self._write(len(name).to_bytes(_LENGTH_BYTES, "big") + name)
        try:
            yield
        finally:
            self._write(_NOTHING)

    def is_given_up(self, path: Path, found: os.stat_result) -> bool:
        """Whether an earlier run died at this file, and it has not changed since."""
        file = self._files.get(text_of(path))
        return file is not None and (file.size_bytes, file.mtime_ns) == (found.st_size, found.st_mtime_ns)

    def forget(self, path: Path) -> None:
        """Forget a file that is not there any more."""
        if self._files.pop(text_of(path), None) is not None:
            self._keep_files()

    def close(self, *, hangs: bool = False) -> None:
        """Remove the note, at an end on request.

        Args:
            hangs: Whether a picture is still being decoded, after too long: the next start gives it up.
        """
        if self._descriptor is None:
            return
        if not hangs:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._descriptor)
        self._descriptor = None

    def _take_note(self) -> str:
        """Give up the file that the note names, durably, then clear the note."""
        name = self._read_note()
        if not name:
            return ""
        path = Path(os.fsdecode(name))
        shown = text_of(path)
        try:
            found = path.lstat()
        except (OSError, ValueError):
            logger.error("%s: the last run died while it decoded this picture, which is gone", shown)  # noqa: TRY400
        else:
            self._files.pop(shown, None)
            self._files[shown] = GivenUpFile(path=shown, size_bytes=found.st_size, mtime_ns=found.st_mtime_ns)
            self._keep_files()  # the source says what becomes of it
        self._write(_NOTHING)
        return shown

    def _read_note(self) -> bytes:
        if self._descriptor is None:
            return b""
        with contextlib.suppress(OSError):
            data = os.pread(self._descriptor, 1 << 16, 0)
            length = int.from_bytes(data[:_LENGTH_BYTES], "big")
            return data[_LENGTH_BYTES : _LENGTH_BYTES + length].replace(b"\0", b"")
        return b""

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):  # the picture is decoded without a note
                os.pwrite(self._descriptor, data, 0)

    def _read_files(self) -> dict[str, GivenUpFile]:
        try:
            data = self._file.read_bytes()
            document = decode_document(GivenUpFiles, data, source=str(self._file), limit_bytes=_LIMIT_BYTES)
        except FileNotFoundError:
            return {}
        except (OSError, EdgeError) as e:
            logger.warning("%s: %s; pictures that were given up are tried once more", self._file, e)
            return {}
        return {file.path: file for file in document.files}

    def _keep_files(self) -> None:
        """Store the files; without them the next start tries them once more."""
        files = tuple(self._files.values())[-_MOST_FILES:]
        try:
            if files:
                write_durably(self._file, encode_document(GivenUpFiles(files=files)))
            else:
                self._file.unlink(missing_ok=True)
        except (OSError, EdgeError) as e:
            logger.warning("%s: cannot be written: %s", self._file, e)


def places_of_note(state_dir: Path, in_memory: Path = _IN_MEMORY) -> list[Path]:
    """Return the files that may hold the note of this user's daemon on a state folder, the best one first."""
    name = hashlib.sha256(os.fsencode(state_dir.resolve())).hexdigest()[:24]
    places = [in_memory / f"edge-client-{os.geteuid()}-{name}", state_dir / "picture"]
    return places[::-1] if any(mark.exists() for mark in _CONTAINER_MARKS) else places


def _open_note(state_dir: Path, in_memory: Path) -> tuple[Path, int | None]:
    """Open the note of this state folder; without a place for it, pictures are decoded without one."""
    places = places_of_note(state_dir, in_memory)
    for place in places:
        try:
            descriptor = os.open(
                place, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600
            )
        except OSError:
            continue
        found = os.fstat(descriptor)
        # Everybody may write into the folder: what another user has put there is not believed.
        if stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid() and found.st_nlink == 1:
            return place, descriptor
        os.close(descriptor)
    return places[-1], None
