"""The rollout document: which devices may have a release before the channel's pointer moves to it.

`channels/<name>.json` stays the steady pointer. A client that does not know `rollouts/<name>.json` waits for
it to move, which is safe; a field of the pointer that such a client ignored would widen a rollout.
"""

from __future__ import annotations

import dataclasses
import hashlib

from edge_client.contract.documents import Document

ROLLOUT_LIMIT_BYTES = 65536
# Bits of the hash that a device is compared by: JSON readers keep whole numbers up to 2^53 (RFC 8259, 6).
HASH_BITS = 52
EVERYBODY, NOBODY = 1 << HASH_BITS, 0
BY_DEVICE, BY_SITE = "device", "site"
NOW, IN_WINDOW, ON_REQUEST = "now", "window", "ask"


class RolloutDocument(Document, frozen=True, kw_only=True):
    """`rollouts/<channel>.json`: the signed part of the fleet that may have a release.

    Attributes:
        channel: The channel's name.
        id: Id of the rollout; empty: there is none, and the channel's pointer alone counts.
        release: Release that is rolled out.
        from_release: Steady release that it is to follow; empty for the first.
        threshold: A device has the release if its hash (`rollout_hash`) is below; 0: nobody, 2^52: everybody.
        by: `device`, or `site`: the cameras of a site get a release together.
        only: Devices that the rollout is for, see `selects`; empty: all.
        excluded: Devices that it is not for, see `selects`.
        apply: When a device installs it: `now`, in its `window`, or when asked (`ask`).
        window: Local time of the device, "01:00-05:00"; may go over midnight.
        spread_s: A device waits a random part of so many seconds before it moves, to the release or back.
        heartbeat_s: Seconds between two reports of a device; 0: as in its own settings.
        variants: Release in the place of `release`, by device class.
        moved_at: UTC, ISO 8601.
    """

    channel: str
    id: str = ""
    release: str = ""
    from_release: str = ""
    threshold: int = NOBODY
    by: str = BY_DEVICE
    only: tuple[str, ...] = ()
    excluded: tuple[str, ...] = ()
    apply: str = NOW
    window: str = ""
    spread_s: float = 0.0
    heartbeat_s: float = 0.0
    variants: dict[str, str] = {}
    moved_at: str = ""

    def __post_init__(self) -> None:
        """Refuse what would be misread; raises ValueError, an InputError of `decode_document`."""
        if not NOBODY <= self.threshold <= EVERYBODY:
            msg = f"rollout with threshold {self.threshold}: 0 to 2^{HASH_BITS}"
            raise ValueError(msg)
        if self.by not in {BY_DEVICE, BY_SITE} or self.apply not in {NOW, IN_WINDOW, ON_REQUEST}:
            msg = f"rollout by {self.by!r}, applied {self.apply!r}: device or site; now, window or ask"
            raise ValueError(msg)
        if self.id and not self.release:
            msg = f"rollout {self.id} names no release"
            raise ValueError(msg)

    def release_for(self, member: Member) -> str | None:
        """Return the release that the rollout has for a device; None: the channel's pointer counts."""
        if not self.id or not selects(self.only, self.excluded, member):
            return None
        if rollout_hash(self.id, self.by, member) >= self.threshold:
            return None
        return self.variants.get(member.device_class, self.release)


@dataclasses.dataclass(frozen=True)
class Member:
    """A device, as far as a rollout asks.

    Attributes:
        device: Its id.
        site: Its site; empty: none.
        device_class: Its class; empty: none.
        tags: Its tags, such as `outdoor` or `line=3`.
    """

    device: str
    site: str = ""
    device_class: str = ""
    tags: tuple[str, ...] = ()


def rollout_hash(rollout: str, by: str, member: Member) -> int:
    """Return the place of a device in the order of a rollout, 0 to 2^52 - 1.

    Devices of one site have the same place where the rollout goes by sites. Another rollout has another
    order, so that the same devices are not always the first.
    """
    unit = f"site/{member.site}" if by == BY_SITE and member.site else f"device/{member.device}"
    digest = hashlib.sha256(f"{rollout}/{unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> (64 - HASH_BITS)


def selects(only: tuple[str, ...], excluded: tuple[str, ...], member: Member) -> bool:
    """Whether a rollout is for a device.

    A condition is `site=NAME`, `class=NAME`, `device=ID` or a tag. Conditions of `only` with the same key are
    alternatives, and of each key one must hold; none of `excluded` may hold.
    """
    facts = {f"site={member.site}", f"class={member.device_class}", f"device={member.device}", *member.tags}
    wanted: dict[str, list[str]] = {}
    for one in only:
        wanted.setdefault(one.partition("=")[0] if "=" in one else "", []).append(one)
    return all(facts.intersection(group) for group in wanted.values()) and not facts.intersection(excluded)
