"""Activation of a release: open its slot, switch to it, and fall back where it cannot be opened."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError
from edge_client.update.refusals import refusing

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.inference.classifier import Classifier
    from edge_client.serving.holder import ClassifierHolder
    from edge_client.update.slots import ProbationRecord, Slots

logger = logging.getLogger(__name__)


UNREADABLE_WAITS_S = (1.0, 3.0, 10.0)


def let_serve(
    release: str,
    slots: Slots,
    holder: ClassifierHolder,
    *,
    software: str,
    threads: int,
    loaded: Classifier | None = None,
    probation: ProbationRecord | None = None,
    before_swap: Callable[[], None] = lambda: None,
) -> None:
    """Load a release beside the serving classifier, switch on disk, then between two frames.

    Args:
        release: In its slot, as a look left it.
        slots: Releases on the disk.
        holder: Gets the new classifier.
        software: See `this_software`.
        threads: Threads of the interpreter.
        loaded: The release, if it is loaded already.
        probation: What the release is compared with once it serves.
        before_swap: Called right before the first frame can see the release.
    Raises: DeviceError, with the old release serving; RefusedError.
    """
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


def open_best_slot(
    slots: Slots, threads: int, sleep: Callable[[float], None] = time.sleep
) -> Classifier | None:
    """Load the release that shall serve: the current one, or the previous if that is damaged.

    A disk that cannot be read, as a tired card at a start, is given some time: what is forgotten here is
    deleted, and a device without a network would not serve any more.

    Returns: None if there is none that can serve; it is then fetched again.
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
                logger.error("release %s cannot serve: %s", release, e)  # noqa: TRY400 - said in one line
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
    """Write down what serves; where the disk is full or read-only, the next start chooses alike."""
    try:
        choice()
    except DeviceError as e:
        logger.error("%s", e)  # noqa: TRY400 - said in one line


def _is_unreadable(error: EdgeError) -> bool:
    """Whether the disk failed, rather than what lies there being damaged or gone."""
    cause = error.__cause__
    return isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError)


def open_slot(folder: Path, threads: int) -> Classifier:
    """Load and warm the release of a slot.

    Raises: DeviceError or InputError if it is damaged or cannot run here.
    """
    from edge_client.inference.classifier import classifier_from_release  # noqa: PLC0415 - not for a look

    classifier = classifier_from_release(folder, threads)
    classifier.warm()
    return classifier
