"""One look at the store in a child process: what it takes to update does not stay in the daemon's memory.

    python -m edge_client.update.look

reads settings from standard input, and prints `taking RELEASE` before it takes one, then a report.
The child verifies, downloads, tries and puts the release into its slot; the daemon loads it. A look
that hangs is killed.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import (
    DeviceError,
    EdgeError,
    InputError,
    SettingsError,
    TransportError,
    TrustError,
)
from edge_client.update.child import be_first_to_go, describe_death, die_with_parent, environment
from edge_client.update.slots import Slots
from edge_client.update.updater import (
    Decision,
    RefusedError,
    ReleaseUpdater,
    UpdateOutcome,
    start_self_test,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

    from edge_client.settings import Settings
    from edge_client.update.selftest import SelfTest

REPORT_LIMIT_BYTES = 65536
LOG_FORMAT = "%(levelname)s %(name)s: %(message)s"
_TAKING = b"taking "
_ERRORS: dict[str, type[EdgeError]] = {
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
    """

    decision: str
    release: str
    bytes_pulled: int
    reason: str
    error: str
    message: str


def look_in_child(
    settings: Settings, software: str, on_take: Callable[[], None], *, expecting: bool
) -> UpdateOutcome:
    """Look once.

    Args:
        settings: The daemon's.
        expecting: Whether a new release was announced: its self-test then starts at once.
        software: See `this_software`.
        on_take: Called when a release is going to be taken.
    Raises: What `ReleaseUpdater.look` raises; TransportError if it took too long; DeviceError if the child
        cannot be started or crashed.
    """
    command = [sys.executable, "-m", "edge_client.update.look"]
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
    with child:
        try:
            said = _talk(child, pickle.dumps((settings, software, expecting)), on_take)
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
        if line.startswith(_TAKING):
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
        raise _ERRORS.get(report.error, DeviceError)(report.message)
    return UpdateOutcome(Decision[report.decision], report.release, report.bytes_pulled, report.reason)


def main() -> int:
    """Run the child."""
    die_with_parent()
    be_first_to_go()
    # From the daemon that started this process, and from nobody else.
    settings, software, expecting = pickle.load(sys.stdin.buffer)  # noqa: S301
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT)
    logging.getLogger("tuf").setLevel(logging.WARNING)
    out = sys.stdout.buffer
    try:
        with contextlib.ExitStack() as stack:
            test = None
            if expecting:
                # On another core, while this process imports what it needs itself.
                test = stack.enter_context(start_self_test(settings.update, settings.device.threads))
            outcome = _look(settings, software, test, out)
    except EdgeError as e:
        error = next(name for name, kind in _ERRORS.items() if isinstance(e, kind))
        report = Report(decision="", release="", bytes_pulled=0, reason="", error=error, message=str(e))
    else:
        report = Report(
            decision=outcome.decision.name,
            release=outcome.release,
            bytes_pulled=outcome.bytes_pulled,
            reason=outcome.reason,
            error="",
            message="",
        )
    out.write(encode_document(report))
    return 0


def _look(settings: Settings, software: str, test: SelfTest | None, out: BinaryIO) -> UpdateOutcome:
    # python-tuf imports signers that a device never needs, and boto3 with them where it is installed.
    sys.modules.setdefault("boto3", None)  # type: ignore[arg-type]
    from edge_client.update.trust import open_repository  # noqa: PLC0415 - the daemon goes without

    def tell(release: str) -> None:
        out.write(_TAKING + release.encode() + b"\n")
        out.flush()

    updater = ReleaseUpdater(
        settings.device.id,
        settings.device.channel,
        settings.update,
        Slots(settings.device.state_dir),
        lambda: open_repository(settings),
        software=software,
        open_self_test=(lambda: test) if test else None,
        threads=settings.device.threads,
        on_take=tell,
    )
    return updater.look()


if __name__ == "__main__":
    sys.exit(main())
