"""The child that looks at the store.

    python -m edge_client.update.check_child [COMMAND OF A SELF-TEST]

reads settings from standard input, and prints `taking RELEASE` before it takes one, then a report. It
starts the self-test that it is given at once: that one imports its runtime on another core, while this
process imports what it needs itself.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from edge_client.children import be_first_to_go, die_with_parent, leave, start

if TYPE_CHECKING:
    import subprocess
    from typing import BinaryIO

    from edge_client.settings.update import LookSettings
    from edge_client.update.check import UpdateOutcome


def main() -> int:
    """Run the child."""
    die_with_parent()
    be_first_to_go()
    test = start(sys.argv[1:]) if sys.argv[1:] else None
    try:
        return _main(test)
    finally:
        if test is not None:
            test.kill()
            with contextlib.suppress(ValueError):  # it has been talked to
                test.communicate()


def _main(test: subprocess.Popen[bytes] | None) -> int:
    # python-tuf imports signers that a device never needs, and boto3 with them where it is installed;
    # msgspec looks for what `typing` of old Pythons lacked.
    for unneeded in ("boto3", *(("typing_extensions",) if sys.version_info >= (3, 11) else ())):
        sys.modules.setdefault(unneeded, None)  # type: ignore[arg-type]
    import pickle  # noqa: PLC0415 - from here on, as the docstring says

    from edge_client.contract.documents import encode_document  # noqa: PLC0415
    from edge_client.contract.errors import EdgeError  # noqa: PLC0415
    from edge_client.reporting.logs import configure_logs  # noqa: PLC0415
    from edge_client.update.check_process import Report, name_of  # noqa: PLC0415

    # From the daemon that started this process, and from nobody else.
    settings, software, allowed = pickle.load(sys.stdin.buffer)  # noqa: S301
    configure_logs()
    out = sys.stdout.buffer
    try:
        outcome = _look(settings, software, test, out, allowed=allowed)
    except EdgeError as e:
        report = Report(decision="", release="", bytes_pulled=0, reason="", error=name_of(e), message=str(e))
    else:
        report = Report(
            decision=outcome.decision.name,
            release=outcome.release,
            bytes_pulled=outcome.bytes_pulled,
            reason=outcome.reason,
            error="",
            message="",
            share_percent=outcome.share_percent,
        )
    out.write(encode_document(report))
    out.flush()
    return 0


def _look(
    settings: LookSettings,
    software: str,
    test: subprocess.Popen[bytes] | None,
    out: BinaryIO,
    *,
    allowed: bool,
) -> UpdateOutcome:
    from edge_client.repository.opening import open_repository, sweep_scratch  # noqa: PLC0415
    from edge_client.update.check import ReleaseUpdater, start_self_test  # noqa: PLC0415
    from edge_client.update.check_process import TAKING  # noqa: PLC0415 - as above
    from edge_client.update.slots import Slots  # noqa: PLC0415

    def tell(release: str) -> None:
        out.write(TAKING + release.encode() + b"\n")
        out.flush()

    sweep_scratch(settings.device.state_dir)  # of a look that was killed
    updater = ReleaseUpdater(
        settings.device.id,
        settings.device.channel,
        settings.update,
        Slots(settings.device.state_dir),
        lambda: open_repository(settings),
        software=software,
        open_self_test=lambda: start_self_test(
            settings.update,
            settings.device.threads,
            test,
            latency_budget_ms=settings.device.latency_budget_ms,
        ),
        device_class=settings.device.device_class,
        allowed=allowed,
        on_take=tell,
    )
    return updater.look()


if __name__ == "__main__":
    leave(main())
