"""Update check in a child process: what an update takes does not stay in the daemon's memory.

The child (`check_child.py`) verifies, downloads, tries and puts the release into its slot; the daemon
activates it. An update check that hangs is killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pickle
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING

import msgspec

from edge_client.children import (
    FOLDER,
    describe_exit,
    environment,
    python_command,
    secrets,
    self_test_command,
)
from edge_client.contract.documents import Document, decode_document
from edge_client.contract.errors import (
    DeviceError,
    EdgeError,
    InputError,
    SettingsError,
    TransportError,
    TrustError,
)
from edge_client.settings.update import CheckSettings
from edge_client.update.decision import UpdateOutcome
from edge_client.update.endings import Retry
from edge_client.update.refusals import PostponedError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_client.settings.file import Settings

REPORT_LIMIT_BYTES = 65536
# First word of the line with the outcome so far, which the child prints before it downloads a release.
INSTALLING = b"installing "
# First word of a line that names a release on the disk and the digest that is signed for its document.
SIGNED = b"signed "
ERRORS: dict[str, type[EdgeError]] = {
    kind.__name__: kind
    for kind in (
        RefusedError,
        PostponedError,
        TrustError,
        TransportError,
        SettingsError,
        DeviceError,
        InputError,
    )
}


@dataclasses.dataclass(frozen=True)
class CheckOrder:
    """What the child of an update check is to do; it comes through the child's standard input.

    Attributes:
        settings: Settings that the check needs.
        software: See `this_software`.
        requested: Whether a person asked for the release.
        retry: How a release that failed before is treated.
        secrets: Variables that may hold the store's keys.
    """

    settings: CheckSettings
    software: str
    requested: bool = False
    retry: Retry = Retry.DUE
    secrets: dict[str, str] = dataclasses.field(default_factory=dict, repr=False)


class Report(Document, frozen=True, kw_only=True):
    """Result of an update check, as the child prints it.

    Attributes:
        outcome: What was decided, also where that failed afterwards; None if nothing was.
        error: Name of the error's class; empty if there was no error.
        message: Text of the error.
    """

    outcome: UpdateOutcome | None = None
    error: str = ""
    message: str = ""


def error_kind(error: Exception) -> str:
    """Return the name of an error's kind, for another process; see `build_error`."""
    return next((name for name, kind in ERRORS.items() if isinstance(error, kind)), DeviceError.__name__)


def build_error(kind: str, message: str) -> EdgeError:
    """Build an error of the kind that another process named."""
    return ERRORS.get(kind, DeviceError)(message)


class CheckCancelledError(EdgeError):
    """The update check was cancelled by this process; it may be repeated at once."""


class CheckEndedError(DeviceError):
    """The child of an update check ended without a report, as where memory runs out; it may be repeated."""


class UpdateCheck:
    """Runs update checks in a child process, one at a time; another thread may cancel the running one.

    Attributes:
        signed: Digest that is signed for the document of each release on the disk, as the last check, also a
            failed one, found it by verifying signatures.
        decided: What the last check decided, also where it failed afterwards; None if it decided nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._cancelled = False
        self.signed: dict[str, str] = {}
        self.decided: UpdateOutcome | None = None

    def cancel(self) -> None:
        """Kill the running check, if there is one; what it downloaded stays for the next check."""
        with self._lock:
            if self._child is not None:
                self._cancelled = True
                self._child.kill()

    def run(
        self,
        settings: Settings,
        software: str,
        on_install: Callable[[UpdateOutcome], None] = lambda _outcome: None,
        *,
        expecting: bool,
        requested: bool = False,
        retry: Retry = Retry.DUE,
    ) -> UpdateOutcome:
        """Check once.

        Args:
            settings: Settings of the channel.
            software: See `this_software`.
            on_install: Called with what was decided before a release is downloaded.
            expecting: Whether a new release was announced: its self-test then starts at once.
            requested: Whether a person asked for the release: it waits for nothing then.
            retry: How a release that failed before is treated.
        Raises: CheckCancelledError; what `ReleaseUpdater.check` raises; TransportError if the check took
            too long; DeviceError if the child cannot be started or crashed.
        """
        command = python_command("edge_client.update.check_child")
        if expecting:
            command += _self_test_command(settings)
        needed = CheckSettings(settings.device, settings.store, settings.trust, settings.update)
        order = CheckOrder(needed, software, requested, retry, secrets())
        try:
            child = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(), cwd=FOLDER
            )
        except OSError as e:
            msg = f"{sys.executable} cannot be started: {e}; no update until it can"
            raise DeviceError(msg) from e
        self.signed, self.decided = {}, None
        begin = functools.partial(self._note_decision, on_install=on_install)
        with _ended(child), _time_limit(child, settings.update.check_timeout_s), self._cancellable(child):
            output = _talk(child, pickle.dumps(order), begin, self.signed)
            child.wait()
        report = _read_report(child.returncode, output)
        self.decided = report.outcome or self.decided
        if report.error or report.outcome is None:
            raise build_error(report.error, report.message)
        return report.outcome

    def _note_decision(self, line: bytes, on_install: Callable[[UpdateOutcome], None]) -> None:
        self.decided = msgspec.json.decode(line, type=UpdateOutcome)
        on_install(self.decided)

    @contextlib.contextmanager
    def _cancellable(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Let `cancel` kill the child within the block.

        Raises: CheckCancelledError at the end of the block if it did.
        """
        with self._lock:
            self._child, self._cancelled = child, False
        try:
            yield
        finally:
            with self._lock:
                self._child = None
        if self._cancelled:
            msg = "the update check was cancelled"
            raise CheckCancelledError(msg)


def _self_test_command(settings: Settings) -> list[str]:
    memory_bytes = settings.update.self_test_memory_bytes or None
    device, timeout_s = settings.device, settings.update.self_test_timeout_s
    return self_test_command(device.threads, memory_bytes, device.latency_budget_ms, timeout_s)


@contextlib.contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill the child if the block fails; close its pipes and wait for its end in any case."""
    with child:
        try:
            yield
        except BaseException:
            child.kill()
            raise


@contextlib.contextmanager
def _time_limit(child: subprocess.Popen[bytes], limit_s: float) -> Iterator[None]:
    """Kill the child if the block takes longer than `limit_s`.

    Raises: TransportError at the end of the block if it did; DeviceError if no timer can be started.
    """
    late = threading.Event()

    def kill() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit_s, kill)
    try:
        timer.start()
    except RuntimeError as e:
        msg = f"no thread can be started for the update check: {e}; it will be tried again"
        raise DeviceError(msg) from e
    try:
        yield
    finally:
        timer.cancel()
    if late.is_set():
        msg = f"the update check took over {limit_s:g} s ([update] check_timeout_s); it will be tried again"
        raise TransportError(msg)


def _talk(
    child: subprocess.Popen[bytes],
    settings: bytes,
    on_install: Callable[[bytes], None],
    signed: dict[str, str],
) -> bytes:
    """Send the settings to the child; return the report that it prints, and fill `signed`."""
    try:
        with _pipe(child.stdin) as to_child:
            to_child.write(settings)
    except BrokenPipeError:
        return b""
    report = b""
    for line in _pipe(child.stdout):
        if line.startswith(INSTALLING):
            on_install(line.removeprefix(INSTALLING))
        elif line.startswith(SIGNED):
            release, digest = line.decode().split()[1:]
            signed[release] = digest
        else:
            report += line
    return report


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    if pipe is None:
        msg = "the child was started without pipes"
        raise ValueError(msg)
    return pipe


def _read_report(returncode: int, output: bytes) -> Report:
    try:
        return decode_document(
            Report, output, source="report of the update check", limit_bytes=REPORT_LIMIT_BYTES
        )
    except InputError as e:
        end = describe_exit(returncode, "it crashed") or f"code {returncode}"
        msg = f"the update check ended without a report: {end}; it is tried again, see the log"
        raise CheckEndedError(msg) from e
