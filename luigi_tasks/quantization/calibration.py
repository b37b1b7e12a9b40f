"""Calibration set: the pictures that set a backbone's scales and int8 ranges.

It is chosen once and kept as long as the backbone stays the same, so that two releases differ in the head
alone: a patch of 8 kB, not of 58. A release carries the list, signed; a run that finds no converted backbone
in the store uses that list, and makes the same bytes again.
"""

from __future__ import annotations

import collections
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from luigi_tasks.dataset.records import Picture


logger = logging.getLogger("luigi-interface")


def choose_calibration(pictures: Sequence[Picture], count: int) -> tuple[Picture, ...]:
    """Return up to `count` pictures, as many of each class as there are, lowest hashes first.

    By hash, so that new pictures seldom change the choice.
    """
    by_class: dict[str, list[Picture]] = collections.defaultdict(list)
    for picture in sorted(pictures, key=lambda one: one.sha256):
        by_class[picture.label].append(picture)
    chosen: list[Picture] = []
    for rank in range(max(map(len, by_class.values()))):
        for label in sorted(by_class):
            if rank < len(by_class[label]) and len(chosen) < count:
                chosen.append(by_class[label][rank])
    return tuple(chosen)


def find_pictures(hashes: Sequence[str], pictures: Sequence[Picture]) -> tuple[tuple[Picture, ...], int]:
    """Return the pictures with these hashes, in the order of the hashes, and how many are not there."""
    known = {one.sha256: one for one in pictures}
    found = tuple(known[one] for one in hashes if one in known)
    return found, len(hashes) - len(found)


def recall_calibration(
    hashes: Sequence[str], release: str, pictures: Sequence[Picture]
) -> tuple[Picture, ...]:
    """Return the deployed release's calibration set if it fits, else an empty one with the reason in the log.

    Args:
        hashes: Its calibration set for the backbone; empty: it has none.
        release: Its id.
        pictures: The training split.
    """
    found, missing = find_pictures(hashes, pictures)
    if not hashes:
        logger.info("Calibrating on a new set: release %s has none for this backbone", release)
        return ()
    if missing:
        logger.warning(
            "Calibrating on a new set, so the next patch is tens of kB: %d of the %d pictures that release "
            "%s was calibrated on are not in the training split any more",
            missing,
            len(hashes),
            release,
        )
        return ()
    logger.info("Calibrating on the %d pictures of release %s", len(found), release)
    return found


def demand_calibration(
    hashes: Sequence[str], release: str, pictures: Sequence[Picture]
) -> tuple[Picture, ...]:
    """Return the calibration set of the release that `[quantization] calibration` names.

    Args:
        hashes: Its calibration set for the backbone; empty: it has none.
        release: Its id.
        pictures: The training split.
    Raises: SettingsError if it was calibrated for another backbone; InputError if not all of the set is in
        `pictures`.
    """
    if not hashes:
        msg = (
            f"[quantization] calibration: release {release} has no calibration set for this network; set "
            "[model], [training] seed and [quantization] to the settings in its release.json"
        )
        raise SettingsError(msg)
    found, missing = find_pictures(hashes, pictures)
    if missing:
        msg = (
            f"[quantization] calibration: {missing} of the {len(hashes)} pictures that release {release} was "
            "calibrated on are not in the training split; give --pictures that have them"
        )
        raise InputError(msg)
    return found
