"""Trials of releases on the disk in another process: what would crash this one, or only a new one loads."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import EdgeError
from edge_client.update.integrity import check_slot
from edge_client.update.selftest import SelfTest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edge_client.settings.file import Settings
    from edge_client.update.slots import Slots

logger = logging.getLogger(__name__)

# Longest self-test at a start; systemd waits 90 s for both releases.
START_S = 30.0


class OtherProcess:
    """Runs the self-tests of releases on the disk.

    Args:
        settings: Settings of the channel.
        slots: Releases on the disk.
        verified: Digest of each release's document that an update check found signed; read at each trial.
    """

    def __init__(self, settings: Settings, slots: Slots, verified: Mapping[str, str]) -> None:
        self._threads = settings.device.threads
        self._timeout_s = settings.update.self_test_timeout_s
        self._slots = slots
        self._verified = verified

    def try_at_start(self, release: str) -> None:
        """Try a release before this process loads it.

        Raises: DeviceError or InputError if it is not what was signed, or cannot serve there.
        """
        self._try(release, min(self._timeout_s, START_S))

    def opens_any(self) -> bool:
        """Return whether a new process can serve the current or the previous release."""
        for release in (self._slots.current, self._slots.previous):
            if release is None:
                continue
            try:
                self._try(release, self._timeout_s)
            except EdgeError as e:
                logger.info("release %s: in another process: %s", release, e)
                continue
            return True
        return False

    def _try(self, release: str, timeout_s: float) -> None:
        slot = self._slots.folder(release)
        check_slot(slot, recorded=self._slots.digest(release), verified=self._verified.get(release))
        with SelfTest(timeout_s=timeout_s, threads=self._threads) as test:
            test.run(slot)
