"""Pointer and rollout of a channel, as pure functions: the release to beat, and moves."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import msgspec

from edge_client.contract.errors import InputError
from edge_client.contract.names import RELEASE_FILE, release_target
from edge_client.contract.release import ChannelDocument
from luigi_tasks.release.pointers import just_after, later, needed_by

if TYPE_CHECKING:
    from collections.abc import Callable

    from edge_client.contract.rollout import RolloutDocument
    from luigi_tasks.release.published import RepositoryState


def find_champion(state: RepositoryState, channel: str, release: str) -> str | None:
    """Return the release to beat: the channel's, or the one before it if that is the candidate itself.

    Args:
        state: What is published.
        channel: The channel that the candidate is for.
        release: Id that the candidate would be published under.
    """
    pointer = state.channel(channel)
    if pointer is None:
        return None
    if pointer.release != release:
        return pointer.release
    document = state.release(release)
    return document.parent if document is not None and document.parent else None


def point_channel(
    pointer: ChannelDocument | None, channel: str, release: str, *, share_percent: float, at: str
) -> ChannelDocument:
    """Return the pointer after a new release was published on the channel."""
    return ChannelDocument(
        channel=channel,
        release=release,
        share_percent=share_percent,
        withdrawn=pointer.withdrawn if pointer is not None else (),
        moved_at=at,
        retry_since=pointer.retry_since if pointer is not None else "",
    )


def roll_channel_back(
    pointer: ChannelDocument | None, channel: str, release: str, *, at: str
) -> ChannelDocument:
    """Return the pointer after a person rolled the channel back to an earlier release.

    The release that it pointed to is withdrawn: no run publishes it again until data or settings change.
    Raises: InputError if there is no such channel.
    """
    if pointer is None:
        msg = f"channel {channel}: nothing was published on it, so it cannot be rolled back"
        raise InputError(msg)
    withdrawn = [one for one in (*pointer.withdrawn, pointer.release) if one != release]
    return ChannelDocument(
        channel=channel,
        release=release,
        share_percent=100.0,
        withdrawn=tuple(dict.fromkeys(withdrawn)),
        moved_at=at,
        retry_since=pointer.retry_since,
    )


def allow_retry(pointer: ChannelDocument | None, channel: str, release: str, *, at: str) -> ChannelDocument:
    """Return the pointer that lets devices which refused its release try it again.

    Args:
        pointer: The channel's pointer.
        channel: Its name.
        release: The release that a person wants to be tried again.
        at: UTC, ISO 8601, as `utc_now` gives it.
    Raises: InputError if the channel does not point to the release: nothing else would be tried.
    """
    if pointer is None or pointer.release != release:
        points = "nothing" if pointer is None else pointer.release
        msg = f"channel {channel}: points to {points}; devices try only what it points to, so give that"
        raise InputError(msg)
    if at <= pointer.retry_since:  # this machine's clock is behind that of the one before
        at = just_after(pointer.retry_since)
    return msgspec.structs.replace(pointer, retry_since=at)


def move_pointer(
    state: RepositoryState, move: Callable[[ChannelDocument | None], ChannelDocument], channel: str
) -> ChannelDocument:
    """Return a channel's new pointer, later than the one before.

    A channel that lost its pointer keeps what was withdrawn from it.
    """
    return _settle(state, move(state.channel(channel)), channel)


@dataclasses.dataclass(frozen=True)
class Pointers:
    """Where a channel points: its steady pointer, and its rollout.

    Attributes:
        channel: The channel's pointer; None: nothing was published on it.
        rollout: The rollout document; None: there never was a rollout.
    """

    channel: ChannelDocument | None = None
    rollout: RolloutDocument | None = None


def move_pointers(
    state: RepositoryState, channel: str, change: Callable[[Pointers], Pointers], at: str
) -> Pointers:
    """Return what a change moves: documents that it leaves as they are are None.

    Args:
        state: What is published.
        channel: The channel's name.
        change: Returns the new documents for those that are published.
        at: Time of the move, UTC, ISO 8601, for documents that do not tell one.
    Raises: InputError if a document is of another channel, is taken away, or names a release that is not
        signed; as `change`.
    """
    before = Pointers(state.channel(channel), state.rollout(channel))
    after = change(before)
    pointer = None if after.channel == before.channel else after.channel
    rollout = None if after.rollout == before.rollout else after.rollout
    for old, new in ((before.channel, after.channel), (before.rollout, after.rollout)):
        if (old is not None and new is None) or (new is not None and new.channel != channel):
            msg = f"channel {channel}: its pointer and its rollout can be moved, not taken away or exchanged"
            raise InputError(msg)
    for moved in (pointer, rollout):
        for release in () if moved is None else needed_by(moved):
            if release_target(release, RELEASE_FILE) not in state.files:
                msg = f"channel {channel}: release {release} is not signed (any more), so nothing was moved"
                raise InputError(msg)
    if rollout is not None:
        last = "" if before.rollout is None else before.rollout.moved_at
        rollout = msgspec.structs.replace(rollout, moved_at=later(rollout.moved_at or at, last))
    if pointer is not None:
        pointer = msgspec.structs.replace(pointer, moved_at=pointer.moved_at or at)
        pointer = _settle(state, pointer, channel)
    return Pointers(pointer, rollout)


def _settle(state: RepositoryState, pointer: ChannelDocument, channel: str) -> ChannelDocument:
    before = state.channel(channel)
    if before is not None:
        return msgspec.structs.replace(pointer, moved_at=later(pointer.moved_at, before.moved_at))
    withdrawn = tuple(one for one in state.withdrawn(channel) if one != pointer.release)
    return msgspec.structs.replace(pointer, withdrawn=withdrawn)
