"""The signed documents of a channel, as far as they are there and this version can read them."""

from __future__ import annotations

import dataclasses
import logging
from typing import TYPE_CHECKING

from edge_client.contract.errors import InputError, TransportError
from edge_client.contract.names import check_name
from edge_client.repository.trusted import NotSignedError

if TYPE_CHECKING:
    from edge_client.contract.release import ChannelDocument
    from edge_client.contract.rollout import RolloutDocument
    from edge_client.repository.trusted import TrustedRepository

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ChannelDocuments:
    """Pointer and rollout of a channel.

    Attributes:
        channel: The steady pointer; None: none is signed yet.
        rollout: The rollout document; None: none is signed, or it does not count.
        warning: Why it does not count; empty otherwise.
    """

    channel: ChannelDocument | None
    rollout: RolloutDocument | None
    warning: str = ""

    @property
    def named(self) -> frozenset[str]:
        """All releases that the documents name: announcements of these are true."""
        names = {self.channel.release} if self.channel is not None else set()
        if self.rollout is not None and self.rollout.id:
            names |= {self.rollout.release, *self.rollout.variants.values()}
        return frozenset(names)

    @property
    def retry_since(self) -> str:
        """See `ChannelDocument`."""
        return self.channel.retry_since if self.channel is not None else ""


def read_documents(repository: TrustedRepository, channel: str) -> ChannelDocuments:
    """Read what is signed for a channel.

    A rollout document that this version cannot read is as none: the steady pointer counts, and a rollout is
    never wider than it was signed. So is one that a bundle lacks, as those of clients that knew no rollouts.

    Raises: NotSignedError if neither is signed; as `TrustedRepository.channel`; InputError if a release's id
        is not safe.
    """
    warning, rollout = "", None
    try:
        rollout = repository.rollout(channel)
        if rollout is not None and rollout.id:
            check_name(rollout.id, "rollout id")
            for release in (rollout.release, *rollout.variants.values()):
                check_name(release, "release id")
    except InputError as e:
        rollout, warning = None, f"the rollout is not followed: {e}"
        logger.warning("%s", warning)
    except TransportError as e:
        if not repository.is_bundle:
            raise
        logger.warning("%s; the channel's release counts, as for a client that knows no rollouts", e)
    try:
        pointer = repository.channel(channel)
    except NotSignedError:
        if rollout is None or not rollout.id:
            raise
        return ChannelDocuments(None, rollout, warning)
    check_name(pointer.release, "release id")
    return ChannelDocuments(pointer, rollout, warning)
