"""One full look at the store: is there a release for this device, is it good, then let it serve.

The order is the promise. Nothing is touched before the metadata is verified; nothing gets a slot
before its content is verified, its document fits this device and its self-test passed in a child
process; nothing serves before it was loaded and warmed beside the serving model. Whatever fails,
and wherever power goes, the old release goes on serving.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import functools
import logging
import shutil
import time
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.names import LABELS_FILE, MODEL_FILE, RELEASE_FILE, check_name, release_target
from edge_client.contract.release import PREPROCESSING_ID, RELEASE_LIMIT_BYTES, ReleaseDocument, in_rollout
from edge_client.files import disk_errors, read_release
from edge_client.update.patches import fetch_model
from edge_client.update.selftest import SelfTest, SelfTestError

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edge_client.contract.release import ChannelDocument
    from edge_client.inference.classifier import Classifier
    from edge_client.inference.swap import ClassifierHolder
    from edge_client.settings import UpdateSettings
    from edge_client.update.probation import ProbationRecord
    from edge_client.update.slots import Slots
    from edge_client.update.trust import TrustedRepository

logger = logging.getLogger(__name__)

UNREADABLE_WAITS_S = (1.0, 3.0, 10.0)


class Decision(enum.Enum):
    """What a signed pointer means for this device."""

    SERVES = "serves already"
    NOT_IN_SHARE = "is for a share of devices that this one is not in yet"
    REFUSED = "was refused on this device before"
    HELD = "waits for somebody to ask for it (`edge-client update`)"
    TAKE = "is to be taken"


class RefusedError(EdgeError):
    """The release is signed, but this device cannot use it; it is not tried again."""


@dataclasses.dataclass(frozen=True)
class UpdateOutcome:
    """What one look came to.

    Attributes:
        decision: TAKE if the release is ready to serve.
        release: Release that the signed channel points to.
        bytes_pulled: Bytes read from the store.
        reason: Why it was refused before; empty otherwise.
        share_percent: Share of devices that may take it.
    """

    decision: Decision
    release: str
    bytes_pulled: int
    reason: str = ""
    share_percent: float = 100.0


def decide(
    channel: ChannelDocument,
    device_id: str,
    current: str | None,
    refused: dict[str, str],
    *,
    allowed: bool = True,
    beside: str | None = None,
) -> Decision:
    """Return what a signed pointer means for one device.

    Args:
        channel: The pointer.
        device_id: Decides the rollout share.
        current: Release that serves; a first one is taken in any case.
        refused: Releases that failed here.
        allowed: Whether a release may be taken now.
        beside: Release that was taken and answers beside the serving one.
    """
    if channel.release == current:
        return Decision.SERVES
    if not in_rollout(device_id, channel.release, channel.share_percent):
        return Decision.NOT_IN_SHARE
    if channel.release in refused:
        return Decision.REFUSED
    return Decision.TAKE if allowed or current is None or channel.release == beside else Decision.HELD


class ReleaseUpdater:
    """Looks at the store, and brings what the channel points to into a slot. One thread at a time."""

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
        allowed: bool = True,
        on_take: Callable[[str], None] = lambda _release: None,
    ) -> None:
        """Build an updater.

        Args:
            device_id: Decides the rollout share.
            channel: Channel to follow.
            settings: Limits.
            slots: Releases on the disk.
            open_repository: Gives a fresh `TrustedRepository`.
            software: See `this_software`, which is the default.
            open_self_test: Starts the child that tries a release; default: when one is going to be fetched.
            threads: Threads of the interpreter.
            device_class: Releases for another class are refused.
            allowed: Whether a release may be taken now.
            on_take: Told the release that is going to be taken.
        """
        self._device_id = device_id
        self._channel = channel
        self._settings = settings
        self._slots = slots
        self._open_repository = open_repository
        self._software = software
        self._open_self_test = open_self_test or functools.partial(start_self_test, settings, threads)
        self._device_class = device_class
        self._allowed = allowed
        self._on_take = on_take

    def look(self) -> UpdateOutcome:
        """Look once; a release to take is verified, tried and in its slot afterwards.

        It touches nothing that serves, so another process may do it (`look.py`).

        Raises: TrustError, TransportError or DeviceError; RefusedError if the release is signed but unusable
            here.
        """
        software = self._software or this_software()
        self._slots.forget_refusals_of_others(software)
        with self._open_repository() as repository:
            repository.refresh()
            channel = repository.channel(self._channel)
            release = check_name(channel.release, "release id")
            shadow = self._slots.shadow
            decision = decide(
                channel,
                self._device_id,
                self._slots.current,
                self._slots.refused,
                allowed=self._allowed,
                beside=shadow.release if shadow is not None else None,
            )
            if decision is not Decision.TAKE:
                self._slots.drop_staged()  # the channel moved on before it was complete
            else:
                with refusing(self._slots, release, software):
                    self._take(repository, release)
            reason = self._slots.refused.get(release, "")
            return UpdateOutcome(decision, release, repository.bytes_pulled, reason, channel.share_percent)

    def _take(self, repository: TrustedRepository, release: str) -> None:
        self._on_take(release)
        slot = self._slots.folder(release)
        if release in self._slots.kept and self._is_whole(repository, release, slot):
            logger.info("release %s is on the disk already", release)
            self._slots.drop_staged()
        else:
            self._fetch(repository, release)
            self._slots.install(release)

    def _is_whole(self, repository: TrustedRepository, release: str, slot: Path) -> bool:
        """Whether all files of a slot are as they are signed now."""
        path = release_target(release, RELEASE_FILE)
        if not repository.holds(path, slot / RELEASE_FILE):
            return False
        return all(
            repository.holds(release_target(release, name), slot / name)
            for name in needed_files(read_release(slot))
        )

    def _fetch(self, repository: TrustedRepository, release: str) -> None:
        """Gather a release, and try it.

        Raises: SelfTestError or InputError if it is unusable here; TrustError, TransportError, DeviceError.
        """
        self._slots.clean_slots()
        folder = self._slots.stage(release)
        try:
            with self._open_self_test() as test:
                self._gather(repository, release, folder)
                cases = test.run(folder)
            logger.info("release %s: self-test passed, %d pictures", release, cases)
        except (DeviceError, InputError):
            # Refused, or the disk is full: give the space back. After a lost connection it stays.
            self._slots.drop_staged()
            raise

    def _gather(self, repository: TrustedRepository, release: str, folder: Path) -> None:
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
                self._fetch_or_copy(repository, release_target(release, name), folder)
        _keep_only(folder, {RELEASE_FILE, *names})

    def _fetch_or_copy(self, repository: TrustedRepository, path: str, folder: Path) -> None:
        """Labels and self-test pictures are often those of the release before."""
        name = path.rpartition("/")[2]
        for slot in self._slots.in_use():
            if repository.holds(path, slot / name):
                with disk_errors(folder):
                    shutil.copyfile(slot / name, folder / name)
                break
        repository.fetch(path, folder)  # nothing, if the copy is good

    def _check_size(self, size_bytes: int, limit_bytes: int, what: str) -> None:
        if size_bytes > limit_bytes:
            msg = (
                f"{what}: {size_bytes} bytes, this device takes at most {limit_bytes} "
                "([update] max_release_bytes)"
            )
            raise InputError(msg)

    def _check_space(self, folder: Path, size_bytes: int) -> None:
        with disk_errors(folder):
            # What came of it before counts: else a download that broke off could never go on.
            here = sum(path.stat().st_size for path in folder.iterdir())
            free = shutil.disk_usage(folder).free + here
        needed = size_bytes + self._settings.min_free_bytes
        if free < needed:
            msg = (
                f"{folder}: {free} bytes free, {needed} needed ({size_bytes} for the release, the rest is "
                "[update] min_free_bytes); make room, it will be tried again"
            )
            raise DeviceError(msg)


def _keep_only(folder: Path, names: set[str]) -> None:
    """Remove what ways that were given up left behind."""
    with disk_errors(folder):
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()


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


def start_self_test(
    settings: UpdateSettings,
    threads: int,
    started: subprocess.Popen[bytes] | None = None,
    *,
    latency_budget_ms: float = 0.0,
) -> SelfTest:
    """Start the child that tries a release, unless it is started.

    Raises: DeviceError.
    """
    return SelfTest(
        timeout_s=settings.self_test_timeout_s,
        memory_bytes=settings.self_test_memory_bytes or None,
        threads=threads,
        latency_budget_ms=latency_budget_ms,
        started=started,
    )


@contextlib.contextmanager
def refusing(slots: Slots, release: str, software: str) -> Iterator[None]:
    """Remember a release that cannot be used here.

    Raises: RefusedError.
    """
    try:
        yield
    except (SelfTestError, InputError) as e:
        slots.refuse(release, str(e), software)
        logger.error("release %s is refused: %s", release, e)  # noqa: TRY400 - said in one line
        msg = f"release {release} is refused: {e}"
        raise RefusedError(msg) from e


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


def this_software(device_class: str = "") -> str:
    """Name what decides whether a release can run here."""
    from edge_client.inference.runtime import runtime_name  # noqa: PLC0415 - not for a look

    name = f"edge-client {__version__}, {runtime_name()}"
    return f"{name}, class {device_class}" if device_class else name


def needed_files(document: ReleaseDocument) -> tuple[str, ...]:
    """Names of a release's files besides `release.json`, in the order in which they are fetched.

    Raises: InputError if a name is not safe.
    """
    pictures = (check_name(case.file, "self-test file") for case in document.self_test)
    return tuple(dict.fromkeys((LABELS_FILE, *pictures, MODEL_FILE)))


def check_document(document: ReleaseDocument, release: str, device_class: str = "") -> None:
    """Refuse a release document that cannot be right for this release and this device.

    Raises: InputError.
    """
    if document.release != release:
        msg = f"{RELEASE_FILE} is of release {document.release!r}, not {release!r}; publish it again"
        raise InputError(msg)
    if document.device_class not in {"", device_class}:
        msg = (
            f"it is for devices of class {document.device_class!r}, this one is of class {device_class!r} "
            "([device] device_class); publish to another channel, or correct the class"
        )
        raise InputError(msg)
    if document.preprocessing.id != PREPROCESSING_ID:
        msg = (
            f"it wants preprocessing {document.preprocessing.id!r}, this version has {PREPROCESSING_ID!r}; "
            "update edge-client"
        )
        raise InputError(msg)
