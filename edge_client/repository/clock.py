"""Whether this device's clock can judge expiry: a Pi has no clock that runs without power.

A clock that is behind makes metadata that expired long ago look fresh. Two facts bound it from below: no
device runs this code before it was written, and no device can hold metadata that is not signed yet (the
pipeline writes the time of signing into each timestamp). The time that this device showed before is no bound:
a clock that was ahead for an hour would then lock it out for years.

A clock that is ahead makes fresh metadata look expired. Nothing in the store can prove that, for a
thief of the store could forge it; the message of an expiry names the clock.
"""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import TransportError
from edge_client.contract.names import SIGNED_AT_FIELD

if TYPE_CHECKING:
    from collections.abc import Callable

    Clock = Callable[[], datetime.datetime]

# No device runs this code before it was written: an earlier clock was never set.
EARLIEST_CLOCK = datetime.datetime(2025, 1, 1, tzinfo=datetime.timezone.utc)
# The pipeline's clock and this one may differ so much; signatures hold for weeks.
CLOCK_SLACK = datetime.timedelta(days=1)

_WAY_OUT = (
    "so expired metadata would look fresh. Nothing is installed until it is right; the serving release "
    "stays: connect the device to a time server (timedatectl set-ntp true), or add a real-time clock"
)


class ClockError(TransportError):
    """The clock cannot be right; the update check may succeed once it is set."""


def check_clock(now: datetime.datetime, signed_at: datetime.datetime | None = None) -> None:
    """Refuse a clock that cannot be right.

    Args:
        now: The clock's time, aware.
        signed_at: When metadata that this device has verified was signed; None: unknown.
    Raises: ClockError with the way out.
    """
    if now < EARLIEST_CLOCK:
        found = f"{_minutes(now)}: it was never set"
    elif signed_at is not None and now + CLOCK_SLACK < signed_at:
        found = f"{_minutes(now)}, but the store's metadata was signed on {_minutes(signed_at)}: it is behind"
    else:
        return
    msg = f"this device's clock says {found}, {_WAY_OUT}"
    raise ClockError(msg)


def read_signing_time(timestamp: bytes) -> datetime.datetime | None:
    """Return when timestamp metadata was signed; None where it has no such field.

    Args:
        timestamp: `timestamp.json`, verified.
    """
    try:
        said = msgspec.json.decode(timestamp)["signed"][SIGNED_AT_FIELD]
        moment = datetime.datetime.fromisoformat(said)
        return moment.astimezone(datetime.timezone.utc) if moment.tzinfo is not None else None
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, OverflowError):
        return None


def _minutes(moment: datetime.datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"
