"""Groups of frames that a person can label at once: one burst, or nearly the same picture.

Frames are linked where one device took them within seconds, or where they look alike, by the fingerprints of
`dataset/fingerprints.py`. Only frames for which the device predicted the same label are one group: a device
that wavers is looked at label by label.
"""

from __future__ import annotations

import collections
import itertools
from typing import TYPE_CHECKING

from luigi_tasks.dataset.alike import find_alike
from luigi_tasks.dataset.records import FINGERPRINT_KIND

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from luigi_tasks.labelling.records import ListedFrame

# So many a person still sees at once; a chain of frames, each a little like the next, must not become one
# group of thousands.
FRAMES_AT_MOST = 40


def find_groups(frames: Sequence[ListedFrame], burst_s: float) -> dict[str, str]:
    """Map each frame to the frame that stands for its group; one that is like no other stands for itself.

    Args:
        frames: Those with a fault are in no group.
        burst_s: Longest time between two frames of one burst, in seconds.
    """
    by_label: dict[str, list[ListedFrame]] = collections.defaultdict(list)
    for one in frames:
        if not one.fault:
            by_label[one.label].append(one)
    found: dict[str, str] = {}
    for some in by_label.values():
        found.update(_join(some, [*_bursts(some, burst_s), *_alike(some)]))
    return found


def _join(frames: Iterable[ListedFrame], links: Iterable[tuple[str, str]]) -> dict[str, str]:
    groups = {one.frame: [one.frame] for one in frames}
    for one, other in links:
        mine, theirs = groups[one], groups[other]
        if mine is theirs or len(mine) + len(theirs) > FRAMES_AT_MOST:
            continue
        mine += theirs
        for name in theirs:
            groups[name] = mine
    return {name: min(members) for name, members in groups.items()}


def _bursts(frames: Iterable[ListedFrame], burst_s: float) -> Iterator[tuple[str, str]]:
    devices: dict[str, list[tuple[float, str]]] = collections.defaultdict(list)
    for one in frames:
        at = one.taken_at
        if at is not None:
            devices[one.device].append((at, one.frame))
    for taken in devices.values():
        taken.sort()
        for (before, earlier), (after, later) in itertools.pairwise(taken):
            if after - before <= burst_s:
                yield earlier, later


def _alike(frames: Iterable[ListedFrame]) -> Iterator[tuple[str, str]]:
    some = [one for one in frames if one.fingerprint.startswith(FINGERPRINT_KIND)]
    for row, earlier in find_alike([one.fingerprint for one in some], 0):
        yield some[earlier].frame, some[row].frame
