"""Watch over the daemon's threads: systemd's watchdog is fed while they live and nothing hangs.

What is stuck is stuck at two looks in a row: after a machine that stood still as a whole, the first look
comes before the threads have had a chance to go on.
"""

from __future__ import annotations

import enum
import logging
import time
from typing import TYPE_CHECKING

from edge_client.sources.driver import STUCK_S as DRIVER_STUCK_S

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable

    from edge_client.reporting.systemd import SystemdNotifier
    from edge_client.sources.driver import DriverWatch

logger = logging.getLogger(__name__)

# No frame takes so long: the runtime hangs.
STUCK_S = 60.0
# Interval of looks at source, driver and threads.
WATCH_S = 2.0
_LOOKS = 2


class Hang(enum.Enum):
    """What hangs, as far as one look tells."""

    NONE = enum.auto()
    MODEL = enum.auto()
    SOURCE = enum.auto()


class Watchdog:
    """Looks at the daemon's threads.

    Attributes:
        classifying_since: When the frame that is being classified came, monotonic seconds; None without one.
    """

    def __init__(
        self,
        systemd: SystemdNotifier,
        driver: DriverWatch,
        is_alive: Callable[[], bool],
        on_hang: Callable[[Hang], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare.

        Args:
            systemd: Is told that the daemon is alive.
            driver: Calls of a source that may hang.
            is_alive: Returns whether all threads are alive.
            on_hang: Told when something begins to hang, and when it goes on.
            clock: Monotonic seconds.
        """
        self.classifying_since: float | None = None
        self._systemd = systemd
        self._driver = driver
        self._is_alive = is_alive
        self._on_hang = on_hang
        self._clock = clock
        self._hang = self._noted = Hang.NONE
        self._stuck = 0  # looks in a row

    def run(self, stop: threading.Event, show_fault: Callable[[str], None]) -> None:
        """Look every few seconds until `stop`; faults of the source go to `show_fault`."""
        while not stop.wait(min(self._systemd.interval_s or WATCH_S, WATCH_S)):
            if fault := self._driver.fault():
                show_fault(fault)
            if self.look():
                self._systemd.alive()

    def look(self) -> bool:
        """Return whether nothing is stuck."""
        hang, before = self._find_hang(), self._hang
        self._hang = hang
        if hang is before and hang is not self._noted:
            self._noted = hang
            self._on_hang(hang)
        self._stuck = 0 if hang is Hang.NONE and self._is_alive() else self._stuck + 1
        if self._stuck == _LOOKS:
            logger.error("the daemon is stuck: systemd's watchdog is not fed until it goes on")
        return self._stuck < _LOOKS

    def _find_hang(self) -> Hang:
        since = self.classifying_since
        if since is not None and self._clock() - since > STUCK_S:
            return Hang.MODEL
        return Hang.SOURCE if self._driver.waiting_s() > DRIVER_STUCK_S else Hang.NONE
