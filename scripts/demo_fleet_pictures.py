"""Pictures of the fleet's demo: digits as daylight cameras see them, and their negatives."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from demo_pictures import share_of
from PIL import Image, ImageOps

from luigi_tasks.dataset.sources import open_source
from luigi_tasks.settings.sections import load_settings

if TYPE_CHECKING:
    from pathlib import Path

# Shares of the digits, by hash: pictures that cameras take, and those that are in the dataset from the start.
TAKEN_BY_CAMERAS, THERE_FROM_THE_START = 0.3, 0.8
NEGATIVE = "negative-"


class FleetPictures:
    """The dataset of the demo, and what its cameras see.

    Args:
        folder: Gets the dataset.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        settings = load_settings("preset:digits")
        source = open_source(settings.dataset, settings.store)
        paths = sorted((one.path for one in source.listing().pictures), key=share_of)
        taken, start = (round(len(paths) * share) for share in (TAKEN_BY_CAMERAS, THERE_FROM_THE_START))
        self._seen = [source.read(path) for path in paths[:taken]]
        self._first = {path: source.read(path) for path in paths[taken:start]}
        self._later = {path: source.read(path) for path in paths[start:]}

    def write_first(self) -> int:
        """Write the dataset of the first release; return the number of pictures."""
        return self._write(self._first)

    def add_new(self) -> int:
        """Add the pictures that arrive later; return their number."""
        return self._write(self._later)

    def tidy_up(self) -> int:
        """Remove all negatives; return their number."""
        negatives = list(self.folder.rglob(f"{NEGATIVE}*"))
        for one in negatives:
            one.unlink()
        return len(negatives)

    def seen_by(self, kind: str) -> list[bytes]:
        """Return what a kind of camera sees: PNG files."""
        return self._seen if kind == "day" else [as_negative(one) for one in self._seen]

    def _write(self, pictures: dict[str, bytes]) -> int:
        for path, data in pictures.items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
            target.with_name(NEGATIVE + target.name).write_bytes(as_negative(data))
        return 2 * len(pictures)


def as_negative(picture: bytes) -> bytes:
    """Return the negative of a picture, as a PNG file."""
    target = io.BytesIO()
    ImageOps.invert(Image.open(io.BytesIO(picture)).convert("RGB")).save(target, "PNG")
    return target.getvalue()
