"""Child process of an update check.

    python -m edge_client.update.check_child [COMMAND OF A SELF-TEST]

reads settings from standard input, and prints `installing OUTCOME` before it downloads a release, then a
report. It starts the self-test that it is given at once: that process imports its runtime on another core,
while this one imports what it needs itself.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from edge_client.children import (
    die_with_parent,
    exit_now,
    forbid_privileges,
    hidden_modules,
    hide_from_others,
    prefer_as_oom_victim,
    read_order,
    start,
)

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import BinaryIO

    from edge_client.update.check import ReleaseUpdater
    from edge_client.update.check_process import CheckOrder, Report
    from edge_client.update.decision import UpdateOutcome

# python-tuf imports signers that a device never needs, and boto3 with them where it is installed; msgspec
# imports backports of `typing` where they are installed. Together they take a third of the start.
_UNNEEDED = ("boto3", *(("typing_extensions",) if sys.version_info >= (3, 11) else ()))


def main() -> int:
    """Run the child."""
    prefer_as_oom_victim()
    hide_from_others()
    forbid_privileges()
    die_with_parent()
    test = _start_self_test(sys.argv[1:])
    try:
        with hidden_modules(*_UNNEEDED):
            return _check(test, sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:
        return 1  # the daemon was killed: nobody reads the report
    finally:
        if test is not None:
            test.kill()
            with contextlib.suppress(ValueError):  # its pipes are closed after a self-test
                test.communicate()


def _start_self_test(command: list[str]) -> subprocess.Popen[bytes] | None:
    """Start the self-test ahead of time; where that fails, it is tried again when it is needed."""
    if not command:
        return None
    with contextlib.suppress(OSError):
        return start(command)
    return None


def _check(test: subprocess.Popen[bytes] | None, order_in: BinaryIO, report_out: BinaryIO) -> int:
    import msgspec  # noqa: PLC0415 - imports start once the self-test's process runs

    from edge_client.contract.documents import encode_document  # noqa: PLC0415 - as above
    from edge_client.reporting.logs import configure_logs  # noqa: PLC0415 - as above
    from edge_client.update.check_process import INSTALLING, SIGNED  # noqa: PLC0415 - as above

    def on_install(outcome: UpdateOutcome) -> None:
        report_out.write(INSTALLING + msgspec.json.encode(outcome) + b"\n")
        report_out.flush()

    def on_signed(release: str, digest: str) -> None:
        report_out.write(SIGNED + f"{release} {digest}\n".encode())

    order: CheckOrder = read_order(order_in)
    os.environ.update(order.secrets)
    configure_logs()
    report = _report(lambda: _build_updater(order, test, on_install, on_signed))
    report_out.write(encode_document(report))
    report_out.flush()
    return 0


def _build_updater(
    order: CheckOrder,
    test: subprocess.Popen[bytes] | None,
    on_install: Callable[[UpdateOutcome], None],
    on_signed: Callable[[str, str], None],
) -> ReleaseUpdater:
    from edge_client.contract.rollout import Member  # noqa: PLC0415 - as above
    from edge_client.repository.opening import open_repository, sweep_scratch  # noqa: PLC0415 - as above
    from edge_client.update.check import ReleaseUpdater, start_self_test  # noqa: PLC0415 - as above
    from edge_client.update.slots import Slots  # noqa: PLC0415 - as above
    from edge_client.update.timing import MOVE_FILE, MoveTiming  # noqa: PLC0415 - as above

    settings, device = order.settings, order.settings.device
    sweep_scratch(device.state_dir)  # of a check that was killed
    return ReleaseUpdater(
        device.id,
        device.channel,
        settings.update,
        Slots(device.state_dir),
        lambda: open_repository(settings),
        software=order.software,
        open_self_test=lambda: start_self_test(
            settings.update, device.threads, test, latency_budget_ms=device.latency_budget_ms
        ),
        device_class=device.device_class,
        member=Member(device.id, device.site, device.device_class, device.tags),
        timing=MoveTiming(device.state_dir / MOVE_FILE),
        requested=order.requested,
        retry=order.retry,
        on_install=on_install,
        on_signed=on_signed,
    )


def _report(build_updater: Callable[[], ReleaseUpdater]) -> Report:
    from edge_client.contract.errors import EdgeError  # noqa: PLC0415 - as above
    from edge_client.update.check_process import Report, error_kind  # noqa: PLC0415 - as above

    updater = None
    try:
        updater = build_updater()
        return Report(outcome=updater.check())
    except EdgeError as e:
        decided = updater.decided if updater is not None else None
        return Report(outcome=decided, error=error_kind(e), message=str(e))


if __name__ == "__main__":
    exit_now(main())
