"""Refusal of a signed release that this device cannot use: recorded, so that it is not tried again."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from edge_client import __version__
from edge_client.contract.errors import EdgeError, InputError
from edge_client.contract.release import ReleaseDocument
from edge_client.update.selftest import SelfTestError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edge_client.update.slots import Slots

logger = logging.getLogger(__name__)


class RefusedError(EdgeError):
    """A signed release that this device cannot use; it is not tried again."""


@contextlib.contextmanager
def refusing(slots: Slots, release: str, software: str) -> Iterator[None]:
    """Record a refusal if the block finds the release unusable here.

    Raises: RefusedError then.
    """
    try:
        yield
    except (SelfTestError, InputError) as e:
        slots.refuse(release, str(e), software)
        logger.error("release %s is refused: %s", release, e)  # noqa: TRY400 - one line, no traceback
        msg = f"release {release} is refused: {e}"
        raise RefusedError(msg) from e


def this_software(device_class: str = "") -> str:
    """Return client, runtime and device class: what decides whether a release can run here.

    The schema too: it tells a client that reads a release from one that refused it.
    """
    from edge_client.inference.runtime import runtime_name  # noqa: PLC0415 - an update check does without

    schema = ReleaseDocument.newest_schema
    name = f"edge-client {__version__}, release schema {schema}, {runtime_name()}"
    return f"{name}, class {device_class}" if device_class else name
