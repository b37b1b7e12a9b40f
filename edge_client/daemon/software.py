"""The software of this device, which may lack a runtime for a while: the daemon waits for one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import DeviceError
from edge_client.inference.runtime import runtime_name
from edge_client.update.refusals import this_software

if TYPE_CHECKING:
    from edge_client.settings.file import Settings

logger = logging.getLogger(__name__)


def find_software(settings: Settings) -> str:
    """Return what decides whether a release can run here, see `this_software`; empty without a runtime."""
    try:
        return this_software(settings.device, settings.update)
    except DeviceError as e:
        logger.error("%s", e)  # noqa: TRY400 - one line, no traceback
        return ""


def find_runtime() -> str:
    """Return the runtime's name and version; empty if there is none now."""
    try:
        return runtime_name()
    except DeviceError:
        return ""
