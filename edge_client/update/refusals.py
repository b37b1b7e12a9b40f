"""Tries of a signed release on this device that failed: recorded, and tried again or refused."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.errors import DeviceError, EdgeError, InputError
from edge_client.contract.release import ReleaseDocument
from edge_client.settings.update import UpdateSettings
from edge_client.update.endings import Ending, find_ending
from edge_client.update.failures import describe_failure
from edge_client.update.selftest import SelfTestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.settings.update import DeviceSettings
    from edge_client.update.slots import Slots

logger = logging.getLogger(__name__)


class RefusedError(EdgeError):
    """A signed release that this device cannot use; it is not tried again by itself."""


class PostponedError(DeviceError):
    """A signed release that this device could not try, for a reason that may pass; it is tried again."""


@contextlib.contextmanager
def refusing(
    slots: Slots,
    release: str,
    software: str,
    *,
    counts: bool = True,
    ending: Ending = Ending.UNUSABLE,
) -> Iterator[None]:
    """Record a failed try if the block finds the release unusable here.

    Args:
        slots: Releases on the disk.
        release: Its id.
        software: See `this_software`.
        counts: See `failures.add_failure`.
        ending: How the try ended where the error has no cause that says otherwise.
    Raises: RefusedError, or PostponedError if the release will be tried again.
    """
    try:
        yield
    except (SelfTestError, InputError) as e:
        how = e.ending if isinstance(e, SelfTestError) else find_ending(e, ending)
        fail_try(slots, release, how, str(e), software, counts=counts, cause=e)


def fail_try(
    slots: Slots,
    release: str,
    ending: Ending,
    reason: str,
    software: str,
    *,
    counts: bool = True,
    cause: Exception | None = None,
) -> None:
    """Record a failed try, and say so in the log once.

    Raises: RefusedError, or PostponedError if the release will be tried again.
    """
    record = slots.note_failure(release, ending, reason, software, counts=counts)
    if record.final:
        msg = f"release {release} is refused: {describe_failure(record)}"
        logger.error("%s", msg)
        raise RefusedError(msg) from cause
    msg = f"release {release} could not be tried: {describe_failure(record)}"
    logger.warning("%s", msg)
    raise PostponedError(msg) from cause


def this_software(device: DeviceSettings | None = None, update: UpdateSettings | None = None) -> str:
    """Return client, runtime, device class and limits: what decides whether a release can run here.

    The schema too: it tells a client that reads a release from one that refused it.
    """
    from edge_client.inference.runtime import runtime_name  # noqa: PLC0415 - an update check does without

    schema = ReleaseDocument.newest_schema
    name = f"edge-client {__version__}, release schema {schema}, {runtime_name()}"
    if device is not None and device.device_class:
        name += f", class {device.device_class}"
    if device is not None and device.latency_budget_ms:
        name += f", {device.latency_budget_ms:g} ms"
    if update is not None and update.max_release_bytes != UpdateSettings.max_release_bytes:
        name += f", {update.max_release_bytes} bytes"
    return name
