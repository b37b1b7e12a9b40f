"""The releases on this device's disk, and which of them serves.

    <state_dir>/slots.json            current, previous, refused …: replaced in one durable step
    <state_dir>/slots.copy.json       the same once more, see `sealed_file.py`
    <state_dir>/activated             which of the slots served, and in which order
    <state_dir>/slots/<release>/      a complete, verified release; never changed once it has its name
    <state_dir>/incoming/<release>/   a release on its way, verified file by file as it is completed

Power may go at any instruction. A folder gets its name below `slots/` by one rename, after all its
files are on disk; it serves only once `slots.json` names it, and is removed only after neither copy of
`slots.json` names it any more. So whatever `slots.json` names is complete.

A slot can be compared with what is signed (`integrity.py`). So a device whose `slots.json` is lost, or
names a folder that is gone, serves the release that was activated last, and never one that only waited for
its turn.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import DeviceError
from edge_client.contract.names import RELEASE_FILE, check_name
from edge_client.contract.times import utc_now
from edge_client.disk import SCRATCH_PATTERNS, disk_errors, sync_folder
from edge_client.update.endings import Ending
from edge_client.update.failures import FailureRecord, Failures
from edge_client.update.integrity import ACTIVATED_FILE, find_served, note_activation
from edge_client.update.sealed_file import SealedFile
from edge_client.update.slots_document import (
    ProbationRecord,
    SlotsDocument,
    check_releases,
    failure_fields,
    releases_in,
    without_releases,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from pathlib import Path

logger = logging.getLogger(__name__)

SLOTS_LIMIT_BYTES = 1 << 20


class Slots:
    """The slots below one state folder. One process and one thread at a time change them."""

    def __init__(self, state_dir: Path, now: Callable[[], str] = utc_now) -> None:
        """Read `slots.json`; if it is lost, or what it names is gone, adopt what served last.

        Args:
            state_dir: State folder of the channel.
            now: Returns the time, UTC, ISO 8601.
        Raises: DeviceError if the disk fails.
        """
        self._state_dir = state_dir
        self._now = now
        self._slots_dir = state_dir / "slots"
        self._incoming_dir = state_dir / "incoming"
        paths = (state_dir / "slots.json", state_dir / "slots.copy.json")
        self._file = SealedFile(SlotsDocument, paths, SLOTS_LIMIT_BYTES, check_releases)
        self._unread = False
        self._document = self._load()

    @property
    def current(self) -> str | None:
        """Serving release."""
        return self._document.current

    @property
    def previous(self) -> str | None:
        """Release kept for a rollback."""
        return self._document.previous

    @property
    def serving_since(self) -> str | None:
        """When the current release was activated, UTC, ISO 8601; None if unknown."""
        return self._document.serving_since or None

    @property
    def refused(self) -> dict[str, str]:
        """Reasons by refused release."""
        return dict(self._document.refused)

    @property
    def failures(self) -> Failures:
        """Releases that failed on this device."""
        return Failures(self._document.refused, self._document.failures)

    @property
    def trying(self) -> str:
        """Release whose self-test neither passed nor failed yet; empty if there is none."""
        return self._document.trying

    def reload(self) -> None:
        """Read what another process wrote, the child of an update check.

        Raises: DeviceError.
        """
        if (document := self._file.read()) is not None:  # None: what is in memory is all there is
            known = self._on_disk(document)
            if known.current is None and self.current is not None and self.current not in known.refused:
                known = msgspec.structs.replace(known, current=self.current, previous=self.previous)
            self._document = known
        self._unread = False

    def folder(self, release: str) -> Path:
        """Folder of a release in its slot, whether or not it exists."""
        return self._slots_dir / check_name(release, "release id")

    def digest(self, release: str) -> str | None:
        """Digest of a release's document when it was activated; None if it is not recorded."""
        return self._document.digests.get(release)

    @property
    def kept(self) -> tuple[str, ...]:
        """Releases whose slots are kept: the current one, the previous one, and the one in shadow mode."""
        shadow = self.shadow.release if self.shadow is not None else None
        return tuple(
            dict.fromkeys(release for release in (self.current, self.previous, shadow) if release is not None)
        )

    def in_use(self) -> list[Path]:
        """Return the folders of the releases whose slots are kept."""
        return [self.folder(release) for release in self.kept]

    def stage(self, release: str) -> Path:
        """Return the folder to download a release into; it may hold files of an earlier try.

        Raises: DeviceError.
        """
        folder = self._incoming_dir / check_name(release, "release id")
        with disk_errors(folder):
            if self._incoming_dir.is_dir():
                for other in self._incoming_dir.iterdir():
                    if other != folder:
                        _remove(other)
            folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_staged(self) -> None:
        """Remove every staged download."""
        _remove(self._incoming_dir)

    def install(self, release: str) -> Path:
        """Move a downloaded and verified release into its slot, durably.

        Raises: DeviceError; the slots in use are then as before.
        """
        staged, slot = self._incoming_dir / release, self.folder(release)
        if release == self.current:
            msg = f"{slot}: serves now and cannot be replaced; delete it while the daemon is stopped"
            raise DeviceError(msg)
        with disk_errors(slot):
            for path in staged.iterdir():
                _sync_file(path)
            sync_folder(staged)
            # Only reached when its files are damaged: it is kept neither for a rollback nor for shadow mode.
            if release == self.previous:
                self._write(previous=None)
            if self.shadow is not None and self.shadow.release == release:
                self._write(shadow=None)
            _remove(slot)
            self._slots_dir.mkdir(parents=True, exist_ok=True)
            staged.rename(slot)
            sync_folder(self._slots_dir)
        return slot

    def replace_files(self, release: str, names: Iterable[str]) -> None:
        """Move files that were downloaded and verified into the slot of their release, one by one, durably.

        The release may serve: it is in memory, and no file is worse after a power cut than before.

        Raises: DeviceError.
        """
        staged, slot = self._incoming_dir / release, self.folder(release)
        with disk_errors(slot):
            for name in names:
                _sync_file(staged / name)
                (staged / name).replace(slot / name)
            sync_folder(slot)
        if release in self._document.digests:
            self._write(digests={**self._document.digests, **self._digest_now(release)})

    @property
    def probation(self) -> ProbationRecord | None:
        """Record of the current release's probation; None if it is over."""
        record = self._document.probation
        return record if record is not None and record.release == self.current else None

    @property
    def shadow(self) -> ProbationRecord | None:
        """Record of the release in shadow mode; None if there is none."""
        return self._document.shadow

    def activate(
        self, release: str, probation: ProbationRecord | None = None, serving: str | None = None
    ) -> SlotsDocument:
        """Let `release` serve and keep a proven one as previous, in one durable step.

        Args:
            release: Its id.
            probation: Record that its probation starts with.
            serving: Release that serves until now, if that is not the current one.
        Returns: The document as it was before, for `put_back`.
        Raises: DeviceError; the old release is then still current.
        """
        before = self._document
        if release != self.current:
            # A release on probation, or one that cannot be opened, is not kept for a rollback, unless there
            # is no other.
            stays = self.probation is not None or (serving is not None and serving == self.previous)
            proven = self.previous if stays else None
            previous = proven if proven not in {None, release} else self.current
            # A release on probation may still fail: the tries before count then.
            passed = failure_fields(self.failures.without({release})) if probation is None else {}
            digests = {**self._document.digests, **self._digest_now(release)}
            self._write_first(
                current=release,
                previous=previous,
                probation=probation,
                shadow=None,
                serving_since=self._now(),
                digests=digests,
                trying="",
                **passed,
            )
        return before

    def _digest_now(self, release: str) -> dict[str, str]:
        """Return the digest of a release's document by its id; nothing if it cannot be read now."""
        with contextlib.suppress(OSError):
            data = (self.folder(release) / RELEASE_FILE).read_bytes()
            return {release: hashlib.sha256(data).hexdigest()}
        return {}

    def secure(self, release: str, digest: str) -> None:
        """Write down all that `slots.json` may be restored from, for a release that serves; never fails.

        The second copy, the digest of the release's document, and that it was activated. Nothing is written
        where all of it is on the disk already.
        """
        try:
            if self.digest(release) is None and release == self.current:
                self._write_first(digests={**self._document.digests, release: digest})
            self._secure()
        except DeviceError as e:
            logger.warning("%s", e)  # full or read-only: serving does not depend on it

    def _secure(self) -> None:
        if self._unread or self.current is None:
            return
        self._file.write_copy(self._document)
        note_activation(self._slots_dir, self.current, self.previous)

    def put_back(self, before: SlotsDocument) -> None:
        """Undo an activation.

        Raises: DeviceError.
        """
        self._write(**msgspec.structs.asdict(before))

    def keep_probation(self, probation: ProbationRecord | None) -> None:
        """Record the current release's probation, or that it is over.

        Raises: DeviceError.
        """
        if probation != self._document.probation:
            passed = failure_fields(self.failures.without({self.current})) if probation is None else {}
            self._write(probation=probation, **passed)

    def keep_shadow(self, shadow: ProbationRecord | None) -> None:
        """Record which release is in shadow mode, or that none is.

        Raises: DeviceError.
        """
        if shadow != self._document.shadow:
            self._write(shadow=shadow, trying="")

    def roll_back(self, reason: str, by: str, ending: Ending = Ending.WORSE) -> None:
        """Let the previous release serve and record why the current one failed, in one durable step.

        Args:
            reason: Why, for people.
            by: Software that it failed with, see `forget_failures_of_others`.
            ending: How it failed.
        Raises: DeviceError.
        """
        if self.current is not None and self.previous is not None:
            after = self.failures.after(self.current, ending, reason, self._now())
            failed = failure_fields(after)
            self._write_current(self.previous, previous=None, probation=None, refused_by=by, **failed)

    def keep_trying(self, release: str) -> None:
        """Record that the self-test of a release begins, which may take the machine down; "" if it ended.

        Raises: DeviceError.
        """
        if release != self._document.trying:
            self._write_first(trying=release)

    def note_failure(
        self, release: str, ending: Ending, reason: str, by: str, *, counts: bool = True
    ) -> FailureRecord:
        """Record that a try of `release` failed, and end its shadow mode.

        Args:
            release: Its id.
            ending: How the try ended.
            reason: Why, for people.
            by: Software that it failed with, see `forget_failures_of_others`.
            counts: See `failures.add_failure`.
        Returns: The record; it says whether the release is refused.
        Raises: DeviceError.
        """
        shadow = self.shadow if self.shadow is None or self.shadow.release != release else None
        after = self.failures.after(release, ending, reason, self._now(), counts=counts)
        self._write(refused_by=by, shadow=shadow, trying="", **failure_fields(after))
        return after.records[release]

    def forget_failures(self, releases: Collection[str] | None = None) -> None:
        """Forget that tries of some releases failed, of all by default.

        Raises: DeviceError.
        """
        known = self.failures
        after = Failures({}, {}) if releases is None else known.without(releases)
        if after != known:
            self._write(**failure_fields(after))

    def lift_failures(self, named: Collection[str], retry_since: str) -> None:
        """Forget the refusals that count no more, and the failed tries of releases that nobody waits for.

        Args:
            named: Releases that the channel's signed documents name.
            retry_since: The channel's.
        Raises: DeviceError.
        """
        known = self.failures
        if retry_since > self._document.retry_since:
            logger.info("refusals before %s are forgotten, as the signed channel says", retry_since)
            self._write(retry_since=retry_since, **failure_fields(Failures({}, {})))
        else:
            self.forget_failures({*known.outdated(self._now()), *known.waiting().difference(named)})

    def is_postponed(self, release: str) -> bool:
        """Return whether a release that failed waits for its next try."""
        return self.failures.is_postponed(release, self._now())

    def forget_failures_of_others(self, by: str) -> None:
        """Forget the failures of other software: this one may be able to run those releases.

        Raises: DeviceError.
        """
        if self._document.refused_by != by and self.failures != Failures({}, {}):
            self._write(refused_by=by, **failure_fields(Failures({}, {})))

    def clean_slots(self) -> None:
        """Remove the slots that are not kept, once a release is current; never fails.

        The second copy comes first: it must not name a slot that is gone.
        """
        if self._unread or self.current is None:
            return
        try:
            self._secure()
        except DeviceError as e:
            logger.warning("%s", e)
        with contextlib.suppress(OSError):
            for path in self._slots_dir.iterdir():
                if path.name not in self.kept:
                    _remove(path)

    def clean_leftovers(self) -> None:
        """Remove all leftovers but slots and a staged download, at a start; never fails."""
        leftovers: list[Path] = []
        with contextlib.suppress(OSError):
            # Scratch folders of killed update checks and unfinished writes (`disk.py`).
            for pattern in SCRATCH_PATTERNS:
                leftovers += self._state_dir.glob(pattern)
            leftovers += self._state_dir.glob(".*.json.*")
            leftovers += self._state_dir.glob(".*.partial")
            leftovers += self._state_dir.glob("metadata/**/.*.json.*")
            leftovers += self._state_dir.glob(f".{ACTIVATED_FILE}.*")
        for path in leftovers:
            _remove(path)

    def _load(self) -> SlotsDocument:
        document = self._file.read()
        if document is None:
            return self._adopt(SlotsDocument(), "is lost or damaged")
        known = self._on_disk(document)
        return known if known.current is not None else self._adopt(known, "names no release on the disk")

    def _on_disk(self, document: SlotsDocument) -> SlotsDocument:
        """Return the document without releases whose folder is gone; the previous one takes the place."""
        gone = {release for release in releases_in(document) if _is_missing(self.folder(release))}
        return without_releases(document, gone) if gone else document

    def _adopt(self, document: SlotsDocument, why: str) -> SlotsDocument:
        """Let the release that was activated last serve, of those that are as they were signed.

        One that was never activated may have failed in shadow mode: it is adopted only where none was.
        """
        names = find_served(self._slots_dir, document.refused)
        if not names:
            return document
        logger.warning("slots.json %s; continuing with release %s from the disk", why, names[0])
        return msgspec.structs.replace(
            document, current=names[0], previous=names[1] if len(names) > 1 else None
        )

    def _write_current(self, release: str | None, **changes: object) -> None:
        since = self._now() if release is not None else ""
        self._write(current=release, serving_since=since, trying="", **changes)

    def _write(self, **changes: object) -> None:
        self._write_first(**changes)
        try:
            self._file.write_copy(self._document)
        except DeviceError as e:
            logger.warning("%s", e)  # the first copy counts

    def _write_first(self, **changes: object) -> None:
        """Replace the first copy; `clean_slots` writes the second one, before it removes anything."""
        if self._unread:
            self.reload()
            msg = f"{self._state_dir}: slots.json can be read again; what was to be changed is tried again"
            raise DeviceError(msg)
        document = msgspec.structs.replace(self._document, **changes)
        kept = releases_in(document)
        digests = {release: digest for release, digest in document.digests.items() if release in kept}
        document = msgspec.structs.replace(document, digests=digests)
        self._file.write(document)
        self._document = document


class PatientSlots(Slots):
    """Slots of a device that serves also while its disk cannot be read: `slots.json` is read later then.

    Attributes:
        fault: Why `slots.json` cannot be read now, for people; empty if it was read.
    """

    fault = ""

    def _load(self) -> SlotsDocument:
        try:
            return super()._load()
        except DeviceError as e:
            self.fault, self._unread = str(e), True
            return self._adopt(SlotsDocument(), "cannot be read now")

    def reload(self) -> None:
        """See `Slots.reload`; while `slots.json` cannot be read, the slots may be readable again."""
        try:
            super().reload()
        except DeviceError:
            if self._unread and self.current is None:
                self._document = self._adopt(SlotsDocument(), "cannot be read now")
            raise
        self.fault = ""


def _is_missing(path: Path) -> bool:
    """Whether there is nothing at `path`; not so if the disk cannot tell now."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _remove(path: Path) -> None:
    """Remove a file or folder if it exists; what cannot be removed stays until the next clean-up."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
