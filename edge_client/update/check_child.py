"""Child process of an update check.

    python -m edge_client.update.check_child [COMMAND OF A SELF-TEST]

reads settings from standard input, and prints `installing RELEASE` before it downloads one, then a report. It
starts the self-test that it is given at once: that process imports its runtime on another core, while this
one imports what it needs itself.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from edge_client.children import (
    die_with_parent,
    exit_now,
    hidden_modules,
    prefer_as_oom_victim,
    start,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import BinaryIO

    from edge_client.settings.update import CheckSettings
    from edge_client.update.check import ReleaseUpdater
    from edge_client.update.check_process import Report

# python-tuf imports signers that a device never needs, and boto3 with them where it is installed; msgspec
# imports backports of `typing` where they are installed. Together they take a third of the start.
_UNNEEDED = ("boto3", *(("typing_extensions",) if sys.version_info >= (3, 11) else ()))


def main() -> int:
    """Run the child."""
    die_with_parent()
    prefer_as_oom_victim()
    test = start(sys.argv[1:]) if sys.argv[1:] else None
    try:
        with hidden_modules(*_UNNEEDED):
            return _check(test, sys.stdin.buffer, sys.stdout.buffer)
    finally:
        if test is not None:
            test.kill()
            with contextlib.suppress(ValueError):  # its pipes are closed after a self-test
                test.communicate()


def _check(test: subprocess.Popen[bytes] | None, settings_in: BinaryIO, report_out: BinaryIO) -> int:
    import pickle  # noqa: PLC0415 - imports start once the self-test's process runs

    from edge_client.contract.documents import encode_document  # noqa: PLC0415 - as above
    from edge_client.reporting.logs import configure_logs  # noqa: PLC0415 - as above
    from edge_client.update.check_process import INSTALLING, SIGNED  # noqa: PLC0415 - as above

    def on_install(release: str) -> None:
        report_out.write(INSTALLING + release.encode() + b"\n")
        report_out.flush()

    def on_signed(release: str, digest: str) -> None:
        report_out.write(SIGNED + f"{release} {digest}\n".encode())

    # Only from the daemon that started this process.
    settings, software, allowed = pickle.load(settings_in)  # noqa: S301
    configure_logs()
    updater = _build_updater(settings, software, test, on_install, on_signed, allowed=allowed)
    report_out.write(encode_document(_report(updater)))
    report_out.flush()
    return 0


def _build_updater(
    settings: CheckSettings,
    software: str,
    test: subprocess.Popen[bytes] | None,
    on_install: Callable[[str], None],
    on_signed: Callable[[str, str], None],
    *,
    allowed: bool,
) -> ReleaseUpdater:
    from edge_client.repository.opening import open_repository, sweep_scratch  # noqa: PLC0415 - as above
    from edge_client.update.check import ReleaseUpdater, start_self_test  # noqa: PLC0415 - as above
    from edge_client.update.slots import Slots  # noqa: PLC0415 - as above

    device = settings.device
    sweep_scratch(device.state_dir)  # of a check that was killed
    return ReleaseUpdater(
        device.id,
        device.channel,
        settings.update,
        Slots(device.state_dir),
        lambda: open_repository(settings),
        software=software,
        open_self_test=lambda: start_self_test(
            settings.update, device.threads, test, latency_budget_ms=device.latency_budget_ms
        ),
        device_class=device.device_class,
        allowed=allowed,
        on_install=on_install,
        on_signed=on_signed,
    )


def _report(updater: ReleaseUpdater) -> Report:
    from edge_client.contract.errors import EdgeError  # noqa: PLC0415 - as above
    from edge_client.update.check_process import Report, error_kind  # noqa: PLC0415 - as above

    try:
        outcome = updater.check()
    except EdgeError as e:
        return Report(decision="", release="", bytes_pulled=0, reason="", error=error_kind(e), message=str(e))
    return Report(
        decision=outcome.decision.name,
        release=outcome.release,
        bytes_pulled=outcome.bytes_pulled,
        reason=outcome.reason,
        error="",
        message="",
        share_percent=outcome.share_percent,
    )


if __name__ == "__main__":
    exit_now(main())
