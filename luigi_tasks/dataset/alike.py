"""Search for near-duplicates: each new picture against the first of each scene.

The first picture of a scene stands for it, so that a chain of pictures, each a little like the next, does not
become one scene; and so that the search is short where most pictures show the same.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import threadpoolctl

from luigi_tasks.dataset.fingerprints import ALIKE, CANDIDATE, Fingerprints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

BLOCK = 128
SCENES_AT_ONCE = 1 << 15  # with a block, 16 MB of cosines
# Candidates of a picture that are aligned with it, the likeliest ones.
AT_MOST = 4
# A picture that is like several scenes belongs to the likest; to another only if it is nearly as like.
NEARLY = 2.0


def find_alike(texts: Sequence[str], known: int) -> list[tuple[int, int]]:
    """Return pairs (picture, earlier picture that stands for its scene), by position.

    Args:
        texts: Fingerprints: first of the pictures that stand for the known scenes, then of the new pictures,
            in the order in which they are looked at.
        known: How many are known.
    """
    if known >= len(texts):
        return []
    # Thousands of small products: threads of BLAS that wait for each other took 30 times as long.
    with threadpoolctl.threadpool_limits(1, "blas"):
        return _Search(Fingerprints.decode(texts), known).run()


class _Search:
    def __init__(self, prints: Fingerprints, known: int) -> None:
        self._prints = prints
        self._scenes = np.empty((len(prints), prints.first.shape[1]), np.float32)
        self._scenes[:known] = prints.first[:known]
        self._rows = np.arange(len(prints))  # rows of the scenes
        self._count = known
        self._known = known

    def run(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        for start in range(self._known, len(self._prints), BLOCK):
            found += self._look_at(np.arange(start, min(start + BLOCK, len(self._prints))))
        return found

    def _look_at(self, rows: NDArray[np.intp]) -> list[tuple[int, int]]:
        """Return the links of a block, and add those of its pictures that show a new scene."""
        first = self._prints.first[rows]
        picture, scene = self._candidates(first)
        links = self._align(rows[picture], self._rows[scene])
        within = np.triu(first @ first.T >= CANDIDATE, 1)
        joined = {one for one, _, _ in links}
        for place in np.flatnonzero(within.any(1)).tolist():
            if rows[place] not in joined:
                later = rows[np.flatnonzero(within[place])]
                more = self._align(later, np.full(len(later), rows[place]))
                joined.update(one for one, _, _ in more)
                links += more
        fresh = np.array([row for row in rows.tolist() if row not in joined], int)
        self._scenes[self._count : self._count + len(fresh)] = self._prints.first[fresh]
        self._rows[self._count : self._count + len(fresh)] = fresh
        self._count += len(fresh)
        return _nearest(links)

    def _candidates(self, first: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return row and scene of the candidates: of each row the highest few above the limit."""
        parts = [(np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32))]
        for start in range(0, self._count, SCENES_AT_ONCE):
            cosines = first @ self._scenes[start : min(start + SCENES_AT_ONCE, self._count)].T
            row, column = np.divmod(np.flatnonzero(cosines >= CANDIDATE), cosines.shape[1])
            cosine = cosines[row, column]
            likely = _mark_highest(row, cosine)
            parts.append((row[likely], column[likely] + start, cosine[likely]))
        row, column, cosine = (np.concatenate(one) for one in zip(*parts, strict=True))
        if len(row) == 0:
            return row, column
        order = np.lexsort((column, -cosine, row))
        row, column = row[order], column[order]
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        rank = np.arange(len(row)) - np.repeat(starts, np.diff(starts, append=len(row)))
        return row[rank < AT_MOST], column[rank < AT_MOST]

    def _align(self, one: NDArray[np.intp], other: NDArray[np.intp]) -> list[tuple[int, int, float]]:
        """Return those pairs that are frames of one scene, with what the alignment leaves."""
        left = self._prints.unlikeness(one, other)
        chosen = left < ALIKE
        return list(zip(one[chosen].tolist(), other[chosen].tolist(), left[chosen].tolist(), strict=True))


def _mark_highest(row: NDArray[np.intp], cosine: NDArray[np.float32]) -> NDArray[np.intp]:
    """Return the positions of the highest few of each row, and of those as high as they are.

    Before plain backgrounds a fifth of all scenes are candidates; to sort them would take longest of all.
    """
    found = [np.zeros(0, np.intp)]
    edges = [0, *(np.flatnonzero(np.diff(row)) + 1).tolist(), len(row)]
    for start, end in itertools.pairwise(edges):
        part = cosine[start:end]
        least = np.partition(part, -AT_MOST)[-AT_MOST] if len(part) > AT_MOST else -1.0
        found.append(np.flatnonzero(part >= least) + start)
    return np.concatenate(found)


def _nearest(links: list[tuple[int, int, float]]) -> list[tuple[int, int]]:
    """Return the links of each picture to the likest scene, and to others that are nearly as like."""
    least: dict[int, float] = {}
    for one, _, left in links:
        least[one] = min(left, least.get(one, left))
    return [(one, other) for one, other, left in sorted(links) if left <= NEARLY * least[one]]
