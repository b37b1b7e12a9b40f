"""Update check, in the child process: is there a release for this device, and can it serve here?

The order is the promise. Nothing is touched before the metadata is verified; nothing gets a slot before its
content is verified, its document fits this device and its self-test passed in a child process. Nothing
here touches what serves: `serving/activation.py` loads the new release in the daemon. Whatever fails, and
wherever power goes, the old release goes on serving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import shutil
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError, EdgeError, InputError, TransportError, TrustError
from edge_client.contract.names import MODEL_FILE, RELEASE_FILE, release_target
from edge_client.contract.release import RELEASE_LIMIT_BYTES
from edge_client.contract.rollout import NOBODY, Member
from edge_client.disk import disk_errors
from edge_client.releases import check_document, needed_files, read_release
from edge_client.update.decision import REQUEST, Decision, Hold, UpdateOutcome, decide
from edge_client.update.documents import read_documents
from edge_client.update.endings import Blame, Ending, Retry
from edge_client.update.failures import describe_failure
from edge_client.update.offer import find_offer
from edge_client.update.patches import fetch_model
from edge_client.update.refusals import refusing, this_software
from edge_client.update.selftest import SelfTest, SelfTestError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from edge_client.repository.trusted import TrustedRepository
    from edge_client.settings.update import UpdateSettings
    from edge_client.update.documents import ChannelDocuments
    from edge_client.update.offer import Offer
    from edge_client.update.slots import Slots
    from edge_client.update.timing import MoveTiming

logger = logging.getLogger(__name__)


class ReleaseUpdater:
    """Checks the store and brings the channel's release into a slot. One thread at a time.

    Attributes:
        decided: What the check decided, also where it failed afterwards; None before.
    """

    def __init__(
        self,
        device_id: str,
        channel: str,
        settings: UpdateSettings,
        slots: Slots,
        open_repository: Callable[[], TrustedRepository],
        *,
        software: str | None = None,
        open_self_test: Callable[[], SelfTest] | None = None,
        threads: int = 1,
        device_class: str = "",
        member: Member | None = None,
        timing: MoveTiming | None = None,
        requested: bool = False,
        retry: Retry = Retry.DUE,
        on_install: Callable[[UpdateOutcome], None] = lambda _outcome: None,
        on_signed: Callable[[str, str], None] = lambda _release, _digest: None,
    ) -> None:
        """Build an updater.

        Args:
            device_id: Decides whether the device is in the rollout share.
            channel: Channel to follow.
            settings: Limits.
            slots: Releases on the disk.
            open_repository: Opens a fresh `TrustedRepository`.
            software: See `this_software`, which is the default.
            open_self_test: Starts the child that tries a release; default: just before the download.
            threads: Threads of the interpreter.
            device_class: Releases for another class are refused.
            member: The device, as far as rollouts ask; default: its id and class.
            timing: When the device may move to another release; None: at once.
            requested: Whether a person asked for the release: it waits for nothing then.
            retry: How a release that failed before is treated.
            on_install: Called with what was decided before a download starts.
            on_signed: Called with each release on the disk and the digest that is signed for its document.
        """
        self._channel = channel
        self._settings = settings
        self._slots = slots
        self._open_repository = open_repository
        self._software = software
        self._open_self_test = open_self_test or functools.partial(start_self_test, settings, threads)
        self._device_class = device_class
        self._member = member or Member(device_id, device_class=device_class)
        self._timing = timing
        self._requested = requested
        self._retry = retry
        self._on_install = on_install
        self._on_signed = on_signed
        self.decided: UpdateOutcome | None = None

    def check(self) -> UpdateOutcome:
        """Check once; after INSTALL the release is verified, tried and in its slot.

        Raises: TrustError, TransportError or DeviceError; RefusedError if the release is signed but unusable
            here, PostponedError if a try failed and is repeated later.
        """
        software = self._software or this_software()
        self._slots.forget_failures_of_others(software)
        with self._open_repository() as repository:
            # Also without a network: what lies in a slot serves only if it is what was signed.
            for known, digest in repository.remembered_digests(self._slots.kept).items():
                self._on_signed(known, digest)
            repository.refresh()
            documents = read_documents(repository, self._channel)
            self._forget_failures(documents)
            interrupted = self._count_interruption(documents, software)
            offer = self._find_offer(documents, interrupted)
            outcome = _with_documents(self._decide(offer, interrupted), documents)
            self.decided = outcome
            if outcome.decision is Decision.INSTALL:
                counts = self._retry in {Retry.DUE, Retry.RESTART}
                with refusing(self._slots, offer.release, software, counts=counts):
                    self._install(repository, outcome)
            else:
                if outcome.decision not in {Decision.POSTPONED, Decision.HELD}:
                    self._slots.drop_staged()  # the channel moved on before the download was complete
                self._mend_slots(repository)
            return dataclasses.replace(outcome, bytes_pulled=repository.bytes_pulled)

    def _forget_failures(self, documents: ChannelDocuments) -> None:
        """Forget the failures that count no more."""
        if self._retry is Retry.FORGIVE:
            self._slots.forget_failures()
        else:
            self._slots.lift_failures(documents.named, documents.retry_since)

    def _count_interruption(self, documents: ChannelDocuments, software: str) -> str:
        """Count a self-test that neither passed nor failed; return its release, or an empty text."""
        trying = self._slots.trying
        if trying not in documents.named:
            return ""
        reason = f"self-test: {Ending.INTERRUPTED.meaning}"
        self._slots.note_failure(trying, Ending.INTERRUPTED, reason, software)
        return trying

    def _find_offer(self, documents: ChannelDocuments, interrupted: str) -> Offer:
        offer = find_offer(
            documents.channel,
            documents.rollout,
            self._member,
            current=self._slots.current,
            refused=self._slots.refused,
            postponed={release for release in documents.named if self._waits(release, interrupted)},
        )
        if offer is None:
            msg = (
                f"channel {self._channel} has no release for all devices yet, and its rollout does not "
                "include this one; it gets one when the rollout has ended"
            )
            raise TransportError(msg)
        return offer

    def _waits(self, release: str, interrupted: str) -> bool:
        """Whether a release that failed here waits for its next try."""
        record = self._slots.failures.records.get(release)
        hurried = release == interrupted or (record is not None and record.is_hurried(self._retry))
        return not hurried and self._slots.is_postponed(release)

    def _decide(self, offer: Offer, interrupted: str) -> UpdateOutcome:
        shadow = self._slots.shadow
        decision = decide(
            offer,
            self._slots.current,
            self._slots.refused,
            allowed=self._requested or self._settings.automatic,
            shadow=shadow.release if shadow is not None else None,
            postponed=self._waits(offer.release, interrupted),
        )
        hold = self._find_hold(offer, decision)
        failed = decision in {Decision.REFUSED, Decision.POSTPONED}
        return UpdateOutcome(
            decision if hold is None else Decision.HELD,
            offer.release,
            0,
            hold.reason if hold is not None else self._reason(offer.release) if failed else "",
            offer.share_percent,
            intended=offer.intended,
            steady=offer.steady,
            rollout=offer.rollout,
            waits_for=hold.waits_for if hold is not None else "",
            wait_s=hold.wait_s if hold is not None else None,
            returns=offer.is_return(self._slots.current, self._slots.previous),
        )

    def _find_hold(self, offer: Offer, decision: Decision) -> Hold | None:
        """Return what the release waits for; a planned move is kept only as long as it is one."""
        if decision is Decision.HELD:
            return Hold(REQUEST, None, "")
        if self._timing is None:
            return None
        if decision is Decision.SERVES:
            self._timing.forget()
        shadow = self._slots.shadow
        begun = self._slots.current is None or (shadow is not None and shadow.release == offer.release)
        waits = decision is Decision.INSTALL and not begun and not self._requested
        return self._timing.hold(offer) if waits else None

    def _reason(self, release: str) -> str:
        """Return why a release was refused or postponed."""
        record = self._slots.failures.records.get(release)
        return describe_failure(record) if record is not None else self._slots.refused.get(release, "")

    def _install(self, repository: TrustedRepository, outcome: UpdateOutcome) -> None:
        self._on_install(outcome)
        release = outcome.release
        slot = self._slots.folder(release)
        if slot.is_dir() and self._is_whole(repository, release, slot):
            logger.info("release %s is on the disk already", release)
            if self._slots.shadow is None or self._slots.shadow.release != release:
                self._slots.keep_trying(
                    release
                )  # no self-test is run, and it may end the daemon that loads it
            self._slots.drop_staged()
        else:
            self._fetch(repository, release)
            self._slots.install(release)

    def _mend_slots(self, repository: TrustedRepository) -> None:
        """Replace the files of slots that are not what is signed; whatever fails, the check goes on."""
        for release in self._slots.kept:
            try:
                signed = repository.look_up(release_target(release, RELEASE_FILE))
            except TrustError:
                continue  # the store keeps the newest releases only
            try:
                self._mend_slot(repository, release)
            except EdgeError as e:
                logger.warning("release %s on the disk could not be mended: %s", release, e)
                self._slots.drop_staged()
            self._on_signed(release, signed.sha256)

    def _mend_slot(self, repository: TrustedRepository, release: str) -> None:
        slot, path = self._slots.folder(release), release_target(release, RELEASE_FILE)
        mended, document_at = [], slot
        if not _fits(repository, path, slot / RELEASE_FILE):
            self._check_size(repository.look_up(path).size_bytes, RELEASE_LIMIT_BYTES, path)
            document_at = repository.fetch(path, self._slots.stage(release)).parent
            mended.append(RELEASE_FILE)
        for name in needed_files(read_release(document_at)):
            path = release_target(release, name)
            if _fits(repository, path, slot / name):
                continue
            staged = self._slots.stage(release)
            if name == MODEL_FILE:
                fetch_model(repository, release, staged, self._slots.in_use())
            else:
                repository.fetch(path, staged)
            mended.append(name)
        if mended:
            self._slots.replace_files(release, mended)
            self._slots.drop_staged()
            logger.warning("release %s on the disk: %s not as signed; replaced", release, ", ".join(mended))

    def _is_whole(self, repository: TrustedRepository, release: str, slot: Path) -> bool:
        """Whether every file of a slot matches what is signed now."""
        path = release_target(release, RELEASE_FILE)
        if not repository.holds(path, slot / RELEASE_FILE):
            return False
        names = needed_files(read_release(slot))
        return all(repository.holds(release_target(release, name), slot / name) for name in names)

    def _fetch(self, repository: TrustedRepository, release: str) -> None:
        """Download a release and run its self-test.

        Raises: SelfTestError or InputError if it is unusable here; TrustError, TransportError, DeviceError.
        """
        self._slots.clean_slots()
        folder = self._slots.stage(release)
        try:
            with self._open_self_test() as test:
                self._download(repository, release, folder)
                self._slots.keep_trying(release)
                cases = self._try(test, repository, release, folder)
            logger.info("release %s: self-test passed, %d pictures", release, cases)
        except (DeviceError, InputError) as e:
            # Refused, or the disk is full: free the space. After a lost connection the files stay, and for a
            # self-test that will be repeated.
            if not (isinstance(e, SelfTestError) and e.ending.blame is not Blame.PROOF):
                self._slots.drop_staged()
            raise

    def _try(self, test: SelfTest, repository: TrustedRepository, release: str, folder: Path) -> int:
        """Run the self-test; a release whose files have changed since their download proves nothing.

        Raises: SelfTestError.
        """
        try:
            return test.run(folder)
        except SelfTestError as e:
            if e.ending.blame is not Blame.PROOF or self._is_unchanged(repository, release, folder):
                raise
            msg = f"{e}; but its files on this disk have changed since they were downloaded"
            raise SelfTestError(msg, Ending.DISK) from e

    def _is_unchanged(self, repository: TrustedRepository, release: str, folder: Path) -> bool:
        with contextlib.suppress(EdgeError):
            return self._is_whole(repository, release, folder)
        return False  # it cannot even be read

    def _download(self, repository: TrustedRepository, release: str, folder: Path) -> None:
        path = release_target(release, RELEASE_FILE)
        self._check_size(repository.look_up(path).size_bytes, RELEASE_LIMIT_BYTES, path)
        repository.fetch(path, folder)
        document = read_release(folder)
        check_document(document, release, self._device_class)
        names = needed_files(document)
        size_bytes = sum(repository.look_up(release_target(release, name)).size_bytes for name in names)
        self._check_size(size_bytes, self._settings.max_release_bytes, f"release {release}")
        self._check_space(folder, size_bytes)
        for name in names:
            if name == MODEL_FILE:
                fetch_model(repository, release, folder, self._slots.in_use())
            else:
                self._copy_or_fetch(repository, release_target(release, name), folder)
        _keep_only(folder, {RELEASE_FILE, *names})

    def _copy_or_fetch(self, repository: TrustedRepository, path: str, folder: Path) -> None:
        """Reuse a file of a release on the disk: labels and self-test pictures seldom change."""
        name = path.rpartition("/")[2]
        for slot in self._slots.in_use():
            if repository.holds(path, slot / name):
                with contextlib.suppress(OSError):  # what could not be copied is downloaded
                    shutil.copyfile(slot / name, folder / name)
                break
        repository.fetch(path, folder)  # downloads nothing if the copy is intact

    def _check_size(self, size_bytes: int, limit_bytes: int, what: str) -> None:
        if size_bytes > limit_bytes:
            msg = (
                f"{what}: {size_bytes} bytes, this device accepts at most {limit_bytes} "
                "([update] max_release_bytes)"
            )
            raise InputError(msg)

    def _check_space(self, folder: Path, size_bytes: int) -> None:
        with disk_errors(folder):
            # What an earlier try downloaded counts: otherwise a download that broke off could never resume.
            staged = sum(path.stat().st_size for path in folder.iterdir())
            free = shutil.disk_usage(folder).free + staged
        needed = size_bytes + self._settings.min_free_bytes
        if free < needed:
            msg = (
                f"{folder}: {free} bytes free, {needed} needed ({size_bytes} for the release, the rest is "
                "[update] min_free_bytes); free some space, the download will be tried again"
            )
            raise DeviceError(msg)


def _with_documents(outcome: UpdateOutcome, documents: ChannelDocuments) -> UpdateOutcome:
    """Add what the daemon shows of the signed documents, whatever was decided."""
    rollout = documents.rollout
    return dataclasses.replace(
        outcome,
        rollout_release=rollout.release if rollout is not None else "",
        is_taken_back=rollout is not None and bool(rollout.id) and rollout.threshold == NOBODY,
        named=tuple(sorted(documents.named)),
        heartbeat_s=rollout.heartbeat_s if rollout is not None else 0.0,
        warning=documents.warning,
    )


def _fits(repository: TrustedRepository, path: str, file: Path) -> bool:
    """Whether a file is what is signed, or cannot be read now, which proves nothing."""
    if repository.holds(path, file):
        return True
    try:
        with file.open("rb") as opened:
            opened.read()
    except FileNotFoundError:
        return False
    except OSError as e:
        logger.warning("%s: %s", file, e.strerror or e)
        return True
    return False


def _keep_only(folder: Path, names: set[str]) -> None:
    """Remove what an abandoned download option left."""
    with disk_errors(folder):
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()


def start_self_test(
    settings: UpdateSettings,
    threads: int,
    started: subprocess.Popen[bytes] | None = None,
    *,
    latency_budget_ms: float = 0.0,
) -> SelfTest:
    """Start the child that tries a release, or adopt one that was started before.

    Raises: DeviceError.
    """
    return SelfTest(
        timeout_s=settings.self_test_timeout_s,
        memory_bytes=settings.self_test_memory_bytes or None,
        threads=threads,
        latency_budget_ms=latency_budget_ms,
        started=started,
    )
