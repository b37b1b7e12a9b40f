"""Activation, in the daemon: open a release's slot, switch to it, and fall back where it cannot be opened."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.update.decision import Decision
from edge_client.update.refusals import refusing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.inference.classifier import Classifier
    from edge_client.serving.holder import ClassifierHolder
    from edge_client.update.decision import UpdateOutcome
    from edge_client.update.slots import ProbationRecord, Slots

logger = logging.getLogger(__name__)

# Between tries to open the slots at a start.
UNREADABLE_WAITS_S = (1.0, 3.0, 10.0)


def install(
    outcome: UpdateOutcome,
    slots: Slots,
    holder: ClassifierHolder,
    *,
    software: str,
    threads: int,
    loaded: Classifier | None = None,
    probation: ProbationRecord | None = None,
    before_swap: Callable[[], None] = lambda: None,
) -> bool:
    """Activate the release of an update check if its decision is INSTALL; return whether it is.

    The release is loaded next to the serving one and switched to, on disk first, then in memory between two
    frames.

    Args:
        outcome: Outcome of the check, which left the release in its slot.
        slots: Releases on the disk.
        holder: Gets the new classifier.
        software: See `this_software`.
        threads: Threads of the interpreter.
        loaded: The release's classifier, if it is loaded already.
        probation: Measurements that the release is compared with once it serves.
        before_swap: Called right before the first frame can see the release.
    Raises: DeviceError, with the old release serving; RefusedError.
    """
    if outcome.decision is not Decision.INSTALL:
        return False
    release = outcome.release
    with refusing(slots, release, software):
        new = loaded or open_slot(slots.folder(release), threads)
    before = slots.activate(release, probation)
    try:
        before_swap()
        holder.swap(new)
    except EdgeError:
        slots.put_back(before)
        raise
    slots.clean_slots()
    return True


def open_best_slot(
    slots: Slots, threads: int, sleep: Callable[[float], None] = time.sleep
) -> Classifier | None:
    """Load the current release, or the previous one if the current one is damaged.

    A disk that cannot be read, as a worn card at a start, is given some time: a release that is given up here
    is deleted, and a device without a network would not serve any more.

    Returns: None if no release can serve; it is then downloaded again.
    Raises: DeviceError if `slots.json` cannot be written.
    """
    for wait_s in (*UNREADABLE_WAITS_S, None):
        unreadable = False
        for release in (slots.current, slots.previous):
            if release is None:
                continue
            try:
                classifier = open_slot(slots.folder(release), threads)
            except EdgeError as e:
                logger.error("release %s cannot serve: %s", release, e)  # noqa: TRY400 - one line, no traceback
                unreadable = unreadable or _is_unreadable(e)
                continue
            if release != slots.current:
                _remember(slots.return_to_previous)
            return classifier
        if not unreadable or wait_s is None:
            break
        sleep(wait_s)
    if slots.current is not None:
        _remember(slots.forget_slots)
    return None


def _remember(choice: Callable[[], None]) -> None:
    """Write down which release serves; on a full or read-only disk, the next start chooses the same."""
    try:
        choice()
    except DeviceError as e:
        logger.error("%s", e)  # noqa: TRY400 - one line, no traceback


def _is_unreadable(error: EdgeError) -> bool:
    """Return whether the disk failed, rather than a file being damaged or missing."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def open_slot(folder: Path, threads: int) -> Classifier:
    """Load and warm the release of a slot.

    Raises: DeviceError or InputError if it is damaged or cannot run here.
    """
    from edge_client.inference.classifier import classifier_from_release  # noqa: PLC0415 - loads numpy, the runtime

    classifier = classifier_from_release(folder, threads)
    classifier.warm()
    return classifier
