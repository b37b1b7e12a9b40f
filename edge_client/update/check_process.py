"""One look at the store in a child process: what it takes to update does not stay in the daemon's memory.

The child (`look_child.py`) verifies, downloads, tries and puts the release into its slot; the daemon
loads it. A look that hangs is killed.
"""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from edge_client.children import (
    describe_death,
    environment,
    python_command,
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
from edge_client.settings.update import LookSettings
from edge_client.update.check import Decision, UpdateOutcome
from edge_client.update.refusals import RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge_client.settings.file import Settings

REPORT_LIMIT_BYTES = 65536
TAKING = b"taking "
ERRORS: dict[str, type[EdgeError]] = {
    kind.__name__: kind
    for kind in (RefusedError, TrustError, TransportError, SettingsError, DeviceError, InputError)
}


class Report(Document, frozen=True, kw_only=True):
    """How a look ended.

    Attributes:
        decision: Name of the `Decision`; empty after an error.
        release: Release that the signed channel points to.
        bytes_pulled: Bytes read from the store.
        reason: Why it was refused before; empty otherwise.
        error: Name of the error's class; empty if there was none.
        message: Its text.
        share_percent: Share of devices that may take the release.
    """

    decision: str
    release: str
    bytes_pulled: int
    reason: str
    error: str
    message: str
    share_percent: float = 100.0


def name_of(error: Exception) -> str:
    """Name the kind of an error for another process; see `error_named`."""
    return next((name for name, kind in ERRORS.items() if isinstance(error, kind)), DeviceError.__name__)


def error_named(name: str, message: str) -> EdgeError:
    """Build the error of a kind that another process named."""
    return ERRORS.get(name, DeviceError)(message)


class LookStoppedError(EdgeError):
    """The look was stopped by this process; it may be made again at once."""


class LookControl:
    """Stops a look that goes on, from another thread; what it downloaded stays for the next."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @contextlib.contextmanager
    def over(self, child: subprocess.Popen[bytes]) -> Iterator[None]:
        """Control a child for the length of the block.

        Raises: LookStoppedError at its end if it was stopped.
        """
        with self._lock:
            self._child, self._stopped = child, False
        try:
            yield
        finally:
            with self._lock:
                self._child = None
        if self._stopped:
            msg = "the look was stopped"
            raise LookStoppedError(msg)

    def stop(self) -> None:
        """Stop the look that goes on, if one does."""
        with self._lock:
            if self._child is not None:
                self._stopped = True
                self._child.kill()


def look_in_child(
    settings: Settings,
    software: str,
    on_take: Callable[[], None],
    *,
    expecting: bool,
    allowed: bool = True,
    control: LookControl | None = None,
) -> UpdateOutcome:
    """Look once.

    Args:
        settings: The daemon's.
        expecting: Whether a new release was announced: its self-test then starts at once.
        software: See `this_software`.
        on_take: Called when a release is going to be taken.
        allowed: Whether one may be taken now.
        control: Stops it from another thread.
    Raises: LookStoppedError; what `ReleaseUpdater.look` raises; TransportError if it took too long;
        DeviceError if the child cannot be started or crashed.
    """
    command = python_command("edge_client.update.check_child")
    needed = LookSettings(settings.device, settings.store, settings.trust, settings.update)
    if expecting:
        limits = settings.update
        command += self_test_command(
            settings.device.threads,
            limits.self_test_memory_bytes or None,
            settings.device.latency_budget_ms,
        )
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment())
    except OSError as e:
        msg = f"{sys.executable} cannot be started: {e}; no update until it can"
        raise DeviceError(msg) from e
    late = threading.Event()
    limit_s = settings.update.look_timeout_s

    def give_up() -> None:
        late.set()
        child.kill()

    timer = threading.Timer(limit_s, give_up)
    timer.start()
    with (control or LookControl()).over(child), child:
        try:
            said = _talk(child, pickle.dumps((needed, software, allowed)), on_take)
        except BaseException:
            child.kill()
            raise
        finally:
            timer.cancel()
    if late.is_set():
        msg = f"the look at the store took over {limit_s:g} s ([update] look_timeout_s); will be tried again"
        raise TransportError(msg)
    return _read_report(child.returncode, said)


def _talk(child: subprocess.Popen[bytes], settings: bytes, on_take: Callable[[], None]) -> bytes:
    """Hand over the settings; return what the child says at last."""
    assert child.stdin is not None  # noqa: S101 - as it was opened
    assert child.stdout is not None  # noqa: S101
    try:
        child.stdin.write(settings)
        child.stdin.close()
    except BrokenPipeError:
        return b""
    said = b""
    for line in child.stdout:
        if line.startswith(TAKING):
            on_take()
        else:
            said += line
    return said


def _read_report(returncode: int, said: bytes) -> UpdateOutcome:
    try:
        report = decode_document(Report, said, source="look", limit_bytes=REPORT_LIMIT_BYTES)
    except InputError as e:
        death = describe_death(returncode, "it crashed") or f"code {returncode}"
        msg = f"the look at the store ended without a report: {death}; the log says more"
        raise DeviceError(msg) from e
    if report.error:
        raise error_named(report.error, report.message)
    return UpdateOutcome(
        Decision[report.decision], report.release, report.bytes_pulled, report.reason, report.share_percent
    )
