"""Decision of an update check: what a signed channel means for one device. Pure: values in, a value out."""

from __future__ import annotations

import dataclasses
import enum
from typing import TYPE_CHECKING

from edge_client.contract.release import in_rollout

if TYPE_CHECKING:
    from edge_client.contract.release import ChannelDocument


class Decision(enum.Enum):
    """What a signed channel means for this device; the lower-case name goes into `DeviceStatus.decision`."""

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
        release: Release that the signed channel points to.
        bytes_pulled: Bytes read from the store.
        reason: Why the release was refused or postponed before; empty otherwise.
        share_percent: Share of devices that may install the release.
    """

    decision: Decision
    release: str
    bytes_pulled: int
    reason: str = ""
    share_percent: float = 100.0


def decide(
    channel: ChannelDocument,
    device_id: str,
    current: str | None,
    refused: dict[str, str],
    *,
    allowed: bool = True,
    shadow: str | None = None,
    postponed: bool = False,
) -> Decision:
    """Return what a signed channel means for one device.

    Args:
        channel: The signed channel document.
        device_id: Decides whether the device is in the rollout share.
        current: Serving release; a first release is installed without a request.
        refused: Reasons by release that failed on this device.
        allowed: Whether a release may be installed now: automatically, or because it was requested.
        shadow: Release in shadow mode, which was allowed before.
        postponed: Whether the channel's release failed here, and waits for its next try.
    """
    if channel.release == current:
        return Decision.SERVES
    if not in_rollout(device_id, channel.release, channel.share_percent):
        return Decision.NOT_IN_SHARE
    if channel.release in refused:
        return Decision.REFUSED
    if postponed and channel.release != shadow:
        return Decision.POSTPONED
    if allowed or current is None or channel.release == shadow:
        return Decision.INSTALL
    return Decision.HELD
