"""The releases on this device's disk, and which of them serves.

    <state_dir>/slots.json            current, previous, refused …: replaced in one durable step
    <state_dir>/slots/<release>/      a complete, verified release; never changed once it has its name
    <state_dir>/incoming/<release>/   a release on its way, verified file by file as it is completed

Power may go at any instruction. A folder gets its name below `slots/` by one rename, after all its
files are on disk; it serves only once `slots.json` names it, and is removed only after `slots.json`
no longer does. So whatever `slots.json` names is complete, and all else may be swept away.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import DeviceError, InputError
from edge_client.contract.names import RELEASE_FILE, check_name
from edge_client.contract.times import utc_now
from edge_client.disk import SCRATCH_PATTERNS, disk_errors, sync_folder, write_durably

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

logger = logging.getLogger(__name__)

SLOTS_LIMIT_BYTES = 1 << 20
# A channel points to one release at a time: enough for a bad month.
REFUSALS_KEPT = 50
# Characters; reasons are for people.
REASON_LIMIT = 2000


class ProbationRecord(Document, frozen=True, kw_only=True):
    """Record of a probation, or of shadow mode, that survives a restart.

    Attributes:
        release: Release on probation or in shadow mode.
        crashes: Crashes of the daemon in a row; see `serving.probation.STOPPED`.
        power_cuts: Restarts of the whole machine.
        boot: Boot in which it was written; see `machine.boot_id`.
        seconds: Duration of shadow mode before the last requested stop.
        latency_ms: Median latency of the release before; None if it classified too few frames.
        unsure_share: Share of unsure predictions of the release before; None likewise.
    """

    release: str
    crashes: int = 0
    power_cuts: int = 0
    boot: str = ""
    seconds: float = 0.0
    latency_ms: float | None = None
    unsure_share: float | None = None


class SlotsDocument(Document, frozen=True, kw_only=True):
    """`slots.json`.

    Attributes:
        current: Serving release.
        previous: Release kept for a rollback.
        refused: Reasons by release that failed on this device; not tried again.
        refused_by: Software that refused them: another runtime may be able to run them.
        probation: Record of the current release's probation; None if it is over.
        shadow: Release in shadow mode and its record; None if there is none.
        serving_since: When the current release was activated, UTC, ISO 8601; empty if unknown, as in a
            document that version 0.1 wrote.
    """

    current: str | None = None
    previous: str | None = None
    refused: dict[str, str] = {}
    refused_by: str = ""
    probation: ProbationRecord | None = None
    shadow: ProbationRecord | None = None
    serving_since: str = ""


class Slots:
    """The slots below one state folder. One process and one thread at a time change them."""

    def __init__(self, state_dir: Path, now: Callable[[], str] = utc_now) -> None:
        """Read `slots.json`; if it is missing or damaged, adopt the newest release on the disk.

        Args:
            state_dir: State folder of the channel.
            now: Returns the time, UTC, ISO 8601.
        Raises: DeviceError if the disk fails.
        """
        self._state_dir = state_dir
        self._now = now
        self._slots_dir = state_dir / "slots"
        self._incoming_dir = state_dir / "incoming"
        self._file = state_dir / "slots.json"
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

    def reload(self) -> None:
        """Read what another process wrote, the child of an update check.

        Raises: DeviceError.
        """
        if (
            self._file.exists()
        ):  # missing before the first activation: the release just installed does not serve yet
            self._document = self._load()

    def folder(self, release: str) -> Path:
        """Folder of a release in its slot, whether or not it exists."""
        return self._slots_dir / check_name(release, "release id")

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

    @property
    def probation(self) -> ProbationRecord | None:
        """Record of the current release's probation; None if it is over."""
        record = self._document.probation
        return record if record is not None and record.release == self.current else None

    @property
    def shadow(self) -> ProbationRecord | None:
        """Record of the release in shadow mode; None if there is none."""
        return self._document.shadow

    def activate(self, release: str, probation: ProbationRecord | None = None) -> SlotsDocument:
        """Let `release` serve and keep a proven one as previous, in one durable step.

        Returns: The document as it was before, for `put_back`.
        Raises: DeviceError; the old release is then still current.
        """
        before = self._document
        if release != self.current:
            # A release on probation is not kept for a rollback, unless there is no other.
            proven = self.previous if self.probation is not None else None
            previous = proven if proven not in {None, release} else self.current
            self._write_current(release, previous=previous, probation=probation, shadow=None)
        return before

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
            self._write(probation=probation)

    def keep_shadow(self, shadow: ProbationRecord | None) -> None:
        """Record which release is in shadow mode, or that none is.

        Raises: DeviceError.
        """
        if shadow != self._document.shadow:
            self._write(shadow=shadow)

    def roll_back(self, reason: str, by: str) -> None:
        """Refuse the current release and let the previous one serve, in one durable step.

        Args:
            reason: Why, for people.
            by: Software that refused it, see `forget_refusals_of_others`.
        Raises: DeviceError.
        """
        if self.current is not None and self.previous is not None:
            refused = self._with_refusal(self.current, reason)
            self._write_current(self.previous, previous=None, probation=None, refused=refused, refused_by=by)

    def return_to_previous(self) -> None:
        """Let the previous release serve again; the current one is dropped.

        Raises: DeviceError.
        """
        self._write_current(self.previous, previous=None, probation=None)

    def forget_slots(self) -> None:
        """Forget both releases, because neither can serve.

        Raises: DeviceError.
        """
        self._write_current(None, previous=None, probation=None, shadow=None)

    def refuse(self, release: str, reason: str, by: str) -> None:
        """Record that `release` failed here, and end its shadow mode.

        Args:
            release: Its id.
            reason: Why, for people.
            by: Software that refused it, see `forget_refusals_of_others`.
        Raises: DeviceError.
        """
        shadow = self.shadow if self.shadow is None or self.shadow.release != release else None
        self._write(refused=self._with_refusal(release, reason), refused_by=by, shadow=shadow)

    def _with_refusal(self, release: str, reason: str) -> dict[str, str]:
        refused = {known: why for known, why in self._document.refused.items() if known != release}
        refused[release] = reason[:REASON_LIMIT]
        return dict(list(refused.items())[-REFUSALS_KEPT:])

    def forget_refusals_of_others(self, by: str) -> None:
        """Forget the refusals of other software: this one may be able to run those releases.

        Raises: DeviceError.
        """
        if self._document.refused and self._document.refused_by != by:
            self._write(refused={}, refused_by=by)

    def clean_slots(self) -> None:
        """Remove the slots that are not kept; never fails."""
        with contextlib.suppress(OSError):
            for path in self._slots_dir.iterdir():
                if path.name not in self.kept:
                    _remove(path)

    def clean(self) -> None:
        """Remove all leftovers but a staged download, at a start; never fails."""
        self.clean_slots()
        leftovers: list[Path] = []
        with contextlib.suppress(OSError):
            # Scratch folders of killed update checks and unfinished writes (`disk.py`).
            for pattern in SCRATCH_PATTERNS:
                leftovers += self._state_dir.glob(pattern)
            leftovers += self._state_dir.glob(".*.json.*")
            leftovers += self._state_dir.glob(".*.partial")
            leftovers += self._state_dir.glob("metadata/**/.*.json.*")
        for path in leftovers:
            _remove(path)

    def _load(self) -> SlotsDocument:
        try:
            data = self._file.read_bytes()
        except FileNotFoundError:
            return self._adopt("is missing")
        except OSError as e:
            msg = f"{self._file}: {e.strerror or e}; check the disk and who owns [device] state_dir"
            raise DeviceError(msg) from e
        try:
            document = decode_document(
                SlotsDocument, data, source=str(self._file), limit_bytes=SLOTS_LIMIT_BYTES
            )
            shadow = document.shadow.release if document.shadow is not None else None
            for release in (document.current, document.previous, shadow):
                if release is not None:
                    check_name(release, "release id")
        except InputError as e:
            return self._adopt(f"cannot be read ({e})")
        return document

    def _adopt(self, why: str) -> SlotsDocument:
        """Build a document from the slots: each was verified before it got its name; the newest serves."""
        found = sorted(
            (path for path in self._slots_dir.glob("*") if (path / RELEASE_FILE).is_file()),
            key=lambda path: path.stat().st_mtime,
        )
        names = [path.name for path in found[-2:]]
        if names:
            logger.warning("%s %s; continuing with release %s from the disk", self._file, why, names[-1])
        return SlotsDocument(
            current=names[-1] if names else None, previous=names[0] if len(names) > 1 else None
        )

    def _write_current(self, release: str | None, **changes: object) -> None:
        self._write(current=release, serving_since=self._now() if release is not None else "", **changes)

    def _write(self, **changes: object) -> None:
        document = msgspec.structs.replace(self._document, **changes)
        write_durably(self._file, encode_document(document))
        self._document = document


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
