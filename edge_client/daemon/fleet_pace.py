"""How fast a fleet may come: the interval of its reports tells a device how many others there are.

Only the fleet knows its size, and it sets `heartbeat_s` by it: 30 s for ten devices, an hour for 100,000.
After a power cut or an outage of the broker all of them come at once. A device that knows of a large fleet
lets a random part of a tenth of that interval pass: 100,000 devices are then 280 a second, where AWS IoT Core
takes 500. A device that is alone, or one of a few, comes at once, and so does one whose machine has been up
for a while: a power cut starts machines, and a person at one device starts its daemon. The interval is kept
on the disk: a start after a power cut is when it counts.
"""

from __future__ import annotations

import contextlib
import logging
import time
from typing import TYPE_CHECKING

from edge_client.contract.documents import Document, decode_document, encode_document
from edge_client.contract.errors import EdgeError
from edge_client.disk import write_durably

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

PACE_FILE = "pace.json"
PACE_LIMIT_BYTES = 4096
# Of the interval of reports; a fleet of that pace in seconds is small enough to come at once.
SPREAD_SHARE, AT_ONCE_S = 0.1, 3.0
# A daemon that starts later than this was not started by a power cut; a slow board is up in two minutes.
BOOTED_S = 600.0
# No fleet needs longer: a million devices at 500 connects a second.
LONGEST_SPREAD_S = 2400.0
# The pipeline asks for 5 s to a day; who stole its keys neither floods a broker nor silences a fleet.
SHORTEST_S, LONGEST_S = 0.5, 86400.0


class KnownPace(Document, frozen=True, kw_only=True):
    """`pace.json`: the interval of reports that the signed rollout document asked for last."""

    heartbeat_s: float = 0.0


class FleetPace:
    """The pace of one channel's fleet, as far as this device knows it.

    Attributes:
        heartbeat_s: Seconds between two reports that the fleet asked for last; 0: nothing.
        start_spread_s: Seconds over which the devices spread what they do when their machines have started.
    """

    def __init__(self, file: Path, uptime_s: float | None = None) -> None:
        """Read what is known; never fails.

        Args:
            file: Where it is kept.
            uptime_s: Seconds since the machine started; None: what Linux' monotonic clock tells.
        """
        self._file = file
        uptime_s = time.monotonic() if uptime_s is None else uptime_s
        self.heartbeat_s = 0.0
        with contextlib.suppress(OSError, EdgeError):
            data = file.read_bytes()
            known = decode_document(KnownPace, data, source=str(file), limit_bytes=PACE_LIMIT_BYTES)
            self.heartbeat_s = _sane(known.heartbeat_s)
        self.start_spread_s = self.spread_s if uptime_s < BOOTED_S else 0.0

    @property
    def spread_s(self) -> float:
        """Seconds over which the devices of this fleet spread what all of them do at the same moment."""
        return min(max(SPREAD_SHARE * self.heartbeat_s - AT_ONCE_S, 0.0), LONGEST_SPREAD_S)

    def note(self, heartbeat_s: float) -> None:
        """Note what the signed rollout document asks for; 0: nothing. Never fails."""
        heartbeat_s = _sane(heartbeat_s)
        if heartbeat_s == self.heartbeat_s:
            return
        self.heartbeat_s = heartbeat_s
        try:
            write_durably(self._file, encode_document(KnownPace(heartbeat_s=heartbeat_s)))
        except EdgeError as e:
            logger.warning("%s", e)


def _sane(seconds: float) -> float:
    return min(max(seconds, SHORTEST_S), LONGEST_S) if seconds > 0 else 0.0
