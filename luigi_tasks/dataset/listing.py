"""Listing of a dataset: its pictures by name, and what was passed over; no file was read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shlex
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.dataset.archive_members import is_archive_name
from luigi_tasks.dataset.layout import find_layout
from luigi_tasks.dataset.left_out import ARCHIVED, EMPTY_CLASS, FOREIGN, count_reasons
from luigi_tasks.dataset.records import LeftOut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.dataset.layout import Layout
    from luigi_tasks.dataset.records import Entry


@dataclasses.dataclass(frozen=True)
class Listing:
    """Listing of a dataset.

    Attributes:
        pictures: Files that may be pictures, sorted by path.
        left_out: Files that are none, or cannot be read.
        folders: All folders, also those without pictures.
        archives: Archives among the files.
    """

    pictures: tuple[Entry, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    folders: tuple[str, ...] = ()
    archives: tuple[str, ...] = ()

    @functools.cached_property
    def picture_folders(self) -> frozenset[str]:
        """Folders that pictures lie in; empty text for the dataset itself."""
        return frozenset(one.path.rpartition("/")[0] for one in self.pictures)

    def find_layout(self, url: str) -> Layout:
        """Return the layout of the folders.

        Raises: InputError if there is no picture or no folder, or the folders can be understood in two ways.
        """
        if not self.pictures:
            msg = f"{url}: no pictures found{self._found_instead(url)}"
            raise InputError(msg)
        if self.picture_folders == {""}:
            archives = self.archives and f". There is {self.archives_in_words(url)}"
            msg = (
                f"{url}: pictures lie directly in it ({self.pictures[0].path}, …); a classifier needs one "
                f"folder of pictures a class{archives or ''}"
            )
            raise InputError(msg)
        return find_layout(self.picture_folders, url)

    def _found_instead(self, url: str) -> str:
        """Return what is there in place of pictures, and the way out."""
        if self.archives:
            return f", but {self.archives_in_words(url)}"
        seen = ""
        if self.left_out:
            seen = f" (but {count_reasons(self.left_out)}, such as {self.left_out[0].path})"
            if self.left_out[0].reason == ARCHIVED:
                return f"{seen}: {self.left_out[0].words}"
        return f"{seen}; put them into one folder a class"

    def archives_in_words(self, url: str) -> str:
        """Return which archives lie here, which are not unpacked, and the way to their pictures; or ""."""
        if not self.archives:
            return ""
        first, more = self.archives[0], len(self.archives) - 1
        if is_archive_name(url):
            many = f" and {more} more" if more else ""
            return f"an archive in the archive: {first}{many}; unpack the outer one, and give that"
        place = shlex.quote(f"{url.rstrip('/')}/{first}")
        if not more:
            return f"an archive; give --pictures {place}"
        return (
            f"{len(self.archives)} archives ({first}, …); give the one that has all classes (--pictures "
            f"{place}), or, where each is a class, unpack each into a folder of its name"
        )

    def classes(self, layout: Layout) -> frozenset[str]:
        """Return the class folders, also those without pictures."""
        return frozenset(one for folder in self.folders if (one := layout.class_folder(f"{folder}/")))

    def passed_over(self, layout: Layout) -> tuple[LeftOut, ...]:
        """Return what is left out by name alone: files in class folders, and classes without pictures."""
        return (
            *(one for one in self.left_out if one.reason != FOREIGN or layout.class_folder(one.path)),
            *(LeftOut(one, EMPTY_CLASS, "no picture in it") for one in self.empty_classes(layout)),
        )

    def empty_classes(self, layout: Layout) -> tuple[str, ...]:
        """Return the folders of the classes without pictures, with a slash at the end."""
        full = {layout.class_folder(f"{folder}/") for folder in self.picture_folders}
        return tuple(f"{layout.above}{one}/" for one in sorted(self.classes(layout) - full))


def listing_digest(entries: tuple[Entry, ...], empty_classes: Sequence[str] = ()) -> str:
    """Return 20 hex digits that change when any picture may have changed, or a class without pictures has."""
    text = "".join([f"{entry.path}\0{entry.size}\0{entry.version}\n" for entry in entries])
    text += "".join([f"{folder}\n" for folder in empty_classes])
    return hashlib.sha256(text.encode()).hexdigest()[:20]
