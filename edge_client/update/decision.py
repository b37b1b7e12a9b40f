"""Decision of an update check: what a signed offer means for one device. Pure: values in, a value out."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_client.update.offer import Offer

# What a held or postponed release waits for, see `DeviceReport.waits_for`.
REQUEST, WINDOW, SPREAD, RETRY = "request", "window", "spread", "retry"


class Decision(enum.Enum):
    """What a signed offer means for this device; the lower-case name goes into `DeviceStatus.decision`."""

    SERVES = "serves already"
    NOT_IN_SHARE = "is being rolled out to a share of devices that does not include this one yet"
    REFUSED = "was refused on this device before"
    POSTPONED = "could not be tried on this device, for a reason that may pass, and is tried again"
    HELD = "waits for `edge-client update`"
    INSTALL = "is to be installed"


@dataclasses.dataclass(frozen=True)
class UpdateOutcome:
    """Outcome of an update check that reached a decision.

    Attributes:
        decision: INSTALL if the release is verified, tried and in its slot, ready to be activated.
        release: Release that is offered to this device now, see `Offer`.
        bytes_pulled: Bytes read from the store.
        reason: Why the release was refused or postponed before, or what it waits for; empty otherwise.
        share_percent: Share of devices that may install the release, of pipelines without rollouts.
        intended: Release that this device is to have in the end; empty: the same.
        steady: Release of the channel's pointer; empty: none is signed.
        rollout: Id of the rollout that is under way; empty: none is.
        rollout_release: Release of that rollout.
        is_taken_back: Whether that release is taken back from all devices.
        named: All releases that the signed documents name.
        waits_for: What a held release waits for: `request`, `window` or `spread`; empty: nothing.
        wait_s: Seconds until the next check may find that it waits no more; None: unknown.
        heartbeat_s: Seconds between two reports, as the fleet asks; 0: as in the settings.
        returns: Whether the device goes back to the steady release that it had before: no probation then.
        warning: Why the rollout document does not count; empty otherwise.
    """

    decision: Decision
    release: str
    bytes_pulled: int
    reason: str = ""
    share_percent: float = 100.0
    intended: str = ""
    steady: str = ""
    rollout: str = ""
    rollout_release: str = ""
    is_taken_back: bool = False
    named: tuple[str, ...] = ()
    waits_for: str = ""
    wait_s: float | None = None
    heartbeat_s: float = 0.0
    returns: bool = False
    warning: str = ""

    @property
    def is_first_of_two(self) -> bool:
        """Whether the device has the steady release now, to go back to, and takes the rollout's next."""
        settled = self.decision in {Decision.SERVES, Decision.INSTALL}
        return settled and self.intended not in {"", self.release}


@dataclasses.dataclass(frozen=True)
class Hold:
    """What a release waits for that could be installed otherwise.

    Attributes:
        waits_for: `request`, `window` or `spread`.
        wait_s: Seconds until it may be over; None: unknown.
        reason: In words, for people.
    """

    waits_for: str
    wait_s: float | None
    reason: str


def decide(
    offer: Offer,
    current: str | None,
    refused: dict[str, str],
    *,
    allowed: bool = True,
    shadow: str | None = None,
    postponed: bool = False,
) -> Decision:
    """Return what a signed offer means for one device.

    Args:
        offer: What the channel's documents offer to it.
        current: Serving release; a first release is installed without a request.
        refused: Reasons by release that failed on this device.
        allowed: Whether a release may be installed now: automatically, or because it was requested.
        shadow: Release in shadow mode, which was allowed before.
        postponed: Whether the release failed here, and waits for its next try.
    """
    if offer.release == current:
        return Decision.SERVES
    if not offer.in_share:
        return Decision.NOT_IN_SHARE
    if offer.release in refused:
        return Decision.REFUSED
    if postponed and offer.release != shadow:
        return Decision.POSTPONED
    if allowed or current is None or offer.release == shadow:
        return Decision.INSTALL
    return Decision.HELD
