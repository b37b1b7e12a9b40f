"""What pointer and rollout of a channel offer to one device. Pure: values in, a value out.

A device whose place in the rollout is open is to have the rollout's release; everybody else the one of the
steady pointer. A device that has nothing takes the steady release first: it can go back to it then.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from edge_client.contract.release import in_rollout
from edge_client.contract.rollout import NOW

if TYPE_CHECKING:
    from collections.abc import Collection

    from edge_client.contract.release import ChannelDocument
    from edge_client.contract.rollout import Member, RolloutDocument


@dataclasses.dataclass(frozen=True)
class Offer:
    """Release that a device may install now.

    Attributes:
        release: Its id.
        intended: Release that the device is to have in the end; another one if it needs the steady one first.
        steady: Release of the steady pointer, or its variant for the device's class; empty: none is signed.
        rollout: Id of the rollout that is under way; empty: none is.
        in_share: Whether the pointer's share includes the device, of pipelines without rollouts.
        share_percent: That share.
        apply: When the release may be installed, see `RolloutDocument`.
        window: See `RolloutDocument`.
        spread_s: See `RolloutDocument`.
        left: Releases that the device is not to have any more: withdrawn, or of a rollout that does not
            include it. Whoever leaves one of them is not to be judged by it.
        has_rollouts: Whether the pipeline rolls releases out: a steady release is a proven one then.
    """

    release: str
    intended: str
    steady: str
    rollout: str = ""
    in_share: bool = True
    share_percent: float = 100.0
    apply: str = NOW
    window: str = ""
    spread_s: float = 0.0
    left: frozenset[str] = frozenset()
    has_rollouts: bool = False

    def is_return(self, current: str | None, previous: str | None) -> bool:
        """Whether the device would go back to the steady release: it is not tried against what it leaves.

        Args:
            current: Serving release.
            previous: The one before.
        """
        known = self.has_rollouts and self.release == previous
        return self.release == self.steady and (known or current in self.left)

    @property
    def is_rolled_out(self) -> bool:
        """Whether the release comes from the rollout and not from the steady pointer."""
        return self.release != self.steady


def find_offer(
    channel: ChannelDocument | None,
    rollout: RolloutDocument | None,
    member: Member,
    *,
    current: str | None,
    refused: Collection[str] = (),
    postponed: Collection[str] = (),
) -> Offer | None:
    """Return what the signed documents offer to one device; None: nothing.

    Args:
        channel: The steady pointer; None: none is signed yet.
        rollout: The rollout document; None: none is signed, or this version cannot read it.
        member: The device.
        current: Serving release; None: the device has nothing.
        refused: Releases that failed on this device for good.
        postponed: Releases that failed on it and wait for their next try.
    """
    steady = channel.release if channel is not None else ""
    found = rollout.release_for(member) if rollout is not None else None
    intended = found or steady
    if found and rollout is not None and rollout.release == steady:
        steady = (
            found  # the rollout has ended, and its document keeps what the device's class has in its place
        )
    if not intended:
        return None
    unusable = {*refused, *postponed}
    # The steady release serves the others well: it is what a device without one starts with, and what one
    # falls back to that refused the rollout's.
    lacks = current is None and steady not in unusable
    lost = current is not None and intended in refused and current not in {intended, steady}
    release = steady if steady and (lacks or (lost and steady not in refused)) else intended
    return Offer(
        release=release,
        intended=intended,
        steady=steady,
        rollout=rollout.id if rollout is not None else "",
        in_share=channel is None or release != channel.release or _includes(channel, member, current),
        share_percent=channel.share_percent if channel is not None else 100.0,
        apply=rollout.apply if rollout is not None else NOW,
        window=rollout.window if rollout is not None else "",
        spread_s=rollout.spread_s if rollout is not None else 0.0,
        left=_left(channel, rollout) - {release, intended},
        has_rollouts=rollout is not None,
    )


def _left(channel: ChannelDocument | None, rollout: RolloutDocument | None) -> frozenset[str]:
    withdrawn = frozenset(channel.withdrawn if channel is not None else ())
    if rollout is None or not rollout.id:
        return withdrawn
    return withdrawn | {rollout.release, *rollout.variants.values()}


def _includes(channel: ChannelDocument, member: Member, current: str | None) -> bool:
    """Whether the pointer's share includes a device; one that has nothing would serve nothing else."""
    return current is None or in_rollout(member.device, channel.release, channel.share_percent)
