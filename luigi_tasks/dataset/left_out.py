"""What a snapshot leaves out: the reasons, the limit, and how it is told.

A dataset from the field is never clean. What is doubtful is set aside, named and counted, and the run goes on
while it is little. Files that evidently are no pictures are named too, but do not count.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError
from luigi_tasks.cells import guard_formula
from luigi_tasks.dataset.records import LeftOut

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from luigi_tasks.dataset.records import ReadPicture

# Reasons, as they are told.
UNDECODABLE = "undecodable"
UNREADABLE = "unreadable"
ARCHIVED = "archived"
TWO_CLASSES = "in two classes"
NO_CLASS = "in no class folder"
SMALL_CLASS = "in a class that is too small"
BRIDGING = "in groups on both sides"
# Reasons that do not count against the limit: no picture is lost, or it is as good as one that is there.
EMPTY_CLASS = "class without usable pictures"
FOREIGN = "no picture"
UNCOUNTED = frozenset({EMPTY_CLASS, FOREIGN, BRIDGING})

FILE = "left-out.csv"
COLUMNS = ("path", "reason", "words")
NAMED_AT_MOST = 5  # for each reason


def find_left_out_classes(left_out: Iterable[LeftOut]) -> tuple[str, ...]:
    """Return the folders of the classes of which nothing is used."""
    folders = {one.path.rpartition("/")[0] for one in left_out if one.reason in {SMALL_CLASS, EMPTY_CLASS}}
    return tuple(sorted(folders))


class Sieve:
    """Pictures of a listing, from which the unusable ones are taken out.

    Attributes:
        kept: The pictures that are left.
        left_out: What was taken out.
    """

    def __init__(self, read: Sequence[ReadPicture], passed_over: Iterable[LeftOut] = ()) -> None:
        self.kept = list(read)
        self.left_out = list(passed_over)

    def take_out(self, words: Mapping[str, str], reason: str) -> None:
        """Take out the pictures at these paths, each with what is wrong with it."""
        if words:
            self.left_out += [LeftOut(path, reason, words[path]) for path in words]
            self.kept = [one for one in self.kept if one.path not in words]

    def sorted_left_out(self) -> tuple[LeftOut, ...]:
        """Return what was taken out, by path."""
        return tuple(sorted(self.left_out, key=lambda one: one.path))

    def check(self, url: str, max_percent: float, place: str) -> None:
        """Refuse a dataset of which more than the limit was taken out.

        Args:
            url: The dataset, for messages.
            max_percent: `[dataset] max_left_out_percent`.
            place: Where all that was taken out is listed; empty: nowhere.
        Raises: InputError.
        """
        counted = [one for one in self.sorted_left_out() if one.reason not in UNCOUNTED]
        listed = len(self.kept) + len(counted)
        if len(counted) * 100 <= max_percent * listed + 1e-9:
            return
        msg = (
            f"{url}: {len(counted)} of {listed} pictures ({len(counted) / listed:.1%}) cannot be used, "
            f"[dataset] max_left_out_percent is {max_percent:g}: {_name_by_reason(counted)}. "
            f"{f'All of them: {place}. ' if place else ''}Repair or remove them, or raise the limit; what "
            "did not change is not read again"
        )
        raise InputError(msg)


def count_reasons(left_out: Iterable[LeftOut]) -> str:
    """Return e.g. `12 undecodable, 6 in two classes`, the most frequent first."""
    return ", ".join(f"{len(found)} {reason}" for reason, found in by_reason(left_out).items())


def by_reason(left_out: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    """Return what is left out for each reason, the most frequent first."""
    found: dict[str, list[LeftOut]] = {}
    for one in left_out:
        found.setdefault(one.reason, []).append(one)
    return dict(sorted(found.items(), key=lambda item: -len(item[1])))


def describe(left_out: Sequence[LeftOut], place: str) -> list[str]:
    """Return lines for the log: counts, the first of each reason, and where all are listed."""
    if not left_out:
        return []
    return [
        f"Left out: {count_reasons(left_out)}; all in {place}",
        *(f"Left out, {reason}: {_name_some(found)}" for reason, found in by_reason(left_out).items()),
    ]


def write_csv(left_out: Iterable[LeftOut]) -> bytes:
    """Return the list as CSV: UTF-8 with a byte order mark for Excel, every cell quoted."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(COLUMNS)
    writer.writerows([guard_formula(one) for one in (row.path, row.reason, row.words)] for row in left_out)
    return file.getvalue().encode("utf-8-sig")


def _name_by_reason(left_out: Iterable[LeftOut]) -> str:
    """Return e.g. `2 undecodable (a/1.jpg: ...; a/2.jpg: ...), 1 in two classes (...)`."""
    return ", ".join(
        f"{len(found)} {reason} ({_name_some(found)})" for reason, found in by_reason(left_out).items()
    )


def _name_some(left_out: Iterable[LeftOut]) -> str:
    """Name the first of what is left out, each with what is wrong with it; a small class once."""
    lines = list(dict.fromkeys(_line(one) for one in left_out))
    more = f"; and {len(lines) - NAMED_AT_MOST} more" if len(lines) > NAMED_AT_MOST else ""
    return "; ".join(lines[:NAMED_AT_MOST]) + more


def _line(one: LeftOut) -> str:
    """Return path and words; the decoder's words begin with the path, those of a small class name it."""
    is_whole = one.reason == SMALL_CLASS or one.words.startswith(one.path)
    return one.words if is_whole else f"{one.path}: {one.words}"
