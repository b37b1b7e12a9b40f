"""Source of a fixed list of picture files, each once."""

from __future__ import annotations

import glob
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.text import text_of
from edge_client.sources.decoding import PictureDecoder
from edge_client.sources.source import Frame, Pace

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Sequence

logger = logging.getLogger(__name__)

# The decoder goes by content and would accept any name; the suffixes keep sidecar files out of the log.
PICTURE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})


def is_picture_name(name: str) -> bool:
    """Whether a file name is one of a picture; hidden files are half-written ones of rsync and others."""
    _, point, suffix = name.rpartition(".")
    return not name.startswith(".") and f"{point}{suffix.lower()}" in PICTURE_SUFFIXES


def find_pictures(pattern: str) -> tuple[Path, ...]:
    """Return the files that `pattern` matches, sorted; links that it matches are left out.

    Args:
        pattern: A file, which may be a link, a folder (its pictures, not those of its subfolders), or a glob
            with * ? [ ].
    Raises: DeviceError if nothing matches.
    """
    path = Path(pattern).expanduser()
    if path.is_dir():
        found = tuple(sorted(p for p in path.iterdir() if is_picture_name(p.name) and _is_own_file(p)))
    elif path.is_file():
        found = (path.resolve() if path.is_symlink() else path,)
    else:
        found = tuple(sorted(Path(p) for p in glob.glob(str(path)) if _is_own_file(Path(p))))  # noqa: PTH207
    if not found:
        msg = f"{pattern}: no pictures there; check the path"
        raise DeviceError(msg)
    return found


def _is_own_file(path: Path) -> bool:
    """Whether it is a regular file itself: a link may lead anywhere, see `docs/trust.md`."""
    return path.is_file() and not path.is_symlink()


class ImageFiles:
    """Each picture of a list, once; a file that cannot be decoded is logged and skipped."""

    def __init__(
        self, paths: Sequence[Path], *, pace: Pace | None = None, decoder: PictureDecoder | None = None
    ) -> None:
        self._paths = tuple(paths)
        self._pace = pace or Pace()
        self._decoder = decoder or PictureDecoder()

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """See `Source.frames`."""
        for path in self._paths:
            if stop.is_set():
                return
            if self._is_given_up(path):
                logger.warning(
                    "%s: an earlier run died while it decoded this picture; skipped", text_of(path)
                )
                continue
            yield from self._read_one(path, stop)

    def _read_one(self, path: Path, stop: threading.Event) -> Iterator[Frame]:
        """Yield the frame of one file; its pixels are not kept while the next file is decoded."""
        try:
            pixels = self._decoder.decode_file(path)
        except InputError as e:
            logger.warning("%s", e)  # and go on with the other pictures
            return
        if self._pace.wait(stop):
            yield Frame(text_of(path.name), pixels)

    def _is_given_up(self, path: Path) -> bool:
        try:
            return self._decoder.is_given_up(path, path.lstat())
        except OSError:
            return False  # decoding it names the reason
