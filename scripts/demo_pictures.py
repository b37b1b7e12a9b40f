"""Pictures of the demo: those of the first run, those that arrive later, and those that its camera takes."""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from edge_client.contract.preprocessing import decode_picture
from luigi_tasks import steps
from luigi_tasks.dataset.sources import open_source
from luigi_tasks.settings.sections import load_settings
from luigi_tasks.workspace import open_workspace

if TYPE_CHECKING:
    from pathlib import Path

    from luigi_tasks.dataset.layout import Layout

NEW_PICTURES_PERCENT = 10.0
# A class with fewer pictures gives none away for the second run: the first one needs them.
LEAST_OF_A_CLASS = 25
# Pictures of the hold-out that the device is judged by.
CAMERA_PICTURES = 500


class DemoPictures:
    """A dataset that grows: most of its pictures are there from the start, the others arrive later.

    Args:
        url: The dataset, as `[dataset] url` takes it.
        folder: Gets the pictures, in the folders that they have in the dataset.

    Attributes:
        total: Number of all pictures.

    Raises: InputError or SettingsError if the dataset cannot be read or understood.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.folder = folder
        settings = load_settings(url)
        self._source = open_source(settings.dataset, settings.store)
        listing = self._source.listing()
        layout = listing.find_layout(url)
        paths = [one.path for one in listing.pictures]
        self.total = len(paths)
        self._later = choose_later(paths, layout)
        for path in paths:
            if path not in self._later:
                self._add(path)

    def add_new(self) -> int:
        """Let the held back pictures arrive; return their number."""
        for path in self._later:
            self._add(path)
        return len(self._later)

    def _add(self, path: str) -> None:
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.write_bytes(self._source.read(path))
        except InputError:  # a hole in the disk, or gone: the pipeline would leave it out by name
            target.touch()


def choose_later(paths: list[str], layout: Layout) -> list[str]:
    """Return the pictures that arrive later, by the hash of their paths: of classes that can spare some."""
    learned = [one for one in paths if layout.given_split(one) != "holdout"]
    counts = Counter(layout.class_folder(one) for one in learned)
    spare = [
        one
        for one in learned
        if layout.class_folder(one) and counts[layout.class_folder(one)] >= LEAST_OF_A_CLASS
    ]
    by_share = sorted(spare or learned, key=share_of)
    return by_share[: max(1, round(len(by_share) * NEW_PICTURES_PERCENT / 100))]


def share_of(path: str) -> str:
    """Return what orders paths at random, the same at each run."""
    return hashlib.sha256(path.encode()).hexdigest()


def take_holdout(pictures: Path, folder: Path) -> dict[str, str]:
    """Copy pictures that no run trains on to `folder`, under names that do not tell their class.

    Only those that the device can decode: cameras take no HEIC.

    Args:
        pictures: The dataset of the last run.
        folder: Emptied, and filled.
    Returns: Class by file name.
    """
    workspace = open_workspace(load_settings(str(pictures)))
    answers: dict[str, str] = {}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for one in sorted(steps.take_snapshot(workspace).split("holdout"), key=lambda picture: picture.sha256):
        source = pictures / one.path
        try:
            decode_picture(source)
        except InputError:
            continue
        name = f"{one.sha256[:16]}{source.suffix.lower() or '.jpg'}"
        shutil.copyfile(source, folder / name)
        answers[name] = one.label
        if len(answers) == CAMERA_PICTURES:
            break
    return answers
