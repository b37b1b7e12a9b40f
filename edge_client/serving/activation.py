"""Activation, in the daemon: open a release's slot, switch to it, and fall back where it cannot be opened.

A release that cannot be opened stays where it is, whatever the reason: a runtime that does not fit NumPy, a
full memory or a disk with a bad contact pass, and a device without a network has no other. It is tried again
at each start and every few minutes; what was damaged is replaced by the next update check (`check.py`).
"""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.update.decision import Decision
from edge_client.update.endings import Blame, Ending, find_ending
from edge_client.update.integrity import check_slot
from edge_client.update.refusals import fail_try

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from edge_client.inference.classifier import Classifier
    from edge_client.serving.holder import ClassifierHolder
    from edge_client.update.decision import UpdateOutcome
    from edge_client.update.slots import Slots
    from edge_client.update.slots_document import ProbationRecord

logger = logging.getLogger(__name__)


def open_installed(slots: Slots, release: str, software: str, threads: int) -> Classifier:
    """Load a release that passed its self-test in another process.

    What fails here, the daemon's memory or a runtime that was replaced under it, is no reason to refuse the
    release: it stays in its slot, and is tried again after some minutes.

    Raises: PostponedError.
    """
    try:
        return open_slot(slots.folder(release), threads)
    except (DeviceError, InputError) as e:
        ending = find_ending(e, Ending.NO_PROCESS)
        if ending.blame is not Blame.ENDLESS:
            ending = Ending.NO_PROCESS
        fail_try(slots, release, ending, str(e), software, cause=e)
        raise


@dataclasses.dataclass(frozen=True)
class Opened:
    """What could be opened of the releases on the disk.

    Attributes:
        classifier: The release that can serve; None: none can.
        fault: Why that is not the current release, for people; empty if it is, or if there is none.
    """

    classifier: Classifier | None
    fault: str = ""


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
    new = loaded or open_installed(slots, release, software, threads)
    serving = holder.current.release if holder.current is not None else None
    before = slots.activate(release, probation, serving)
    try:
        before_swap()
        holder.swap(new)
    except EdgeError:
        slots.put_back(before)
        raise
    slots.clean_slots()
    return True


def open_best_slot(
    slots: Slots,
    threads: int,
    verified: Mapping[str, str] | None = None,
    serving: Classifier | None = None,
    *,
    probe: Callable[[str], None] = lambda _release: None,
) -> Opened:
    """Load the current release, or the previous one for the time being; change nothing on the disk.

    Args:
        slots: Releases on the disk.
        threads: Threads of the interpreter.
        verified: Digest of the release document by release, as far as its signature was verified.
        serving: Loaded release that serves now; it is not loaded a second time.
        probe: Called before a release is loaded; raises EdgeError if that might end this process.
    """
    verified = verified or {}
    faults: list[str] = []
    for release in dict.fromkeys((slots.current, slots.previous)):
        if release is None:
            continue
        signed = verified.get(release)
        if serving is not None and serving.release == release and is_signed(serving, signed):
            return Opened(serving, _describe(faults, release))
        try:
            probe(release)
            classifier = open_kept(slots, release, threads, verified)
        except EdgeError as e:
            faults.append(f"release {release} cannot serve now: {e}")
            continue
        return Opened(classifier, _describe(faults, release))
    return Opened(None, _describe(faults, None))


def is_signed(classifier: Classifier, verified: str | None) -> bool:
    """Return whether a loaded release is what was signed, as far as that is known."""
    return classifier.is_named_after_content or verified in {None, classifier.document_sha256}


def _describe(faults: list[str], serving: str | None) -> str:
    if not faults:
        return ""
    meanwhile = f"release {serving} serves meanwhile, and " if serving else ""
    return f"{'; '.join(faults)}; {meanwhile}it stays on the disk and is tried again"


def open_kept(slots: Slots, release: str, threads: int, verified: Mapping[str, str]) -> Classifier:
    """Load a release that has been on the disk for a while, if it still is what was signed.

    Args:
        slots: Releases on the disk.
        release: Its id.
        threads: Threads of the interpreter.
        verified: As for `open_best_slot`.
    Raises: DeviceError or InputError.
    """
    slot = slots.folder(release)
    check_slot(slot, recorded=slots.digest(release), verified=verified.get(release))
    return open_slot(slot, threads)


def can_open(slots: Slots, release: str, threads: int, verified: Mapping[str, str]) -> bool:
    """Return whether a release on the disk can serve now."""
    try:
        open_kept(slots, release, threads, verified)
    except EdgeError as e:
        logger.warning("release %s cannot serve now: %s", release, e)
        return False
    return True


def open_slot(folder: Path, threads: int) -> Classifier:
    """Load and warm the release of a slot.

    Raises: DeviceError or InputError if it is damaged or cannot run here.
    """
    try:
        from edge_client.inference.classifier import classifier_from_release  # noqa: PLC0415 - loads numpy, the runtime

        classifier = classifier_from_release(folder, threads)
        classifier.warm()
    except EdgeError:
        raise
    except Exception as e:
        # Half an upgrade of NumPy or of the runtime raises whatever it likes, and so does a full memory.
        reason = " ".join(str(e).split()) or "no reason given"
        msg = f"{folder}: {type(e).__name__}: {reason}; see `edge-client doctor`"
        raise DeviceError(msg) from e
    return classifier
